"""One interface over an MPI communicator and over a single process without MPI.

The rest of volseg talks to a `Communicator`, so one code path serves one rank and many. mpi4py is imported
only when an `MpiCommunicator` is made, which happens only under a launcher (see `launch.py`).
"""

from __future__ import annotations

import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, cast

import numpy as np

from volseg.distributed.meter import Meter
from volseg.distributed.ordered_sum import sum_in_place
from volseg.program.kinds import Kind

if TYPE_CHECKING:
    from mpi4py import MPI

Reduction = Literal["sum", "max", "min"]
_Result = TypeVar("_Result")


class Pending(Protocol):
    """Messages under way."""

    def wait(self) -> None:
        """Return when the buffers are filled, and those sent may be written to again."""


class Communicator(ABC):
    """A group of ranks. Every method except `send_receive` is collective: all ranks call it, in the same order.

    meter  counts where this rank's time goes, together with all communicators split from this one
    """

    rank: int
    size: int
    meter: Meter

    @property
    def is_root(self) -> bool:
        """Whether this is rank 0, the one that reports and writes small files."""
        return self.rank == 0

    @property
    def library(self) -> str | None:
        """The MPI library, by name and version; None without one."""
        return None

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
        """Element-wise reduction of equal-shaped arrays; a new array, the same on every rank.

        The order of a sum follows from the number of ranks alone (`ordered_sum`).
        """

    @abstractmethod
    def reduce_all_in_place(self, values: np.ndarray, how: Reduction = "sum") -> None:
        """The same into `values` itself, which must be contiguous."""

    @abstractmethod
    def start_send_receive(
        self, sends: Sequence[tuple[int, np.ndarray]], receives: Sequence[tuple[int, np.ndarray]]
    ) -> Pending:
        """Begin to exchange contiguous buffers with other ranks: ``(rank, buffer)`` pairs, all in flight at once.

        At most one buffer each way for a pair of ranks; both sides know the sizes, and begin several exchanges in the
        same order.
        """

    def send_receive(self, sends: Sequence[tuple[int, np.ndarray]], receives: Sequence[tuple[int, np.ndarray]]) -> None:
        """`start_send_receive`, and wait for it."""
        self.start_send_receive(sends, receives).wait()

    @abstractmethod
    def split(self, colour: int, key: int) -> Communicator:
        """The ranks that gave the same `colour`, ordered by `key`."""

    def split_once(self, purpose: Hashable, colour: int, key: int) -> Communicator:
        """`split`, the first time that `purpose` is named; then the same communicator again, without a message.

        MPI libraries have some thousand communicators at most, and freeing one is collective: so those of grids, which
        come and go with networks, are kept. `purpose` says the same on all ranks; colour and key follow from it.
        """
        if purpose not in self._splits:
            self._splits[purpose] = self.split(colour, key)
        return self._splits[purpose]

    @cached_property
    def _splits(self) -> dict[Hashable, Communicator]:
        return {}

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

    def on_root(self, function: Callable[[], _Result]) -> _Result:
        """What `function` returns on the root, on every rank: one rank reads, writes or decides for all. Collective.

        function  runs on the root alone and must not communicate; its result must be picklable

        The other ranks wait for it. Raises the error of `function` on all ranks.
        """
        if not self.is_root:
            result, failure = self.broadcast(None)
            if failure is not None:
                raise failure
            return cast(_Result, result)
        try:
            result = function()
        except Exception as error:
            self.broadcast((None, portable(error)))
            raise
        self.broadcast((result, None))
        return result


def portable(error: BaseException) -> BaseException:
    """`error`, or where it does not survive pickling (a failure that would leave the other ranks waiting) its text."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def library_name(description: str) -> str:
    """Name and version from what an MPI library says of itself at length."""
    line = description.strip("\0 \n").partition("\n")[0].partition(", package:")[0]  # by whom Open MPI was built
    return " ".join(line.split())


class _Nothing:
    def wait(self) -> None:
        pass


class SerialCommunicator(Communicator):
    """One process, no MPI."""

    rank = 0
    size = 1

    def __init__(self) -> None:
        self.meter = Meter()

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

    def start_send_receive(
        self, sends: Sequence[tuple[int, np.ndarray]], receives: Sequence[tuple[int, np.ndarray]]
    ) -> Pending:
        if sends or receives:
            raise AssertionError("a single rank has no one to exchange with")
        return _Nothing()

    def split(self, colour: int, key: int) -> Communicator:
        return self


class _Requests:
    """MPI requests; holds their buffers until they are done."""

    def __init__(self, requests: list[Any], buffers: tuple[Any, ...], meter: Meter) -> None:
        self._requests, self._buffers, self._meter = requests, buffers, meter

    def wait(self) -> None:
        from mpi4py import MPI

        with self._meter.waiting():
            MPI.Request.Waitall(self._requests)
        self._buffers = ()


class MpiCommunicator(Communicator):
    """An mpi4py communicator. `comm` is not duplicated here; give a communicator that volseg owns."""

    def __init__(self, comm: MPI.Comm, meter: Meter | None = None) -> None:
        from mpi4py import MPI

        self.comm = comm
        self.meter = Meter() if meter is None else meter
        self.rank = comm.rank
        self.size = comm.size
        self._operations = {"sum": MPI.SUM, "max": MPI.MAX, "min": MPI.MIN}
        self._in_place = MPI.IN_PLACE

    @property
    def library(self) -> str | None:
        from mpi4py import MPI

        return library_name(MPI.Get_library_version())

    def barrier(self) -> None:
        with self.meter.doing(Kind.REDUCTION), self.meter.waiting():
            self.comm.Barrier()

    def broadcast(self, value: Any, root: int = 0) -> Any:
        with self.meter.doing(Kind.REDUCTION), self.meter.waiting():
            return self.comm.bcast(value, root=root)

    def gather_all(self, value: Any) -> list[Any]:
        with self.meter.doing(Kind.REDUCTION), self.meter.waiting():
            gathered: list[Any] = self.comm.allgather(value)
        return gathered

    def reduce_all(self, values: np.ndarray, how: Reduction = "sum") -> np.ndarray:
        result = np.ascontiguousarray(values).copy()
        self.reduce_all_in_place(result, how)
        return result

    def reduce_all_in_place(self, values: np.ndarray, how: Reduction = "sum") -> None:
        self.meter.sent(1, values.nbytes)
        with self.meter.doing(Kind.REDUCTION), self.meter.waiting():
            if how == "sum" and values.dtype.kind == "f":
                sum_in_place(self.comm, values)
            else:  # in whatever order: the result is the same
                self.comm.Allreduce(self._in_place, values, op=self._operations[how])

    def start_send_receive(
        self, sends: Sequence[tuple[int, np.ndarray]], receives: Sequence[tuple[int, np.ndarray]]
    ) -> Pending:
        requests = [self.comm.Irecv(buffer, source=rank) for rank, buffer in receives]
        requests += [self.comm.Isend(buffer, dest=rank) for rank, buffer in sends]
        self.meter.sent(len(sends), sum(buffer.nbytes for _, buffer in sends))
        return _Requests(requests, (sends, receives), self.meter)

    def split(self, colour: int, key: int) -> Communicator:
        return MpiCommunicator(self.comm.Split(colour, key), self.meter)
