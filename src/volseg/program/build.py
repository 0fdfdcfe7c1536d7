"""Programs: from a description, the stages that a rank takes part in, and what was chosen, to the steps."""

from __future__ import annotations

from functools import lru_cache

from volseg.networks.description import Network
from volseg.program.backward import backward_steps
from volseg.program.checkpointing import made_again, made_again_in
from volseg.program.forward import forward_steps
from volseg.program.in_place import in_place, sums_in_place
from volseg.program.liveness import with_frees
from volseg.program.recompute import recomputed
from volseg.program.resume import COARSE, resumable
from volseg.program.schedule import RECOMPUTE, Schedule
from volseg.program.step import Program


@lru_cache(maxsize=256)
def train_program(
    network: Network, merges: frozenset[int] = frozenset(), last: int | None = None,
    checkpoint_stages: frozenset[int] = frozenset(),
) -> Program:  # fmt: skip
    """A training step on one case.

    merges             stages whose process grid is coarser than that of the stage before
    last               the deepest stage that the rank takes part in; by default all
    checkpoint_stages  stages of which less is kept, and made again in backward
    """
    last = network.deepest if last is None else last
    forward = forward_steps(network, merges, last, loss=True)
    backward = made_again_in(forward, backward_steps(forward), made_again(network, checkpoint_stages))
    steps = with_frees(sums_in_place([*forward, *backward]))
    return Program(tuple(steps[: len(forward)]), tuple(steps[len(forward) :]), last, merges)


@lru_cache(maxsize=256)
def segment_program(
    network: Network, schedule: Schedule, merges: frozenset[int] = frozenset(), last: int | None = None, *,
    beyond: bool = False, journal: bool = False, known: frozenset[str] = frozenset(),
) -> Program:  # fmt: skip
    """The forward pass at the floor of memory.

    beyond   whether the voxels around the block are wanted of what the head reads
    journal  whether something is kept for a run that goes on after an interruption
    known    layers, and the coarse stages, whose coefficients an interrupted run kept
    """
    last = network.deepest if last is None else last
    steps = forward_steps(network, merges, last, beyond=beyond)
    if journal:
        steps = resumable(steps, going_on=COARSE in known)
    if schedule is RECOMPUTE:
        steps = recomputed(steps, journal=journal, known=known)
    return Program(tuple(in_place(with_frees(sums_in_place(steps)), merges)), (), last, merges)
