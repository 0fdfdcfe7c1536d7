"""The time model: seconds of each operation on a measured machine, messages by latency and bandwidth, sums by log P.

operation   the machine's time for its shape (`profile.Setting`), of the rank with the largest block
ghosts      for each axis that is cut, latency + bytes / bandwidth (Hockney's alpha-beta model), and packing and
            unpacking at the speed of memory; between machines the ranks of one share its link, and what travels
            while blocks are computed that need no ghosts is hidden
sums        log2 P rounds of a small message (Thakur, Rabenseifner & Gropp, "Optimization of collective
            communication operations in MPICH", 2005); large ones 2 (P - 1) / P of their bytes besides
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import log2, prod

from volseg.config import TrainingConfig
from volseg.geometry import quotient
from volseg.networks.coverage import why_not_covered
from volseg.networks.description import Network
from volseg.partition.layout import Layout
from volseg.planning.layer_work import layer_work
from volseg.planning.operations import GRADIENTS, Exchange, Reduction, Transfer, Work
from volseg.planning.profile import Profile
from volseg.planning.work import segmenting_work, training_work, work_of_step
from volseg.precision import FLOAT32, Precision
from volseg.program.kinds import COMMUNICATING, Kind
from volseg.program.schedule import IN_PLACE, Schedule
from volseg.program.step import Program


@dataclass(frozen=True)
class Placing:
    """How the ranks of a job lie on machines.

    per_machine  ranks on one machine
    threads      of each rank
    """

    per_machine: int = 1
    threads: int = 1


@dataclass
class TimePlan:
    """Predicted seconds of the busiest rank, by layer and kind."""

    parts: dict[tuple[str, Kind], float] = field(default_factory=dict)
    by_level: dict[int, float] = field(default_factory=dict)

    def add(self, layer: str, kind: Kind, level: int, seconds: float) -> None:
        """Enter some more."""
        self.parts[layer, kind] = self.parts.get((layer, kind), 0.0) + seconds
        self.by_level[level] = self.by_level.get(level, 0.0) + seconds

    @property
    def seconds(self) -> float:
        """Everything."""
        return sum(self.parts.values())

    def by_kind(self) -> dict[Kind, float]:
        """Seconds of each kind of work."""
        found = dict.fromkeys(Kind, 0.0)
        for (_, kind), seconds in self.parts.items():
            found[kind] += seconds
        return found

    def scaled(self, factor: float) -> TimePlan:
        """The same, each part `factor` times as long."""
        parts = {part: seconds * factor for part, seconds in self.parts.items()}
        return TimePlan(parts, {level: seconds * factor for level, seconds in self.by_level.items()})

    @property
    def once(self) -> float:
        """Seconds of what is done once a step, however many cases it has."""
        parts = self.parts.items()
        return sum(s for (layer, kind), s in parts if layer == GRADIENTS or kind is Kind.OPTIMIZER)

    @property
    def communication(self) -> float:
        """Seconds of ghosts, sums and agglomeration."""
        return sum(seconds for (_, kind), seconds in self.parts.items() if kind in COMMUNICATING)


def step_seconds(cases: Sequence[TimePlan]) -> float:
    """Of a step in which a replica takes these cases, one at least, one after the other.

    The optimizer's step, and the sum of the gradients, come once.
    """
    return sum(plan.seconds - plan.once for plan in cases) + cases[0].once


def training_time(
    network: Network, training: TrainingConfig, layouts: Sequence[Layout], profile: Profile,
    placing: Placing = Placing(), replicas: int = 1,
) -> TimePlan:  # fmt: skip
    """A training step on one case a replica.

    network     with the heads that are for the loss alone
    layouts     of each stage, finest first
    replicas    among which the gradients are summed besides
    """
    if why_not_covered(network):
        work = layer_work(network, layouts, training=True)
    else:
        work = training_work(network, layouts, training.checkpoint_levels, replicas, Precision(training.precision))
    return _time(work, layouts, profile, placing, replicas, Precision(training.precision))


def segmenting_time(
    network: Network, layouts: Sequence[Layout], profile: Profile, schedule: Schedule = IN_PLACE,
    placing: Placing = Placing(), precision: Precision = FLOAT32,
) -> TimePlan:  # fmt: skip
    """The network's part of segmenting one scan."""
    if why_not_covered(network):
        work = layer_work(network, layouts, training=False)
    else:
        work = segmenting_work(network, layouts, schedule, precision)
    return _time(work, layouts, profile, placing, precision=precision)


def seconds_of_steps(
    network: Network, program: Program, layouts: Sequence[Layout], profile: Profile, placing: Placing = Placing(),
    precision: Precision = FLOAT32,
) -> list[float]:  # fmt: skip
    """Each step of a program, with the messages that it makes necessary."""
    segmenting, seconds = not program.backward, []
    for step in program.steps:
        work = work_of_step(network, layouts, step, segmenting=segmenting, precision=precision)
        seconds.append(_time(work, layouts, profile, placing, precision=precision).seconds)
    return seconds


