"""Steps of a program: operations in their order, and what is freed after each.

Sizes stand nowhere in a program: a tensor knows its stage and the stage on whose process grid it lies, and a layout
gives the rest. So one program serves all ranks that take part in the same stages, and all volumes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from volseg.program.ops import Op
from volseg.program.tensors import Tensor


@dataclass(frozen=True)
class Place:
    """Where a tensor lies while segmenting in place: at an end of its stage's basin, or in memory of its own.

    lane    of several basins side by side
    ghosts  whether memory of its own has room for them
    """

    end: Literal["low", "high", "port"]
    lane: int = 0
    ghosts: bool = True


@dataclass(frozen=True)
class Step:
    """One operation of a rank, in the order in which it runs.

    label   the name in meter, plan, trace and error: that of the layer
    frees   tensors that nobody reads after it
    places  of the tensors that it writes, where they are planned
    """

    op: Op
    label: str
    frees: tuple[Tensor, ...] = ()
    places: tuple[Place, ...] = field(default=())

    @property
    def reads(self) -> Sequence[Tensor]:
        """Tensors that must be there, changed ones included."""
        return self.op.reads()

    @property
    def writes(self) -> Sequence[Tensor]:
        """Tensors that begin to exist."""
        return self.op.writes()

    @property
    def renames(self) -> Sequence[tuple[Tensor, Tensor]]:
        """Tensors that cease to exist, and those that begin to exist in their memory."""
        return self.op.renames()


@dataclass(frozen=True)
class Program:
    """The steps of the ranks that take part in the stages up to `last`.

    forward   to the logits
    backward  from the logits' gradients; empty where it segments
    merges    stages whose process grid is coarser than that of the stage before, as far as this rank is concerned
    """

    forward: tuple[Step, ...]
    backward: tuple[Step, ...]
    last: int
    merges: frozenset[int]

    @property
    def steps(self) -> tuple[Step, ...]:
        """All of them."""
        return self.forward + self.backward
