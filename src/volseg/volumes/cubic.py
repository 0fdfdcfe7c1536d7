"""Cubic splines on a grid of another shape, read box by box: what nnU-Net does to an image before its network sees it.

nnU-Net resizes each image with scikit-image, which means `scipy.ndimage.zoom` of order 3 with mode "nearest" and
`grid_mode`: voxel i of n lies at ``(i + 1/2) * m / n - 1/2`` of m, the image goes on beyond its faces with its
outermost voxels, and the result is clipped to the range of the image. Where voxels are more than three times as long on
one axis as on another, each slice across that axis is resized by itself, and along it the nearest slice is taken.

The coefficients of the splines come from a recursion over the whole axis (Unser, "Splines", IEEE Signal Processing
Magazine 1999). Its response falls off by 0.268 a voxel, so here it is a sum over 14 voxels on either side, which errs
by 1e-8 of the range: a voxel depends on its surroundings alone, and is computed in one fixed order whatever the box.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from volseg.geometry import Box, Triple, format_triple
from volseg.volumes.interpolation import AxisMap
from volseg.volumes.volume import Space, Volume

ANISOTROPY = 3.0
"""Longest side of a voxel over the shortest, above which nnU-Net resamples each slice by itself."""
_REACH = 14
_PLANES = 8  # of the target that are made at a time
_POLE = math.sqrt(3) - 2
_TAPS = tuple(np.float32(math.sqrt(3) * _POLE**n) for n in range(_REACH + 1))
"""Coefficient 0 of a spline is the sum of these times the voxels at distance 0, 1, 2, ... on both sides."""

Sides = tuple[float, float, float]


def resized_shape(shape: Triple, old: Sides, new: Sides) -> Triple:
    """The shape of a volume at another spacing, as nnU-Net rounds it; at least one voxel a side."""
    d, h, w = (max(1, round(o / n * side)) for side, o, n in zip(shape, old, new, strict=True))
    return d, h, w


def slice_axis(old: Sides, new: Sides) -> int | None:
    """The axis along which nnU-Net takes the nearest slice; None where it resamples all axes alike.

    That is the axis of the longest side of `old`, or if that is nearly isotropic, of `new`; two axes that share the
    longest side are not taken apart.
    """
    for spacing in (old, new):
        if max(spacing) / min(spacing) > ANISOTROPY:
            longest = [axis for axis, side in enumerate(spacing) if max(spacing) / side == 1]
            return longest[0] if len(longest) == 1 else None
    return None


def maps_between(source: Triple, target: Triple, nearest: int | None) -> tuple[AxisMap, AxisMap, AxisMap]:
    """Where the voxels of a grid lie on another over the same extent, for linear interpolation.

    nearest  an axis along which the nearest voxel is taken, halfway the one behind
    """
    d, h, w = (
        _nearest_map(m, n) if axis == nearest else AxisMap.of(_places(m, n), m)
        for axis, (m, n) in enumerate(zip(source, target, strict=True))
    )
    return d, h, w


def _places(source: int, target: int) -> np.ndarray:
    """Where each voxel of an axis lies on that of the source, float64."""
    places: np.ndarray = (np.arange(target) + 0.5) * (source / target) - 0.5
    return places


def _nearest_map(source: int, target: int) -> AxisMap:
    near = np.clip(np.floor(_places(source, target) + 0.5).astype(np.int64), 0, source - 1)
    return AxisMap(near, near, np.zeros(target, np.float32), np.ones(target, np.bool_), near)


@dataclass(frozen=True, eq=False)
class Range:
    """Smallest and largest value of a volume, float32, or of each slice across an axis.

    axis  the axis; None: of the whole volume
    """

    low: np.ndarray
    high: np.ndarray
    axis: int | None = None


@dataclass(frozen=True)
class _Axis:
    """One axis of the resampling: from `source` voxels to `target`, by splines or the nearest voxel."""

    source: int
    target: int
    nearest: bool

    @cached_property
    def still(self) -> bool:
        """Whether nothing moves."""
        return self.source == self.target

    @cached_property
    def places(self) -> np.ndarray:
        """int64, the source voxel before each target voxel, or the nearest."""
        if self.nearest:
            return _nearest_map(self.source, self.target).low
        before: np.ndarray = np.floor(_places(self.source, self.target)).astype(np.int64)
        return before

    @cached_property
    def weights(self) -> np.ndarray:
        """[target, 4] float32 of the coefficients at ``places - 1`` to ``places + 2``: the cubic B-spline's."""
        t = _places(self.source, self.target) - self.places
        weights = [(1 - t) ** 3, 4 - 6 * t**2 + 3 * t**3, 4 - 6 * (1 - t) ** 2 + 3 * (1 - t) ** 3, t**3]
        stacked: np.ndarray = (np.stack(weights, 1) / 6).astype(np.float32)
        return stacked

    def reads(self, start: int, stop: int) -> tuple[int, int]:
        """Half-open range of source voxels that the target voxels of a range, not empty, need."""
        if self.still:
            return start, stop
        beside = 0 if self.nearest else _REACH + 1
        low, high = int(self.places[start]), int(self.places[stop - 1])
        after = high + beside + 1 + (not self.nearest)
        return max(0, low - beside), min(self.source, after)


