"""The slices that labels of a corrected series were drawn on: they are not those of the grid that it was brought onto.

A SEG or RTSTRUCT refers to the scanner's own slices. Where a series was sheared back or interpolated onto an even grid
(see `corrections`), its labels take the same way: a new slice has the labels of the nearest old one, halfway the one
before, moved in plane as that slice is, by the nearest pixel.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from volseg.geometry import Box
from volseg.volumes.dicom.volume import DicomVolume
from volseg.volumes.volume import Space, Volume

HALFWAY, NOISE = 0.5, 1e-4  # of a slice or pixel; noise does not decide who is nearer
FIX = "labels corrected as their scan is, by the nearest voxel"


@dataclass(frozen=True)
class EvenGrid:
    """Where points lie on an ordinary grid."""

    space: Space

    def voxels(self, points: np.ndarray) -> np.ndarray:
        """[n, 3] (slice, row, column) of `points` [n, 3], RAS mm."""
        to_grid = np.linalg.inv(self.space.affine)
        places: np.ndarray = (points @ to_grid[:3, :3].T + to_grid[:3, 3])[:, ::-1]
        return places


class Slices:
    """Where points lie among the slices of a series, and which of them a slice of the corrected grid follows.

    space    of the shape before the correction: slices, rows, columns
    target   the corrected grid
    nearest  [D] the slice that each new one takes its labels from
    """

    def __init__(self, image: DicomVolume) -> None:
        assert image.plan is not None
        self._placement, self._plan = image.placement, image.plan
        self.target = image.space
        # Its affine is never asked for: what lies on the slices is read through `corrected`.
        self.space = Space((len(image.placement.images), *image.placement.size), image.space.affine)
        self.nearest: np.ndarray = image.plan.lower + (image.plan.weights > HALFWAY + NOISE)

    def voxels(self, points: np.ndarray) -> np.ndarray:
        """[n, 3] (slice, row, column) of `points` [n, 3], RAS mm; rows and columns are those of the nearest slice."""
        place = self._placement
        moved = points * (-1, -1, 1) - place.positions[0]
        index = self.numbers(moved @ place.normal)
        nearest = np.clip(np.rint(index), 0, len(place.images) - 1).astype(int)
        plane = np.stack([moved @ place.down / place.pixel[0], moved @ place.across / place.pixel[1]], axis=1)
        return np.column_stack([index, plane - place.shifts[nearest]])

    def numbers(self, heights: np.ndarray) -> np.ndarray:
        """The slices, as fractions, at `heights` in mm above the first; beyond the last ones their gap goes on."""
        known, gaps = self._placement.heights, self._placement.gaps
        index = np.interp(heights, known, np.arange(len(known)))
        index = index + np.minimum(heights, 0) / gaps[0]
        number: np.ndarray = index + np.maximum(heights - known[-1], 0) / gaps[-1]
        return number

    def corrected(self, labels: Volume) -> Volume:
        """`labels`, which lie on the slices, as they lie on the corrected grid."""
        return _Corrected(labels, self)

    def pixels(self, axis: int, number: int, start: int, stop: int) -> np.ndarray:
        """The rows (`axis` 0) or columns (1) of slice `number` that those of the grid from `start` to `stop` follow."""
        places = np.arange(start, stop) + self._plan.corner[axis] - self._plan.shifts[number, axis]
        pixels: np.ndarray = np.ceil(places - HALFWAY - NOISE).astype(int)
        return pixels


def slices_of(image: Volume) -> Slices | None:
    """The slices of a series that was corrected; None of any other volume, whose slices are those of its grid."""
    return Slices(image) if isinstance(image, DicomVolume) and image.plan is not None else None


class _Corrected(Volume):
    whole_slices = True

    def __init__(self, labels: Volume, slices: Slices) -> None:
        self.path, self.dtype, self.format, self.space = labels.path, labels.dtype, labels.format, slices.target
        self.audit = replace(labels.audit, fixes=(*labels.audit.fixes, FIX))
        self._labels, self._slices = labels, slices
        self._number, self._plane = -1, np.empty((0, 0))

    def read(self, box: Box) -> np.ndarray:
        out = np.zeros(box.shape, self.dtype)
        for index in range(box.shape[0] if out.size else 0):
            number = int(self._slices.nearest[box.start[0] + index])
            rows, columns = (
                self._slices.pixels(axis, number, box.start[axis + 1], box.stop[axis + 1]) for axis in (0, 1)
            )
            inside = np.ix_(_within(rows, self._labels.shape[1]), _within(columns, self._labels.shape[2]))
            out[index][inside] = self._read(number)[np.ix_(rows[inside[0].ravel()], columns[inside[1].ravel()])]
        return out

    def _read(self, number: int) -> np.ndarray:
        """A slice before the correction; the last one is remembered, for several new ones may follow it."""
        if number != self._number:
            _, rows, columns = self._labels.shape
            self._plane = self._labels.read(Box((number, 0, 0), (number + 1, rows, columns)))[0]
            self._number = number
        return self._plane

    def close(self) -> None:
        self._number, self._plane = -1, np.empty((0, 0))
        self._labels.close()


def _within(places: np.ndarray, side: int) -> np.ndarray:
    return np.flatnonzero((places >= 0) & (places < side))
