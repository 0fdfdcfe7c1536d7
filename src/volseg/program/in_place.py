"""Where tensors lie when each overwrites the one that it is made from (`partition.basin`).

A stage has a basin, or several side by side, *lanes*, where it needs several tensors at a time, as residual blocks do.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from volseg.program.ops import Add, Convolve, Pass, Scatter
from volseg.program.step import Place, Step
from volseg.program.tensors import Tensor

PORT = Place("port", ghosts=False)


def sums_in_place(steps: Sequence[Step]) -> list[Step]:
    """The steps with each sum over its first term, where nobody reads that afterwards."""
    result = list(steps)
    for number, step in enumerate(steps):
        if isinstance(step.op, Add):
            first = step.op.sources[0].tensor
            if not any(first in later.reads for later in steps[number + 1 :]):
                result[number] = replace(step, op=replace(step.op, over_first=True))
    return result


def in_place(steps: Sequence[Step], merges: Collection[int]) -> list[Step]:
    """The steps with the places of what they write.

    A convolution's output lies at the other end of the lane of what it is made from, where that is not read any more;
    else in a free lane. What is pooled begins at the high end. What goes to a coarser process grid, or comes back, has
    memory of its own.
    """
    lying: dict[Tensor, Place] = {}
    planned = []
    for step in steps:
        places = []
        for tensor in step.writes:
            place = _place(step, tensor, lying, merges)
            lying[tensor] = place
            places.append(place)
        for before, after in step.renames:
            lying[after] = lying.pop(before)
        for tensor in step.frees:
            lying.pop(tensor, None)
        planned.append(replace(step, places=tuple(places)))
    return planned


def can_host(steps: Sequence[Step], host: int) -> bool:
    """Whether the low end of a stage's basin is free whenever a tensor of a stage two or more below is there."""
    lying: dict[Tensor, Place] = {}
    for step in steps:
        lying.update(zip(step.writes, step.places, strict=True))
        in_basins = [(tensor, place) for tensor, place in lying.items() if place.end != "port"]
        deep = any(tensor.stage >= host + 2 for tensor, _ in in_basins)
        taken = any(tensor.stage == host and place != Place("high") for tensor, place in in_basins)
        if (deep and taken) or any(place.lane for _, place in in_basins):
            return False
        for before, after in step.renames:
            lying[after] = lying.pop(before)
        for tensor in step.frees:
            lying.pop(tensor, None)
    return True


def _place(step: Step, tensor: Tensor, lying: dict[Tensor, Place], merges: Collection[int]) -> Place:
    if isinstance(step.op, Scatter):
        return Place("port")
    if tensor.grid < tensor.stage and tensor.stage in merges:
        return Place("port", ghosts=not step.reads)  # what is fetched is read with its ghosts
    op = step.op.entering if isinstance(step.op, Pass) else step.op
    if isinstance(op, Convolve) and tensor == op.output:
        for source in op.sources:
            place = lying.get(source.tensor, PORT)
            if place.end != "port" and source.tensor.stage == tensor.stage and source.tensor in step.frees:
                return replace(place, end="low" if place.end == "high" else "high")
        return Place("low", _free_lane(tensor.stage, lying))
    return Place("high", _free_lane(tensor.stage, lying))


def _free_lane(stage: int, lying: dict[Tensor, Place]) -> int:
    taken = {place.lane for tensor, place in lying.items() if tensor.stage == stage and place.end != "port"}
    return min(set(range(len(taken) + 1)) - taken)
