"""How well a mask agrees with its reference: Dice, IoU and volumes, and nnU-Net's summary of them.

Both masks are streamed slab by slab into one confusion matrix, so neither is ever held whole.
Schema: nnU-Net v2, nnunetv2/evaluation/evaluate_predictions.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Any

import numpy as np

from volseg.errors import VolumeError
from volseg.files import write_text
from volseg.volumes.canonical import in_order_of
from volseg.volumes.checks import check_same_grid
from volseg.volumes.volume import Volume

LABEL_LIMIT = 1024  # a value beyond it is an image's, not a mask's
SLAB = 16  # slices compared at a time
Metrics = dict[str, float | int]

Scored = int | tuple[int, ...]
"""What has figures of its own: the value of a label, or those of the labels that make a region."""


@dataclass(frozen=True)
class CaseResult:
    """One pair of masks, compared.

    confusion   int64 [N, N]: voxels by reference label (row) and predicted label (column)
    voxel_ml    one voxel's volume in millilitres
    notes       what was assumed, for the user
    """

    prediction: Path
    reference: Path
    confusion: np.ndarray
    voxel_ml: float
    notes: tuple[str, ...] = ()

    @property
    def found_labels(self) -> set[int]:
        """Labels that either mask holds, background included."""
        return {int(k) for k in np.nonzero(self.confusion.sum(axis=0) + self.confusion.sum(axis=1))[0]}

    def metrics(self, label: Scored) -> Metrics:
        """nnU-Net's figures for one label or region; Dice and IoU are NaN where neither mask holds it."""
        matrix = self.confusion
        values = (label,) if isinstance(label, int) else label
        members = [value for value in values if value < len(matrix)]
        tp = int(matrix[np.ix_(members, members)].sum())
        fp = int(matrix[:, members].sum()) - tp
        fn = int(matrix[members].sum()) - tp
        tn = int(matrix.sum()) - tp - fp - fn
        either = tp + fp + fn
        return {
            "Dice": 2 * tp / (2 * tp + fp + fn) if either else nan,
            "IoU": tp / either if either else nan,
            "FP": fp,
            "TP": tp,
            "FN": fn,
            "TN": tn,
            "n_pred": fp + tp,
            "n_ref": fn + tp,
        }


def compare(prediction: Volume, reference: Volume, ignore: int | None = None) -> CaseResult:
    """Count how the labels of two masks on one grid meet; their voxels may be stored in different orders.

    ignore  value of the reference where nobody has labelled: these voxels do not count, as in nnU-Net

    Raises VolumeError where the grids differ or a volume is no mask (fractions, values outside 0..1023).
    """
    prediction = in_order_of(prediction, reference.space)
    check_same_grid(reference, prediction, "a prediction", "compare masks of the same scan")
    confusion = np.zeros((1, 1), dtype=np.int64)
    for box, values in reference.slabs(SLAB):
        counted = slice(None) if ignore is None else values.ravel() != ignore
        p = _as_labels(prediction.read(box).ravel()[counted], prediction.path)
        t = _as_labels(values.ravel()[counted], reference.path)
        n = max(len(confusion), int(p.max(initial=0)) + 1, int(t.max(initial=0)) + 1)
        if n > len(confusion):
            confusion = np.pad(confusion, (0, n - len(confusion)))
        confusion += np.bincount(t * n + p, minlength=n * n).reshape(n, n)
    prediction.close()
    return CaseResult(prediction.path, reference.path, confusion, reference.space.voxel_ml)


def foreground_labels(cases: Sequence[CaseResult]) -> list[int]:
    """Labels other than 0 that any mask of any case holds."""
    return sorted(set().union(*(case.found_labels for case in cases)) - {0})


def summarise(cases: Sequence[CaseResult], labels: Sequence[Scored]) -> dict[str, Any]:
    """nnU-Net's ``summary.json``: ``foreground_mean``, ``mean`` by label and ``metric_per_case``.

    The key of a region is that of its values, such as ``(1, 2, 3)``.
    Means pass over NaN: a label that neither mask of a case holds says nothing about that case.
    """
    per_case = [
        {
            "metrics": {str(label): case.metrics(label) for label in labels},
            "prediction_file": str(case.prediction),
            "reference_file": str(case.reference),
        }
        for case in cases
    ]
    keys = list(cases[0].metrics(0))
    means: dict[str, Metrics] = {}
    for label in labels:
        values = [case.metrics(label) for case in cases]
        means[str(label)] = {key: _mean([v[key] for v in values]) for key in keys}
    foreground = [means[str(label)] for label in labels if label != 0]
    overall = {key: _mean([m[key] for m in foreground]) for key in keys}
    return {"foreground_mean": overall, "mean": means, "metric_per_case": per_case}


def write_summary(path: str | Path, summary: Mapping[str, Any]) -> None:
    """Write a summary as nnU-Net does: JSON with sorted keys, NaN spelled NaN; whole or not at all."""
    write_text(Path(path), summary_text(summary))


def summary_text(summary: Mapping[str, Any]) -> str:
    """The text of a ``summary.json``."""
    return json.dumps(summary, indent=4, sort_keys=True) + "\n"


def _mean(values: Sequence[float]) -> float:
    numbers = [v for v in values if v == v]
    return float(sum(numbers) / len(numbers)) if numbers else nan


def _as_labels(slab: np.ndarray, path: Path) -> np.ndarray:
    """The slab as int64 labels, once it is sure that it holds nothing else."""
    if not slab.size:
        return slab.astype(np.int64)
    low, high = slab.min(), slab.max()
    if not (low >= 0 and high < LABEL_LIMIT):
        raise VolumeError(
            f"{path}: values from {low:g} to {high:g}; a mask holds labels 0 to {LABEL_LIMIT - 1}. Is this an image?"
        )
    labels = slab.astype(np.int64)
    if slab.dtype.kind == "f" and not np.array_equal(labels, slab):
        raise VolumeError(f"{path}: holds fractions; a mask holds whole numbers. Is this an image or a probability?")
    return labels
