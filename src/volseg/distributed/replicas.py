"""Replicas: the ranks of a job in groups, each of which holds the whole network and works on volumes of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from volseg.distributed.communicator import Communicator
from volseg.errors import PartitionError

Item = TypeVar("Item")


class Replicas:
    """A job's ranks as `count` groups of as many consecutive ranks, so that a group stays on a machine where it can.

    world   all ranks
    own     the ranks of this replica
    across  the ranks that have this rank's number in each of the replicas, by replica
    number  of this replica; the world's root belongs to replica 0, and is the root of that

    To make them is collective. Raises PartitionError where `count` does not divide the ranks.
    """

    def __init__(self, world: Communicator, count: int = 1) -> None:
        if count < 1 or world.size % count:
            numbers = ", ".join(str(n) for n in range(1, world.size + 1) if world.size % n == 0)
            more = f"start it with mpirun -n {count} or a multiple of that, or " if count > 1 else ""
            raise PartitionError(
                f"--replicas {count} does not divide this job's {world.size} rank{'s' if world.size > 1 else ''}: "
                f"{more}give one of {numbers}"
            )
        self.world, self.count = world, count
        self.number, place = divmod(world.rank, world.size // count)
        self.own = world.split(self.number, place)
        self.across = world.split(place, self.number)

    def share(self, items: Sequence[Item]) -> list[tuple[int, Item]]:
        """This replica's items, each with its place: item i is replica i mod `count`'s. May be none."""
        return [(place, item) for place, item in enumerate(items) if place % self.count == self.number]

    def most(self, items: Sequence[Item]) -> int:
        """How many items the replica with the largest share has."""
        return -(-len(items) // self.count)
