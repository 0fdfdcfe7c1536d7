"""The one loop: the steps of a program, executed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import zip_longest

from volseg.nn.fused.backward import BACKWARD
from volseg.nn.fused.forward import FORWARD
from volseg.nn.fused.state import State
from volseg.program.step import Step

OPERATIONS = FORWARD | BACKWARD


def run(steps: Iterable[Step], state: State) -> None:
    """Execute the steps in their order. Collective."""
    meter = state.grids.grids[0].communicator.meter
    for step in steps:
        with meter.during(step.label):
            run_step(step, state)


def run_step(step: Step, state: State, execute: Callable[[], None] | None = None) -> None:
    """Take memory for what a step writes, execute it, and give back what nobody reads after it.

    execute  does what the step says, where the caller knows how
    """
    for tensor, place in zip_longest(step.writes, step.places):
        state.rows[tensor] = state.memory.take(tensor, place)
    for before, after in step.renames:
        state.wait(before)
        state.rows[after] = state.rows.pop(before)
        state.memory.rename(before, after)
    if execute is not None:
        execute()
    else:
        OPERATIONS[type(step.op)](state, step.op)
    for tensor in step.frees:
        state.wait(tensor)
        state.memory.give(tensor, state.rows.pop(tensor))
