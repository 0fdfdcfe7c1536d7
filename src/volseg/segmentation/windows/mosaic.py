"""Windows added up: weighted logits over the planes that windows still touch, of a rank's part of each plane."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from volseg.geometry import Box

_SLAB_VALUES = 2**22


class Mosaic:
    """Sums of weighted logits and of weights, over as many planes as a window has.

    classes  of the logits
    held     what of the volume is added up here
    weights  [d, h, w] float32, of a window's voxels

    Windows come in rising order of their first plane. Each voxel's sums are made in the order of the windows: their
    bits do not depend on what is held here.
    """

    def __init__(self, classes: int, held: Box, weights: np.ndarray) -> None:
        self._held, self._weights = held, weights
        depth, (_, h, w) = len(weights), held.shape
        self._sums = np.zeros((classes, depth, h, w), np.float32)
        self._shares = np.zeros((depth, h, w), np.float32)
        self._first: int | None = None

    def part_of(self, window: Box) -> Box:
        """What of a window is added up here, counted from the window's first voxel."""
        return window.intersect(self._held).relative_to(window)

    def add(self, window: Box, part: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Add weighted logits [K, d', h', w'] of `part_of(window)`.

        out  before that, the planes that this window and those after it do not touch: `finished`
        """
        yield from self._until(window.start[0])
        inside = window.intersect(self._held)
        if not inside.size:
            return
        place = inside.relative_to(self._ring).slices
        self._sums[(..., *place)] += part
        self._shares[place] += self._weights[inside.relative_to(window).slices]

    def finished(self) -> Iterator[tuple[int, np.ndarray]]:
        """First plane and logits [K, planes, h, w] of the planes that are left, some at a time. All windows came."""
        yield from self._until(self._held.stop[0])

    @property
    def _ring(self) -> Box:
        """The box whose sums are here."""
        first = self._first or 0
        return Box((first, *self._held.start[1:]), (first + len(self._shares), *self._held.stop[1:]))

    def _until(self, plane: int) -> Iterator[tuple[int, np.ndarray]]:
        """Hand out the planes before `plane`, and make room for as many behind."""
        if self._first is None:
            self._first = plane
        count = plane - self._first
        if not count:
            return
        yield from self._divided(max(self._first, self._held.start[0]), min(plane, self._held.stop[0]))
        for array, axis in ((self._sums, 1), (self._shares, 0)):
            planes = np.moveaxis(array, axis, 0)
            kept = max(0, len(planes) - count)
            planes[:kept] = planes[len(planes) - kept :].copy() if kept else 0
            planes[kept:] = 0
        self._first = plane

    def _divided(self, start: int, stop: int) -> Iterator[tuple[int, np.ndarray]]:
        classes, _, h, w = self._sums.shape
        step = max(1, _SLAB_VALUES // max(1, classes * h * w))
        assert self._first is not None
        for first in range(start, stop, step):
            planes = slice(first - self._first, min(first + step, stop) - self._first)
            yield first, self._sums[:, planes] / self._shares[planes]
