"""How many planes are computed at a time where a tensor never exists whole, or overwrites what it is made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from volseg.geometry import Triple
from volseg.partition.tiling import padded_channels
from volseg.partition.window import Range

_UP_FLOATS = 2**21
"""Of a slab of an up-convolution's output: 8 MiB, so that it stays in a third-level cache."""

_HEAD_FLOATS = 2**20
"""Of a slab of logits."""

_ROLLING_FLOATS = 2**20
"""Of a slab that overwrites what it is made from, at least: one of less would not keep the threads busy."""

_ROLLING_PLANES = 8
"""Such slabs begin on multiples of it: of the planes of a brick and of a block of tiles."""

UpSlab = tuple[Range, Triple]


@dataclass(frozen=True)
class Lift:
    """How a lifted tensor follows from what it is made from, and how far beside a slab it is read.

    factors  on D, H, W
    reach    planes before and after a slab
    """

    factors: Triple = (2, 2, 2)
    reach: int = 1


def up_slabs(
    below: Triple, low: Triple, high: Triple, channels: int, multiple: int, lift: Lift = Lift()
) -> list[UpSlab]:
    """Slabs of a lifted tensor: its planes, and the sides of the input from which they are made.

    below      (d, h, w) of the input
    low, high  its ghosts
    channels   of the output, as stored
    multiple   slabs begin on multiples of it
    lift       how the output follows from the input

    The slab has the planes before and after, and all ghosts: what a convolution of it reads.
    """
    d, h, w = below
    unit = max(lift.factors[0], multiple)
    plane = prod(lift.factors[1:]) * h * w * channels
    planes = max(1, _UP_FLOATS // plane // unit) * unit
    return up_slabs_of(ranges(lift.factors[0] * d, planes), below, low, high, lift)


def up_slabs_of(slabs: Sequence[Range], below: Triple, low: Triple, high: Triple, lift: Lift = Lift()) -> list[UpSlab]:
    """`up_slabs` for the planes given."""
    d, h, w = below
    wide = h + low[1] + high[1], w + low[2] + high[2]
    found = []
    for planes in slabs:
        start, stop = up_sources(planes, d, low[0], high[0], lift)
        found.append((planes, (stop - start, *wide)))
    return found


def ranges(length: int, step: int) -> list[Range]:
    """0 ... length cut into pieces of `step`."""
    return [(first, min(length, first + step)) for first in range(0, length, step)]


def up_sources(planes: Range, depth: int, low: int, high: int, lift: Lift = Lift()) -> Range:
    """The planes of the input that a slab of the output, and the planes that are read beside it, are made from."""
    factor = lift.factors[0]
    first, stop = (planes[0] - lift.reach) // factor, -(-(planes[1] + lift.reach) // factor)
    return max(-low, first), min(depth + high, stop)


def head_slab_planes(sides: Triple, classes: int) -> int:
    """Planes of logits that are computed at a time."""
    return max(1, min(sides[0], _HEAD_FLOATS // (sides[1] * sides[2] * padded_channels(classes))))


def deep_slab_planes(sides: Triple, classes: int, width: int) -> int:
    """Planes of a deeper level's logits that are computed at a time; backward also holds `width` channels of them."""
    return head_slab_planes(sides, max(classes, width))


def rolling_planes(sides: Triple, channels: int, factor: int = 1) -> int:
    """Planes that are computed at a time where the output overwrites the input, or is not kept.

    factor  of how many planes one of the next stage is made, where that is made along with them and has sums by brick:
            its planes then are whole bricks, too
    """
    d, h, w = sides
    wanted, whole = -(-_ROLLING_FLOATS // (h * w * channels)), _ROLLING_PLANES * factor
    return min(d, -(-wanted // whole) * whole)


def chain_widths(reaches: Sequence[Triple], beyond: Triple) -> list[Triple]:
    """Voxels around a block at which each of several convolutions, one after the other, is computed, on each axis.

    reaches  how far each reads beside a voxel
    beyond   voxels around the block that are wanted of the last one
    """
    widths = [beyond]
    for reach in reversed(reaches[1:]):
        d, h, w = (n + more for n, more in zip(widths[-1], reach, strict=True))
        widths.append((d, h, w))
    return widths[::-1]


def window_planes(depth: int, low: int, high: int, width: int, reach: int, step: int) -> int:
    """Planes of a convolution's output that are held at most, in a pass that goes on by `step` planes.

    low, high  planes beyond the block of `depth` that are computed, up to `width` of them
    reach      planes on either side that the next one reads, of what was there before
    """
    return min(depth + low + high, step + max(width + low, 2 * reach))
