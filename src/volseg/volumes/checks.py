"""Checks that every volume must pass, whatever its format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from volseg.errors import VolumeError
from volseg.geometry import Box, format_triple
from volseg.volumes.volume import Space, Volume


def check_affine(affine: np.ndarray, path: Path) -> None:
    """Raise VolumeError unless `affine` (4 x 4) is finite and its three axes span space."""
    sides = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) <= 1e-6 * sides.prod():
        raise VolumeError(f"{path}: its affine {_matrix(affine)} maps no voxel grid; repair the header")


def check_same_grid(image: Volume, other: Volume, what: str = "labels", remedy: str | None = None) -> None:
    """Raise VolumeError unless `other` (`what` it is, in words) lies on the grid of `image`, to 2 % of a voxel.

    Both in the same voxel order (see `canonical.in_order_of`). The message names both grids, then the `remedy`.
    """
    remedy = remedy or f"resample the {what} onto the grid of {image.path}"
    if image.shape != other.shape:
        raise VolumeError(
            f"{other.path}: {what} of {format_triple(other.shape)} voxels (D x H x W), but {image.path} has "
            f"{format_triple(image.shape)}; {remedy}"
        )
    if not image.space.matches(other.space):
        ours, theirs = image.space.affine, other.space.affine
        differing = f"spacing {_spacing(other)} mm against {_spacing(image)} mm"
        if Space(image.shape, _at_origin(ours)).matches(Space(image.shape, _at_origin(theirs))):
            differing = f"with the same spacing: it begins at (x, y, z) {_place(theirs)} mm, not at {_place(ours)} mm"
            remedy = f"correct the origin in the header that is wrong, or {remedy}"
        raise VolumeError(
            f"{other.path}: {what} of the same shape as {image.path}, but at another place: up to "
            f"{image.space.apart(other.space):.4g} mm off ({_voxels(image, other)}), {differing}; {remedy}"
        )


def _voxels(image: Volume, other: Volume) -> str:
    apart = f"{image.space.voxels_apart(other.space):.3g}"
    return f"{apart} voxel" if apart == "1" else f"{apart} voxels"


def _matrix(affine: np.ndarray) -> str:
    return "[" + ", ".join("[" + ", ".join(f"{n:.4g}" for n in row) + "]" for row in affine[:3]) + "]"


def _at_origin(affine: np.ndarray) -> np.ndarray:
    return np.column_stack([affine[:, :3], [0, 0, 0, 1]])


def _spacing(volume: Volume) -> str:
    return format_triple(tuple(f"{side:.4g}" for side in volume.space.spacing))


def _place(affine: np.ndarray) -> str:
    return "(" + ", ".join(f"{side:.7g}" for side in affine[:3, 3]) + ")"


def exact_dtype(bounds: tuple[int, int], slope: float, intercept: float) -> np.dtype[Any]:
    """The smallest of int16, int32, int64 that holds ``n * slope + intercept`` for all whole n in `bounds` exactly.

    float32 where slope or intercept are no whole numbers, or nothing is wide enough.
    """
    if not (float(slope).is_integer() and float(intercept).is_integer()):
        return np.dtype(np.float32)
    ends = [bound * int(slope) + int(intercept) for bound in bounds]
    for candidate in (np.int16, np.int32, np.int64):
        if np.iinfo(candidate).min <= min(ends) and max(ends) <= np.iinfo(candidate).max:
            return np.dtype(candidate)
    return np.dtype(np.float32)


def not_finite_text(count: int) -> str:
    """How many voxels are no numbers, in words."""
    return f"{count} voxel{'s are' if count != 1 else ' is'} NaN or infinite"


def check_finite(array: np.ndarray, box: Box, path: str | Path) -> None:
    """Raise VolumeError where `array`, the voxels of `box` read from `path`, holds NaN or infinity.

    The message counts them and names the first, in D, H, W indices of the whole volume.
    """
    if array.dtype.kind not in "fc":
        return
    finite = np.isfinite(array)
    if finite.all():
        return
    first = np.unravel_index(int(np.argmin(finite)), array.shape)
    voxel = tuple(int(n) + start for n, start in zip(first[-3:], box.start, strict=True))
    what = "NaN" if np.isnan(array[first]) else "infinite"
    count = array.size - int(finite.sum())
    raise VolumeError(
        f"{path}: {not_finite_text(count)} in slices {box.start[0]}:{box.stop[0]}, "
        f"the first ({what}) at D x H x W {format_triple(voxel)}; replace them, with -1024 for air in CT"
    )
