"""The program of the busiest rank as it is planned, step by step, as plain values."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from volseg.networks.coverage import why_not_covered
from volseg.networks.unet import unet
from volseg.partition.share import busy_shares
from volseg.planning.search import Candidate, Question
from volseg.program.build import segment_program, train_program
from volseg.program.schedule import IN_PLACE
from volseg.program.step import Op, Program


@dataclass(frozen=True)
class ListedStep:
    """A step of a program.

    label    its name, as in the meter and in traces
    does     what it does, in words
    reads    names of the tensors that must be there
    writes   names of those that begin to exist
    frees    names of those that nobody reads after it
    held     bytes of tensors while it runs; None where they are not planned
    seconds  that it is expected to take; None where they are not planned
    """

    label: str
    does: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    frees: tuple[str, ...]
    held: int | None = None
    seconds: float | None = None


def planned_program(question: Question, run: Candidate) -> Program | None:
    """The steps of the rank that takes part in most stages; None where the network goes layer by layer instead."""
    training = question.task == "train"
    network = unet(question.model, training and question.training.deep_supervision)
    if why_not_covered(network):
        return None
    shares = busy_shares(run.plan.layout, network.deepest, run.plan.agglomeration)
    share = max(shares, key=lambda share: share.last)
    if training:
        return train_program(network, share.merges, share.last, frozenset(run.checkpoint_levels))
    return segment_program(network, run.plan.schedule or IN_PLACE, share.merges, share.last)


def listed(
    program: Program, held: Callable[[int], int] | None = None, seconds: Callable[[int], float] | None = None
) -> list[ListedStep]:
    """The steps of a program, in their order.

    held     bytes of tensors while the step of a number runs, the first being 0
    seconds  that the step of a number is expected to take
    """
    return [
        ListedStep(
            label=step.label,
            does=in_words(step.op),
            reads=tuple(tensor.name for tensor in step.reads),
            writes=tuple(tensor.name for tensor in step.writes),
            frees=tuple(tensor.name for tensor in step.frees),
            held=None if held is None else held(number),
            seconds=None if seconds is None else seconds(number),
        )
        for number, step in enumerate(program.steps)
    ]


def in_words(op: Op) -> str:
    """``ConvolveBackward`` as "convolve backward"."""
    return " ".join(re.findall("[A-Z][a-z]*", type(op).__name__)).lower()
