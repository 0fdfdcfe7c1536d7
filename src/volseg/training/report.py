"""report.json: what was run, on what, how long it took, and whether the plan came true."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from volseg import __version__
from volseg.config import config_tables
from volseg.distributed.communicator import Communicator
from volseg.distributed.meter import communication_facts
from volseg.distributed.placement import placement_facts
from volseg.distributed.time_account import TimeAccount, account_of_time, phase_facts
from volseg.files import write_text
from volseg.machine import peak_memory
from volseg.models.forecast import off_plan, planned_time_facts
from volseg.training.forecast import StepForecast
from volseg.training.job import REPORT, TrainingJob
from volseg.training.setup import Setup
from volseg.training.stopping import Reason


@dataclass(frozen=True)
class TrainingReport:
    """How a training run went.

    peaks             measured peak memory by rank, bytes
    planned           predicted peak of the busiest rank, bytes
    waited            largest share of the time that a rank waited for others, 0 to 1
    time              share of each kind of work in the time of the steps, largest first
    step_seconds      measured, the median of the steps; step_planned as it was foretold, None where it was not
    loss, dice        of the last step; None where no step was left to take
    validation_dice   mean foreground Dice of the held-out cases after the last epoch; None without any
    stopped           why before the last of `all_steps`: "signal" or "max-time"; None where it was not
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
    time: Mapping[str, float] = field(default_factory=dict)
    step_seconds: float = 0.0
    step_planned: float | None = None
    all_steps: int = 0
    stopped: Reason | None = None


def make_report(
    job: TrainingJob, setup: Setup, steps: int, seconds: float, loss: float, dice: float, validation: float | None,
    stopped: Reason | None = None,
) -> TrainingReport:  # fmt: skip
    """Gather the ranks' peaks and write the report on the root rank. Collective."""
    communicator, finest = setup.world, setup.finest
    peaks = gather_peaks(communicator)
    cached = sum(resolution.blocks.cached_bytes for resolution in setup.resolutions)
    planned = setup.planned.peak + max(communicator.gather_all(cached))
    communication = communication_facts(communicator, seconds)
    waited = communication["share_of_time"]
    account = account_of_time(communicator, "step")
    time, shares = time_facts(account, communicator), account.shares()
    plan = None
    if setup.machine is not None:
        plan = StepForecast(setup, setup.machine).median(steps - time["steps"], steps)
    time |= planned_time_facts(plan, time["seconds_per_step"], setup.machine)
    report = TrainingReport(
        job.run, steps, seconds, loss, dice, validation, peaks, planned, waited, shares, time["seconds_per_step"],
        None if plan is None else plan.seconds, setup.steps, stopped,
    )  # fmt: skip
    content: dict[str, Any] = {
        "command": "train",
        "dataset": str(job.dataset),
        "ranks": communicator.size,
        "replicas": finest.replicas.count,
        "grid": list(finest.grid.dims),
        "batch": setup.card.batch,
        "agglomeration": str(finest.twin.grids.agglomeration),
        "threads_per_rank": torch.get_num_threads(),
        "placement": placement_facts(communicator, torch.get_num_threads()),
        "steps": steps,
        "all_steps": setup.steps,
        "stopped": stopped,
        "seconds": round(seconds, 3),
        "loss": loss,
        "dice": dice,
        "validation_dice": validation,
        "memory": memory_facts(peaks, planned) | {"peak_at": setup.planned.peak_at},
        "communication": communication,
        "time": time,
        "off_plan": off_plan(planned / max(peaks), time["planned_over_measured"]),
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


def time_facts(account: TimeAccount, communicator: Communicator) -> dict[str, Any]:
    """Where the time of the steps went, and how long other things took, as they stand in a report. Collective.

    seconds_per_step is the median, of the rank where it is largest
    """
    step = phase_facts(communicator, "step")
    others = {
        f"{phase.replace(' ', '_')}_seconds": phase_facts(communicator, phase)["seconds"]
        for phase in ("validation", "log and checkpoint")
    }
    return account.facts() | {"steps": step["times"], "seconds_per_step": step["median_seconds"]} | others


def versions() -> dict[str, str]:
    """What the run was made with."""
    return {
        "volseg": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": f"{platform.system()} {platform.machine()}",
        "executable": Path(sys.executable).name,
    }
