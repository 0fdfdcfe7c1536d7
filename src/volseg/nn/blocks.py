"""Move tensors between one rank and the blocks of a grid: for tests, verification and small volumes."""

from __future__ import annotations

import torch
from torch import Tensor

from volseg.distributed.grid import ProcessGrid
from volseg.partition.layout import Layout


def take_block(whole: Tensor, grid: ProcessGrid, layout: Layout) -> Tensor:
    """This rank's block of a tensor that every rank holds: [N, C, D, H, W] to [N, C, d, h, w], a copy."""
    d, h, w = grid.block(layout).slices
    return whole[:, :, d, h, w].contiguous()


def gather_blocks(block: Tensor, grid: ProcessGrid) -> Tensor:
    """The whole tensor from its blocks, on every rank. Collective; holds the whole volume."""
    gathered = grid.communicator.gather_all((grid.coords, block.detach().cpu().contiguous().numpy()))
    parts = {coords: torch.from_numpy(array) for coords, array in gathered}
    dz, dy, dx = grid.dims
    rows = [
        torch.cat([torch.cat([parts[z, y, x] for x in range(dx)], dim=4) for y in range(dy)], dim=3) for z in range(dz)
    ]
    return torch.cat(rows, dim=2)
