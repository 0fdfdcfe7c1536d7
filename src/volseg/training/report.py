"""report.json: what was run, on what, how long it took, and whether the plan came true."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from volseg.config import config_tables
from volseg.config.stored_run import REPORT
from volseg.distributed.communicator import Communicator
from volseg.distributed.devices import device_facts
from volseg.distributed.placement import placement_facts
from volseg.distributed.time_account import TimeAccount, account_of_time, phase_facts
from volseg.files import write_text
from volseg.machine import peak_memory, resident_memory
from volseg.models.forecast import off_plan, planned_time_facts
from volseg.networks.choice import network_facts
from volseg.training.begun import read_begun
from volseg.training.forecast import StepForecast
from volseg.training.job import HTML, TrainingJob
from volseg.training.log import read_log
from volseg.training.progress import best_at_finest
from volseg.training.run_page import run_page
from volseg.training.setup import Setup
from volseg.training.stopping import Reason
from volseg.training.validation import Validation
from volseg.versions import source_revision, versions

LIBRARIES = ("torch", "numpy", "mpi4py", "llvmlite", "nibabel", "zarr", "pydicom", "safetensors")


@dataclass(frozen=True, kw_only=True)
class TrainingReport:
    """How a training run went.

    peaks             measured peak memory by rank, bytes
    planned           predicted peak of the busiest rank, bytes
    waited            largest share of the time that a rank waited for others, 0 to 1
    time              share of each kind of work in the time of the steps, largest first
    step_seconds      measured, the median of the steps; step_planned as it was foretold, None where it was not
    loss              of the last step; None where no step was left to take
    dice              soft Dice, the mean over the steps of the last epoch; None where no case holds a class
    validation_dice   mean foreground Dice of the held-out cases when they were last looked at; None without any
    validation_by_class  the same for each class, by label name
    validation_level  of a multigrid run, at which it was measured; 0 is the finest
    stopped           why before the last of `all_steps`: "signal", "max-time" or, with nothing left to do, "patience";
                      None where it was not
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
    validation_by_class: Mapping[str, float] = field(default_factory=dict)
    all_steps: int = 0
    stopped: Reason | None = None
    validation_level: int = 0


def make_report(
    job: TrainingJob, setup: Setup, steps: int, seconds: float, communication: Mapping[str, Any], loss: float,
    dice: float | None, validation: Validation | None, inputs: Mapping[str, Mapping[str, Any]],
    stopped: Reason | None = None,
) -> TrainingReport:  # fmt: skip
    """Gather the ranks' peaks; the root writes report.json, and report.html from the run folder. Collective.

    communication  as `communication_facts` has it, of the same `seconds`
    """
    communicator = setup.world
    peaks = gather_peaks(communicator)
    cached = sum(resolution.blocks.cached_bytes for resolution in setup.resolutions)
    planned = setup.planned.peak + max(communicator.gather_all(cached))
    waited = communication["share_of_time"]
    account = account_of_time(communicator, "step")
    time, shares = time_facts(account, communicator), account.shares()
    plan = None
    if setup.machine is not None and time["steps"]:
        plan = StepForecast(setup, setup.machine).median(steps - time["steps"], steps)
    time |= planned_time_facts(plan, time["seconds_per_step"], setup.machine)
    by_class = {} if validation is None else _named(validation.by_class, setup.dataset.scored)
    report = TrainingReport(
        run=job.run, steps=steps, seconds=seconds, loss=loss, dice=dice,
        validation_dice=None if validation is None else validation.mean, peaks=peaks, planned=planned, waited=waited,
        time=shares, step_seconds=time["seconds_per_step"], step_planned=None if plan is None else plan.seconds,
        validation_by_class=by_class, all_steps=setup.steps, stopped=stopped,
        validation_level=0 if validation is None else validation.level,
    )  # fmt: skip
    content: dict[str, Any] = {
        **_facts_of_setup(job, setup),
        "steps": steps,
        "all_steps": setup.steps,
        "stopped": None if stopped == "patience" else stopped,
        "ended": "patience" if stopped == "patience" else None,
        "seconds": round(seconds, 3),
        "loss": loss,
        "dice": dice,
        "validation_dice": report.validation_dice,
        "validation": None
        if validation is None
        else {"level": validation.level, "by_class": by_class, "by_case": validation.case_means},
        "memory": memory_facts(peaks, planned)
        | {"peak_at": setup.planned.peak_at, "planned_parts": setup.planned.parts},
        "devices": device_facts(setup.device, communicator),
        "communication": communication,
        "time": time,
        "off_plan": off_plan(planned / max(peaks), time["planned_over_measured"]),
        "network": network_facts(setup.model.network, setup.why_network),
        "config": config_tables(setup.config),
        "versions": versions(LIBRARIES) | {"machine": f"{platform.system()} {platform.machine()}"},
        "mpi_library": communicator.library,
        "revision": source_revision(),
        "inputs": inputs,
    }
    communicator.on_root(lambda: _write(job.run, content))
    return report


def _facts_of_setup(job: TrainingJob, setup: Setup) -> dict[str, Any]:
    """How the run was set up, as it stands in the report. Collective."""
    communicator, finest = setup.world, setup.finest
    return {
        "command": "train",
        "command_line": job.command,
        "dataset": str(job.dataset),
        "begun_from": communicator.on_root(lambda: read_begun(job.run)),
        "ranks": communicator.size,
        "replicas": finest.replicas.count,
        "grid": list(finest.grid.dims),
        "batch": setup.card.batch,
        "agglomeration": str(finest.twin.grids.agglomeration),
        "threads_per_rank": torch.get_num_threads(),
        "placement": placement_facts(communicator, torch.get_num_threads()),
        "cases": {"training": [case.name for case in setup.cases], "held_out": [case.name for case in setup.held_out]},
    }


def _write(run: Path, content: dict[str, Any]) -> None:
    """report.json and report.html, with the best epoch of the log. On the root."""
    content["best"] = _best(run)
    write_text(run / REPORT, json.dumps(content, indent=2) + "\n")
    write_text(run / HTML, run_page(run, content))


def is_reported(run: Path, step: int) -> bool:
    """Whether report.json is that of a run after `step` steps; a job may be killed before it has written it."""
    try:
        return bool(json.loads((run / REPORT).read_text(encoding="utf-8"))["steps"] == step) and (run / HTML).is_file()
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _best(run: Path) -> dict[str, Any] | None:
    """The epoch with the best held-out Dice at the finest resolution, from the log; None without any."""
    rows = read_log(run)
    step, dice = best_at_finest(rows)
    epochs = [int(row["epoch"]) for row in rows if int(row["step"]) == step]
    return {"epoch": epochs[0], "validation_dice": dice} if epochs else None


def _named(by_class: Sequence[float | None], names: Sequence[str]) -> dict[str, float]:
    """By the name of the label or region, where there is one."""
    return {name: dice for name, dice in zip(names, by_class, strict=True) if dice is not None}


def gather_peaks(communicator: Communicator) -> tuple[int, ...]:
    """Peak memory of every rank, bytes. Collective."""
    return tuple(communicator.gather_all(peak_memory()))


def largest_resident(communicator: Communicator) -> int:
    """What the rank that holds most now has in memory, bytes. Collective."""
    return int(communicator.reduce_all(np.array([resident_memory()]), "max")[0])


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
