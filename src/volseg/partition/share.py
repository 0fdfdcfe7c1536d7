"""What one rank has of each level of a network: its blocks, their ghosts, and where blocks of several ranks merge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from volseg.geometry import Triple, quotient
from volseg.partition.agglomeration import NONE, Agglomeration, group_size, leads, message_floats
from volseg.partition.ghosts import ghosts
from volseg.partition.layout import Layout

_ONES: Triple = (1, 1, 1)


@dataclass(frozen=True)
class Share:
    """One rank's part of all levels.

    sides      (d, h, w) of its block on each level that it takes part in, finest first
    low, high  1 on the axes where there are voxels of other ranks before and after that, else 0
    merges     levels whose grid is coarser than that of the level before, where this rank leads a group or is led
    layouts    of all levels
    factors    how many voxels of level 0 one of each level stands for
    halo       the widths of a tensor's ghosts, of each level
    """

    sides: tuple[Triple, ...]
    low: tuple[Triple, ...]
    high: tuple[Triple, ...]
    merges: frozenset[int]
    layouts: tuple[Layout, ...]
    factors: tuple[Triple, ...]
    halo: tuple[Triple, ...]

    @property
    def last(self) -> int:
        """The deepest level that it takes part in."""
        return len(self.sides) - 1

    def below(self, level: int) -> Triple:
        """Sides of its block at the next level, on the grid of `level`."""
        return quotient(self.sides[level], self._stride(level + 1))

    def sides_of(self, level: int, grid: int) -> Triple:
        """Sides of its block of a tensor of `level` on the grid of `grid`, which is that level or the one above."""
        return self.sides[level] if level == grid else self.below(grid)

    def ghosts_of(self, level: int, grid: int) -> tuple[Triple, Triple]:
        """Ghosts before and after that."""
        widths = self.halo[level]
        ends = self.low[grid], self.high[grid]
        low, high = (tuple(there * n for there, n in zip(end, widths, strict=True)) for end in ends)
        return (low[0], low[1], low[2]), (high[0], high[1], high[2])

    def message(self, level: int, channels: int) -> int:
        """Values of a message between a group and its leader where `level` is entered."""
        return message_floats(self.layouts[level - 1].coarser(self._stride(level)), channels)

    def _stride(self, level: int) -> Triple:
        return quotient(self.factors[level], self.factors[level - 1])


def share_of(
    coords: Triple, layout: Layout, factors: Sequence[Triple], agglomeration: Agglomeration = NONE, *,
    halo: Sequence[Triple] = (), halos: bool = True,
) -> Share:  # fmt: skip
    """What the rank at `coords` of the finest level's grid has; without `halos` no block has ghosts.

    factors  how many voxels of level 0 one of each level stands for
    halo     the widths of a tensor's ghosts, of each level; 1 by default
    """
    layouts = agglomeration.layouts(layout, factors)
    sides, low, high, merges = [], [], [], set()
    for level, here in enumerate(layouts):
        if level and here.dims != layouts[level - 1].dims:
            size = group_size(layouts[level - 1].dims, here.dims)
            merges.add(level)
            if not leads(coords, size):
                break
            d, h, w = (c // n for c, n in zip(coords, size, strict=True))
            coords = d, h, w
        sides.append(here.block(coords).shape)
        before, after = ghosts(coords, here.dims, int(halos))
        low.append(before)
        high.append(after)
    widths = tuple(halo) or (_ONES,) * len(factors)
    return Share(tuple(sides), tuple(low), tuple(high), frozenset(merges), tuple(layouts), tuple(factors), widths)


def busy_shares(
    layout: Layout, factors: Sequence[Triple], agglomeration: Agglomeration = NONE, *,
    halo: Sequence[Triple] = (), halos: bool = True,
) -> list[Share]:  # fmt: skip
    """The shares of the ranks of which one holds most.

    Where all take part in all levels that is the one whose block with its ghosts is largest. With stages it may be one
    that leads some of them: of those that lead as many, those that no other surpasses on each of their grids.
    """
    grids = [(0, layout.dims), *agglomeration.stages]
    found: dict[Triple, None] = {}
    for number in range(1, len(grids) + 1):
        axes = [
            _candidates(layout, axis, [(factors[level][axis], dims[axis]) for level, dims in grids[:number]], halos)
            for axis in range(3)
        ]
        found.update(dict.fromkeys((d, h, w) for d, h, w in product(*axes)))
    return [share_of(coords, layout, factors, agglomeration, halo=halo, halos=halos) for coords in found]


def _candidates(layout: Layout, axis: int, grids: Sequence[tuple[int, int]], halos: bool) -> list[int]:
    """Coordinates on an axis, of those that lead on all of the grids, whose blocks no other's surpass.

    grids  voxels of level 0 that one of the first level of each stands for, and its ranks, on this axis
    """
    cuts, ranks = layout.boundaries[axis], grids[0][1]
    widths: dict[tuple[int, ...], int] = {}
    for c in range(0, ranks, ranks // grids[-1][1]):
        wide = []
        for factor, parts in grids:
            size = ranks // parts
            beside = halos * ((c > 0) + (c + size < ranks))
            wide.append((cuts[c + size] - cuts[c]) // factor + beside)
        widths[tuple(wide)] = c  # of two as wide the later one: windows are larger where there are planes before them
    return [c for wide, c in widths.items() if not any(_surpasses(other, wide) for other in widths)]


def _surpasses(one: Sequence[int], other: Sequence[int]) -> bool:
    return one != other and all(a >= b for a, b in zip(one, other, strict=True))