def resized(volume: Volume, shape: Triple, nearest: int | None, limits: Range | None) -> Volume:
    """`volume` on a grid of `shape` over the same extent, float32, by cubic splines; itself where that is its shape.

    nearest  the axis along which the nearest slice is taken (`slice_axis`)
    limits   what values are clipped to; where `nearest` is an axis, each slice's

    Every box has the bits that the whole has there. Reads of boxes of the same rows and columns in rising order of
    planes read each plane of the source once. A read raises VolumeError as the source's does.
    """
    return volume if volume.shape == shape else _ResizedView(volume, shape, nearest, limits)


class _ResizedView(Volume):
    def __init__(self, volume: Volume, shape: Triple, nearest: int | None, limits: Range | None) -> None:
        self.path, self.format, self.dtype = volume.path, volume.format, np.dtype(np.float32)
        self.whole_slices, self.rising_slices = volume.whole_slices, volume.rising_slices
        self.space = resized_space(volume.space, shape)
        old, new = (format_triple(tuple(f"{n:.4g}" for n in s.spacing)) for s in (volume.space, self.space))
        how = "cubic" if nearest is None else "cubic in plane, nearest slice"
        fixes = (*volume.audit.fixes, f"resampled from {old} to {new} mm, {how}")
        self.audit = replace(volume.audit, fixes=fixes)
        self._planes = _RollingPlanes(volume)
        self._axes = [_Axis(m, n, axis == nearest) for axis, (m, n) in enumerate(zip(volume.shape, shape, strict=True))]
        self._limits = limits

    def close(self) -> None:
        self._planes.close()

    def read(self, box: Box) -> np.ndarray:
        out = np.empty(box.shape, np.float32)
        # Each run of planes of a compressed file that is stored along another axis would cost as much as the file.
        depth = max(1, box.shape[0]) if self.whole_slices and not self.rising_slices else _PLANES
        for start in range(box.start[0], box.stop[0], depth):
            stop = min(start + depth, box.stop[0])
            part = Box((start, *box.start[1:]), (stop, *box.stop[1:]))
            if part.size:
                self._fill(out[start - box.start[0] : stop - box.start[0]], part)
        return out

    def _fill(self, out: np.ndarray, box: Box) -> None:
        d, h, w = self._axes
        spans = [axis.reads(a, b) for axis, a, b in zip(self._axes, box.start, box.stop, strict=True)]
        (d0, d1), (h0, h1), (w0, w1) = spans
        planes = self._planes.read(Box((d0, h0, w0), (d1, h1, w1)))
        for n, z in enumerate(range(box.start[0], box.stop[0])):
            plane = _plane_of(planes, d, z, d0)
            plane = _along_rows(plane, h, (box.start[1], box.stop[1]), h0)
            plane = _along_rows(plane.T, w, (box.start[2], box.stop[2]), w0)
            out[n] = plane.T
        if self._limits is not None:
            low, high = self._limits_of(box, self._limits)
            np.clip(out, low, high, out=out)

    def _limits_of(self, box: Box, limits: Range) -> tuple[np.ndarray, np.ndarray]:
        if limits.axis is None:
            return limits.low, limits.high
        axis = limits.axis
        there = self._axes[axis].places if not self._axes[axis].still else np.arange(self.shape[axis])
        own = there[box.start[axis] : box.stop[axis]]
        shape = [1, 1, 1]
        shape[axis] = len(own)
        return limits.low[own].reshape(shape), limits.high[own].reshape(shape)


