"""Values between voxels: the arithmetic, on arrays. Every value is computed alone, in one fixed order: D, H, then W.

Coordinates are rounded to 2^-20 of a voxel (a nanometre). So the noise of an affine cannot tip a tie one way here and
the other way there, and weights are exact in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from volseg.geometry import Box, Triple

_FINENESS = 2.0**20


@dataclass(frozen=True)
class AxisMap:
    """Where the voxels of one axis of a grid lie on the same axis of another.

    low      int64, the neighbour before, by target index
    high     int64, the neighbour after; at the far edge the same one
    weight   float32 in [0, 1), of `high`
    inside   bool, whether the target voxel lies in the source's extent, which ends half a voxel beyond the last centre
    nearest  int64, the nearest voxel; halfway the one before
    """

    low: np.ndarray
    high: np.ndarray
    weight: np.ndarray
    inside: np.ndarray
    nearest: np.ndarray

    @classmethod
    def of(cls, coordinates: np.ndarray, length: int) -> AxisMap:
        """The map for source coordinates (float64, voxels) on an axis of `length` voxels."""
        exact = np.rint(coordinates * _FINENESS) / _FINENESS
        inside = (exact >= -0.5) & (exact <= length - 0.5)
        exact = np.clip(exact, 0, length - 1)
        low = np.floor(exact).astype(np.int64)
        weight = (exact - low).astype(np.float32)
        nearest = np.ceil(exact - 0.5).astype(np.int64)
        return cls(low, np.minimum(low + 1, length - 1), weight, inside, nearest)

    def __getitem__(self, cut: slice) -> AxisMap:
        return AxisMap(self.low[cut], self.high[cut], self.weight[cut], self.inside[cut], self.nearest[cut])

    def relative_to(self, first: int, side: int) -> AxisMap:
        """The same, counted from source voxel `first` of an array of `side`; what is outside of it goes to its edge."""
        low, high, nearest = (np.clip(n - first, 0, side - 1) for n in (self.low, self.high, self.nearest))
        return AxisMap(low, high, self.weight, self.inside, nearest)

    def along(self, axis: int) -> AxisMap:
        """The same, its arrays lying along `axis` of three, so that three maps broadcast to a box."""
        shape = tuple(-1 if n == axis else 1 for n in range(3))
        arrays = (a.reshape(shape) for a in (self.low, self.high, self.weight, self.inside, self.nearest))
        return AxisMap(*arrays)

    @property
    def to_nearest(self) -> AxisMap:
        """The same for the nearest voxel's value alone."""
        return AxisMap(self.nearest, self.nearest, np.zeros_like(self.weight), self.inside, self.nearest)

    @property
    def span(self) -> tuple[int, int]:
        """Half-open range of source voxels that this needs; empty where nothing lies inside. Rising maps only."""
        if not self.inside.any():
            return 0, 0
        return int(self.low[0]), int(self.high[-1]) + 1


@dataclass(frozen=True)
class Points:
    """Places in a source array, one map a source axis, whose arrays broadcast to the shape of the target."""

    axes: tuple[AxisMap, AxisMap, AxisMap]

    @classmethod
    def of_axes(cls, d: AxisMap, h: AxisMap, w: AxisMap) -> Points:
        """Every combination of the three axes' places."""
        return cls((d.along(0), h.along(1), w.along(2)))

    @classmethod
    def of_matrix(cls, matrix: np.ndarray, box: Box, shape: Triple) -> Points:
        """The places of the voxels of `box` under `matrix` (target to source indices, 4 x 4), in a source of `shape`.

        Computed from whole indices in one fixed order, so a voxel's place is the same in every box.
        """
        d, h, w = np.ogrid[box.slices]
        found = (((row[0] * d + row[1] * h) + row[2] * w) + row[3] for row in matrix[:3])
        on_d, on_h, on_w = (AxisMap.of(places, length) for places, length in zip(found, shape, strict=True))
        return cls((on_d, on_h, on_w))

    def relative_to(self, held: Box) -> Points:
        """The same, counted from the first voxel of `held`, which holds all places that lie inside."""
        d, h, w = (
            axis.relative_to(first, side) for axis, first, side in zip(self.axes, held.start, held.shape, strict=True)
        )
        return Points((d, h, w))

    @property
    def inside(self) -> np.ndarray:
        """Which of them lie in the source's extent."""
        d, h, w = (axis.inside for axis in self.axes)
        both: np.ndarray = d & h & w
        return both

    def corners(self, values: np.ndarray) -> list[np.ndarray]:
        """The eight neighbours of every place: along W the fastest, `low` before `high`."""
        d, h, w = ((axis.low, axis.high) for axis in self.axes)
        return [values[place] for place in product(d, h, w)]


def between(a: np.ndarray, b: np.ndarray, weight: np.ndarray | np.float32) -> np.ndarray:
    """``a + (b - a) * weight``, in `b`: difference, product and sum rounded one by one, so equal ends stay exactly."""
    b -= a
    b *= weight
    b += a
    return b


def interpolate_axes(values: np.ndarray, maps: Sequence[AxisMap]) -> np.ndarray:
    """Linear interpolation of floats, one axis after another; equal, bit for bit, to `interpolate_points`."""
    found = values + 0.0  # a copy, and no zero of it is negative: then a weight of 0 leaves every bit as it is
    for axis, there in enumerate(maps):
        lower = found.take(there.low, axis)
        if there.weight.any():
            shape = tuple(-1 if n == axis else 1 for n in range(3))
            lower = between(lower, found.take(there.high, axis), there.weight.reshape(shape))
        found = lower
    return found


def interpolate_points(values: np.ndarray, points: Points) -> np.ndarray:
    """Linear interpolation of floats at any places."""
    found = points.corners(values + 0.0)
    for axis in points.axes:
        half = len(found) // 2
        found = [between(a, b, axis.weight) for a, b in zip(found[:half], found[half:], strict=True)]
    return found[0]


def nearest(values: np.ndarray, points: Points) -> np.ndarray:
    """The value of the nearest voxel."""
    found: np.ndarray = values[tuple(axis.nearest for axis in points.axes)]
    return found


def vote(values: np.ndarray, points: Points) -> np.ndarray:
    """The label whose linearly interpolated indicator is largest; of equals the smallest.

    The indicator of a label is the sum of the weights of the neighbours that carry it. So only the labels of the eight
    neighbours are compared, however many there are in all, and nothing where the eight agree.
    """
    corners = points.corners(values)
    found = corners[0].copy()
    open_ = np.zeros(found.shape, dtype=bool)
    for other in corners[1:]:
        open_ |= other != found
    if open_.any():
        weights = [np.broadcast_to(axis.weight, found.shape)[open_].astype(np.float64) for axis in points.axes]
        found[open_] = winner([corner[open_] for corner in corners], weights)
    return found


def winner(labels: Sequence[np.ndarray], weights: Sequence[np.ndarray]) -> np.ndarray:
    """The label with the largest sum of weights; of equals the smallest.

    labels   of the eight neighbours, [n] each, along W the fastest, `low` before `high`
    weights  float64 [n], of `high` along D, H, W
    """
    shares = [(d * h) * w for d, h, w in product(*((1 - weight, weight) for weight in weights))]
    best, chosen = np.zeros(labels[0].shape), labels[0].copy()
    for candidate in labels:
        score = np.zeros_like(best)
        for label, share in zip(labels, shares, strict=True):
            score += np.where(label == candidate, share, 0)
        better = (score > best) | ((score == best) & (candidate < chosen))
        best[better], chosen[better] = score[better], candidate[better]
    return chosen
