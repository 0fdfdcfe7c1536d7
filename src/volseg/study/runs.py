"""Running cases with the real program, one after another, within a time."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from volseg.config.stored_run import REPORT
from volseg.errors import PartitionError, VolsegError
from volseg.events import Caution, Listener, Progress, ignore
from volseg.geometry import format_triple
from volseg.machine import gibibytes
from volseg.planning.profile import Profile
from volseg.study.cases import AGAIN, FEW_STEPS, LONG_STEP, STEPS, TRAIN, Case, cube, voxels
from volseg.study.extrapolation import Foretold, foretell
from volseg.study.launching import Launcher, run_volseg
from volseg.study.means import Means
from volseg.study.rows import Row, planned
from volseg.study.traced import time_by_kind

LAUNCH, LAUNCH_A_RANK = 4.0, 1.5
"""Seconds until a program has its libraries and kernels and has written its files, and for each rank on a core."""

_ZARR_FROM = 256**3
"""Voxels from which data sets are zarr: ranks make and read them by blocks."""

_PATIENCE = 4.0
"""A case may take so many times as long as expected, and two minutes."""

_LAST = 20.0
"""Seconds that a case is given at least, also where the study's time is up."""


@dataclass(frozen=True)
class Left:
    """A case that is not run, and why."""

    case: Case
    why: str


def reachable(cases: Sequence[Case], profile: Profile, means: Means) -> tuple[list[Case], list[Left]]:
    """The cases that this machine has the memory for, quickest first, and the others."""
    found: list[tuple[float, Case]] = []
    left = []
    for case in cases:
        try:
            model = foretell(case, profile, means.cores_per_node)
        except PartitionError as error:
            left.append(Left(case, str(error)))
            continue
        if means.holds(model.memory.peak, case.ranks):
            found.append((expected(model, means), case))
        else:
            needed = f"{case.ranks} x {gibibytes(model.memory.peak)}"
            left.append(Left(case, f"needs {needed} of memory, there are {gibibytes(means.memory)}"))
    return [case for _, case in sorted(found)], left


def expected(model: Foretold, means: Means) -> float:
    """Seconds that a case takes with all around it, as far as the time model knows."""
    crowd = max(1.0, model.case.ranks / means.cores)
    once = model.time.seconds * crowd
    times = 1 + (steps_of(model) if model.case.task == TRAIN else again_of(model) * (model.case.ranks <= means.cores))
    return LAUNCH + LAUNCH_A_RANK * crowd + times * once


def steps_of(model: Foretold) -> int:
    """Training steps of a case."""
    return STEPS if model.time.seconds < LONG_STEP else FEW_STEPS


def again_of(model: Foretold) -> int:
    """How often a segmenting case that is timed runs again, kernels compiled."""
    return AGAIN if model.time.seconds < LONG_STEP else 1


