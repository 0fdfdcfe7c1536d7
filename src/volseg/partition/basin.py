"""Where the tensors of a level lie when each overwrites the one that it is made from: arithmetic alone.

A *basin* has room for one tensor of its level and a few planes more. A convolution's input lies at one end; its output
begins at the other, and grows, slab by slab, over planes of the input that no later slab reads. So the tensors of a
level lie at the low end and at the high end in turn:

    pooled (from above)   high    fewer channels, so fewer values
    convolution 1         low     slabs in rising order
    convolution 2         high    slabs in falling order; the skip connection
    decoder 1             low     reads the skip, and the up-convolution from the basin below
    decoder 2             high

While a skip waits, the planes at the low end are free. The basins of the deepest levels lie there, where they fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from volseg.geometry import Triple
from volseg.partition.slabs import ranges, rolling_planes

_ALIGNMENT = 16
"""Values: 64 bytes of float32."""

Ghosts = tuple[Triple, Triple]
"""Before and after a block."""


@dataclass(frozen=True)
class Basin:
    """Room for the tensors of one level; sizes count values, whatever their type.

    sides      (d, h, w) of this rank's block
    low, high  ghosts before and after it
    channels   of the level's tensors, as stored
    planes     of a slab
    size       values
    host       the level in whose free planes it lies; None where it has memory of its own
    offset     from the first value there
    """

    sides: Triple
    low: Triple
    high: Triple
    channels: int
    planes: int
    size: int
    host: int | None = None
    offset: int = 0

    def values(self, channels: int) -> int:
        """Of a tensor of so many channels, with its ghosts."""
        d, h, w = (n + a + b for n, a, b in zip(self.sides, self.low, self.high, strict=True))
        return d * h * w * channels

    def at_high_end(self, channels: int) -> int:
        """Where a tensor of so many channels begins that lies at the high end."""
        return (self.size - self.values(channels)) // _ALIGNMENT * _ALIGNMENT

    @property
    def spare(self) -> int:
        """Values at the low end that are free while the skip waits at the high end."""
        return self.at_high_end(self.channels)


def basin(sides: Triple, low: Triple, high: Triple, channels: int, above: int, reach: int = 1) -> Basin:
    """The basin of a level.

    reach  planes before and after a slab that are read for it
    above  channels of the level above, whose pooled tensor begins in this basin; 0 where none does
    """
    planes = rolling_planes(sides, channels)
    empty = Basin(sides, low, high, channels, planes, 0)
    plane = empty.values(channels) // (sides[0] + low[0] + high[0])
    size = empty.values(channels) + (planes + reach) * plane + _ALIGNMENT
    if above:
        # When a slab is written, from the low end on, the planes of the pooled tensor before it are still to be read.
        thin = plane // channels * above
        slabs = ranges(sides[0], planes)
        begin = max((low[0] + last) * plane - (low[0] + first - reach) * thin for first, last in slabs)
        size = max(size, begin + _ALIGNMENT + empty.values(above))
    return Basin(sides, low, high, channels, planes, -(-size // _ALIGNMENT) * _ALIGNMENT)


def basins(
    sides: Sequence[Triple], ghosts: Sequence[Ghosts], channels: Sequence[int], top: int, *,
    reaches: Sequence[int] = (), hosted: bool = True,
) -> dict[int, Basin]:  # fmt: skip
    """The basins of the levels from `top` on.

    sides     of this rank's block at each level
    ghosts    before and after it
    channels  of each level, as stored
    reaches   planes before and after a slab that are read for it, of each level; 1 by default
    hosted    whether the deepest lie in what the first one has to spare
    """
    found = {}
    for level in range(top, len(sides)):
        above = channels[level - 1] if level else 0
        reach = max(1, reaches[level]) if reaches else 1
        found[level] = basin(sides[level], *ghosts[level], channels[level], above, reach)
    return _hosted(found, top) if hosted else found


def _hosted(found: dict[int, Basin], top: int) -> dict[int, Basin]:
    """Put the deepest basins, but for the two finest, into what the first one has to spare."""
    if top not in found:
        return found
    room, offset = found[top].spare, 0
    for level in sorted(found, reverse=True):
        one = found[level]
        if level < top + 2 or offset + one.size > room:
            break
        found[level] = replace(one, host=top, offset=offset)
        offset += one.size
    return found
