"""The types in which the tensors of a network are stored."""

from __future__ import annotations

from enum import StrEnum


class Precision(StrEnum):
    """A type in which activations, their gradients, ghosts and messages are stored; arithmetic is in float32.

    FLOAT32   as they are computed
    BFLOAT16  the upper half of a float32, rounded to nearest, ties to even: half the memory and half the messages
    """

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"

    @property
    def size(self) -> int:
        """Bytes of a value."""
        return 4 if self is Precision.FLOAT32 else 2


FLOAT32, BFLOAT16 = Precision.FLOAT32, Precision.BFLOAT16
