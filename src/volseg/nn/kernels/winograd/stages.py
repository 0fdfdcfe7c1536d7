"""Which voxels blocks of tiles read: for the order in which they are computed while ghosts travel."""

from __future__ import annotations

from volseg.nn.kernels.stages import Reads
from volseg.partition.tiling import Blocks, Taps


def reads_of(blocks: Blocks, taps: Taps) -> tuple[Reads, Reads, Reads]:
    """What blocks read on D, H, W."""
    d, h, w = blocks.counts
    (z, y, x), lines, columns, step = blocks.origin, 2 * blocks.pairs, 2 * blocks.tiles, taps.step
    first, size = (blocks.first_plane + z) * step - taps.count // 2, (blocks.planes - 1) * step + taps.count
    return (
        Reads(d, first, blocks.planes * step, size),
        Reads(h, y - 1, lines, lines + 2),
        Reads(w, x - 1, columns, columns + 2),
    )
