"""The planner's search over grids, replicas, checkpointing and schedules: the fewest ranks, and the fastest run.

Every candidate has its memory (`memory.py`) and its time (`time_model.py`). Nothing runs, and neither torch nor MPI is
imported.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod

from volseg.config import TrainingConfig
from volseg.errors import PartitionError
from volseg.geometry import Triple, format_triple, quotient
from volseg.networks.coverage import why_not_covered
from volseg.networks.description import Network
from volseg.partition.agglomeration import NONE, Agglomeration
from volseg.partition.layout import Layout, padded_shape
from volseg.planning.agglomeration_choice import choose_agglomeration
from volseg.planning.memory import among_replicas
from volseg.planning.planner import (
    Plan,
    fewest_ranks,
    halo_voxels,
    least_halo,
    make_plan,
    most_ranks,
    suited_layouts,
)
from volseg.planning.profile import Profile
from volseg.planning.sampling import WHOLE, Sampling
from volseg.planning.time_model import Placing, TimePlan, segmenting_time, training_time
from volseg.precision import Precision
from volseg.program.schedule import IN_PLACE, Schedule

_GRIDS, _TRIED = 8, 3
"""Grids of least halo whose time is looked at, and the fastest of them whose memory is."""

_SAME = 0.01
"""Times that differ by less are the same."""

_CLEARLY = 0.03
"""By so much a grid must be faster to be taken in place of the one that ``--partition auto`` takes."""

_BALANCE = 1.125
"""A block may be so much larger than the best grid's."""


@dataclass(frozen=True)
class Question:
    """What to plan.

    network  in training with the heads that are for the loss alone
    task     "train" or "segment"
    limit    bytes a rank may use; None for no limit
    placing  ranks on a machine, and their threads
    dims     the only grid allowed, of one replica; None for any
    agglomerate  as `agglomeration_for` reads it; "auto" is what the time model chooses where it fits
    sampling  what a training step sees of the volume
    """

    shape: Triple
    network: Network
    training: TrainingConfig
    task: str
    profile: Profile
    limit: int | None = None
    placing: Placing = field(default_factory=Placing)
    dims: Triple | None = None
    agglomerate: str = "none"
    sampling: Sampling = WHOLE

    @property
    def seen(self) -> Triple:
        """The sides of what is computed at once: of the volume, or of what a training step sees of it."""
        return self.sampling.view(self.shape) if self.task == "train" else self.shape

    @cached_property
    def parameters(self) -> int:
        """Of the network."""
        return self.network.parameters(training=self.task == "train")

    @property
    def timed(self) -> bool:
        """Whether the time model knows the network. Times of others are not shown: they only set machines in order."""
        return not why_not_covered(self.network)

    @property
    def most_ranks(self) -> int:
        """Of one replica: each has a block whose sides are the strides' product at least."""
        if self.dims is not None:
            return prod(self.dims)
        return prod(quotient(padded_shape(self.seen, self.network.multiple), self.network.multiple))


@dataclass(frozen=True)
class Candidate:
    """One way to run.

    ranks              in all
    replicas           each on so many of them, with a case of its own
    checkpoint_levels  that compute tensors again
    plan, time         of one replica
    """

    ranks: int
    replicas: int
    checkpoint_levels: tuple[int, ...]
    plan: Plan
    time: TimePlan

    @property
    def dims(self) -> Triple:
        """The grid of one replica, finest level."""
        return self.plan.layout.dims

    @property
    def seconds(self) -> float:
        """Of a training step of all replicas, or of segmenting a scan."""
        return self.time.seconds

    @property
    def cases_per_second(self) -> float:
        """Throughput."""
        return self.replicas / self.seconds


def candidate(question: Question, dims: Triple, replicas: int = 1) -> Candidate:
    """The run on this grid: its schedule and its agglomeration the fastest that fit."""
    if question.agglomerate != "auto":
        return _candidate(question, dims, replicas, question.agglomerate)
    ways = [str(agglomeration_on(question, dims, replicas))]
    if question.limit is not None and ways != ["none"]:
        ways.append("none")  # leaders hold more
    found = [_candidate(question, dims, replicas, way) for way in ways]
    return min(found, key=lambda c: (not fits(question, c), not fits(question, c, files=True), c.seconds))


def _candidate(question: Question, dims: Triple, replicas: int, stages: str) -> Candidate:
    ranks, training = prod(dims), question.training
    plan = make_plan(
        question.shape, question.network, ranks, question.task, training, dims, question.limit, stages,
        question.placing.threads, question.sampling,
    )  # fmt: skip
    plan = replace(plan, memory=among_replicas(plan.memory, dims, replicas))
    time = _time(question, plan.layout, plan.schedule or IN_PLACE, replicas, plan.agglomeration)
    again = training.checkpoint_levels if question.task == "train" else ()
    return Candidate(ranks * replicas, replicas, again, plan, time)


def agglomeration_on(question: Question, dims: Triple, replicas: int) -> Agglomeration:
    """What the time model chooses on this grid, whether it fits or not."""
    network = question.network
    layout = Layout.even(padded_shape(question.seen, network.multiple), dims, network.multiple)
    return choose_agglomeration(network, layout, lambda stages: _time(question, layout, IN_PLACE, replicas, stages))


def _time(
    question: Question, layout: Layout, schedule: Schedule, replicas: int, agglomeration: Agglomeration = NONE
) -> TimePlan:
    network, profile, placing = question.network, question.profile, question.placing
    layouts = agglomeration.layouts(layout, network.factors)
    if question.task == "train":
        return training_time(network, question.training, layouts, profile, placing, replicas)
    return segmenting_time(network, layouts, profile, schedule, placing, Precision(question.training.precision))


