"""Volumes on another grid, read box by box: a voxel's value depends on its place in the whole, never on the box.

The convention of `resampled_space`: exactly the asked spacing, the centre of the volume stays where it is, and each
side is rounded to whole voxels, so what the new grid sticks out or falls short (at most half a new voxel) is shared by
both ends. SimpleITK's usual recipe keeps the first voxel's centre instead, which moves the extent by up to half a voxel
at one end; nnU-Net keeps the extent to the micrometre and lets the true spacing differ from the one it asked for.

Linear interpolation has no low-pass filter before it, as in SimpleITK's: thinning a volume out keeps its noise.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from typing import Literal

import numpy as np

from volseg.errors import VolumeError
from volseg.geometry import Box, format_triple
from volseg.volumes.canonical import in_order_of
from volseg.volumes.checks import check_finite
from volseg.volumes.interpolation import AxisMap, Points, interpolate_axes, interpolate_points, nearest, vote
from volseg.volumes.kept_slices import SliceKeeper
from volseg.volumes.volume import Space, Volume

How = Literal["linear", "nearest", "labels"]
Spacing = tuple[float, float, float]

_WORDS = {"linear": "linear", "nearest": "nearest voxel", "labels": "class-wise linear"}
_ALIGNED = 1e-3  # voxels that the axes of two grids may drift apart over a whole volume and still count as parallel
_SAME = 1e-6  # voxels that two grids may differ in and need no resampling: the noise of their computation
_CHUNK_VOXELS = 2**18


def space_from_first(space: Space, spacing: Spacing) -> Space:
    """The grid of `spacing` mm (D, H, W) whose first voxel's centre is that of `space`: same directions.

    Sides are ``round((n - 1) * old / new) + 1``, halves to even, as MONAI's Spacing has them. Raises VolumeError unless
    every spacing is a positive number.
    """
    _check_spacing(spacing)
    ratios = [new / old for new, old in zip(spacing, space.spacing, strict=True)]
    d, h, w = (int(np.round((n - 1) / r + 1.0)) for n, r in zip(space.shape, ratios, strict=True))
    to_old = np.diag([*reversed(ratios), 1.0])
    return Space((d, h, w), np.asarray(space.affine, dtype=np.float64) @ to_old)


def _check_spacing(spacing: Spacing) -> None:
    if not all(math.isfinite(side) and side > 0 for side in spacing):
        raise VolumeError(f"spacing {_mm(spacing)} mm: must be three positive numbers, such as 1x1x1")


def resampled_space(space: Space, spacing: Spacing) -> Space:
    """The grid of `spacing` mm (D, H, W) over the extent of `space`: same directions, same centre.

    Sides are ``round(n * old / new)``, at least 1. Raises VolumeError unless every spacing is a positive number.
    """
    _check_spacing(spacing)
    ratios = [new / old for new, old in zip(spacing, space.spacing, strict=True)]
    # The small addition keeps the noise of an affine from turning 3.5 into 3.
    d, h, w = (max(1, math.floor(n / r + 0.5 + 1e-6)) for n, r in zip(space.shape, ratios, strict=True))
    to_old = np.diag([*reversed(ratios), 1.0])
    for axis, (old, new) in enumerate(zip(space.shape, (d, h, w), strict=True)):
        to_old[2 - axis, 3] = (old - 1) / 2 - (new - 1) / 2 * ratios[axis]
    return Space((d, h, w), np.asarray(space.affine, dtype=np.float64) @ to_old)


def resampled(volume: Volume, space: Space, how: How, *, outside: float | None = 0) -> Volume:
    """`volume` as it looks on the grid `space`, in whatever voxel order that has; read lazily, box by box.

    linear   of integers rounded back to integers (HU stay HU), ties to even; else float32
    nearest  the value of the nearest voxel, halfway the one before
    labels   linear class by class: each label's indicator is interpolated, and the largest wins; of equals the smaller

    Beyond the outermost voxels' centres the edge is carried on for half a voxel, which is where the volume ends; after
    that comes `outside`, where it is None the edge still. Every box has the bits that the whole has there. A read holds
    the box, the box of the source that it needs, and a chunk of planes; whole planes asked for in rising order read a
    compressed source once.

    A read raises VolumeError as the source's does, and, linear, where the source holds NaN or infinity.
    """
    volume = in_order_of(volume, space)
    if space.matches(volume.space, _SAME):
        return volume
    return _ResampledView(volume, space, how, outside)


def along_maps(volume: Volume, space: Space, maps: tuple[AxisMap, AxisMap, AxisMap], how: How) -> Volume:
    """The same as `resampled` where `maps` say, axis by axis, where the voxels of `space` lie in `volume`."""
    return _ResampledView(volume, space, how, 0, maps)


def axis_maps(source: Space, target: Space) -> tuple[AxisMap, AxisMap, AxisMap] | None:
    """Where the voxels of `target` lie in `source`, axis by axis; None where their axes are not parallel and alike."""
    matrix = _index_map(source, target)
    scale = np.diag(matrix)[:3]
    drift = np.abs(matrix[:3, :3] - np.diag(scale)) * (np.array(target.shape) - 1)
    if (scale <= 0).any() or drift.sum(axis=1).max() > _ALIGNED:
        return None
    d, h, w = (
        AxisMap.of(scale[axis] * np.arange(target.shape[axis]) + matrix[axis, 3], source.shape[axis])
        for axis in range(3)
    )
    return d, h, w


def _index_map(source: Space, target: Space) -> np.ndarray:
    """4 x 4, float64: (d, h, w, 1) in `target` to (d, h, w) in `source`."""
    there = np.linalg.solve(np.asarray(source.affine, np.float64), np.asarray(target.affine, np.float64))
    order = [2, 1, 0, 3]
    mapped: np.ndarray = there[np.ix_(order, order)]
    return mapped


class _ResampledView(Volume):
    def __init__(
        self, volume: Volume, space: Space, how: How, outside: float | None,
        maps: tuple[AxisMap, AxisMap, AxisMap] | None = None,
    ) -> None:  # fmt: skip
        self.path, self.format, self.dtype = volume.path, volume.format, volume.dtype
        self.space, self.whole_slices, self.rising_slices = space, volume.whole_slices, volume.rising_slices
        old, new = _mm(volume.space.spacing), _mm(space.spacing)
        change = f"from {old} to {new} mm" if old != new else f"onto another grid of {new} mm"
        self.audit = replace(volume.audit, fixes=(*volume.audit.fixes, f"resampled {change}, {_WORDS[how]}"))
        self._source, self._how, self._outside = SliceKeeper(volume), how, outside
        self._maps = maps or axis_maps(volume.space, space)
        if outside is None and self._maps is not None:
            d, h, w = (replace(axis, inside=np.ones_like(axis.inside)) for axis in self._maps)
            self._maps = d, h, w
        self._matrix = _index_map(volume.space, space)

    def close(self) -> None:
        self._source.close()

    def read(self, box: Box) -> np.ndarray:
        needed = self._source_box(box)
        out = np.full(box.shape, self._outside or 0, self.dtype)
        if not box.size or not needed.size:
            return out
        values = self._source.read(needed, keep=box.shape[1:] == self.shape[1:])
        if self._how == "linear":
            check_finite(values, needed, self.path)
        depth = max(1, _CHUNK_VOXELS // (box.shape[1] * box.shape[2]))
        for start in range(box.start[0], box.stop[0], depth):
            stop = min(start + depth, box.stop[0])
            part = Box((start, *box.start[1:]), (stop, *box.stop[1:]))
            here = self._source_box(part)
            if here.size:
                piece = values[here.relative_to(needed).slices]
                self._fill(out[start - box.start[0] : stop - box.start[0]], part, piece, here)
        return out

    def _source_box(self, box: Box) -> Box:
        """What of the source the voxels of `box` need; empty where all of them lie outside."""
        if self._maps is not None:
            spans = [axis[cut].span for axis, cut in zip(self._maps, box.slices, strict=True)]
        else:
            ends = zip(box.start, (max(a, b - 1) for a, b in zip(box.start, box.stop, strict=True)), strict=True)
            corners = np.array(list(product(*ends)), dtype=np.float64)
            there = corners @ self._matrix[:3, :3].T + self._matrix[:3, 3]
            lows, highs = there.min(axis=0), there.max(axis=0)
            spans = [_span(a, b, n) for a, b, n in zip(lows, highs, self._source.volume.shape, strict=True)]
        (d0, d1), (h0, h1), (w0, w1) = spans
        return Box((d0, h0, w0), (d1, h1, w1))

    def _fill(self, out: np.ndarray, box: Box, values: np.ndarray, held: Box) -> None:
        """The voxels of `box` where they lie inside the source; `values` are the source's in the box `held`."""
        maps: list[AxisMap] = []
        if self._maps is not None:
            for whole, cut, first, side in zip(self._maps, box.slices, held.start, held.shape, strict=True):
                maps.append(whole[cut].relative_to(first, side))
            points = Points.of_axes(*maps)
        else:
            points = Points.of_matrix(self._matrix, box, self._source.volume.shape).relative_to(held)
        if self._how == "nearest":
            found = nearest(values, points)
        elif self._how == "labels":
            found = vote(values, points)
        else:
            exact = self.dtype.kind == "f" or self.dtype.itemsize <= 2  # float32 holds 24 bits
            work = values.astype(np.float32 if exact else np.float64, copy=False)
            found = interpolate_axes(work, maps) if maps else interpolate_points(work, points)
            if self.dtype.kind != "f":
                np.rint(found, out=found)
        inside = points.inside
        if inside.all():
            out[...] = found
        else:
            np.copyto(out, found.astype(self.dtype), where=inside)


def _span(low: float, high: float, length: int) -> tuple[int, int]:
    """Half-open range of voxels, of an axis of `length`, that coordinates from `low` to `high` need."""
    if high < -0.51 or low > length - 0.49:
        return 0, 0
    return max(0, math.floor(low - 0.01)), min(length, math.floor(high + 0.01) + 2)


def _mm(spacing: Spacing) -> str:
    return format_triple(tuple(f"{side:.4g}" for side in spacing))


def kept_where_close(own: Spacing, asked: Spacing, tolerance: float = 0.01) -> Spacing:
    """`asked`, but the volume's own spacing on axes where the two differ by no more than `tolerance` of it."""
    d, h, w = (o if abs(o / a - 1) <= tolerance else a for o, a in zip(own, asked, strict=True))
    return d, h, w
