"""When tensors cease to be needed: after the step that reads them last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from volseg.networks.description import IMAGE
from volseg.program.step import Step
from volseg.program.tensors import Tensor


def with_frees(steps: Sequence[Step]) -> list[Step]:
    """The same steps, each with the tensors that nobody reads after it.

    A tensor that is written a second time, having been made again, ceases to be needed in between. The image is the
    caller's.
    """
    frees: list[list[Tensor]] = [[] for _ in steps]
    latest: dict[Tensor, int] = {}
    for number, step in enumerate(steps):
        for tensor in step.writes:
            if tensor in latest:
                frees[latest[tensor]].append(tensor)
        for tensor in (*step.reads, *step.writes):
            latest[tensor] = number
        for before, after in step.renames:
            del latest[before]
            latest[after] = number
    for tensor, number in latest.items():
        frees[number].append(tensor)
    return [
        replace(step, frees=tuple(tensor for tensor in gone if tensor.name != IMAGE))
        for step, gone in zip(steps, frees, strict=True)
    ]
