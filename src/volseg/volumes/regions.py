"""Regions: overlapping sets of labels, each of which a network finds by a logit of its own.

nnU-Net's region-based training (Isensee et al., "nnU-Net for Brain Tumor Segmentation", BrainLes 2020): a logit above
zero, a probability above one half, says that a voxel lies in the region.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Region:
    """One region.

    name     as dataset.json calls it
    values   of the labels that lie in it
    written  what a mask holds where this is the last region of the list that a voxel lies in
    """

    name: str
    values: tuple[int, ...]
    written: int

    def as_json(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {"name": self.name, "values": list(self.values), "written": self.written}

    @classmethod
    def from_json(cls, value: Any) -> Region:
        """The inverse of `as_json`. Raises KeyError, TypeError or ValueError where something is missing."""
        return cls(str(value["name"]), tuple(int(v) for v in value["values"]), int(value["written"]))


def labels_of(logits: Iterable[np.ndarray], regions: Sequence[Region], mask: np.ndarray) -> None:
    """Fill `mask` [...] from the logits [...] of each region, in the order of `regions`: later ones lie on top."""
    mask[...] = 0
    for region, values in zip(regions, logits, strict=True):
        mask[values > 0] = region.written
