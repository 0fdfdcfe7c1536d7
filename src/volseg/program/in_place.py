"""Where tensors lie when each overwrites the one that it is made from (`partition.basin`)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from volseg.program.step import Convolve, Fetch, Gather, Pass, Place, Scatter, Step, Tensor

LOW, HIGH, PORT, PORT_WITH_GHOSTS = Place("low"), Place("high"), Place("port", ghosts=False), Place("port")
PORTS = PORT, PORT_WITH_GHOSTS


def in_place(steps: Sequence[Step], merges: Collection[int]) -> list[Step]:
    """The steps with the places of what they write.

    A convolution's output lies at the other end of its stage's basin than what it is made from. What is pooled begins
    at the high end of the basin below. What goes to a coarser process grid, or comes back, has memory of its own.
    """
    ends: dict[Tensor, Place] = {}
    planned = []
    for step in steps:
        places = [_place(step, tensor, ends, merges) for tensor in step.writes]
        ends.update(zip(step.writes, places, strict=True))
        planned.append(replace(step, places=tuple(places)))
    return planned


def _place(step: Step, tensor: Tensor, ends: dict[Tensor, Place], merges: Collection[int]) -> Place:
    match step.op:
        case Convolve() as op if tensor == op.output:
            same = (ends.get(s.tensor) for s in op.sources if s.tensor.stage == tensor.stage)
            return HIGH if LOW in same else LOW
        case Convolve() | Pass():
            return PORT if tensor.stage in merges else HIGH
        case Gather():
            return HIGH
        case Scatter():
            return PORT_WITH_GHOSTS
        case Fetch():
            return PORT_WITH_GHOSTS if tensor.stage in merges else HIGH
    raise ValueError(f"{step.label}: no place for {tensor.name}")
