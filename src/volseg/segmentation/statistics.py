"""How much of each label a mask holds, in voxels and millilitres."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from volseg.errors import VolumeError
from volseg.files import write_text
from volseg.volumes.volume import Space


@dataclass(frozen=True)
class LabelStatistics:
    """One label of a mask: its value, name, number of voxels and volume in millilitres."""

    label: int
    name: str
    voxels: int
    ml: float


def count_labels(mask: np.ndarray, labels: int) -> np.ndarray:
    """Voxels of each label 0..labels-1 in one block of a mask: int64, shape (labels,).

    The counts of blocks that tile a volume add up to the volume's, so ranks only sum them. Raises VolumeError for a
    value of `labels` or more.
    """
    counts = np.bincount(mask.ravel(), minlength=labels).astype(np.int64)
    if len(counts) > labels:
        raise VolumeError(f"the mask holds the label {len(counts) - 1}; the names given end at {labels - 1}")
    return counts


def label_statistics(counts: np.ndarray, space: Space, names: Mapping[str, int]) -> list[LabelStatistics]:
    """Rows by label value, background left out, from the whole volume's `counts`; `names` maps name -> value."""
    by_value = {value: name for name, value in names.items()}
    return [
        LabelStatistics(label, by_value.get(label, str(label)), int(voxels), float(int(voxels) * space.voxel_ml))
        for label, voxels in enumerate(counts)
        if label != 0
    ]


def write_statistics(path: str | Path, rows: Sequence[LabelStatistics]) -> None:
    """Write the rows as CSV or JSON, by the suffix of `path`, whole or not at all.

    Raises VolumeError for another suffix, VolsegError where the file cannot be written.
    """
    path = Path(path)
    records = [{"label": r.label, "name": r.name, "voxels": r.voxels, "ml": round(r.ml, 6)} for r in rows]
    if path.suffix == ".json":
        write_text(path, json.dumps(records, indent=2) + "\n")
    elif path.suffix == ".csv":
        text = io.StringIO()
        table = csv.DictWriter(text, ["label", "name", "voxels", "ml"], lineterminator="\n")
        table.writeheader()
        table.writerows(records)
        write_text(path, text.getvalue())
    else:
        raise VolumeError(f"{path}: statistics are written as .csv or .json, not {path.suffix or 'a file without one'}")
