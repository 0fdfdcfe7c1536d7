"""Where the voxels of a view lie in the volume: mirrored, rotated, scaled and displaced at once, interpolated once."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from math import ceil, cos, floor, radians, sin

import numpy as np

from volseg.geometry import Box, Triple
from volseg.volumes.augmentation.elastic import Elastic, Vector

Matrix = tuple[Vector, Vector, Vector]

_SLACK = 1e-3  # of a voxel: places are computed in another order, displacements in float32


@dataclass(frozen=True)
class SpatialMap:
    """``place = matrix voxel + offset + displacement``, in voxels; computed from whole indices in one fixed order.

    volume   (D, H, W) of the volume
    view     (D, H, W) of the view
    elastic  the displacement, None for none
    """

    volume: Triple
    view: Triple
    matrix: Matrix
    offset: Vector
    elastic: Elastic | None = None

    @property
    def whole_voxels(self) -> bool:
        """Whether every voxel of the view is a voxel of the volume: axes are mirrored at most, nothing else."""
        diagonal = all(abs(value) == (row == column) for row, column, value in self._entries())
        return self.elastic is None and diagonal and all(float(n).is_integer() for n in self.offset)

    def _entries(self) -> list[tuple[int, int, float]]:
        return [(i, j, self.matrix[i][j]) for i, j in product(range(3), range(3))]

    def source_box(self, box: Box) -> Box:
        """The voxels of the volume that the voxels of `box` are made from; its size is 0 where all lie outside."""
        start, stop = [], []
        reach = self.elastic.amplitude if self.elastic is not None else (0.0, 0.0, 0.0)
        for row, shift, most, length in zip(self.matrix, self.offset, reach, self.volume, strict=True):
            low = high = shift
            for factor, first, last in zip(row, box.start, box.stop, strict=True):
                ends = factor * first, factor * (last - 1)
                low, high = low + min(ends), high + max(ends)
            # The neighbour before and the one after.
            start.append(min(max(0, floor(low - most - _SLACK)), length))
            stop.append(max(0, min(length, ceil(high + most + _SLACK) + 1)))
        if not box.size or any(b <= a for a, b in zip(start, stop, strict=True)):
            return Box((0, 0, 0), (0, 0, 0))
        return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))

    def places(self, box: Box) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Along D, H, W of the volume, [d, h, w] float64 each."""
        d, h, w = (np.arange(a, b, dtype=np.float64) for a, b in zip(box.start, box.stop, strict=True))
        field = None if self.elastic is None else self.elastic.displacement(box)
        found = []
        for axis, (row, shift) in enumerate(zip(self.matrix, self.offset, strict=True)):
            plane = (row[1] * h)[:, None] + (row[2] * w)[None, :]
            place = plane[None] + (row[0] * d + shift)[:, None, None]
            if field is not None:
                place += field[axis]
            found.append(place)
        return found[0], found[1], found[2]


def spatial_map(
    volume: Triple, view: Triple, centre: Vector, spacing: Vector, *, flips: tuple[bool, bool, bool] = (False,) * 3,
    degrees: Vector = (0.0, 0.0, 0.0), scale: float = 1.0, elastic: Elastic | None = None,
) -> SpatialMap:  # fmt: skip
    """The view of `view` voxels around `centre` of a volume.

    centre   voxels of the volume: where the view's centre lies; it is mirrored, rotated and scaled about it
    spacing  mm, D, H, W: angles are those of the body, not of the array
    degrees  about the axes D, H, W; about D a positive angle turns what the view shows from W towards H
    scale    objects in the view are that many times as large
    """
    turn = _rotation(degrees)
    matrix = []
    for i in range(3):
        # The ratio of a spacing to itself is 1 exactly, so where nothing turns whole voxels stay whole.
        d, h, w = (turn[i][j] * (spacing[j] / spacing[i]) / scale * (-1.0 if flips[j] else 1.0) + 0.0 for j in range(3))
        matrix.append((d, h, w))
    z, y, x = ((n - 1) / 2 for n in view)
    d, h, w = (c - ((row[0] * z + row[1] * y) + row[2] * x) for c, row in zip(centre, matrix, strict=True))
    return SpatialMap(volume, view, (matrix[0], matrix[1], matrix[2]), (d, h, w), elastic)


def _rotation(degrees: Vector) -> Matrix:
    """About D, then H, then W."""
    (cd, sd), (ch, sh), (cw, sw) = ((cos(radians(a)), sin(radians(a))) for a in degrees)
    about_d: Matrix = ((1.0, 0.0, 0.0), (0.0, cd, -sd), (0.0, sd, cd))
    about_h: Matrix = ((ch, 0.0, sh), (0.0, 1.0, 0.0), (-sh, 0.0, ch))
    about_w: Matrix = ((cw, -sw, 0.0), (sw, cw, 0.0), (0.0, 0.0, 1.0))
    return _product(about_d, _product(about_h, about_w))


def _product(a: Matrix, b: Matrix) -> Matrix:
    rows = []
    for row in a:
        d, h, w = (row[0] * b[0][j] + row[1] * b[1][j] + row[2] * b[2][j] for j in range(3))
        rows.append((d, h, w))
    return rows[0], rows[1], rows[2]