def resized_space(space: Space, shape: Triple) -> Space:
    """The grid of `shape` over the extent of `space`."""
    if shape == space.shape:
        return space
    to_old = np.eye(4)
    for axis, (m, n) in enumerate(zip(space.shape, shape, strict=True)):
        to_old[2 - axis, 2 - axis] = m / n
        to_old[2 - axis, 3] = (m / n - 1) / 2
    return Space(shape, np.asarray(space.affine, dtype=np.float64) @ to_old)


def _plane_of(planes: np.ndarray, axis: _Axis, z: int, first: int) -> np.ndarray:
    """Plane z of the target [h, w] from planes of the source, of which `planes` begin at `first`."""
    plane: np.ndarray
    if axis.still:
        plane = planes[z - first]
        return plane
    place = int(axis.places[z])
    if axis.nearest:
        plane = planes[place - first]
        return plane
    out = np.zeros(planes.shape[1:], np.float32)
    term = np.empty_like(out)
    for tap, weight in enumerate(_joined(axis.weights[z])):
        index = min(max(place - 1 - _REACH + tap, 0), axis.source - 1)
        np.multiply(planes[index - first], weight, out=term)
        out += term
    return out


def _joined(weights: np.ndarray) -> np.ndarray:
    """Weights of the voxels ``place - 1 - _REACH`` to ``place + 2 + _REACH``, from those of the four coefficients."""
    taps = np.array([*reversed(_TAPS[1:]), *_TAPS], np.float64)
    return np.convolve(taps, weights.astype(np.float64)).astype(np.float32)


def _along_rows(plane: np.ndarray, axis: _Axis, wanted: tuple[int, int], first: int) -> np.ndarray:
    """[rows of `wanted`, w] from rows [h, w] of the source that begin with row `first`."""
    start, stop = wanted
    if axis.still:
        return plane
    places = axis.places[start:stop]
    if axis.nearest:
        picked: np.ndarray = plane[places - first]
        return picked
    begin, end = int(places[0]) - 1, int(places[-1]) + 3  # of the coefficients that are needed
    rows = np.clip(np.arange(begin - _REACH, end + _REACH), 0, axis.source - 1) - first
    coefficients = _coefficients(np.ascontiguousarray(plane)[rows])
    out = np.zeros((stop - start, plane.shape[1]), np.float32)
    for tap in range(4):
        out += coefficients[places - 1 + tap - begin] * axis.weights[start:stop, tap, None]
    return out


def _coefficients(rows: np.ndarray) -> np.ndarray:
    """Coefficients of the splines along axis 0, without the `_REACH` rows at both ends."""
    count = len(rows) - 2 * _REACH
    out = rows[_REACH : _REACH + count] * _TAPS[0]
    pair = np.empty_like(out)
    for distance in range(1, _REACH + 1):
        np.add(
            rows[_REACH - distance : _REACH - distance + count],
            rows[_REACH + distance : _REACH + distance + count],
            out=pair,
        )
        pair *= _TAPS[distance]
        out += pair
    return out


class _RollingPlanes:
    """Boxes of a volume; planes that the next box needs too are kept, where its rows and columns are the same."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._box: Box | None = None
        self._planes = np.empty((0, 0, 0), np.float32)

    def read(self, box: Box) -> np.ndarray:
        """The voxels of `box`, float32."""
        before, begin = self._box, box.start[0]
        planes = np.empty((0, *box.shape[1:]), np.float32)
        if before is not None and (before.start[1:], before.stop[1:]) == (box.start[1:], box.stop[1:]):  # noqa: SIM102
            if before.start[0] <= begin < before.stop[0] <= box.stop[0]:
                planes, begin = self._planes[begin - before.start[0] :], before.stop[0]
        if begin < box.stop[0]:
            fresh = self._volume.read(Box((begin, *box.start[1:]), box.stop)).astype(np.float32, copy=False)
            planes = np.concatenate([planes, fresh]) if len(planes) else fresh
        self._box, self._planes = box, planes
        return planes

    def close(self) -> None:
        """Let go of the planes and of the file."""
        self._box, self._planes = None, np.empty((0, 0, 0), np.float32)
        self._volume.close()
