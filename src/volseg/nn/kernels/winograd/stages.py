"""The order of blocks while ghosts travel: those that need none first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from math import prod
from typing import Protocol

import torch
from torch import Tensor

from volseg.geometry import Triple
from volseg.nn.kernels.rows import Rows
from volseg.partition.tiling import TAPS, Blocks


class Ghosts(Protocol):
    """An exchange of ghosts that is under way (`distributed.halo.GhostExchange`)."""

    @property
    def done(self) -> bool:
        """Whether all ghosts are there."""

    def advance(self) -> None:
        """Finish an axis and start the next."""

    def wait(self) -> None:
        """Finish all axes."""


def in_stages(
    blocks: Blocks, window: Rows, ghosts: Sequence[Ghosts], taps: int = TAPS, step: int = 1
) -> Iterator[Tensor]:
    """The blocks, those that need ghosts last; an axis of the exchange is finished after each third of the others.

    window      the tensor that the blocks' windows are cut from
    taps, step  of the kernel on D: its size and its stride
    """
    if all(exchange.done for exchange in ghosts):
        yield _order(blocks)
        return
    d, h, w = (valid[1] - high for valid, high in zip(window.valid, window.high, strict=True))
    early, late = _split(blocks, window.low, window.high, (d, h, w), taps, step)
    for part in early.chunk(3) if early.numel() else ():
        yield part
        for exchange in ghosts:
            exchange.advance()
    for exchange in ghosts:
        exchange.wait()
    if late.numel():
        yield late


@lru_cache(maxsize=1024)
def _order(blocks: Blocks) -> Tensor:
    """All blocks."""
    return torch.arange(prod(blocks.counts))


@lru_cache(maxsize=1024)
def _split(blocks: Blocks, low: Triple, high: Triple, sides: Triple, taps: int, step: int) -> tuple[Tensor, Tensor]:
    """The blocks whose window holds no ghosts, and the others.

    low, high  ghosts before and after the rank's block of `sides`
    """
    inside = torch.ones(blocks.counts, dtype=torch.bool)
    starts, lengths = (blocks.first_plane, *blocks.origin), (blocks.planes, 2 * blocks.pairs, 2 * blocks.tiles)
    for axis, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        reach, stride = (taps // 2, step) if axis == 0 else (1, 1)
        first = start + length * torch.arange(blocks.counts[axis])
        last = first + length - 1
        clear = ((first * stride >= reach) | (low[axis] == 0)) & (
            (last * stride + reach < sides[axis]) | (high[axis] == 0)
        )
        inside &= clear.view([-1 if a == axis else 1 for a in range(3)])
    numbers = _order(blocks)
    return numbers[inside.view(-1)], numbers[~inside.view(-1)]
