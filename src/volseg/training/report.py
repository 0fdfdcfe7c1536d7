"""report.json: what was run, on what, how long it took, and whether the plan came true."""

from __future__ import annotations

import json
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from volseg import __version__
from volseg.config import Config, config_tables
from volseg.distributed.communicator import Communicator
from volseg.distributed.grid import ProcessGrid
from volseg.files import write_text
from volseg.machine import peak_memory
from volseg.partition.memory import MemoryPlan

if TYPE_CHECKING:
    from volseg.training.loop import TrainingJob

REPORT = "report.json"


@dataclass(frozen=True)
class TrainingReport:
    """How a training run went.

    peaks             measured peak memory by rank, bytes
    planned           predicted peak of the busiest rank, bytes
    validation_dice   mean foreground Dice of the held-out cases after the last epoch; None without any
    """

    run: Path
    steps: int
    seconds: float
    loss: float
    dice: float
    validation_dice: float | None
    peaks: tuple[int, ...]
    planned: int


def make_report(
    job: TrainingJob,
    config: Config,
    grid: ProcessGrid,
    planned: MemoryPlan,
    cached: int,
    seconds: float,
    loss: float,
    dice: float,
    validation: float | None,
    steps: int,
) -> TrainingReport:
    """Gather the ranks' peaks and write the report on the root rank. Collective."""
    peaks = tuple(grid.communicator.gather_all(peak_memory()))
    report = TrainingReport(job.run, steps, seconds, loss, dice, validation, peaks, planned.peak + cached)
    content: dict[str, Any] = {
        "command": "train",
        "dataset": str(job.dataset),
        "ranks": grid.communicator.size,
        "grid": list(grid.dims),
        "threads_per_rank": torch.get_num_threads(),
        "steps": steps,
        "seconds": round(seconds, 3),
        "loss": loss,
        "dice": dice,
        "validation_dice": validation,
        "memory": memory_facts(peaks, report.planned) | {"peak_at": planned.peak_at},
        "config": config_tables(config),
        "versions": versions(),
    }
    with grid.communicator.together():
        if grid.communicator.is_root:
            write_text(job.run / REPORT, json.dumps(content, indent=2) + "\n")
    return report


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


def gather_peaks(communicator: Communicator) -> tuple[int, ...]:
    """Peak memory of every rank. Collective."""
    return tuple(communicator.gather_all(peak_memory()))
