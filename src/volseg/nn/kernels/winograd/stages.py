"""Which voxels blocks of tiles read: for the order in which they are computed while ghosts travel."""

from __future__ import annotations

from volseg.nn.kernels.stages import Reads
from volseg.partition.tiling import TAPS, Blocks


def reads_of(blocks: Blocks, taps: int = TAPS, step: int = 1) -> tuple[Reads, Reads, Reads]:
    """What blocks read on D, H, W.

    taps, step  of the kernel on D: its size and its stride
    """
    d, h, w = blocks.counts
    (y, x), lines, columns = blocks.origin, 2 * blocks.pairs, 2 * blocks.tiles
    return (
        Reads(d, blocks.first_plane * step - taps // 2, blocks.planes * step, (blocks.planes - 1) * step + taps),
        Reads(h, y - 1, lines, lines + 2),
        Reads(w, x - 1, columns, columns + 2),
    )
