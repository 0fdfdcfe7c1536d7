"""The collectives, and errors that all ranks raise together."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from volseg.distributed.communicator import Communicator
from volseg.errors import VolumeError


class Unpicklable(Exception):
    """As errors of libraries are that hold a file, a lock, or take other arguments than their message."""

    def __init__(self, what: str, lock: object) -> None:
        super().__init__(f"no {what}", lock)
        self.lock = lock


def raised(step) -> str:
    try:
        step()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


@pytest.mark.parallel([1, 2, 3, 4])
@pytest.mark.parametrize("failing", [0, -1])
def test_the_error_of_one_rank_is_raised_on_all(failing: int, communicator: Communicator) -> None:
    def step() -> None:
        with communicator.together():
            if communicator.rank == failing % communicator.size:
                raise VolumeError(f"rank {communicator.rank} cannot read its block")

    messages = communicator.gather_all(raised(step))
    assert messages == [f"VolumeError: rank {failing % communicator.size} cannot read its block"] * communicator.size


@pytest.mark.parallel([1, 2, 4])
def test_the_lowest_failing_rank_speaks_for_all_and_the_job_goes_on(communicator: Communicator) -> None:
    def step() -> None:
        with communicator.together():
            if communicator.rank >= communicator.size // 2:
                raise OSError(28, f"disk of rank {communicator.rank} full")

    messages = communicator.gather_all(raised(step))
    assert messages == [f"OSError: [Errno 28] disk of rank {communicator.size // 2} full"] * communicator.size
    with communicator.together():
        total = communicator.rank
    assert communicator.reduce_all(np.array([total]))[0] == sum(range(communicator.size))


@pytest.mark.parallel([2, 3])
def test_an_error_that_cannot_be_sent_does_not_leave_the_others_waiting(communicator: Communicator) -> None:
    def step() -> None:
        with communicator.together():
            if communicator.rank == 1:
                raise Unpicklable("header", threading.Lock())

    messages = communicator.gather_all(raised(step))
    assert len(messages) == communicator.size
    assert all("Unpicklable: " in message and "no header" in message for message in messages)


@pytest.mark.parallel([1, 2, 3])
def test_what_the_root_does_alone_all_have(communicator: Communicator) -> None:
    ran: list[int] = []

    def read() -> dict[str, int]:
        ran.append(communicator.rank)
        return {"rank": communicator.rank}

    assert communicator.on_root(read) == {"rank": 0}
    assert communicator.on_root(lambda: None) is None
    assert ran == ([0] if communicator.is_root else [])


@pytest.mark.parallel([1, 2, 3])
def test_an_error_on_the_root_is_raised_on_all_and_the_job_goes_on(communicator: Communicator) -> None:
    def read() -> None:
        raise VolumeError(f"rank {communicator.rank} cannot read it")

    def read_badly() -> None:
        raise Unpicklable("header", threading.Lock())

    messages = communicator.gather_all(raised(lambda: communicator.on_root(read)))
    assert messages == ["VolumeError: rank 0 cannot read it"] * communicator.size
    messages = communicator.gather_all(raised(lambda: communicator.on_root(read_badly)))
    assert all("Unpicklable: " in message and "no header" in message for message in messages)
    assert communicator.on_root(lambda: communicator.rank) == 0


@pytest.mark.parallel([1, 2, 3, 4])
def test_collectives(communicator: Communicator) -> None:
    rank, size = communicator.rank, communicator.size
    assert communicator.gather_all(rank) == list(range(size))
    assert communicator.broadcast({"from": rank}, root=size - 1) == {"from": size - 1}
    values = np.array([rank, -rank], dtype=np.int64)
    assert communicator.reduce_all(values).tolist() == [size * (size - 1) // 2, -size * (size - 1) // 2]
    assert communicator.reduce_all(values, "max").tolist() == [size - 1, 0]
    assert communicator.reduce_all(values, "min").tolist() == [0, 1 - size]
    assert values.tolist() == [rank, -rank]
    communicator.reduce_all_in_place(values, "max")
    assert values.tolist() == [size - 1, 0]


@pytest.mark.parallel([2, 3, 4])
def test_a_ring_of_messages_and_a_split(communicator: Communicator) -> None:
    rank, size = communicator.rank, communicator.size
    received = np.empty(3)
    communicator.send_receive([((rank + 1) % size, np.full(3, float(rank)))], [((rank - 1) % size, received)])
    assert communicator.gather_all(received[0]) == [(r - 1) % size for r in range(size)]
    part = communicator.split(rank % 2, -rank)
    members = part.gather_all(rank)
    assert members == sorted((r for r in range(size) if r % 2 == rank % 2), reverse=True)
