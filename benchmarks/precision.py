"""Training in float32 and in bfloat16, with the same settings and seeds: does it come to the same Dice?

    python benchmarks/precision.py [--shape 32x32x32] [--epochs 17] [--ct FOLDER] [--spacing 9] [--steps 100]
                                   [--channels 16] [--seeds 0,1,2] [--nudged]

Two data sets: ellipsoids (six cases to train on, two held out), and with --ct one real CT (ct.nii.gz and labels.nii.gz
of a folder) that the network sees at --spacing mm; there the case held out is the same scan turned, shrunk and noisier.
Every run is a `volseg train` of its own, on one thread, one after the other; --epochs 0 leaves the ellipsoids out.

With --nudged each seed runs a third time, in float32 and with a learning rate 0.1 % higher: a difference as small as
can be, whose effect on Dice is what a difference of precisions is to be compared with.

The Dice is that of the whole held-out volumes: the best and the last of a run. Processor seconds are those of the whole
command. Bytes a voxel are the measured peak less what the process had before the volume, by the voxels of a step; on
volumes of some 100,000 voxels most of them are the process's own.
The last tables have, for each data set, the mean difference of the precisions beside the standard deviation
over the seeds, and a run on ellipsoids that was killed twice: begun in float32 on one rank, continued in bfloat16 on
two, and in float32 on one again.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

from support.killing import finish, kill_one
from support.launch import volseg
from support.real_scan import one_scan
from support.timing import processor_seconds

SINGLE, HALF, NUDGED = "float32", "bfloat16", "float32, nudged"
NUDGED_RATE = "--learning-rate=0.01001"
CASES, HELD_OUT = 8, 2
LOOKS = 6  # validations of a run


@dataclass(frozen=True)
class Task:
    """A data set with how to train on it: the arguments of `volseg train` that all runs share."""

    name: str
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """What one run came to: Dice of the held-out volumes, processor seconds, peak bytes a voxel above the process."""

    best: float
    last: float
    seconds: float
    bytes_a_voxel: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="32x32x32")
    parser.add_argument("--epochs", type=int, default=17)
    parser.add_argument("--ct", type=Path)
    parser.add_argument("--spacing", default="9")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--nudged", action="store_true")
    asked = parser.parse_args()
    seeds = [int(seed) for seed in asked.seeds.split(",")]
    size = (f"--base-channels={asked.channels}", "--levels=3", "--previews=0")
    with tempfile.TemporaryDirectory(prefix="volseg-precision-") as name:
        folder = Path(name)
        tasks = []
        if asked.epochs:
            volseg(folder, "generate", "ellipsoids", "--shape", asked.shape, "--cases", CASES, "--noise", "0.5")
            options = (*size, f"--validation={HELD_OUT}", *looking(asked.epochs))
            title = f"ellipsoids {asked.shape}, {asked.epochs * (CASES - HELD_OUT)} steps"
            tasks.append(Task(title, ("ellipsoids", *options)))
        if asked.ct:
            one_scan(asked.ct, folder / "ct")
            options = (*size, "--folds=2", f"--spacing={asked.spacing}", *looking(asked.steps))
            tasks.append(Task(f"abdominal CT at {asked.spacing} mm, {asked.steps} steps", ("ct", *options)))
        kinds = (SINGLE, HALF, NUDGED) if asked.nudged else (SINGLE, HALF)
        outcomes = {task: measured(folder, task, seeds, kinds) for task in tasks}
        print("\n| data set | Dice | float32 | sd | less float32 | mean | by seed |\n|---|---|---|---|---|---|---|")
        for task, runs in outcomes.items():
            for kind in kinds[1:]:
                compare(task, runs, kind)
        if asked.epochs:
            cross(folder, tasks[0], asked.epochs * (CASES - HELD_OUT), seeds[0])


def looking(epochs: int) -> tuple[str, str]:
    """Options for so many epochs with a validation now and then, and after the last."""
    return f"--epochs={epochs}", f"--validate-every={max(1, epochs // LOOKS)}"


def measured(folder: Path, task: Task, seeds: list[int], kinds: tuple[str, ...]) -> dict[str, list[Outcome]]:
    """Every seed in each kind of run; prints a line of a table for each run."""
    print(f"\n{task.name}\n")
    print("| seed | run | best Dice | last Dice | processor s | peak bytes a voxel |\n|---|---|---|---|---|---|")
    runs: dict[str, list[Outcome]] = {kind: [] for kind in kinds}
    for seed in seeds:
        for number, kind in enumerate(kinds):
            run = folder / f"{task.arguments[0]}-{number}-{seed}"
            before = processor_seconds()
            options = ["-o", run.name, f"--seed={seed}", f"--precision={HALF if kind == HALF else SINGLE}"]
            options += [NUDGED_RATE] if kind == NUDGED else []
            volseg(folder, "train", *task.arguments, *options, threads=1)
            outcome = read(run, processor_seconds() - before)
            runs[kind].append(outcome)
            print(
                f"| {seed} | {kind} | {outcome.best:.4f} | {outcome.last:.4f} | {outcome.seconds:.0f} | "
                f"{outcome.bytes_a_voxel:.0f} |",
                flush=True,
            )
    return runs


def read(run: Path, seconds: float) -> Outcome:
    """What a run folder says of its run."""
    with (run / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    dice = [float(row["validation_dice"]) for row in rows if row["validation_dice"]]
    voxels = statistics.median(float(row["voxels_per_second"]) * float(row["seconds"]) for row in rows)
    memory = json.loads((run / "report.json").read_text())["memory"]
    above = max(memory["peak_bytes_by_rank"]) - memory["planned_parts"]["process"]
    return Outcome(max(dice), dice[-1], seconds, above / voxels)


def compare(task: Task, runs: dict[str, list[Outcome]], kind: str) -> None:
    """Differences of a kind of run from float32, seed by seed, beside the spread of float32 over the seeds."""
    for what in ("best", "last"):
        single, other = ([getattr(outcome, what) for outcome in runs[name]] for name in (SINGLE, kind))
        differences = [b - a for a, b in zip(single, other, strict=True)]
        spread = statistics.stdev(single) if len(single) > 1 else float("nan")
        by_seed = ", ".join(f"{difference:+.4f}" for difference in differences)
        print(
            f"| {task.name} | {what} | {statistics.fmean(single):.4f} | {spread:.4f} | {kind} | "
            f"{statistics.fmean(differences):+.4f} | {by_seed} |",
            flush=True,
        )


def cross(folder: Path, task: Task, steps: int, seed: int) -> None:
    """One run in three parts, each in the other precision and on the other number of ranks; prints its table."""
    run, log = folder / "crossed", folder / "crossed.log"
    options = [*task.arguments, "-o", run.name, f"--seed={seed}", "--checkpoint-seconds=0"]
    print("\n| precision | ranks | killed after step |\n|---|---|---|")
    for part, (precision, ranks) in enumerate((("float32", 1), ("bfloat16", 2))):
        arguments = [*options, f"--precision={precision}", *(["--continue"] if part else [])]
        rows = steps * (part + 1) // 3
        death = kill_one(folder, run, ranks, arguments, log, rank=0, rows=rows, pause=0.0)
        print(f"| {precision} | {ranks} | {death.after} |", flush=True)
    finish(folder, 1, [*options, "--precision=float32", "--continue"], log)
    outcome = read(run, 0.0)
    print(f"| float32 | 1 | |\n\nbest Dice {outcome.best:.4f}, last {outcome.last:.4f}; of what it said:")
    said = (line for line in (run / "messages.log").read_text().splitlines() if "training.precision" in line)
    print("\n".join(f"    {line}" for line in said))


if __name__ == "__main__":
    main()