def fastest(question: Question, ranks: int, replicas: int = 1) -> Candidate:
    """The fastest run on so many ranks that fits; where none does, the one that needs least.

    Grids on all three axes; in training checkpointing where it is what makes it fit.

    Raises PartitionError where the volume cannot be split so.
    """
    if ranks % replicas:
        raise PartitionError(f"{ranks} ranks are no multiple of {replicas} replicas: give as many or a multiple")
    grids = _grids(question, ranks // replicas, replicas)
    tried: list[Candidate] = []
    for one in _options(question):
        for dims in grids[:_TRIED]:
            tried.append(candidate(one, dims, replicas))
            if fits(question, tried[-1]):
                return tried[-1]
    return min(tried, key=lambda c: (not fits(question, c, files=True), c.plan.memory.peak))


def _options(question: Question) -> list[Question]:
    """The question, and in training the same with all that can be computed again."""
    levels = tuple(range(1, question.network.deepest + 1))
    if question.task == "segment" or question.limit is None or question.training.checkpoint_levels:
        return [question]
    return [question, replace(question, training=replace(question.training, checkpoint_levels=levels))]


def fits(question: Question, one: Candidate, *, files: bool = False) -> bool:
    """Whether it keeps to the limit, where there is one, in memory; with `files` also by spilling to a disk."""
    return question.limit is None or one.plan.fits(question.limit, in_memory=not files)


def _grids(question: Question, ranks: int, replicas: int) -> list[Triple]:
    """The grids worth a look, fastest first: balanced ones; of two that are as fast the one with less halo.

    The one of `choose_grid`, which runs with ``--partition auto`` take, comes first unless another is clearly faster,
    and always among those that are tried.
    """
    if question.dims is not None:
        if prod(question.dims) != ranks:
            raise PartitionError(f"{format_triple(question.dims)} is no grid of {ranks} ranks")
        return [question.dims]
    layouts = suited_layouts(question.seen, question.network, ranks, question.agglomerate)
    chosen = least_halo(layouts)
    smallest = min(prod(layout.largest_block) for layout in layouts)
    balanced = [layout for layout in layouts if prod(layout.largest_block) <= smallest * _BALANCE]
    balanced.sort(key=lambda layout: (halo_voxels(layout), layout.dims[2], layout.dims[1]))
    looked_at = [chosen, *(layout for layout in balanced if layout.dims != chosen.dims)][:_GRIDS]
    if not question.timed:
        return [layout.dims for layout in looked_at]
    times = {layout.dims: _time(question, layout, IN_PLACE, replicas).seconds for layout in looked_at}
    best = min(times.values())
    order = sorted(times, key=lambda dims: round(times[dims] / best / _SAME))
    place = 0 if times[chosen.dims] <= (1 + _CLEARLY) * best else min(order.index(chosen.dims), _TRIED - 1)
    order.remove(chosen.dims)
    return [*order[:place], chosen.dims, *order[place:]]


def fewest(question: Question) -> Candidate | None:
    """The run on the fewest ranks that fits, checkpointing where that saves ranks.

    None where no grid fits, and where there is nothing to search: no limit, or a grid that is given.
    """
    if question.limit is None or question.dims is not None:
        return None
    found = []
    for one in _options(question):
        plan = fewest_ranks(
            one.shape, one.network, one.task, one.training, question.limit, question.placing.threads,
            question.agglomerate, question.sampling,
        )  # fmt: skip
        if plan is not None:
            found.append(candidate(one, plan.layout.dims))
    if not found:
        return None
    least = min(found, key=lambda c: (c.ranks, c.seconds))
    other = fastest(question, least.ranks)  # another grid of as many ranks may be faster, and fit as well
    return other if fits(question, other) else least


def splits(question: Question, ranks: int) -> list[Candidate]:
    """The same ranks as one replica, two, four ...: most cases a second first. Only those that fit, or one."""
    found = []
    for replicas in (n for n in range(1, ranks + 1) if ranks % n == 0 and n & (n - 1) == 0):
        if ranks // replicas <= question.most_ranks and (question.dims is None or replicas == 1):
            try:
                found.append(fastest(question, ranks, replicas))
            except PartitionError:
                continue  # no grid of so many ranks over this volume
    found.sort(key=lambda c: -c.cases_per_second)
    return [c for c in found if fits(question, c)] or found[:1]


@dataclass(frozen=True)
class Scaling:
    """Strong scaling: the same volume on more and more ranks.

    runs        by ranks
    efficiency  of each, against the first: how much of what the ranks could do is done
    """

    runs: tuple[Candidate, ...]

    @property
    def efficiency(self) -> tuple[float, ...]:
        """Of each run."""
        first = self.runs[0]
        whole = first.seconds * first.ranks
        return tuple(whole / (run.seconds * run.ranks) for run in self.runs)


def scaling(question: Question, counts: Iterable[int]) -> Scaling:
    """The fastest run for each number of ranks; numbers for which there is no grid are left out."""
    runs, refusal = [], None
    for ranks in counts:
        try:
            runs.append(fastest(question, ranks))
        except PartitionError as error:
            refusal = error
    if not runs:
        listed = ", ".join(map(str, counts))
        raise PartitionError(f"none of these numbers of ranks fits the volume: {listed}; {refusal}")
    return Scaling(tuple(runs))


def powers_up_to(most: int) -> list[int]:
    """1, 2, 4 ... and `most`."""
    return [*(2**n for n in range(most.bit_length()) if 2**n < most), most]


def largest_possible(question: Question, below: int) -> int:
    """The most ranks up to `below` for which there is a grid."""
    multiple = question.network.multiple
    return most_ranks(padded_shape(question.seen, multiple), below, multiple)
