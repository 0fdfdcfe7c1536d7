"""What every volume offers, whatever its file format: its space, and a read of any box of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from volseg.geometry import Box, Triple
from volseg.volumes.audit import Audit
from volseg.volumes.tolerance import SAME_GRID

if TYPE_CHECKING:
    from volseg.volumes.nifti.forms import Forms


@dataclass(frozen=True, eq=False)
class Space:
    """The grid a volume lies on.

    shape   (D, H, W) voxels: slices, rows, columns; NIfTI's (i, j, k) read backwards
    affine  4 x 4, NIfTI's convention: (i, j, k, 1) = (w, h, d, 1) to RAS+ millimetres
    """

    shape: Triple
    affine: np.ndarray

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel sides in mm along D, H, W."""
        x, y, z = np.sqrt((np.asarray(self.affine, dtype=np.float64)[:3, :3] ** 2).sum(axis=0))
        return float(z), float(y), float(x)

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in millilitres (the affine's determinant, so a sheared grid is right too)."""
        return float(abs(np.linalg.det(self.affine[:3, :3])) / 1000.0)

    def matches(self, other: Space, tolerance: float = SAME_GRID) -> bool:
        """Same shape, and every voxel within `tolerance` voxels of its twin, along each axis of this grid."""
        return self.shape == other.shape and self.voxels_apart(other) <= tolerance

    def voxels_apart(self, other: Space) -> float:
        """How far the same voxel of `other` lies from one of this grid, at most, along any axis, in voxels of this.

        That is found at the corners. NaN where an affine is not finite.
        """
        affine = np.asarray(self.affine, dtype=np.float64)
        moved = np.linalg.solve(affine[:3, :3], ((other.affine - affine) @ self._corners())[:3])
        return float(np.abs(moved).max())

    def apart(self, other: Space) -> float:
        """How far a voxel of this grid lies from the same voxel of `other`, at most, along any axis of space, in mm.

        That is found at the corners. NaN where an affine is not finite.
        """
        return float(np.abs((self.affine - other.affine) @ self._corners()).max())

    def _corners(self) -> np.ndarray:
        """[4, 8] (i, j, k, 1) of the corner voxels."""
        d, h, w = (n - 1 for n in self.shape)
        return np.array([[i, j, k, 1] for i in (0, w) for j in (0, h) for k in (0, d)], dtype=np.float64).T


class Volume(ABC):
    """A volume on disk. Nothing is read until `read` or `slabs` is called.

    path     where it lies
    space    its grid
    dtype    what `read` returns: rescaled values, HU for CT; an integer type only where that is exact
    format   its file format in words, for reports
    whole_slices  whether a part of a slice costs as much to read as the slice (compressed files), so that a caller
             who needs several parts of the same slices had better read the slices once
    rising_slices  whether the planes along D are the file's own slices, in their order
    forms    how a NIfTI header of its own says where its voxels lie; None of other formats and of views
    audit    which files it is made of, what was left out or mended, what to warn of
    """

    path: Path
    space: Space
    dtype: np.dtype[Any]
    format: str = ""
    whole_slices: bool = False
    rising_slices: bool = True
    forms: Forms | None = None
    audit: Audit = Audit()

    @property
    def shape(self) -> Triple:
        """(D, H, W)."""
        return self.space.shape

    @abstractmethod
    def read(self, box: Box) -> np.ndarray:
        """The voxels of `box`, C-contiguous, of `dtype`.

        Raises VolumeError where the file is truncated, damaged or cannot be decoded.
        """

    def close(self) -> None:  # noqa: B027  (most formats keep nothing open)
        """Let go of open files; a later read opens them again."""

    def slabs(self, depth: int = 16) -> Iterator[tuple[Box, np.ndarray]]:
        """The whole volume in the file's order, `depth` of its slices at a time; a compressed file is inflated once."""
        d, h, w = self.shape
        for start in range(0, d, depth):
            box = Box((start, 0, 0), (min(d, start + depth), h, w))
            yield box, self.read(box)
