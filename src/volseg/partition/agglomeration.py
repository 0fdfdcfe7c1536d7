"""Fewer ranks for the coarse levels, as multigrid solvers agglomerate theirs: which, and over which blocks.

At the deepest levels blocks are a few voxels, and a rank waits for messages longer than it computes. From a *stage* on,
the blocks of neighbouring ranks make one block of a coarser process grid. The first rank of such a group leads it: it
takes part in the coarser grid, and the others wait for what comes up from there again. Blocks are unions of blocks, so
nothing but whole blocks ever travels, and the coarser layout is the even one too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from volseg.errors import ConfigError, PartitionError
from volseg.geometry import Box, PerAxis, Triple, format_triple
from volseg.partition.layout import AXES, Layout

_MESSAGE_FLOATS = 2**18
"""Of the planes of a block that travel together: 1 MiB. Coarse blocks are smaller, and go in one message."""

Stage = tuple[int, Triple]
"""A level, and the process grid from there on."""


@dataclass(frozen=True)
class Agglomeration:
    """The process grids of a network's levels. Without stages all ranks take part in all of them.

    stages  levels rising; each grid's dims divide those before it
    """

    stages: tuple[Stage, ...] = ()

    def __str__(self) -> str:
        """As `parse_agglomeration` reads it."""
        return ",".join(f"{level}:{format_triple(dims)}" for level, dims in self.stages) or "none"

    @property
    def described(self) -> str:
        """In words, behind a grid; empty without stages."""
        return "".join(f", from level {level} on as {format_triple(dims)}" for level, dims in self.stages)

    def dims_at(self, level: int, finest: Triple) -> Triple:
        """The grid of a level; `finest` is that of level 0."""
        return next((dims for first, dims in reversed(self.stages) if first <= level), finest)

    def layouts(self, layout: Layout, factors: Sequence[PerAxis]) -> list[Layout]:
        """The layout of each level for a volume that level 0 holds as `layout`.

        factors  how many voxels of level 0 one of each level stands for
        """
        return [
            merged(layout.coarser(factor), self.dims_at(level, layout.dims)) for level, factor in enumerate(factors)
        ]

    def check(self, levels: int, finest: Triple) -> None:
        """Raise PartitionError where a stage does not suit a network of so many levels on the grid `finest`."""
        before, above = 0, finest
        for level, dims in self.stages:
            what = f"--agglomerate {level}:{format_triple(dims)}"
            if not 1 <= level <= levels:
                raise PartitionError(f"{what}: the network has levels 1 to {levels} that can be agglomerated")
            if level <= before:
                raise PartitionError(f"{what}: comes behind level {before}; give levels in rising order, each once")
            for axis, few, many in zip(AXES, dims, above, strict=True):
                if many % few:
                    raise PartitionError(
                        f"{what}: {few} does not divide the {many} ranks on axis {axis} of {format_triple(above)}; "
                        "groups of neighbouring ranks must be of one size"
                    )
            if dims == above:
                raise PartitionError(f"{what}: is the grid that is there already; leave it out")
            before, above = level, dims


NONE = Agglomeration()
"""All ranks take part in all levels."""


def merged(layout: Layout, dims: Triple) -> Layout:
    """The layout of a coarser grid whose blocks are unions of this one's: every so manieth boundary of it."""
    return layout.map_axes(lambda axis, cuts: cuts[:: (len(cuts) - 1) // dims[axis]])


def group_size(finer: Triple, coarser: Triple) -> Triple:
    """Ranks on each axis whose blocks make one."""
    d, h, w = (many // few for many, few in zip(finer, coarser, strict=True))
    return d, h, w


def group_boxes(layout: Layout, coords: Triple, size: Triple) -> list[Box]:
    """The blocks of the group of the rank at `coords`, leader first, counted from the leader's first voxel.

    layout  of the finer grid
    size    ranks of a group on each axis
    """
    first = tuple(c - c % n for c, n in zip(coords, size, strict=True))
    origin = layout.block((first[0], first[1], first[2]))
    places = product(*(range(c, c + n) for c, n in zip(first, size, strict=True)))
    return [layout.block((d, h, w)).relative_to(origin) for d, h, w in places]


def leads(coords: Triple, size: Triple) -> bool:
    """Whether the rank at `coords` leads a group of `size`."""
    return not any(c % n for c, n in zip(coords, size, strict=True))


def message_planes(plane: int) -> int:
    """Planes of a block that travel together, of so many values each."""
    return max(1, _MESSAGE_FLOATS // plane)


def message_floats(layout: Layout, channels: int) -> int:
    """Values of the largest message between a group's ranks and its leader; the same for all groups.

    layout    of the finer grid
    channels  as stored
    """
    d, h, w = layout.largest_block
    return min(d, message_planes(h * w * channels)) * h * w * channels


def gathered_voxels(finer: Layout, coarser: Layout) -> int:
    """Voxels that the leader who receives most receives when a tensor is gathered."""
    size = group_size(finer.dims, coarser.dims)
    most = 0
    for d, h, w in product(*(range(n) for n in coarser.dims)):
        own = finer.block((d * size[0], h * size[1], w * size[2]))
        most = max(most, coarser.block((d, h, w)).size - own.size)
    return most


def parse_agglomeration(text: str, levels: int, dims: Triple, option: str = "--agglomerate") -> Agglomeration:
    """``3:2x1x1,4:1x1x1`` for a network of `levels` on the grid `dims`; ``none`` is no agglomeration.

    Raises ConfigError where the text is something else, PartitionError where network or grid do not allow it.
    """
    if text == "none":
        return NONE
    found = Agglomeration(tuple(_stages(text, option)))
    found.check(levels, dims)
    return found


def _stages(text: str, option: str) -> Iterator[Stage]:
    for word in text.split(","):
        match = re.fullmatch(r"\s*(\d+):([1-9]\d*)x([1-9]\d*)x([1-9]\d*)\s*", word)
        if match is None:
            raise ConfigError(
                f"{option} {text}: give auto, none, or levels with the process grid from there on, such as "
                "3:2x1x1,4:1x1x1"
            )
        level, z, y, x = (int(n) for n in match.groups())
        yield level, (z, y, x)
