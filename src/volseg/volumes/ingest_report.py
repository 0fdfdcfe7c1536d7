"""What `ingest` did, for the terminal and as an audit: files used, dropped and mended, their hashes, versions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from volseg.distributed.communicator import Communicator
from volseg.files import sha256, write_text
from volseg.geometry import Triple, format_triple
from volseg.versions import versions
from volseg.volumes.audit import Audit, count_reasons

LIBRARIES = (
    "numpy", "nibabel", "pydicom", "python-gdcm", "pylibjpeg-openjpeg", "pyjpegls", "highdicom", "zarr", "mpi4py",
    "tifffile", "h5py",
)  # fmt: skip
NAMES_SHOWN = 12


@dataclass(frozen=True, kw_only=True)
class IngestedMask:
    """A mask that was written.

    path   where it went
    audit  of its source
    names  label name -> value, where that had names
    """

    path: Path
    audit: Audit
    names: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class IngestReport:
    """What was written.

    shape    (D, H, W) voxels
    spacing  mm along D, H, W
    minimum, maximum  of all voxels, HU for CT
    audit    of the image
    masks    one, one of each of several readers, or none
    hashes   (file, SHA-256) of every file that was read
    report   where the audit went
    """

    source: Path
    format: str
    output: Path
    shape: Triple
    spacing: tuple[float, float, float]
    dtype: str
    minimum: float
    maximum: float
    audit: Audit
    masks: tuple[IngestedMask, ...]
    hashes: tuple[tuple[str, str], ...]
    report: Path

    @property
    def labels(self) -> Path | None:
        """Where the first mask went; None where there is none."""
        return self.masks[0].path if self.masks else None


def hash_inputs(audits: Sequence[Audit], communicator: Communicator) -> tuple[tuple[str, str], ...]:
    """(file, SHA-256) of all files the audits name, in their order; each rank hashes its share. Collective."""
    files = list(dict.fromkeys(path for audit in audits for path in audit.inputs))
    mine: dict[int, str] = {}
    with communicator.together():
        mine = {n: sha256(files[n]) for n in range(communicator.rank, len(files), communicator.size)}
    every = {n: digest for share in communicator.gather_all(mine) for n, digest in share.items()}
    return tuple((str(path), every[n]) for n, path in enumerate(files))


def write_report(report: IngestReport) -> None:
    """Write the audit as JSON to `report.report`, whole or not at all."""
    content: dict[str, Any] = {
        "command": "ingest",
        "source": str(report.source),
        "format": report.format,
        "output": str(report.output),
        "shape": list(report.shape),
        "spacing_mm": list(report.spacing),
        "dtype": report.dtype,
        "minimum": report.minimum,
        "maximum": report.maximum,
        "image": report.audit.as_json(),
        **_facts_of_masks(report.masks),
        "sha256": dict(report.hashes),
        "versions": versions(LIBRARIES),
    }
    write_text(report.report, json.dumps(content, indent=2) + "\n")


def _facts_of_masks(masks: Sequence[IngestedMask]) -> dict[str, Any]:
    """Path, names and audit of the mask; of several a list of each."""
    if not masks:
        return {"labels": None, "label_values": {}, "mask": None}
    columns: dict[str, list[Any]] = {
        "labels": [str(mask.path) for mask in masks],
        "label_values": [mask.names for mask in masks],
        "mask": [mask.audit.as_json() for mask in masks],
    }
    return {name: column[0] if len(masks) == 1 else column for name, column in columns.items()}


def report_rows(report: IngestReport) -> list[tuple[str, str]]:
    """The report as (name, value) pairs, in reading order; dropped files are counted by their reasons."""
    rows = [
        ("from", f"{report.source} ({report.format})"),
        *report.audit.facts,
        ("used", _count(len(report.audit.used), "image") if report.audit.used else ""),
        *_dropped_rows(report.audit),
        *(("mended", fix) for fix in report.audit.fixes),
        ("to", str(report.output)),
        ("voxels D x H x W", format_triple(report.shape)),
        ("spacing mm", format_triple(tuple(f"{side:.4g}" for side in report.spacing))),
        ("values", f"{report.minimum:g} to {report.maximum:g}, {report.dtype}"),
    ]
    for mask in report.masks:
        rows.append(("labels", str(mask.path)))
        rows += [("labels left out", f"{item.name}: {item.reason}") for item in mask.audit.dropped]
        rows += [("labels mended", fix) for fix in mask.audit.fixes]
        if mask.names:
            some = [f"{value} {name}" for name, value in mask.names.items()]
            more = "" if len(some) <= NAMES_SHOWN else f" and {len(some) - NAMES_SHOWN} more"
            rows.append(("label names", ", ".join(some[:NAMES_SHOWN]) + more))
    rows.append(("report", str(report.report)))
    return [(name, value) for name, value in rows if value]


def _dropped_rows(audit: Audit) -> list[tuple[str, str]]:
    return [("left out", f"{_count(number, 'file')}: {reason}") for reason, number, _ in count_reasons(audit.dropped)]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