def _time(
    work: Work, layouts: Sequence[Layout], profile: Profile, placing: Placing, replicas: int = 1,
    precision: Precision = FLOAT32,
) -> TimePlan:  # fmt: skip
    plan, job = TimePlan(), _Job(layouts, profile, placing, replicas)
    costs = profile.costs(min(placing.per_machine, job.all_ranks), placing.threads, precision)
    for operation in work.operations:
        plan.add(operation.layer, operation.kind, operation.level, costs.seconds(operation))
    for exchange in work.exchanges:
        plan.add(exchange.layer, Kind.HALO, exchange.level, job.exchange(exchange))
    for reduction in work.reductions:
        plan.add(reduction.layer, Kind.REDUCTION, reduction.level, job.reduction(reduction))
    for transfer in work.transfers:
        plan.add(transfer.layer, Kind.MOVING, transfer.level, job.transfer(transfer))
    return plan


class _Job:
    """Where ranks lie, and what their messages cost.

    The ranks of a replica follow each other, the last axis of its grid fastest; machines are filled in that order.

    distances  from one neighbour on D, H, W to the next in the grid of each stage, in ranks
    here       ranks of a machine that take part in each stage
    """

    def __init__(self, layouts: Sequence[Layout], profile: Profile, placing: Placing, replicas: int) -> None:
        self.profile, self.per_machine = profile, placing.per_machine
        self.dims = [layout.dims for layout in layouts]
        ranks = prod(self.dims[0])
        self.all_ranks = ranks * replicas
        # A replica that fits into a machine, but not a whole number of times, may lie on two.
        fits = ranks <= self.per_machine and (self.all_ranks <= self.per_machine or self.per_machine % ranks == 0)
        self.spread = not fits
        groups = [quotient(self.dims[0], dims) for dims in self.dims]
        _, py, px = self.dims[0]
        self.distances = [(d * py * px, h * px, w) for d, h, w in groups]
        self.here = [max(1, self.per_machine // prod(group)) for group in groups]

    def exchange(self, exchange: Exchange) -> float:
        """Packing, travelling and unpacking, axis after axis."""
        within, taken = self.profile.within, 0.0
        for axis, messages, size in exchange.axes:
            inside = messages * within.latency + size / within.bytes_per_second
            # Neighbours so many ranks apart: that share of them is on another machine.
            leaving = min(1.0, self.distances[exchange.grid][axis] / self.per_machine) if self.spread else 0.0
            outside = self._over_link(messages, size * leaving, self.here[exchange.grid]) if leaving else 0.0
            taken += self._packing(size) + max(inside, outside)
        return taken

    def _packing(self, size: float) -> float:
        """Reading and writing what is sent, and what is received."""
        return 2 * 2 * size / self.profile.copy_bandwidth

    def _over_link(self, messages: int, size: float, senders: int) -> float:
        """Messages of all ranks of a machine that send share its link."""
        network = self.profile.between
        return messages * network.latency + size * senders / network.bytes_per_second

    def reduction(self, reduction: Reduction) -> float:
        """Rounds within machines, and between them."""
        if reduction.ranks < 2:
            return 0.0
        if reduction.group:
            inside = 1 if self._far(reduction.level) else reduction.ranks
        elif reduction.layer == GRADIENTS:
            inside = min(reduction.ranks, self.per_machine)
        else:
            inside = min(reduction.ranks, self.here[reduction.level]) if self.spread else reduction.ranks
        outside = -(-reduction.ranks // inside)
        within, between = self.profile.within, self.profile.between
        taken = log2(inside) * within.reduction + log2(outside) * between.reduction
        speed = (between if outside > 1 else within).bytes_per_second
        return taken + 2 * reduction.bytes * (reduction.ranks - 1) / reduction.ranks / speed

    def transfer(self, transfer: Transfer) -> float:
        """From the ranks of a group to its leader, one after the other."""
        if self._far(transfer.level):
            moved = self._over_link(transfer.messages, transfer.bytes, self.here[transfer.level])
        else:
            within = self.profile.within
            moved = transfer.messages * within.latency + transfer.bytes / within.bytes_per_second
        return moved + self._packing(transfer.bytes)

    def _far(self, level: int) -> bool:
        """Whether a group whose blocks are merged at a level lies on several machines."""
        finer = level - 1
        steps = zip(range(3), self.dims[finer], self.dims[level], strict=True)
        reach = sum((many // few - 1) * self.distances[finer][axis] for axis, many, few in steps)
        return self.spread and reach >= self.per_machine
