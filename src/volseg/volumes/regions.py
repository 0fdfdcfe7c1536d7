"""Regions: overlapping sets of labels, each of which a network finds by a logit of its own.

nnU-Net's region-based training (Isensee et al., "nnU-Net for Brain Tumor Segmentation", BrainLes 2020): a logit above
zero, a probability above one half, says that a voxel lies in the region.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_CACHED_VALUES = 2**17


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


def value_names(regions: Sequence[Region]) -> dict[str, int]:
    """Names of the labels that regions are made of, the background first, name -> value.

    A label that is a region by itself has its name, any other that of the smallest region it lies in, with its value.
    """
    names = {"background": 0}
    for value in sorted({value for region in regions for value in region.values}):
        home = min((region for region in regions if value in region.values), key=lambda region: len(region.values))
        names[home.name if len(home.values) == 1 else f"{home.name} ({value})"] = value
    return names


def mask_type(classes: int, regions: Sequence[Region] = ()) -> np.dtype[np.uint8] | np.dtype[np.uint16]:
    """What a mask of labels 0..classes-1, or of these regions, is stored as: uint8 where that holds it, else uint16."""
    largest = max(len(regions), *(region.written for region in regions)) if regions else classes - 1
    return np.dtype(np.uint8) if largest < 256 else np.dtype(np.uint16)


class Decision:
    """Which label each voxel gets, from the logits of one class or region after another.

    Without regions the class of the largest logit, of equals the smaller; with them what the last region holds, in
    their order, whose logit is above zero; 0 where none is.

    regions  what each logit is of; empty: classes, the first the background
    dtype    of the mask, unsigned; it holds the number of classes or regions too

    What is worked on at a time is `bar` and `winner`, both of the shape of the logits: `begin` makes them, `take` is
    called for each logit in its order, `labels` says what `winner` stands for.
    """

    def __init__(self, regions: Sequence[Region], dtype: np.dtype[Any]) -> None:
        self.dtype = dtype
        self._first = int(bool(regions))  # the number of the first logit, as 0 stands for the background
        self._written = np.array([0, *(region.written for region in regions)], dtype=dtype) if regions else None

    def begin(self, shape: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """What a logit must exceed, float32 [...], and the number of the last that did, [...] of the mask's type."""
        bar = np.full(shape, -np.inf if self._written is None else 0, dtype=np.float32)
        return bar, np.zeros(shape, self.dtype)

    def take(self, number: int, values: np.ndarray, bar: np.ndarray, winner: np.ndarray) -> None:
        """Take in the logits [...] of class or region `number`, counted from 0; `bar` and `winner` are changed."""
        better = values > bar
        if self._written is None:
            np.maximum(bar, values, out=bar)
        # Numbers rise, so the larger is the later winner; an assignment by a mask takes several times as long.
        np.maximum(winner, np.multiply(better, number + self._first, dtype=self.dtype), out=winner)

    def labels(self, winner: np.ndarray) -> np.ndarray:
        """What a mask holds, [...]."""
        return winner if self._written is None else self._written[winner]


def labels_of(logits: np.ndarray, regions: Sequence[Region], mask: np.ndarray) -> None:
    """Fill `mask` [d, h, w] from the logits [K, d, h, w], float32, of each class, or region where there are regions.

    The mask's type must be unsigned and hold every label and the number of logits (`Decision`). Rows are taken some at
    a time, so that their logits stay in the cache where those of a voxel lie beside each other.
    """
    decision = Decision(regions, mask.dtype)
    rows = max(1, _CACHED_VALUES // max(1, logits.shape[0] * mask.shape[2]))
    for plane in range(mask.shape[0]):
        for first in range(0, mask.shape[1], rows):
            some = mask[plane, first : first + rows]
            bar, winner = decision.begin(some.shape)
            for number, values in enumerate(logits[:, plane, first : first + rows]):
                decision.take(number, values, bar, winner)
            some[...] = decision.labels(winner)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Probabilities of regions from their logits, float32 [...], by numpy's exponential: the same bits anywhere."""
    powers = np.exp(-np.abs(logits))
    probabilities: np.ndarray = np.where(logits < 0, powers, np.float32(1)) / (1 + powers)
    return probabilities
