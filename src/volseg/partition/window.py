"""Windows: the global index ranges a rank must see to compute the outputs it owns, and who holds which part.

Everything here follows from *global* indices: a layer says which input range the outputs of each block need, and
the ranges to send and receive are the overlaps with the blocks of the other ranks on that axis. So uneven blocks,
strides that do not divide a block, and windows wider than the neighbour's block all come out of one rule.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

from volseg.partition.layout import Layout

Range = tuple[int, int]


def overlap(a: Range, b: Range) -> Range:
    """The common part of two half-open ranges; empty ranges come back as (x, x)."""
    start = max(a[0], b[0])
    return start, max(start, min(a[1], b[1]))


@dataclass(frozen=True)
class AxisWindow:
    """One axis of a window exchange, seen from one grid coordinate.

    owned     range of the rank's own block
    window    range it must see; may begin below 0 or end past the volume (filled, never exchanged)
    sends     (coordinate, range of `owned`) for each rank that needs part of this block
    receives  (coordinate, range of `window`) for each rank that holds part of this window
    """

    owned: Range
    window: Range
    sends: tuple[tuple[int, Range], ...]
    receives: tuple[tuple[int, Range], ...]

    @property
    def hull(self) -> Range:
        """The range that covers both the block and the window."""
        return min(self.owned[0], self.window[0]), max(self.owned[1], self.window[1])


def axis_window(cuts: tuple[int, ...], windows: list[Range], coordinate: int) -> AxisWindow:
    """The exchange on one axis for the rank at `coordinate`.

    cuts     boundaries of the blocks on the axis
    windows  the window of every coordinate
    """
    owned = [(a, b) for a, b in itertools.pairwise(cuts)]
    others = [c for c in range(len(owned)) if c != coordinate]
    sends = ((c, overlap(windows[c], owned[coordinate])) for c in others)
    receives = ((c, overlap(windows[coordinate], owned[c])) for c in others)
    return AxisWindow(
        owned[coordinate],
        windows[coordinate],
        tuple((c, r) for c, r in sends if r[1] > r[0]),
        tuple((c, r) for c, r in receives if r[1] > r[0]),
    )


@dataclass(frozen=True)
class WindowPlan:
    """The exchange that turns a rank's block into the window it needs, axis by axis: D, then H, then W."""

    axes: tuple[AxisWindow, AxisWindow, AxisWindow]

    @property
    def moves_nothing(self) -> bool:
        """Whether window and block are one and the same and nobody needs anything."""
        return all(a.owned == a.window and not a.sends for a in self.axes)


def plan_window(
    layout: Layout, coords: tuple[int, int, int], needs: Callable[[int, Range], Range], outputs: Layout
) -> WindowPlan:
    """The plan for a layer whose outputs lie in `outputs` and whose output range r on axis a needs ``needs(a, r)``."""
    planned = []
    for axis in range(3):
        cuts = outputs.boundaries[axis]
        windows = [needs(axis, (a, b)) for a, b in itertools.pairwise(cuts)]
        planned.append(axis_window(layout.boundaries[axis], windows, coords[axis]))
    return WindowPlan((planned[0], planned[1], planned[2]))


def plan_halo(layout: Layout, coords: tuple[int, int, int], width: tuple[int, int, int]) -> WindowPlan:
    """A plain halo of `width` voxels on both sides of each axis; zeros beyond the volume's faces."""
    return plan_window(layout, coords, lambda axis, r: (r[0] - width[axis], r[1] + width[axis]), layout)
