"""Sums over ranks in an order of their own, so that the bits do not depend on how ranks lie on machines.

MPI's Allreduce may add in an order that follows from which ranks share a machine, and so may its result. Here the order
follows from the number of ranks alone. Few numbers go by recursive doubling, many by recursive halving and doubling:
R. Thakur, R. Rabenseifner and W. Gropp, "Optimization of collective communication operations in MPICH" (2005).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from mpi4py import MPI

MANY = 2**15
"""Bytes from which on halves are exchanged: twice the messages, but of all bytes each rank sends no more than two."""

_TAG = 1  # exchanges of ghosts, which may be under way, have 0


def sum_in_place(comm: MPI.Comm, values: np.ndarray) -> None:
    """Replace the values of each rank by their sum over all ranks, the same bits everywhere. Collective.

    values  contiguous, of the same shape and type on all ranks
    """
    flat = values.reshape(-1)
    paired = 1 << (comm.size.bit_length() - 1)  # the largest power of two: those beyond it hand theirs to a partner
    other = np.empty_like(flat)
    if comm.rank >= paired:
        comm.Send(flat, dest=comm.rank - paired, tag=_TAG)
        comm.Recv(flat, source=comm.rank - paired, tag=_TAG)
        return
    partner = comm.rank + paired
    if partner < comm.size:
        comm.Recv(other, source=partner, tag=_TAG)
        flat += other
    if flat.nbytes < MANY:
        _by_doubling(comm, flat, other, paired)
    else:
        _by_halving(comm, flat, other, paired)
    if partner < comm.size:
        comm.Send(flat, dest=partner, tag=_TAG)


def _exchange(comm: MPI.Comm, partner: int, send: np.ndarray, receive: np.ndarray) -> None:
    comm.Sendrecv(send, dest=partner, sendtag=_TAG, recvbuf=receive, source=partner, recvtag=_TAG)


def _by_doubling(comm: MPI.Comm, flat: np.ndarray, other: np.ndarray, ranks: int) -> None:
    """Both of a pair add what both have; the pairs lie 1, 2, 4 ... ranks apart. a + b has the bits of b + a."""
    apart = 1
    while apart < ranks:
        _exchange(comm, comm.rank ^ apart, flat, other)
        flat += other
        apart *= 2


def _by_halving(comm: MPI.Comm, flat: np.ndarray, other: np.ndarray, ranks: int) -> None:
    """Each of a pair adds one half of what both have; then they hand the sums to each other."""
    first, last, apart, steps = 0, flat.size, ranks // 2, []
    while apart:
        middle = (first + last) // 2
        halves = [slice(first, middle), slice(middle, last)]
        mine, theirs = halves if not comm.rank & apart else halves[::-1]
        _exchange(comm, comm.rank ^ apart, flat[theirs], other[mine])
        flat[mine] += other[mine]
        steps.append((apart, mine, theirs))
        first, last, apart = mine.start, mine.stop, apart // 2
    for apart, mine, theirs in reversed(steps):
        _exchange(comm, comm.rank ^ apart, flat[mine], flat[theirs])