@dataclass
class Runner:
    """Runs cases in a folder of its own; data sets and weights are made once each.

    deadline  of `time.monotonic`; what would take longer than is left is not begun
    """

    folder: Path
    profile: Profile
    means: Means
    launcher: Launcher | None
    deadline: float
    listen: Listener = ignore
    _slowness: float = 1.0

    def run(self, cases: Sequence[Case], keep: Callable[[Row], None]) -> list[Left]:
        """Run them in this order, and `keep` each row as soon as there is one; returns what there was no time for.

        A case that fails is a row too, and the others go on.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        left = []
        for number, case in enumerate(cases):
            self.listen(Progress("study", number, len(cases), "cases", {"now": case.name}))
            model = foretell(case, self.profile, self.means.cores_per_node)
            needed = expected(model, self.means) * self._slowness
            remaining = self.deadline - time.monotonic()
            if needed > remaining:
                left.append(Left(case, f"about {needed:.0f} s, {max(0.0, remaining):.0f} s were left"))
                continue
            keep(self._row(model))
        self.listen(Progress("study", len(cases), len(cases), "cases"))
        return left

    def _row(self, model: Foretold) -> Row:
        case, begin = model.case, time.monotonic()
        row = Row(case, timed=case.ranks <= self.means.cores)
        try:
            row = self._train(row, model) if case.task == TRAIN else self._segment(row, model)
        except (VolsegError, OSError, ValueError, KeyError) as error:
            self.listen(Caution(f"{case.name}: {error}"))
            row = replace(row, done=False, error=str(error).strip() or type(error).__name__)
        wall = time.monotonic() - begin
        if row.done:
            # How much longer than expected things take here, so that what is left is used, and kept to.
            self._slowness = 0.8 * self._slowness + 0.2 * max(0.3, wall / expected(model, self.means))
        return planned(replace(row, wall=wall), model)

    def _train(self, row: Row, model: Foretold) -> Row:
        case, steps = row.case, steps_of(model)
        run, trace = self.folder / case.name, self.folder / "trace.json"
        again = case.training.checkpoint_levels
        self._volseg(
            model, "train", self._dataset(case), "-o", run, "--overwrite", "--epochs", steps, "--validation", 0,
            "--base-channels", case.base_channels, "--levels", case.levels,
            *(["--checkpoint-levels", ",".join(map(str, again))] if again else []),
            *(["--trace", trace, "--trace-steps", steps - 1] if row.timed else []),
        )  # fmt: skip
        report = _json(run / REPORT)
        self._keep_weights(case, run)
        row = replace(_with_memory(row, report["memory"]), dims=tuple(report["grid"]))
        if row.timed:
            kinds, balance = time_by_kind(trace)
            trace.unlink()
            seconds = float(report["time"]["seconds_per_step"])
            row = replace(row, seconds=seconds, kinds=kinds, load_balance=balance)
        return row

    def _segment(self, row: Row, model: Foretold) -> Row:
        case = row.case
        dataset, weights = self._dataset(case), self._weights(case)
        (scan,) = (dataset / "imagesTr").iterdir()
        mask = self.folder / f"mask{'.zarr' if scan.suffix == '.zarr' else '.nii.gz'}"
        options = [scan, "-o", mask, "--overwrite", "--model", weights, "--schedule", case.variant]
        if row.timed:
            times = 1 + again_of(model)
            self._volseg(model, times, self.folder, *options, module="volseg.cli.segment_again")
            reports = [_json(self.folder / f"{n}.json") for n in range(times)]
            row = replace(row, seconds=median(float(r["seconds_by_phase"]["network"]) for r in reports[1:]))
        else:
            self._volseg(model, "segment", *options, "--report", self.folder / "0.json")
        report = _json(self.folder / "0.json")
        return replace(_with_memory(row, report), dims=tuple(report["grid"]))

    def _dataset(self, case: Case) -> Path:
        """One case of ellipsoids of the volume's shape."""
        name = format_triple(case.shape)
        folder = self.folder / f"data-{name}"
        if not folder.is_dir():
            large = voxels(case) >= _ZARR_FROM
            more = ["--format", "zarr"] if large else []
            run_volseg(
                self.folder, "generate", folder, "--shape", name, "--cases", 1, *more,
                ranks=case.ranks if large else 1, threads=1, launcher=self.launcher,
            )  # fmt: skip
        return folder

    def _weights(self, case: Case) -> Path:
        """A run folder with weights of the case's network: what a training case left, or a few steps on a small one."""
        folder = self._weights_folder(case)
        if not folder.is_dir():
            small = replace(case, task=TRAIN, variant="plain", shape=cube(int(2**case.levels) * 2), ranks=1)
            model = foretell(small, self.profile, 1)
            self._train(Row(small), model)
        return folder

    def _weights_folder(self, case: Case) -> Path:
        return self.folder / f"weights-c{case.base_channels}-l{case.levels}"

    def _keep_weights(self, case: Case, run: Path) -> None:
        folder = self._weights_folder(case)
        if folder.is_dir():
            shutil.rmtree(run)
        else:
            run.rename(folder)

    def _volseg(self, model: Foretold, *arguments: object, module: str = "volseg") -> None:
        patience = _PATIENCE * self._slowness * expected(model, self.means) + 120
        seconds = min(patience, max(_LAST, self.deadline - time.monotonic()))
        run_volseg(
            self.folder, *arguments, ranks=model.case.ranks, threads=1, launcher=self.launcher, minutes=seconds / 60,
            module=module,
        )  # fmt: skip


def _with_memory(row: Row, facts: dict[str, Any]) -> Row:
    return replace(row, done=True, peak=max(facts["peak_bytes_by_rank"]), planned_peak=int(facts["planned_bytes"]))


def _json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
