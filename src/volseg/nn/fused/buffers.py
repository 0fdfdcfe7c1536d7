"""Memory that is used again: fresh memory costs a page fault every 4 KiB, and more time than the values written."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from volseg.geometry import Triple
from volseg.nn.kernels.memory import grown, lasting
from volseg.nn.kernels.rows import Rows
from volseg.partition.arena import Arena, Piece

NONE: Triple = (0, 0, 0)


class Buffers:
    """Rows in memory that an `Arena` keeps the books of, and slabs in memory of their own; sizes count values.

    dtype   of all values: that in which a program's tensors are stored
    device  on which they lie
    """

    def __init__(self, dtype: torch.dtype = torch.float32, device: torch.device | None = None) -> None:
        self.dtype, self.arena = dtype, Arena()
        self.device = device or torch.device("cpu")
        self._chunks: list[Tensor] = []
        self._held: dict[int, Piece] = {}
        self._slabs: dict[str, Tensor] = {}

    def take(self, sides: Triple, channels: int, low: Triple = NONE, high: Triple = NONE) -> Rows:
        """Uninitialised rows of a block of `sides`, with ghosts before and after it."""
        shape = (*(n + a + b for n, a, b in zip(sides, low, high, strict=True)), channels)
        count = math.prod(shape)
        piece = self.arena.take(count)
        if piece.chunk == len(self._chunks):
            self._chunks.append(lasting(self.arena.chunks[piece.chunk], self.dtype, self.device))
        buffer = self._chunks[piece.chunk][piece.start : piece.start + count]
        self._held[buffer.data_ptr()] = piece
        return Rows(buffer.view(shape), low, sides)

    @property
    def idle(self) -> bool:
        """Whether all that was taken was given back."""
        return not self._held

    def slab(
        self, purpose: str, sides: Triple, channels: int, largest: int = 0, device: torch.device | None = None
    ) -> Rows:
        """Uninitialised rows that last until the next slab for this purpose.

        largest  values of the largest slab to come, for which there is room from the first one on
        device   on which it lies, the same for a purpose; by default where all lies

        Slabs differ a little in size from one to the next; pieces of the arena for them would be too small for the
        tensors that follow.
        """
        count = math.prod(sides) * channels
        held = grown(self._slabs, purpose, max(count, largest), self.dtype, device or self.device)
        return Rows.of(held[:count].view(*sides, channels))

    @property
    def total(self) -> int:
        """Values of all memory."""
        return self.arena.total + sum(held.numel() for held in self._slabs.values())

    def give(self, rows: Rows) -> None:
        """Take back what `take` gave and nobody reads any more."""
        self.arena.give(self._held.pop(rows.buffer.data_ptr()))

    def clear(self) -> None:
        """Return the memory to the system, all at once; what is still held lives on with its holders."""
        self.arena = Arena()
        self._chunks.clear()
        self._slabs.clear()
        self._held.clear()
