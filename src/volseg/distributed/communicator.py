"""One interface over an MPI communicator and over a single process without MPI.

The rest of volseg talks to a `Communicator`, so one code path serves one rank and many. mpi4py is imported
only when an `MpiCommunicator` is made, which happens only under a launcher (see `launch.py`).
"""

from __future__ import annotations

import pickle
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from mpi4py import MPI

Reduction = Literal["sum", "max", "min"]


class Communicator(ABC):
    """A group of ranks. Every method except `send_receive` is collective: all ranks call it, in the same order."""

    rank: int
    size: int

    @property
    def is_root(self) -> bool:
        """Whether this is rank 0, the one that reports and writes small files."""
        return self.rank == 0

    @abstractmethod
    def barrier(self) -> None:
        """Wait for all ranks."""

    @abstractmethod
    def broadcast(self, value: Any, root: int = 0) -> Any:
        """`root`'s picklable value, on every rank."""

    @abstractmethod
    def gather_all(self, value: Any) -> list[Any]:
        """Every rank's picklable value, by rank, on every rank."""

    @abstractmethod
    def reduce_all(self, values: np.ndarray, how: Reduction = "sum") -> np.ndarray:
        """Element-wise reduction of equal-shaped arrays; a new array, the same on every rank."""

    @abstractmethod
    def reduce_all_in_place(self, values: np.ndarray, how: Reduction = "sum") -> None:
        """The same into `values` itself, which must be contiguous."""

    @abstractmethod
    def send_receive(self, sends: Sequence[tuple[int, np.ndarray]], receives: Sequence[tuple[int, np.ndarray]]) -> None:
        """Exchange contiguous buffers with other ranks: ``(rank, buffer)`` pairs, all in flight at once.

        At most one buffer each way for a pair of ranks; both sides know the sizes.
        """

    @abstractmethod
    def split(self, colour: int, key: int) -> Communicator:
        """The ranks that gave the same `colour`, ordered by `key`."""

    def raise_together(self, error: BaseException | None) -> None:
        """Collective check before the next collective step: if any rank has an error, every rank raises it.

        The error of the lowest failing rank is raised everywhere, so the message is one and the same.
        """
        errors = self.gather_all(None if error is None else portable(error))
        first = next((rank for rank, e in enumerate(errors) if e is not None), None)
        if first is not None:
            raise error if error is not None and self.rank == first else errors[first]

    @contextmanager
    def together(self) -> Iterator[None]:
        """A step that may fail on one rank only: at its end all ranks go on, or all raise the first rank's error.

        The step itself must not communicate.
        """
        error: Exception | None = None
        try:
            yield
        except Exception as raised:
            error = raised
        self.raise_together(error)


def portable(error: BaseException) -> BaseException:
    """`error`, or where it does not survive pickling (a failure that would leave the other ranks waiting) its text."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


class SerialCommunicator(Communicator):
    """One process, no MPI."""

    rank = 0
    size = 1

    def barrier(self) -> None:
        pass

    def broadcast(self, value: Any, root: int = 0) -> Any:
        return value

    def gather_all(self, value: Any) -> list[Any]:
        return [value]

    def reduce_all(self, values: np.ndarray, how: Reduction = "sum") -> np.ndarray:
        return values.copy()

    def reduce_all_in_place(self, values: np.ndarray, how: Reduction = "sum") -> None:
        pass

    def send_receive(self, sends: Sequence[tuple[int, np.ndarray]], receives: Sequence[tuple[int, np.ndarray]]) -> None:
        if sends or receives:
            raise AssertionError("a single rank has no one to exchange with")

    def split(self, colour: int, key: int) -> Communicator:
        return self


class MpiCommunicator(Communicator):
    """An mpi4py communicator. `comm` is not duplicated here; give a communicator that volseg owns."""

    def __init__(self, comm: MPI.Comm) -> None:
        from mpi4py import MPI

        self.comm = comm
        self.rank = comm.rank
        self.size = comm.size
        self._operations = {"sum": MPI.SUM, "max": MPI.MAX, "min": MPI.MIN}
        self._in_place = MPI.IN_PLACE
        self._wait_all = MPI.Request.Waitall

    def barrier(self) -> None:
        self.comm.Barrier()

    def broadcast(self, value: Any, root: int = 0) -> Any:
        return self.comm.bcast(value, root=root)

    def gather_all(self, value: Any) -> list[Any]:
        gathered: list[Any] = self.comm.allgather(value)
        return gathered

    def reduce_all(self, values: np.ndarray, how: Reduction = "sum") -> np.ndarray:
        result = np.ascontiguousarray(values).copy()
        self.reduce_all_in_place(result, how)
        return result

    def reduce_all_in_place(self, values: np.ndarray, how: Reduction = "sum") -> None:
        self.comm.Allreduce(self._in_place, values, op=self._operations[how])

    def send_receive(self, sends: Sequence[tuple[int, np.ndarray]], receives: Sequence[tuple[int, np.ndarray]]) -> None:
        requests = [self.comm.Irecv(buffer, source=rank) for rank, buffer in receives]
        requests += [self.comm.Isend(buffer, dest=rank) for rank, buffer in sends]
        self._wait_all(requests)

    def split(self, colour: int, key: int) -> Communicator:
        return MpiCommunicator(self.comm.Split(colour, key))
