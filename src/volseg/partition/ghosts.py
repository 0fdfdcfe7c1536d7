"""Ghosts: the voxels around a block that neighbours own, in memory beside it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from volseg.errors import PartitionError
from volseg.geometry import PerAxis, Triple, per_axis
from volseg.partition.layout import AXES, Layout


def ghosts(coords: Triple, dims: Triple, width: PerAxis) -> tuple[Triple, Triple]:
    """Ghosts of `width` before and after the block of a rank: none where the volume ends.

    coords  of the rank on the process grid `dims`
    """
    widths = per_axis(width)
    low = tuple(n if c > 0 else 0 for c, n in zip(coords, widths, strict=True))
    high = tuple(n if c + 1 < p else 0 for c, p, n in zip(coords, dims, widths, strict=True))
    return (low[0], low[1], low[2]), (high[0], high[1], high[2])


def check_blocks(layouts: Sequence[Layout], halo: Sequence[Triple]) -> None:
    """Raise PartitionError where a block is thinner than the ghosts that its neighbour takes from it.

    layouts, halo  of each stage of a network
    """
    for stage, (layout, widths) in enumerate(zip(layouts, halo, strict=True)):
        for axis, cuts, width in zip(AXES, layout.boundaries, widths, strict=True):
            thinnest = min(b - a for a, b in pairwise(cuts))
            if len(cuts) > 2 and thinnest < width:
                raise PartitionError(
                    f"level {stage}: a block of {thinnest} voxels on axis {axis} is thinner than the {width} that "
                    f"convolutions read beyond a block; use fewer ranks on axis {axis}"
                )
