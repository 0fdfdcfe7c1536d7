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

from volseg.config import ModelConfig, TrainingConfig
from volseg.partition.layout import Layout
from volseg.partition.operations import Exchange, Kind, Reduction, Transfer, Work, segmenting_work, training_work
from volseg.partition.profile import Network, Profile
from volseg.partition.schedule import IN_PLACE, Schedule


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
    def communication(self) -> float:
        """Seconds of ghosts, sums and agglomeration."""
        kinds = self.by_kind()
        return kinds[Kind.HALO] + kinds[Kind.REDUCTION] + kinds[Kind.MOVING]


def training_time(
    model: ModelConfig, training: TrainingConfig, layouts: Sequence[Layout], parameters: int, profile: Profile,
    placing: Placing = Placing(), replicas: int = 1,
) -> TimePlan:  # fmt: skip
    """A training step on one case a replica.

    layouts     of each level, finest first
    parameters  of the network
    replicas    among which the gradients are summed besides
    """
    work = training_work(model, layouts, parameters, training.checkpoint_levels)
    if replicas > 1:
        ranks = prod(layouts[0].dims) * replicas
        work.reductions = [r for r in work.reductions if r.layer != "gradients of the weights"]
        work.reductions.append(Reduction("gradients of the weights", 0, parameters * 4, ranks))
    return _time(work, layouts, profile, placing)


def segmenting_time(
    model: ModelConfig, layouts: Sequence[Layout], profile: Profile, schedule: Schedule = IN_PLACE,
    placing: Placing = Placing(),
) -> TimePlan:  # fmt: skip
    """The network's part of segmenting one scan."""
    return _time(segmenting_work(model, layouts, schedule), layouts, profile, placing)


def _time(work: Work, layouts: Sequence[Layout], profile: Profile, placing: Placing) -> TimePlan:
    plan, ranks = TimePlan(), prod(layouts[0].dims)
    setting = profile.setting(min(placing.per_machine, ranks), placing.threads)
    faster = max(1.0, placing.threads / setting.threads)  # more threads than were measured: as if all of them gained
    for operation in work.operations:
        plan.add(operation.layer, operation.kind, operation.level, setting.seconds(operation) / faster)
    for exchange in work.exchanges:
        taken = _exchange(exchange, layouts[exchange.level], ranks, profile, placing)
        plan.add(exchange.layer, Kind.HALO, exchange.level, taken)
    for reduction in work.reductions:
        plan.add(reduction.layer, Kind.REDUCTION, reduction.level, _reduction(reduction, profile, placing))
    for transfer in work.transfers:
        plan.add(transfer.layer, Kind.MOVING, transfer.level, _transfer(transfer, ranks, profile, placing))
    return plan


def _exchange(exchange: Exchange, layout: Layout, ranks: int, profile: Profile, placing: Placing) -> float:
    """Packing, travelling and unpacking, axis after axis."""
    _, py, px = layout.dims
    strides = (py * px, px, 1)
    spread = ranks // prod(layout.dims)  # ranks of the finest grid for each of this one
    taken = 0.0
    for axis, messages, size in exchange.axes:
        packing = 2 * 2 * size / profile.copy_bandwidth
        within = messages * profile.within.latency + size / profile.within.bytes_per_second
        # Neighbours so many ranks apart: that share of them is on another machine.
        leaving = min(1.0, strides[axis] * spread / placing.per_machine) if ranks > placing.per_machine else 0.0
        taken += packing + max(within, _over_link(messages, size * leaving, profile.between, placing) if leaving else 0)
    return taken


def _over_link(messages: int, size: float, network: Network, placing: Placing) -> float:
    """Messages of all ranks of a machine share its link."""
    return messages * network.latency + size * placing.per_machine / network.bytes_per_second


def _reduction(reduction: Reduction, profile: Profile, placing: Placing) -> float:
    inside = min(reduction.ranks, placing.per_machine)
    outside = -(-reduction.ranks // placing.per_machine)
    taken = log2(inside) * profile.within.reduction if inside > 1 else 0.0
    if outside > 1:
        taken += log2(outside) * profile.between.reduction
    moved = 2 * reduction.bytes * (reduction.ranks - 1) / reduction.ranks
    speed = profile.between.bytes_per_second if outside > 1 else profile.within.bytes_per_second
    return taken + moved / speed


def _transfer(transfer: Transfer, ranks: int, profile: Profile, placing: Placing) -> float:
    network = profile.between if ranks > placing.per_machine else profile.within
    packing = 2 * 2 * transfer.bytes / profile.copy_bandwidth
    return transfer.messages * network.latency + transfer.bytes / network.bytes_per_second + packing
