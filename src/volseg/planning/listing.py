"""The program of the busiest rank as it is planned, step by step, as plain values."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from volseg.networks.coverage import why_not_covered
from volseg.partition.share import busy_shares
from volseg.planning.search import Candidate, Question
from volseg.planning.segmenting_pass import SegmentingPass
from volseg.planning.time_model import seconds_of_steps
from volseg.planning.training_pass import TrainingPass
from volseg.precision import Precision
from volseg.program.build import segment_program, train_program
from volseg.program.ops import Op
from volseg.program.schedule import IN_PLACE


@dataclass(frozen=True)
class ListedStep:
    """A step of a program.

    label    its name, as in the meter and in traces
    does     what it does, in words
    reads    names of the tensors that must be there
    writes   names of those that begin to exist
    frees    names of those that nobody reads after it
    held     bytes of tensors while it runs
    seconds  that it is expected to take, messages included
    """

    label: str
    does: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    frees: tuple[str, ...]
    held: int
    seconds: float


def listed(question: Question, run: Candidate) -> list[ListedStep] | None:
    """The steps of the busiest rank in their order; None where the network goes layer by layer instead."""
    network = question.network
    if why_not_covered(network):
        return None
    shares = busy_shares(run.plan.layout, network.factors, run.plan.agglomeration, halo=network.halo)
    share = max(shares, key=lambda share: share.last)
    held: Sequence[int]
    precision = Precision(question.training.precision)
    if question.task == "train":
        program = train_program(network, share.merges, share.last, frozenset(run.checkpoint_levels))
        held = TrainingPass(network, program, share, question.placing.threads, precision).held
    else:
        schedule = run.plan.schedule or IN_PLACE
        program = segment_program(network, schedule, share.merges, share.last)
        held = SegmentingPass(network, schedule, share, threads=question.placing.threads, precision=precision).held
    layouts = run.plan.agglomeration.layouts(run.plan.layout, network.factors)
    seconds = seconds_of_steps(network, program, layouts, question.profile, question.placing, precision)
    return [
        ListedStep(
            label=step.label,
            does=in_words(step.op),
            reads=tuple(tensor.name for tensor in step.reads),
            writes=tuple(tensor.name for tensor in step.writes),
            frees=tuple(tensor.name for tensor in step.frees),
            held=bytes_there,
            seconds=taken,
        )
        for step, bytes_there, taken in zip(program.steps, held, seconds, strict=True)
    ]


def in_words(op: Op) -> str:
    """``ConvolveBackward`` as "convolve backward"."""
    return " ".join(re.findall("[A-Z][a-z]*", type(op).__name__)).lower()
