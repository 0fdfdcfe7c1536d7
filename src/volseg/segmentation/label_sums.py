"""Sums over the voxels of each label: how many, where, and of which intensities. Added up over ranks.

Counts, indices and integer intensities (HU mostly are) are summed as integers, so the sums have the same bits on any
number of ranks; fractional intensities are summed in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from volseg.distributed.communicator import Communicator
from volseg.errors import VolumeError
from volseg.geometry import Box

ReadBox = Callable[[Box], np.ndarray]

_SLAB = 2**18  # voxels of mask and image looked at together
_CHUNK = 2**20  # squares of so many integers up to 2^16 add up exactly in float64, which bincount uses
_NOWHERE = np.iinfo(np.int64).max


@dataclass(frozen=True, eq=False)
class LabelSums:
    """Of the K labels 0 to K - 1 of a whole mask.

    voxels    [K] int64
    indices   [3, K] int64: sums of the voxels' D, H, W indices
    low       [3, K] int64: the smallest index on each axis; meaningless where there is no voxel
    high      [3, K] int64: the largest
    exact     [2, K] int64: sums of the integer values and of their squares (fits for 2^31 voxels of 2^16)
    inexact   [2, K] float64: of the other values; all of the image, or of the label, are the sum of both
    least     [K] float64: the smallest value; inf where there is none
    most      [K] float64: the largest; -inf
    """

    voxels: np.ndarray
    indices: np.ndarray
    low: np.ndarray
    high: np.ndarray
    exact: np.ndarray
    inexact: np.ndarray
    least: np.ndarray
    most: np.ndarray


def sum_labels(
    mask: np.ndarray, box: Box, labels: int, communicator: Communicator, read: ReadBox | None = None
) -> LabelSums:
    """The sums of the mask that the ranks hold together; background (0) is left out. Collective.

    mask    [d, h, w] of an unsigned type: this rank's block
    box     where it lies; the ranks' boxes tile the volume, some may be empty
    labels  K; the mask must hold no label of K or more
    read    the image's real values in a box; called for slabs of this rank's box that hold foreground, so it must not
            communicate. None: no intensities

    Memory: about 30 MB beside the block, and 8 K (d + h + w) bytes. Raises VolumeError, on all ranks, for a label of
    K or more; and what `read` raises.
    """
    profiles = [np.zeros((labels, side), dtype=np.int64) for side in box.shape]
    values = _Values(labels)
    with communicator.together():
        depth = max(1, _SLAB // max(1, box.shape[1] * box.shape[2]))
        for start in range(0, box.shape[0], depth):
            part = mask[start : start + depth]
            inside = np.flatnonzero(part)
            label = part.reshape(-1)[inside].astype(np.intp)
            highest = int(label.max(initial=0))
            if highest >= labels:
                raise VolumeError(f"the mask holds the label {highest}; the names given end at {labels - 1}")
            if not len(inside):
                continue
            for profile, index in zip(profiles, np.unravel_index(inside, part.shape), strict=True):
                _count(profile, label, index + start if profile is profiles[0] else index)
            if read is not None:
                first = box.start[0] + start
                slab = Box((first, *box.start[1:]), (first + len(part), *box.stop[1:]))
                values.add(label, read(slab).reshape(-1)[inside])
    return _over_ranks(profiles, values, box, communicator)


def _count(profile: np.ndarray, label: np.ndarray, index: np.ndarray) -> None:
    """Add the voxels to `profile` [K, side]. Only the span of `index` is counted."""
    low, high = int(index.min()), int(index.max()) + 1
    labels, span = len(profile), high - low
    counts = np.bincount(label * span + (index - low), minlength=labels * span)
    profile[:, low:high] += counts.reshape(labels, span)


class _Values:
    """The intensities' part of `LabelSums`, of this rank."""

    def __init__(self, labels: int) -> None:
        self.exact = np.zeros((2, labels), dtype=np.int64)
        self.inexact = np.zeros((2, labels))
        self.least = np.full(labels, np.inf)
        self.most = np.full(labels, -np.inf)

    def add(self, label: np.ndarray, values: np.ndarray) -> None:
        """Voxels' labels and values, both [n]."""
        labels = len(self.least)
        for start in range(0, len(label), _CHUNK):
            where = label[start : start + _CHUNK]
            chunk = values[start : start + _CHUNK].astype(np.float64)
            whole = bool(np.all((np.rint(chunk) == chunk) & (np.abs(chunk) <= 2**16)))
            with np.errstate(invalid="ignore", over="ignore"):  # what is no number stays one in the sums
                sums = np.stack([np.bincount(where, power, minlength=labels) for power in (chunk, chunk * chunk)])
                np.minimum.at(self.least, where, chunk)
                np.maximum.at(self.most, where, chunk)
            if whole:
                self.exact += sums.astype(np.int64)
            else:
                self.inexact += sums


def _over_ranks(profiles: list[np.ndarray], values: _Values, box: Box, communicator: Communicator) -> LabelSums:
    voxels = profiles[0].sum(axis=1)
    sums, low, high = [voxels], [], []
    for profile, start in zip(profiles, box.start, strict=True):
        index = np.arange(start, start + profile.shape[1])
        sums.append(profile @ index)
        there = profile > 0
        low.append(np.min(np.where(there, index, _NOWHERE), axis=1, initial=_NOWHERE))
        high.append(np.max(np.where(there, index, -1), axis=1, initial=-1))
    integers = communicator.reduce_all(np.concatenate([np.stack(sums), values.exact]))
    inexact = communicator.reduce_all(values.inexact)
    lowest = communicator.reduce_all(np.stack(low), "min")
    highest = communicator.reduce_all(np.stack(high), "max")
    least = communicator.reduce_all(values.least, "min")
    most = communicator.reduce_all(values.most, "max")
    return LabelSums(
        voxels=integers[0],
        indices=integers[1:4],
        low=lowest,
        high=highest,
        exact=integers[4:],
        inexact=inexact,
        least=least,
        most=most,
    )
