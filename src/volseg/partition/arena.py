"""Memory that is handed out and taken back in pieces: the bookkeeping alone, for the program and for the plan of it.

Tensors of a U-Net differ in size by powers of two from level to level. Kept by size, free memory of one level is of no
use to another, and a training step held a third more than it needed at any moment. Here free pieces that touch are one
piece, and the smallest piece that is large enough is split.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass

ALIGNMENT = 16
"""Pieces begin on multiples of so many values: 64 bytes of float32."""


@dataclass(frozen=True, order=True)
class Piece:
    """A range of a chunk of memory, in values."""

    chunk: int
    start: int
    size: int

    @property
    def stop(self) -> int:
        """Where it ends."""
        return self.start + self.size


class Arena:
    """Pieces of chunks; a chunk is as large as the piece for which there was no room.

    chunks  their sizes, in the order of their making
    """

    def __init__(self) -> None:
        self.chunks: list[int] = []
        self._free: list[Piece] = []

    def take(self, size: int) -> Piece:
        """A piece of at least `size` values."""
        size = -(-max(1, size) // ALIGNMENT) * ALIGNMENT
        fitting = [piece for piece in self._free if piece.size >= size]
        if not fitting:
            self.chunks.append(size)
            return Piece(len(self.chunks) - 1, 0, size)
        best = min(fitting, key=lambda piece: (piece.size, piece))
        self._free.remove(best)
        if best.size > size:
            insort(self._free, Piece(best.chunk, best.start + size, best.size - size))
        return Piece(best.chunk, best.start, size)

    def give(self, piece: Piece) -> None:
        """Take back a piece, whole."""
        for other in list(self._free):
            if other.chunk == piece.chunk and (other.stop == piece.start or other.start == piece.stop):
                self._free.remove(other)
                piece = Piece(piece.chunk, min(piece.start, other.start), piece.size + other.size)
        insort(self._free, piece)

    @property
    def total(self) -> int:
        """Values of all chunks."""
        return sum(self.chunks)

    @property
    def free(self) -> int:
        """Values that nobody holds."""
        return sum(piece.size for piece in self._free)
