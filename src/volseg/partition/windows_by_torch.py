"""How a convolution by torch's operators is cut: windows of some planes, which are made one after the other.

A window is the activated input of a box of results, all sources side by side, with what lies around the box. So the
activated input is never whole, and the memory of one window is used for all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from volseg.geometry import Triple
from volseg.partition.window import Range

Box = tuple[Range, Range, Range]
"""Voxels on D, H, W, counted from a block's own first one."""

WINDOW_BYTES = {"cpu": 2**20, "cuda": 2**28}
"""Bytes of a window, about, by the type of the device: few for a processor's cache, many to fill a GPU."""


@dataclass(frozen=True)
class Reach:
    """What results read on an axis: those from a to b the voxels from a * step - before to (b - 1) * step + after."""

    step: int
    before: int
    after: int

    def range(self, results: Range) -> Range:
        """What a range of results reads."""
        return results[0] * self.step - self.before, (results[1] - 1) * self.step + self.after + 1

    def inside(self, results: Range, low: int, high: int, side: int, multiple: int) -> Range:
        """The results that need no ghosts of a block of `side` voxels, from and to multiples; maybe none.

        low, high  ghosts before and after the block: where there are none, nothing is missing
        """
        first, last = results
        if low:
            first = max(first, _up(self.before, self.step * multiple) * multiple)
        if high:
            last = min(last, ((side - 1 - self.after) // self.step + 1) // multiple * multiple)
        return first, max(first, last)


def _up(value: int, by: int) -> int:
    """Divided and rounded up."""
    return -(-value // by)


Reaches = tuple[Reach, Reach, Reach]


def forward_reaches(kernel: Triple, stride: Triple) -> Reaches:
    """What the output of a convolution reads of its input."""
    d, h, w = (Reach(s, k // 2, k - 1 - k // 2) for k, s in zip(kernel, stride, strict=True))
    return d, h, w


def backward_reaches(kernel: Triple, stride: Triple) -> Reaches:
    """What the gradient of the inputs that belong to outputs reads of the outputs' gradient.

    Output o has the inputs from stride * o on, up to those of the next one.
    """
    d, h, w = (Reach(1, (k - 1 - k // 2) // s, (s - 1 + k // 2) // s) for k, s in zip(kernel, stride, strict=True))
    return d, h, w


def boxes(whole: Box, reaches: Reaches, voxel: int, limit: int, multiple: int) -> Iterator[Box]:
    """A box of results cut along D, so that no window has many more bytes than `limit`.

    voxel     bytes of a voxel of a window
    multiple  boxes begin at multiples of it, counted from the whole box
    """
    (first, last), high, wide = whole
    if first >= last or high[0] >= high[1] or wide[0] >= wide[1]:
        return
    plane = voxel * prod(b - a for a, b in (reaches[1].range(high), reaches[2].range(wide)))
    room = limit // plane - reaches[0].before - reaches[0].after
    step = max(1, room // reaches[0].step // multiple) * multiple
    for start in range(first, last, step):
        yield (start, min(start + step, last)), high, wide


def around(whole: Box, inner: Box) -> list[Box]:
    """What of a box lies around an inner one, in up to six boxes."""
    rest, left = [], list(whole)
    for axis, (first, last) in enumerate(inner):
        for part in ((left[axis][0], first), (last, left[axis][1])):
            if part[0] < part[1]:
                box = list(left)
                box[axis] = part
                rest.append((box[0], box[1], box[2]))
        left[axis] = first, last
    return rest
