"""The model's word on a case, one that was run or one that nobody can run here: its memory, its time, its curves."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod

from volseg.errors import PartitionError
from volseg.geometry import Triple
from volseg.networks.architectures import described
from volseg.partition.layout import Layout, padded_shape
from volseg.planning.memory import MemoryPlan, segmenting_memory, training_memory
from volseg.planning.planner import choose_grid
from volseg.planning.profile import Profile
from volseg.planning.time_model import Placing, TimePlan, segmenting_time, training_time
from volseg.program.kinds import COMMUNICATING
from volseg.program.schedule import Schedule
from volseg.study.cases import TRAIN, Case, cube, weak_shape

LARGEST_SIDE, MOST_RANKS = 4096, 16384
"""How far curves go."""

RANKS_PER_MACHINE = 32
"""Of the machines that curves assume beyond this one."""


@dataclass(frozen=True)
class Foretold:
    """What the model says of a case.

    dims    the grid, as the program chooses it
    memory  of the rank with the largest block
    time    of a training step, or of the network's part of segmenting; of the rank with the largest block
    shared  voxels of the mean block over those of the largest: 1 where all ranks have as much to do
    """

    case: Case
    dims: Triple
    memory: MemoryPlan
    time: TimePlan
    shared: float

    @property
    def imbalance(self) -> float:
        """Seconds that a rank waits for the slowest, on average."""
        return (self.time.seconds - self.time.communication) * (1 - self.shared)

    def by_kind(self) -> dict[str, float]:
        """Seconds of a rank, on average, of each kind of work; without `imbalance`."""
        return {
            str(kind): seconds if kind in COMMUNICATING else seconds * self.shared
            for kind, seconds in self.time.by_kind().items()
        }


def foretell(case: Case, profile: Profile, per_machine: int) -> Foretold:
    """What the model says of a case with so many ranks on a machine; the one place where a study asks it.

    Raises PartitionError where the volume cannot be split so.
    """
    layout = _layout(case.shape, case.ranks, case.levels)
    network = described(case.model)
    layouts = [layout.coarser(factor) for factor in network.factors]
    placing = Placing(per_machine, 1)
    if case.task == TRAIN:
        memory = training_memory(network, case.training, layout)
        time = training_time(network, case.training, layouts, profile, placing)
    else:
        schedule = Schedule(case.variant)
        memory = segmenting_memory(network, layout, schedule)
        time = segmenting_time(network, layouts, profile, schedule, placing)
    shared = prod(layout.shape) / case.ranks / prod(layout.largest_block)
    return Foretold(case, layout.dims, memory, time, shared)


@lru_cache(maxsize=1024)
def _layout(shape: Triple, ranks: int, levels: int) -> Layout:
    multiple = int(2**levels)
    return Layout.even(padded_shape(shape, multiple), choose_grid(shape, ranks, multiple), multiple)


def over_sides(case: Case, sides: Iterable[int], profile: Profile) -> list[Foretold]:
    """The case on cubes of these sides."""
    return [foretell(replace(case, shape=cube(side)), profile, case.ranks) for side in sides]


def over_channels(case: Case, channels: Iterable[int], profile: Profile) -> list[Foretold]:
    """The case with so many channels."""
    return [foretell(replace(case, base_channels=count), profile, case.ranks) for count in channels]


def over_ranks(case: Case, ranks: Iterable[int], profile: Profile, per_machine: int) -> list[Foretold]:
    """Strong scaling: the case's volume on so many ranks; numbers without a grid are left out."""
    found = []
    for count in ranks:
        try:
            found.append(foretell(replace(case, ranks=count), profile, per_machine))
        except PartitionError:
            continue
    return found


def over_blocks(case: Case, block: int, ranks: Iterable[int], profile: Profile, per_machine: int) -> list[Foretold]:
    """Weak scaling: as many blocks of this side as ranks."""
    return [
        foretell(replace(case, shape=weak_shape(block, count), ranks=count), profile, per_machine) for count in ranks
    ]


def doublings(first: int, last: int, per_doubling: int = 1, multiple: int = 1) -> list[int]:
    """Numbers from `first` to `last`, so many for each factor of two, rounded to a multiple."""
    found, number = [first], 1
    while found[-1] < last:
        found.append(min(last, round(first * 2 ** (number / per_doubling) / multiple) * multiple))
        number += 1
    return list(dict.fromkeys(found))


def fewest_that_fit(case: Case, limit: int, profile: Profile) -> Foretold | None:
    """The fewest ranks, a power of two up to `MOST_RANKS`, of which each keeps to `limit` bytes."""
    for found in over_ranks(case, doublings(1, MOST_RANKS), profile, RANKS_PER_MACHINE):
        if found.memory.peak <= limit:
            return found
    return None
