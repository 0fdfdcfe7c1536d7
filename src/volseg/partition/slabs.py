"""How many planes are computed at a time where a tensor never exists whole: up-convolutions and logits."""

from __future__ import annotations

from volseg.geometry import Triple
from volseg.partition.tiling import padded_channels
from volseg.partition.window import Range

_UP_FLOATS = 2**21
"""Of a slab of an up-convolution's output: 8 MiB, so that it stays in a third-level cache."""

_HEAD_FLOATS = 2**20
"""Of a slab of logits."""


def up_slabs(below: Triple, low: Triple, high: Triple, channels: int, multiple: int) -> list[tuple[Range, Triple]]:
    """Slabs of an up-convolution's output: its planes, and the sides of the input from which it is made.

    below      (d, h, w) of the input
    low, high  its ghosts
    channels   of the output, as stored
    multiple   slabs begin on multiples of it

    The slab has the planes before and after, and all ghosts: what a convolution of it reads.
    """
    d, h, w = below
    unit = max(2, multiple)
    planes = max(1, _UP_FLOATS // (4 * h * w * channels) // unit) * unit
    wide = h + low[1] + high[1], w + low[2] + high[2]
    found = []
    for first in range(0, 2 * d, planes):
        last = min(2 * d, first + planes)
        start, stop = up_sources((first, last), d, low[0], high[0])
        found.append(((first, last), (stop - start, *wide)))
    return found


def up_sources(planes: Range, depth: int, low: int, high: int) -> Range:
    """The planes of the input that a slab of the output, and one plane more on each side, are made from."""
    return max(-low, planes[0] // 2 - 1), min(depth + high, (planes[1] + 1) // 2 + 1)


def head_slab_planes(sides: Triple, classes: int) -> int:
    """Planes of logits that are computed at a time."""
    return max(1, min(sides[0], _HEAD_FLOATS // (sides[1] * sides[2] * padded_channels(classes))))
