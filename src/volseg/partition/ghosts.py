"""Ghosts: the voxels around a block that neighbours own, in memory beside it."""

from __future__ import annotations

from volseg.geometry import PerAxis, Triple, per_axis


def ghosts(coords: Triple, dims: Triple, width: PerAxis) -> tuple[Triple, Triple]:
    """Ghosts of `width` before and after the block of a rank: none where the volume ends.

    coords  of the rank on the process grid `dims`
    """
    widths = per_axis(width)
    low = tuple(n if c > 0 else 0 for c, n in zip(coords, widths, strict=True))
    high = tuple(n if c + 1 < p else 0 for c, p, n in zip(coords, dims, widths, strict=True))
    return (low[0], low[1], low[2]), (high[0], high[1], high[2])
