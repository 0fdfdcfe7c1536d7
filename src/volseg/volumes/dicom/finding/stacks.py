"""Where images of like orientation lie along their normal, and which of them make a regular stack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from volseg.volumes.dicom.geometry import EVENNESS_TOLERANCE
from volseg.volumes.dicom.image import Image
from volseg.volumes.tolerance import SAME_PLACE

STRAIGHT_PIXELS = 0.25
ROUNDING_MM, ROUNDING_SHARE = 0.06, 0.15
"""What positions rounded to 0.1 mm may be off by, and the share of a step that is never put down to rounding."""

MISSING_STEPS = 3.1
"""A stack goes on beyond a gap of this many of its steps at most: two slices missing."""


class Stacks:
    """Images of one orientation and pixel spacing, asked by their numbers in the order given.

    heights  [n] mm along the normal
    sides    [n, 2] mm along a row and down a column
    """

    def __init__(self, images: Sequence[Image], orientation: Sequence[float], pixel: Sequence[float]) -> None:
        across, down = np.reshape(orientation, (2, 3))
        positions = np.array([image.get("ImagePositionPatient") for image in images], np.float64)
        self.heights = positions @ np.cross(across, down)
        self.sides = np.stack([positions @ across, positions @ down], axis=1)
        self._pixel = float(min(pixel))

    @property
    def same_place(self) -> float:
        """mm within which two images lie at one place."""
        return SAME_PLACE * self._pixel

    def in_order(self, which: Sequence[int]) -> np.ndarray:
        """`which`, ordered by height."""
        numbers = np.asarray(which, np.intp)
        order: np.ndarray = numbers[np.argsort(self.heights[numbers], kind="stable")]
        return order

    def gaps(self, which: Sequence[int]) -> np.ndarray:
        """mm between neighbours along the normal."""
        return np.diff(self.heights[self.in_order(which)])

    def coincide(self, which: Sequence[int]) -> bool:
        """Whether two of them lie at one height."""
        return bool((self.gaps(which) < self.same_place).any())

    def straight(self, which: Sequence[int]) -> bool:
        """Whether they lie in one line, be it a tilted one."""
        order = self.in_order(which)
        heights, sides = self.heights[order] - self.heights[order[0]], self.sides[order] - self.sides[order[0]]
        if heights[-1] < self.same_place:
            return False
        wander = sides - np.outer(heights / heights[-1], sides[-1])
        return bool(np.abs(wander).max() <= STRAIGHT_PIXELS * self._pixel)

    def even(self, which: Sequence[int]) -> bool:
        """Whether they make one regular stack: each at its own height, equally far apart, in one line."""
        if len(which) < 2 or self.coincide(which):
            return False
        heights = self.heights[self.in_order(which)]
        line = np.linspace(heights[0], heights[-1], len(heights))
        limit = _tolerance((heights[-1] - heights[0]) / (len(heights) - 1))
        return bool(np.abs(heights - line).max() <= limit) and self.straight(which)

    def lattice(self, which: Sequence[int]) -> bool:
        """Whether they would make a regular stack if nothing were missing: gaps are multiples of one step."""
        if len(which) < 2 or self.coincide(which) or not self.straight(which):
            return False
        gaps = self.gaps(which)
        step = float(np.median(gaps[gaps < 1.5 * gaps.min()]))
        steps = np.rint(gaps / step)
        return bool((np.abs(gaps - steps * step) <= _tolerance(step) * steps).all())

    def overlap(self, parts: Sequence[Sequence[int]]) -> bool:
        """Whether the ranges of two parts meet, rather than follow one another."""
        ranges = sorted((self.heights[list(part)].min(), self.heights[list(part)].max()) for part in parts)
        reach = ranges[0][1]
        for low, high in ranges[1:]:
            if low < reach + self.same_place:
                return True
            reach = max(reach, high)
        return False

    def passes(self, classes: Sequence[Sequence[int]], most: int) -> list[list[int]] | None:
        """Classes in their order, those put together that go on where the last one ended; None for more than `most`.

        A class that is no regular stack by itself is an answer of None too: whatever it stands for, it is no pass.
        """
        passes: list[list[int]] = []
        end: _End | None = None
        for members in classes:
            if len(members) > 1 and not self.lattice(members):
                return None
            order = self.in_order(members)
            longer = None if end is None else end.beyond(self, order)
            if longer is None:
                passes.append([])
                longer = _End.of(self, order)
            if len(passes) > most:
                return None
            passes[-1] += members
            end = longer
        return passes


@dataclass(frozen=True)
class _End:
    """How far a pass has come: its lowest and its highest image, and the step between neighbours (0: not known)."""

    low: int
    high: int
    step: float

    @classmethod
    def of(cls, stacks: Stacks, order: np.ndarray) -> _End:
        step = float(np.diff(stacks.heights[order]).min()) if len(order) > 1 else 0.0
        return cls(int(order[0]), int(order[-1]), step)

    def beyond(self, stacks: Stacks, order: np.ndarray) -> _End | None:
        """The pass with `order` added at one of its ends; None where that does not go on from it."""
        low, high = int(order[0]), int(order[-1])
        heights = stacks.heights
        above, below = heights[low] - heights[self.high], heights[self.low] - heights[high]
        gap = float(max(above, below))
        if gap < stacks.same_place:
            return None
        own = _End.of(stacks, order).step
        if own and self.step and abs(own - self.step) > _tolerance(self.step):
            return None
        step = self.step or own
        if step:
            steps = round(gap / step)
            if not 1 <= steps <= MISSING_STEPS or abs(gap - steps * step) > _tolerance(step) * steps:
                return None
        if not stacks.straight([self.low, self.high, low, high]):
            return None
        ends = (self.low, high) if above > below else (low, self.high)
        return _End(*ends, step or gap)


def _tolerance(step: float) -> float:
    return max(EVENNESS_TOLERANCE * step, min(ROUNDING_MM, ROUNDING_SHARE * step))
