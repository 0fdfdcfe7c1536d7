"""report.json: what was run, on what, how long it took, and whether the plan came true."""

from __future__ import annotations

import json
import platform
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from volseg import __version__
from volseg.config import config_tables
from volseg.distributed.communicator import Communicator
from volseg.distributed.placement import available_cores
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
        "threads_per_rank": torch.get_num_threads(),
        "placement": placement_facts(communicator),
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


def communication_facts(communicator: Communicator, seconds: float) -> dict[str, Any]:
    """How long ranks waited in MPI for what computation did not hide, in all and by layer. Collective.

    seconds  the time in which they did; by layer it is the rank that waited longest who counts
    """
    meters = communicator.gather_all(communicator.meter.by_layer())
    layers = sorted({layer for meter in meters for layer in meter})
    by_layer = {
        layer: {
            "seconds": round(max(meter.get(layer, (0.0, 0, 0))[0] for meter in meters), 6),
            "messages": max(meter.get(layer, (0.0, 0, 0))[1] for meter in meters),
            "bytes": max(meter.get(layer, (0.0, 0, 0))[2] for meter in meters),
        }
        for layer in layers
    }
    waited = [sum(entry[0] for entry in meter.values()) for meter in meters]
    return {
        "share_of_time": round(max(waited) / max(seconds, 1e-9), 4),
        "seconds_by_rank": [round(value, 3) for value in waited],
        "by_layer": dict(sorted(by_layer.items(), key=lambda item: -float(item[1]["seconds"]))),
    }


def placement_facts(communicator: Communicator) -> list[dict[str, Any]]:
    """Machine, cores and threads of every rank. Collective."""
    own = {"node": socket.gethostname(), "cores": list(available_cores()), "threads": torch.get_num_threads()}
    return communicator.gather_all(own)


def versions() -> dict[str, str]:
    """What the run was made with."""
    return {
        "volseg": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": f"{platform.system()} {platform.machine()}",
        "executable": Path(sys.executable).name,
    }
