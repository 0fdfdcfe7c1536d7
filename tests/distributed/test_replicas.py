"""Which ranks form a replica, who sits across, and whose an item is."""

from __future__ import annotations

import pytest

from volseg.distributed.communicator import Communicator
from volseg.distributed.replicas import Replicas
from volseg.errors import PartitionError


@pytest.mark.parallel([1, 2, 4, 8])
def test_consecutive_ranks_form_a_replica(communicator: Communicator) -> None:
    size = communicator.size
    for count in (n for n in (1, 2, 4, 8) if n <= size):
        replicas = Replicas(communicator, count)
        each, world = size // count, replicas.world
        assert (replicas.own.size, replicas.across.size, world.size) == (each, count, size)
        first = replicas.number * each
        assert replicas.own.gather_all(world.rank) == list(range(first, first + each))
        assert replicas.across.gather_all(world.rank) == list(range(replicas.own.rank, size, each))
        assert (replicas.number == 0 and replicas.own.is_root) == world.is_root


@pytest.mark.parallel([1, 2, 4])
@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 8])
def test_every_item_is_one_replicas(communicator: Communicator, count: int) -> None:
    items = [f"case {n}" for n in range(count)]
    replicas = Replicas(communicator, communicator.size)
    shares = communicator.gather_all(replicas.share(items))
    assert sorted(pair for share in shares for pair in share) == list(enumerate(items))
    assert max(map(len, shares)) == replicas.most(items)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parallel([1, 4])
def test_numbers_that_do_not_divide_the_ranks_are_refused_by_name(communicator: Communicator) -> None:
    for count in (3, 0, -1):
        with pytest.raises(PartitionError, match=rf"--replicas {count} does not divide this job's {communicator.size}"):
            Replicas(communicator, count)
