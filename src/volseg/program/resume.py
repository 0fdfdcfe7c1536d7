"""What a run of `segment` keeps for one that goes on after an interruption: the output of the coarse stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from volseg.program.ops import (
    Add,
    Average,
    Convolve,
    Exchange,
    Fetch,
    Interpolate,
    Keep,
    Normalize,
    Pool,
    UpConvolve,
)
from volseg.program.step import Step
from volseg.program.tensors import Lifted, View

COARSE = "coarse"
"""For whose output there are coefficients beside those of the finest stage's layers."""


def stage_of(step: Step) -> int:
    """The stage that a step belongs to; of what is pooled or gathered, the coarser one."""
    match step.op:
        case Convolve() as op:
            return op.node.stage
        case Exchange() as op:
            return op.tensor.stage
        case Normalize() as op:
            return op.view.tensor.stage
        case Add() | Pool() | Average() | UpConvolve() | Interpolate() as op:
            return op.output.stage
        case Fetch():
            return 1
        case Keep() as op:
            return 0 if op.view is None else 1
    return getattr(step.op, "stage", 0)


def resumable(steps: Sequence[Step], *, going_on: bool) -> list[Step]:
    """The steps with the output of the coarse stages kept, or, going on, fetched in place of their steps."""
    coarse = [number for number, step in enumerate(steps) if stage_of(step) > 0]
    if not coarse:
        return list(steps)
    below = _coarse_output(steps)
    finest_after = [step for step in steps[coarse[-1] + 1 :] if stage_of(step) == 0]
    if not going_on:
        return [*steps[: coarse[-1] + 1], Step(Keep(below), COARSE), *finest_after]
    before = [_without_pooling(step) for step in steps[: coarse[-1] + 1] if stage_of(step) == 0]
    return [*before, Step(Fetch(below), COARSE), Step(Exchange(below.tensor), COARSE), *finest_after]


def _coarse_output(steps: Sequence[Step]) -> View:
    """What the finest stage reads of the coarser ones."""
    return next(view for step in steps if stage_of(step) == 0 for view in _lifted_views(step))


def _lifted_views(step: Step) -> list[View]:
    match step.op:
        case UpConvolve() | Interpolate() as op:
            return [op.source]
        case Convolve() as op:
            return [source.view for source in op.sources if isinstance(source, Lifted)]
    return []


def _without_pooling(step: Step) -> Step:
    if isinstance(step.op, Convolve):
        return replace(step, op=replace(step.op, pooled=None, pooling=None))
    return step
