"""The order of blocks while ghosts travel: those that need none first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Protocol

import torch
from torch import Tensor

from volseg.geometry import Triple
from volseg.nn.kernels.rows import Rows


class Ghosts(Protocol):
    """An exchange of ghosts that is under way (`distributed.halo.GhostExchange`)."""

    @property
    def done(self) -> bool:
        """Whether all ghosts are there."""

    def advance(self) -> None:
        """Finish an axis and start the next."""

    def wait(self) -> None:
        """Finish all axes."""


@dataclass(frozen=True)
class Reads:
    """What `count` blocks read on an axis: block n the voxels from first + n * step on, `size` of them."""

    count: int
    first: int
    step: int
    size: int


def in_stages(reads: tuple[Reads, Reads, Reads], window: Rows, ghosts: Sequence[Ghosts]) -> Iterator[Tensor]:
    """The numbers of the blocks, along W, then H, then D; those that need ghosts last.

    An axis of the exchange is finished after each third of the others.

    reads   on D, H, W
    window  the tensor that is read
    """
    if all(exchange.done for exchange in ghosts):
        yield _all(tuple(axis.count for axis in reads))
        return
    d, h, w = (valid[1] - high for valid, high in zip(window.valid, window.high, strict=True))
    early, late = _split(reads, window.low, window.high, (d, h, w))
    for part in early.chunk(3) if early.numel() else ():
        yield part
        for exchange in ghosts:
            exchange.advance()
    for exchange in ghosts:
        exchange.wait()
    if late.numel():
        yield late


@lru_cache(maxsize=1024)
def _all(counts: tuple[int, ...]) -> Tensor:
    return torch.arange(prod(counts))


@lru_cache(maxsize=1024)
def _split(reads: tuple[Reads, Reads, Reads], low: Triple, high: Triple, sides: Triple) -> tuple[Tensor, Tensor]:
    """The blocks that read no ghosts, and the others.

    low, high  ghosts before and after the rank's block of `sides`
    """
    counts = tuple(axis.count for axis in reads)
    inside = torch.ones(counts, dtype=torch.bool)
    for number, axis in enumerate(reads):
        first = axis.first + axis.step * torch.arange(axis.count)
        clear = ((first >= 0) | (low[number] == 0)) & ((first + axis.size <= sides[number]) | (high[number] == 0))
        inside &= clear.view([-1 if a == number else 1 for a in range(3)])
    numbers = _all(counts)
    return numbers[inside.view(-1)], numbers[~inside.view(-1)]
