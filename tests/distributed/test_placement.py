"""Ranks that share a machine get cores of their own, and as many threads as those are."""

from __future__ import annotations

import os

import pytest

from volseg.distributed.communicator import Communicator
from volseg.distributed.placement import Placement, available_cores, bind, binding_advice, own_cores, place


@pytest.fixture
def cores():
    """All cores of the machine, whatever a test before has bound this process to; that is restored."""
    before = available_cores()
    bind(tuple(range(os.cpu_count() or 1)))
    yield available_cores()
    bind(before)


def test_cores_are_shared_out_evenly_and_never_twice():
    assert [own_cores((0, 1, 2, 3, 4, 5), n, 3) for n in range(3)] == [(0, 1), (2, 3), (4, 5)]
    assert [own_cores((1, 3, 8, 9, 10), n, 2) for n in range(2)] == [(1, 3), (8, 9)]
    assert [own_cores((0, 1), n, 3) for n in range(3)] == [(), (), ()], "fewer cores than ranks: none is bound"


@pytest.mark.parametrize(
    ("size", "mine", "sharing", "threads"),
    [(1, 8, 1, 8), (4, 8, 4, 2), (4, 2, 1, 2), (4, 4, 1, 4), (16, 8, 16, 1)],
)
def test_no_core_has_two_threads(size, mine, sharing, threads):
    assert Placement("here", size, tuple(range(mine)), sharing, bound=False).threads == threads


def test_open_mpi_that_leaves_cores_to_nobody_is_named_with_the_option(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    placed = Placement("here", 2, (0,), sharing=1, bound=False)
    advice = binding_advice(placed, {"OMPI_COMM_WORLD_SIZE": "2"})
    assert "each of the 2 ranks on here to 1 of its 8 cores" in advice
    assert "--bind-to none, or --map-by slot:PE=4" in advice
    assert binding_advice(placed, {"PMI_SIZE": "2"}) is None
    whole = Placement("here", 2, (0, 1, 2, 3), sharing=1, bound=False)
    assert binding_advice(whole, {"OMPI_COMM_WORLD_SIZE": "2"}) is None


@pytest.mark.parallel([2, 4])
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no processes")
def test_ranks_of_one_machine_keep_to_different_cores(cores, communicator: Communicator, monkeypatch):
    monkeypatch.delenv("VOLSEG_BIND", raising=False)
    found = place(communicator)
    everyone = communicator.gather_all((found, available_cores()))
    same = all(p.node == found.node for p, _ in everyone)
    assert not same or found.local_size == communicator.size
    if len(cores) >= communicator.size and same:
        assert all(p.bound and p.cores == now for p, now in everyone)
        every_core = [core for p, _ in everyone for core in p.cores]
        assert len(set(every_core)) == len(every_core)
    else:
        assert all(now == cores for p, now in everyone if p.node == found.node)


@pytest.mark.parallel(2)
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no processes")
def test_a_launcher_s_binding_stays(cores, communicator: Communicator):
    if len(cores) < 2 or not bind((cores[communicator.rank],)):
        pytest.skip("two cores are needed")
    found = place(communicator)
    assert (found.cores, found.sharing, found.bound, found.threads) == ((cores[communicator.rank],), 1, False, 1)


@pytest.mark.parallel(2)
def test_a_user_may_keep_ranks_unbound(cores, communicator: Communicator, monkeypatch):
    monkeypatch.setenv("VOLSEG_BIND", "0")
    found = place(communicator)
    assert not found.bound
    assert found.sharing == 2
    assert available_cores() == cores
