"""Planes of a volume with a mask, as a radiologist looks at them: which of them to show, and in what grey window.

Planes come in canonical order (RAS+: D to superior, H to anterior, W to right).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from volseg.geometry import Triple

PlaneName = Literal["axial", "coronal", "sagittal"]
PLANES: tuple[PlaneName, PlaneName, PlaneName] = ("axial", "coronal", "sagittal")  # cut across D, H, W

SOFT_TISSUE = (-160.0, 240.0)  # HU: the usual abdominal window, level 40, width 400


@dataclass(frozen=True)
class Plane:
    """One plane cut from the canonical volume.

    image     [rows, columns] intensities: H x W for axial, D x W for coronal, D x H for sagittal
    mask      the same shape, labels
    spacing   (row, column) distance in mm
    index     which plane it is, counted from 0 along the axis it cuts
    count     how many planes that axis has
    reference  the true labels, the same shape, where the mask is compared with them
    """

    image: np.ndarray
    mask: np.ndarray
    spacing: tuple[float, float]
    index: int
    count: int
    reference: np.ndarray | None = None


def plane_counts(mask: np.ndarray, labels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Voxels of each foreground label on each plane of a (block of a) mask.

    Returns int64 arrays [labels - 1, D], [labels - 1, H], [labels - 1, W]. A rank adds its block's counts at the
    block's place in arrays of the whole volume's sides; the sum over ranks goes to `pick_planes`.
    """
    per_axis = tuple(np.zeros((labels - 1, n), dtype=np.int64) for n in mask.shape)
    for label in range(1, labels):
        found = mask == label
        per_axis[0][label - 1] = found.sum(axis=(1, 2))
        per_axis[1][label - 1] = found.sum(axis=(0, 2))
        per_axis[2][label - 1] = found.sum(axis=(0, 1))
    return per_axis[0], per_axis[1], per_axis[2]


def pick_planes(counts: Sequence[np.ndarray]) -> Triple:
    """The plane of each axis that shows the labels best: index along D, H and W.

    Each label counts by its share of its own largest section, so a small organ weighs as much as a large one; equal
    planes go to the middle one, and so does an empty mask.
    """
    d, h, w = (_best_plane(np.asarray(c, dtype=np.float64)) for c in counts)
    return d, h, w


def _best_plane(counts: np.ndarray) -> int:
    largest = counts.max(axis=1, keepdims=True) if len(counts) else np.zeros((0, 1))
    score = (counts / np.maximum(largest, 1.0)).sum(axis=0)
    middle = (counts.shape[1] - 1) / 2
    return int(min(np.flatnonzero(score >= score.max() - 1e-9), key=lambda i: abs(i - middle)))


def choose_window(images: Sequence[np.ndarray]) -> tuple[float, float]:
    """The grey window (low, high): soft tissue where the values look like HU of a body in air, else percentiles."""
    values = np.concatenate([image[np.isfinite(image)].ravel().astype(np.float64) for image in images])
    if not values.size:
        return 0.0, 1.0
    low, median, high = np.percentile(values, [1.0, 50.0, 99.0])
    if low < -500 and -1100 < median < 1000 and 20 < high < 4000:
        return SOFT_TISSUE
    low, high = np.percentile(values, [0.5, 99.5])
    return float(low), float(high if high > low else low + 1.0)
