"""Specks out of a mask: per label only the largest component, or none below a volume. Over ranks, in place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from volseg.distributed.communicator import Communicator
from volseg.errors import ConfigError
from volseg.geometry import Box
from volseg.volumes.components import Components, check_connectivity, connected_components

_SLAB = 2**20


@dataclass(frozen=True)
class Cleaning:
    """What to remove.

    keep_largest  of each label all components but the largest (of several as large: all but the one whose first voxel
                  comes first in the C order of the volume)
    min_volume    components of less than so many mm³
    connectivity  what makes a component: 6, 18 or 26 neighbours. 26, as nnU-Net's post-processing does: a thin vessel
                  that goes on over a corner is not cut off. (TotalSegmentator's is 6.)

    Both rules look at the components of the mask as it was. Raises ConfigError for a volume that is none, or another
    connectivity.
    """

    keep_largest: bool = False
    min_volume: float = 0.0
    connectivity: int = 26

    def __post_init__(self) -> None:
        check_connectivity(self.connectivity)
        if not (math.isfinite(self.min_volume) and self.min_volume >= 0):
            raise ConfigError(f"a smallest volume of {self.min_volume} mm³ is none; give 0 or more")

    @property
    def removes_nothing(self) -> bool:
        """Whether there is nothing to do."""
        return not self.keep_largest and self.min_volume == 0


@dataclass(frozen=True)
class LabelCleaning:
    """What became of one label: its components before, and how many of them and of their voxels were removed."""

    label: int
    components: int
    removed: int
    voxels_removed: int


def clean(
    mask: np.ndarray, boxes: Sequence[Box], voxel_ml: float, cleaning: Cleaning, communicator: Communicator
) -> tuple[LabelCleaning, ...]:
    """Remove components from the mask that the ranks hold together; one row a label that it holds. Collective.

    mask      [d, h, w] uint8 or uint16: this rank's block, changed in place
    boxes     by rank: where each block lies; any boxes that tile the volume, some may be empty
    voxel_ml  volume of a voxel in millilitres

    The mask and the rows are the same on any number of ranks.
    """
    if cleaning.removes_nothing:
        return ()
    components = connected_components(mask, boxes, communicator, cleaning.connectivity)
    here, whole = components.sizes()
    # An exact multiple of a voxel's volume must not fail by rounding.
    keep = whole * (voxel_ml * 1000.0) >= cleaning.min_volume * (1 - 1e-9)
    if cleaning.keep_largest:
        keep &= _largest(components, whole, communicator)
    keep[0] = True
    if not keep.all():
        _remove(mask, components.labels, keep)
    return _report(components, keep, here, communicator)


def _largest(components: Components, whole: np.ndarray, communicator: Communicator) -> np.ndarray:
    """Whether each entry belongs to the largest component of its label. Collective."""
    value, first = components.value, components.first
    labels = int(np.iinfo(value.dtype).max) + 1
    best = np.zeros(labels, dtype=np.int64)
    np.maximum.at(best, value, whole)
    best = communicator.reduce_all(best, "max")
    candidates = whole == best[value]
    earliest = np.full(labels, np.iinfo(np.int64).max)
    np.minimum.at(earliest, value[candidates], first[candidates])
    earliest = communicator.reduce_all(earliest, "min")
    largest: np.ndarray = candidates & (first == earliest[value])
    return largest


def _remove(mask: np.ndarray, labels: np.ndarray, keep: np.ndarray) -> None:
    factor = keep.astype(mask.dtype)
    depth = max(1, _SLAB // max(1, mask[0].size))
    for start in range(0, len(mask), depth):
        slab = mask[start : start + depth]
        slab *= factor[labels[start : start + depth]]


def _report(
    components: Components, keep: np.ndarray, here: np.ndarray, communicator: Communicator
) -> tuple[LabelCleaning, ...]:
    value, gone = components.value, ~keep
    labels = int(np.iinfo(value.dtype).max) + 1
    counts = np.zeros((3, labels), dtype=np.int64)
    counts[0] = np.bincount(value[components.owned], minlength=labels)
    counts[1] = np.bincount(value[components.owned & gone], minlength=labels)
    np.add.at(counts[2], value[gone], here[gone])
    counts = communicator.reduce_all(counts)
    present = np.flatnonzero(counts[0])
    return tuple(LabelCleaning(int(label), *(int(count) for count in counts[:, label])) for label in present)
