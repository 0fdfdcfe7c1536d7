"""What `segment` did, and its JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from volseg.distributed.time_account import TimeAccount
from volseg.files import write_text
from volseg.geometry import Triple
from volseg.models.forecast import Machine, off_plan, planned_time_facts
from volseg.planning.time_model import TimePlan
from volseg.precision import FLOAT32, Precision
from volseg.segmentation.limit import Choice
from volseg.segmentation.postprocessing import LabelCleaning
from volseg.segmentation.statistics import LabelStatistics
from volseg.segmentation.windows.sweep import Windows
from volseg.volumes.audit import Audit


@dataclass(frozen=True, kw_only=True)
class SegmentationReport:
    """What was written, what the mask holds, and whether the memory plan came true.

    shape    (D, H, W) voxels of the scan and of the mask
    seen     (D, H, W) voxels as the network saw them, and `spacing` their sides in mm; canonical order
    removed  what post-processing removed, by label
    peaks    measured peak memory by rank, bytes
    choice   the schedule, and the predicted peak of the busiest rank
    phases   seconds by phase, and of the network by layer
    audit    of the scan
    agglomeration  which levels ran on fewer ranks
    precision  in which the network's tensors were stored
    devices    of the ranks, and the memory that tensors had on them (`distributed.devices`)
    mpi_library  None without one
    windows  by which the scan was gone through; None: the whole volume at once
    folds    models whose logits were averaged
    mirrored  the axes over whose mirror images they were averaged too
    parts    models that filled the mask in turn
    placement, communication  where the ranks ran, and how long they waited for each other
    time     seconds of each rank by kind of work
    network_seconds  of the network on the slowest rank, without the compiling of kernels; network_planned as foretold,
                     and from what machine
    is_ct    whether the statistics' intensities, those of the first channel, are HU
    warnings  of values that are far from those the model learned
    """

    files: tuple[Path, ...]
    statistics: tuple[LabelStatistics, ...]
    removed: tuple[LabelCleaning, ...]
    shape: Triple
    seen: Triple
    spacing: tuple[float, float, float]
    grid: Triple
    seconds: float
    peaks: tuple[int, ...]
    choice: Choice
    phases: dict[str, Any]
    audit: Audit
    placement: list[dict[str, Any]]
    communication: dict[str, Any]
    time: TimeAccount
    network_seconds: float
    network_planned: tuple[TimePlan | None, Machine | None]
    agglomeration: str = "none"
    precision: Precision = FLOAT32
    devices: Sequence[dict[str, Any]] = ()
    mpi_library: str | None = None
    windows: Windows | None = None
    folds: int = 1
    mirrored: tuple[int, ...] = ()
    parts: int = 1
    is_ct: bool = True
    warnings: tuple[str, ...] = ()

    @property
    def planned(self) -> int:
        """Predicted peak of the busiest rank, bytes."""
        return self.choice.plan.peak


def _window_facts(windows: Windows, shape: Triple, folds: int) -> dict[str, Any]:
    return {
        "size": list(windows.size),
        "step": windows.step,
        "count": len(windows.boxes(shape)),
        "mirrored": list(windows.mirrored),
        "folds": folds,
    }


def write_report(path: Path, report: SegmentationReport) -> None:
    """The report as JSON, whole or not at all."""
    plan, machine = report.network_planned
    time = planned_time_facts(plan, report.network_seconds, machine)
    content = {
        "command": "segment",
        "files": [str(file) for file in report.files],
        "shape": list(report.shape),
        "seen_shape": list(report.seen),
        "seen_spacing_mm": list(report.spacing),
        "ranks": len(report.peaks),
        "grid": list(report.grid),
        "agglomeration": report.agglomeration,
        "windows": None if report.windows is None else _window_facts(report.windows, report.seen, report.folds),
        "folds": report.folds,
        "mirrored": list(report.mirrored),
        "parts": report.parts,
        "placement": report.placement,
        "precision": report.precision,
        "devices": list(report.devices),
        "mpi_library": report.mpi_library,
        "schedule": report.choice.schedule,
        "schedule_reason": report.choice.reason,
        "seconds": round(report.seconds, 3),
        "seconds_by_phase": report.phases,
        "voxels_per_second": round(prod(report.seen) / max(report.seconds, 1e-9)),
        "memory_limit_bytes": report.choice.limit,
        "planned_bytes_by_schedule": report.choice.planned,
        "peak_at": report.choice.plan.peak_at,
        "peak_bytes_by_rank": list(report.peaks),
        "planned_bytes": report.planned,
        "communication": report.communication,
        "time": report.time.facts() | {"network_seconds": round(report.network_seconds, 4)} | time,
        "off_plan": off_plan(report.planned / max(report.peaks), time["planned_over_measured"]),
        "labels": [row.record() for row in report.statistics],
        "removed": [vars(row) for row in report.removed],
        "warnings": list(report.warnings),
        "scan": report.audit.as_json(),
    }
    write_text(path, json.dumps(content, indent=2) + "\n")
