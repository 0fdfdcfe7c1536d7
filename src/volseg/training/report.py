"""report.json: what was run, on what, how long it took, and whether the plan came true."""

from __future__ import annotations

import json
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from volseg import __version__
from volseg.config import config_tables
from volseg.distributed.communicator import Communicator
from volseg.distributed.meter import communication_facts
from volseg.distributed.placement import placement_facts
from volseg.files import write_text
from volseg.machine import peak_memory
from volseg.training.job import REPORT, TrainingJob
from volseg.training.setup import Setup


@dataclass(frozen=True)
class TrainingReport:
    """How a training run went.

    peaks             measured peak memory by rank, bytes
    planned           predicted peak of the busiest rank, bytes
    waited            largest share of the time that a rank waited for others, 0 to 1
    loss, dice        of the last step; None where no step was left to take
    validation_dice   mean foreground Dice of the held-out cases after the last epoch; None without any
    """

    run: Path
    steps: int
    seconds: float
    loss: float | None
    dice: float | None
    validation_dice: float | None
    peaks: tuple[int, ...]
    planned: int
    waited: float = 0.0


def make_report(
    job: TrainingJob, setup: Setup, steps: int, seconds: float, loss: float, dice: float, validation: float | None
) -> TrainingReport:
    """Gather the ranks' peaks and write the report on the root rank. Collective."""
    communicator = setup.grid.communicator
    peaks = gather_peaks(communicator)
    planned = setup.planned.peak + setup.blocks.cached_bytes
    communication = communication_facts(communicator, seconds)
    waited = communication["share_of_time"]
    report = TrainingReport(job.run, steps, seconds, loss, dice, validation, peaks, planned, waited)
    content: dict[str, Any] = {
        "command": "train",
        "dataset": str(job.dataset),
        "ranks": communicator.size,
        "grid": list(setup.grid.dims),
        "agglomeration": str(setup.twin.grids.agglomeration),
        "threads_per_rank": torch.get_num_threads(),
        "placement": placement_facts(communicator, torch.get_num_threads()),
        "steps": steps,
        "seconds": round(seconds, 3),
        "loss": loss,
        "dice": dice,
        "validation_dice": validation,
        "memory": memory_facts(peaks, planned) | {"peak_at": setup.planned.peak_at},
        "communication": communication,
        "config": config_tables(setup.config),
        "versions": versions(),
    }
    with communicator.together():
        if communicator.is_root:
            write_text(job.run / REPORT, json.dumps(content, indent=2) + "\n")
    return report


def gather_peaks(communicator: Communicator) -> tuple[int, ...]:
    """Peak memory of every rank, bytes. Collective."""
    return tuple(communicator.gather_all(peak_memory()))


def memory_facts(peaks: tuple[int, ...], planned: int) -> dict[str, Any]:
    """Measured and planned peaks, as they stand in a report."""
    return {
        "peak_bytes_by_rank": list(peaks),
        "planned_bytes": planned,
        "planned_over_measured": round(planned / max(peaks), 3),
    }


def versions() -> dict[str, str]:
    """What the run was made with."""
    return {
        "volseg": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": f"{platform.system()} {platform.machine()}",
        "executable": Path(sys.executable).name,
    }
