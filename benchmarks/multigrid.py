"""Spatial multigrid against training on the volumes as they are: time to the same Dice of whole held-out volumes.

    python benchmarks/multigrid.py [--side 96] [--epochs 20] [--ct FOLDER] [--steps 200] [--seeds 0,1,2] [--plot FILE]

Two data sets: ellipsoids, and with --ct one real CT (ct.nii.gz and labels.nii.gz of a folder), which is trained on and
held out as a turned, shrunk and noisier copy: that says how fast training goes, not how well it generalises. For each
seed all ways run in turn: one level, one level with half of the steps (so that its learning rate falls in time), nested
iteration and V-cycles. Times are those of the training steps; the held-out volumes are segmented at the finest
resolution now and then, beside the clock, whatever level is trained.

A target is met at the first of these evaluations that reaches it. "As one level" is the Dice that the one-level run of
the same seed ends with.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from support.real_scan import one_scan

from volseg.machine import prepare_for_torch

prepare_for_torch()

from volseg.config import Config, ModelConfig, MultigridConfig, TrainingConfig  # noqa: E402
from volseg.distributed.communicator import SerialCommunicator  # noqa: E402
from volseg.events import ignore  # noqa: E402
from volseg.training.job import TrainingJob  # noqa: E402
from volseg.training.optimization import batch_of, set_learning_rate  # noqa: E402
from volseg.training.preparing import prepare  # noqa: E402
from volseg.training.step import training_step  # noqa: E402
from volseg.training.validation import validate  # noqa: E402
from volseg.volumes.generation import Recipe, generate_dataset  # noqa: E402

ALONE = SerialCommunicator()
WAYS = {
    "one level": (1.0, MultigridConfig()),
    "one level, half the steps": (0.5, MultigridConfig()),
    "fmg": (1.0, MultigridConfig(3, "fmg")),
    "fmg, shares 1, 2, 2": (1.0, MultigridConfig(3, "fmg", shares=(1, 2, 2))),
    "v": (1.0, MultigridConfig(3, "v")),
}
COLOURS = dict(zip(WAYS, ("#6B7280", "#B8BDC6", "#C2410C", "#F59E0B", "#0369A1"), strict=True))


@dataclass(frozen=True)
class Curve:
    """Seconds of training, and the Dice of the held-out volumes then."""

    seconds: list[float]
    dice: list[float]

    def reached(self, target: float) -> float | None:
        """When it was, first."""
        return next((t for t, d in zip(self.seconds, self.dice, strict=True) if d >= target), None)


@dataclass(frozen=True)
class Task:
    """A data set with how to train on it; evaluated `looks` times."""

    name: str
    folder: Path
    config: Config
    looks: int
    targets: tuple[float, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--cases", type=int, default=8)
    parser.add_argument("--noise", type=float, default=0.5)
    parser.add_argument("--ct", type=Path)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--channels", type=int, default=8)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    seeds = [int(seed) for seed in given.seeds.split(",")]
    model = ModelConfig(base_channels=given.channels, levels=3)
    with tempfile.TemporaryDirectory(prefix="volseg-multigrid-") as name:
        tasks = []
        if given.epochs:
            sides, held_out = (given.side,) * 3, 2
            recipe = Recipe(sides, given.cases + held_out, noise=given.noise, seed=5)
            generate_dataset(Path(name) / "ellipsoids", recipe, ALONE)
            config = Config(model, TrainingConfig(epochs=given.epochs, validation=held_out))
            title = f"{given.cases} ellipsoid volumes of {given.side}³, {given.epochs * given.cases} steps"
            tasks.append(Task(title, Path(name) / "ellipsoids", config, given.epochs, (0.8, 0.85, 0.9)))
        if given.ct:
            one_scan(given.ct, Path(name) / "ct")
            config = Config(model, TrainingConfig(epochs=given.steps, folds=2))
            tasks.append(Task(f"abdominal CT, {given.steps} steps", Path(name) / "ct", config, 20, (0.5, 0.6, 0.7)))
        found = [(task, measured(task, seeds, Path(name))) for task in tasks]
        for task, curves in found:
            table(task, curves)
        if given.plot:
            plot(found, given.plot)


def measured(task: Task, seeds: list[int], folder: Path) -> dict[str, list[Curve]]:
    """Curves of every way by seed."""
    curves: dict[str, list[Curve]] = {way: [] for way in WAYS}
    for seed in seeds:
        for way, (part, multigrid) in WAYS.items():
            training = replace(
                task.config.training, epochs=max(1, round(part * task.config.training.epochs)), seed=seed
            )
            config = Config(task.config.model, training, multigrid=multigrid)
            curves[way].append(curve(task, config, folder / "run"))
            last = curves[way][-1]
            print(f"{task.name}, seed {seed}, {way}: {last.seconds[-1]:.0f} s, Dice {last.dice[-1]:.3f}", flush=True)
    return curves


def curve(task: Task, config: Config, run: Path) -> Curve:
    """One run, step by step as `volseg train` makes it."""
    setup = prepare(TrainingJob(task.folder, run, config), ALONE, ignore)
    spent, found = 0.0, Curve([], [])
    looks = {round((n + 1) * setup.steps / task.looks) for n in range(task.looks)}
    before = setup.resolution(0)
    for step in range(setup.steps):
        begun = time.perf_counter()
        if (resolution := setup.resolution(step)) is not before:
            before.rest()
            before = resolution
        set_learning_rate(setup.optimizer, config.training, step, setup.steps)
        training_step(setup, batch_of(setup.cases, step, 1, config.training.seed), step)
        spent += time.perf_counter() - begun
        if step + 1 in looks:
            finest = setup.finest
            score = validate(finest.twin, finest.blocks, setup.held_out, len(setup.dataset.labels))
            found.seconds.append(spent)
            found.dice.append(score.mean or 0.0)
    return found


def table(task: Task, curves: dict[str, list[Curve]]) -> None:
    """Medians over the seeds; times as multiples of the faster of the one-level runs."""
    print(f"\n{task.name}; medians of {len(curves['fmg'])} seeds\n")
    targets: dict[str, Callable[[int], float]] = {f"Dice {t}": (lambda _, t=t: t) for t in task.targets}
    targets["as one level"] = lambda seed: curves["one level"][seed].dice[-1]
    print("| way | seconds | last Dice, by seed | " + " | ".join(f"to {t}" for t in targets) + " |")
    print("|---" * (3 + len(targets)) + "|")
    for way, runs in curves.items():
        cells = [f"{statistics.median(run.seconds[-1] for run in runs):.0f}"]
        cells.append(", ".join(f"{run.dice[-1]:.3f}" for run in runs))
        cells += [speed(curves, runs, target) for target in targets.values()]
        print(f"| {way} | {' | '.join(cells)} |")


def speed(curves: dict[str, list[Curve]], runs: list[Curve], target: Callable[[int], float]) -> str:
    """Median seconds to a target, and how many times faster than the faster of the one-level runs of the same seed."""
    times, ratios = [], []
    for seed, run in enumerate(runs):
        reached = run.reached(target(seed))
        single = [curves[way][seed].reached(target(seed)) for way in WAYS if way.startswith("one level")]
        fastest = min((t for t in single if t is not None), default=None)
        if reached is None:
            return f"not by {sum(r.reached(target(n)) is None for n, r in enumerate(runs))} of {len(runs)}"
        times.append(reached)
        if fastest is not None:
            ratios.append(fastest / reached)
    text = f"{statistics.median(times):.1f} s"
    return f"{text}, {statistics.median(ratios):.1f}x" if len(ratios) == len(runs) else f"{text}, one level never"


def plot(found: list[tuple[Task, dict[str, list[Curve]]]], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6 * len(found), 4.2), dpi=140, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (task, curves) in zip(np.atleast_1d(figure.subplots(1, len(found))), found, strict=True):
        for way, runs in curves.items():
            for number, run in enumerate(runs):
                label = way if number == 0 else None
                axes.plot(run.seconds, run.dice, color=COLOURS[way], lw=1.6, alpha=0.85, label=label)
        axes.set_xscale("log")
        axes.set_title(task.name, fontsize=10, loc="left")
        axes.set_xlabel("seconds of training")
        axes.set_ylabel("Dice of whole held-out volumes")
        axes.set_ylim(0, 1)
        axes.grid(color="#E5E7EB")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9, loc="lower right")
    figure.savefig(path)


if __name__ == "__main__":
    main()
