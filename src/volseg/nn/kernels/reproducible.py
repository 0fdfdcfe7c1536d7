"""Sums over a partitioned volume whose bits depend neither on the number of ranks nor on the blocks.

Two steps. Inside a *brick* of voxels that no block boundary cuts, values are added in one fixed order in float32,
which takes three fast passes. The sums of the bricks are then added in float64 after rounding each to a grid so coarse
that every addition is exact, so their order does not matter (pre-rounding: Demmel & Nguyen, "Fast Reproducible
Floating-Point Summation", ARITH 2013). The grid follows from the largest brick sum of the whole volume and the number
of bricks, both of which are the same however the volume is cut.

With 2^24 bricks a value still keeps 2^-26 of the largest one, and the errors of rounding to nearest cancel.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from volseg.distributed.communicator import Communicator

LARGEST_BRICK = (8, 2, 8)
"""Voxels of a brick on D, H, W at most: what the convolution kernels have in the cache together."""

_PLANE = 131072
_PIECE = 65536


def moments(x: Tensor, brick: tuple[int, int, int], bricks: int, communicator: Communicator) -> np.ndarray:
    """Sums of x and of x * x over the whole volume. Collective.

    x       [N, C, d, h, w]  this rank's block, channels-last; its sides are multiples of `brick`
    brick   (bd, bh, bw)     voxels that no block boundary cuts, the same for every partition
    bricks  number of bricks in the whole volume
    out     [N, 2, C] float64, the same bits on every rank and for every partition
    """
    tables = [sample.permute(1, 2, 3, 0) for sample in x]
    if brick == (1, 1, 1):
        rows = (
            torch.stack([t.reshape(-1, x.shape[1]) for t in tables])
            if len(tables) > 1
            else tables[0].reshape(1, -1, x.shape[1])
        )
        low, high = rows.amin(1).double(), rows.amax(1).double()
        largest = torch.maximum(-low, high)
        largest = torch.stack([largest, largest * largest], dim=1)
        return _order_free(rows, _with_squares, largest, bricks, communicator)
    sums = torch.stack([brick_moments(t, brick) for t in tables])
    return order_free_sum(sums, bricks, communicator)


def order_free_sum(values: Tensor, count: int, communicator: Communicator) -> np.ndarray:
    """Sum over dimension 1 and over all ranks, in float64 and free of any order. Collective.

    values  [N, M, ...] float32 or float64, any M >= 1 on each rank
    count   the sum of M over the ranks
    out     [N, ...] float64
    """
    return _order_free(values, lambda piece, out: out.copy_(piece), values.abs().amax(1).double(), count, communicator)


def _order_free(
    rows: Tensor, expand: Callable[[Tensor, Tensor], Tensor], largest: Tensor, count: int, communicator: Communicator
) -> np.ndarray:
    """The sum of ``expand(rows)``, largest magnitude on this rank `largest` [N, ...], in cache-sized pieces."""
    bound = communicator.reduce_all(largest.cpu().numpy(), "max")
    total = torch.zeros_like(largest)
    step = max(1, _PIECE // (largest[0].numel() * rows.shape[0]))
    buffer = torch.empty((rows.shape[0], step, *largest.shape[1:]), dtype=torch.float64, device=rows.device)
    exponent = np.frexp(np.where(np.isfinite(bound), bound, 1.0))[1] + int(np.ceil(np.log2(max(2, count))))
    # |v| < 2^51 grid, so v + magic lies in one binade whose spacing is the grid: adding and taking away rounds.
    magic = torch.from_numpy(np.ldexp(1.5, exponent + 2)).to(rows.device).unsqueeze(1)
    for start in range(0, rows.shape[1], step):
        piece = rows[:, start : start + step]
        values = expand(piece, buffer[:, : piece.shape[1]])
        values += magic
        values -= magic
        total += values.sum(1)
    return communicator.reduce_all(total.cpu().numpy(), "sum")


def _with_squares(rows: Tensor, out: Tensor) -> Tensor:
    """[N, M, C] to [N, M, 2, C]: each value and its square, exact in float64."""
    out[:, :, 0] = rows
    torch.mul(out[:, :, 0], out[:, :, 0], out=out[:, :, 1])
    return out


def brick_moments(x: Tensor, brick: tuple[int, int, int]) -> Tensor:
    """Sums of x and x * x over each brick: [d, h, w, C] to [bricks, 2, C], every addition in one fixed order."""
    d, h, w, channels = x.shape
    bd, bh, bw = brick
    sums = []
    step = bh * max(1, _PLANE // (bh * w * channels))
    for z in range(0, d, bd):
        for y in range(0, h, step):
            piece = x[z : z + bd, y : y + step]
            total, square = piece[0].clone(), piece[0] * piece[0]
            product = torch.empty_like(square)
            for plane in piece[1:]:
                total += plane
                square += torch.mul(plane, plane, out=product)
            both = torch.stack([total, square], dim=2)
            sums.append(_add_up(_add_up(both, 0, bh), 1, bw).reshape(-1, 2, channels))
    return torch.cat(sums)


def _add_up(x: Tensor, dim: int, together: int) -> Tensor:
    """Sums of `together` neighbours along `dim`, first to last."""
    parts = x.unflatten(dim, (-1, together)).unbind(dim + 1)
    total: Tensor = parts[0].clone()
    for part in parts[1:]:
        total += part
    return total
