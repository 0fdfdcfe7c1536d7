"""Ending a job in which something failed: soon, with one message, on every rank.

A rank that fails cannot know whether the others failed too, or wait for it in MPI. It enters a non-blocking barrier
on a communicator kept for nothing else: if all arrive, all failed, and the root can speak for them; if not, the
failed rank speaks for itself and aborts the job, which frees the others from whatever they wait in.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import socket
import stat
import sys
import termios
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from volseg.distributed.communicator import Communicator, MpiCommunicator
from volseg.distributed.heartbeat import VARIABLE, Heartbeat, allowed_silence, watch

if TYPE_CHECKING:
    from mpi4py import MPI

PATIENCE = 2.0  # seconds for the other ranks to fail too
READER_LIMIT = 5.0  # seconds for the launcher to take the message before the abort
ABORT_LIMIT = 10.0  # seconds for MPI to end the job
FINALIZE_LIMIT = 5.0  # seconds for MPI to shut down after a failure of all ranks
LAST_RANK = (
    0.3  # seconds that the root, which alone ends with the code of a failure of all ranks, ends after the others
)


class JobCommunicator(MpiCommunicator):
    """The whole job's ranks, with a second communicator on which failed ranks meet, and their heartbeat."""

    def __init__(self, comm: MPI.Comm, farewell: MPI.Comm) -> None:
        super().__init__(comm)
        self.farewell = farewell
        self._nodes: list[str] = comm.allgather(socket.gethostname())
        self.heartbeat = watch(comm.Dup(), self._end_without)

    def _end_without(self, rank: int) -> None:
        seconds = allowed_silence()
        _say(
            f"rank {self.rank}: error: nothing was heard of rank {rank} on {self._nodes[rank]} for {seconds:.0f} "
            "seconds: it was killed (out of memory?) or stopped, or its machine is gone; the job ends\n"
            f"Where ranks are silent for so long at work, give more seconds: {VARIABLE}={2 * seconds:.0f}"
        )
        _abort(1)


def end_failed_job(
    communicator: Communicator, code: int, message: str, keep: Callable[[str], None] | None = None
) -> NoReturn:
    """Print `message` once and end every rank of the job with exit status `code`.

    To be called by each rank that failed, and by nothing else. Where all ranks failed, each different message is
    printed once, by rank 0, and the lowest code is everyone's. Otherwise this rank's message is printed with its
    number, and the job is aborted within about `PATIENCE` seconds.

    keep  is given the message of another rank than the root that speaks for itself

    Raises SystemExit.
    """
    if not isinstance(communicator, JobCommunicator):
        _say(message)
        raise SystemExit(code)
    abort_unless_all_failed(communicator, code, message, keep)
    endings = communicator.farewell.allgather((code, message))
    code = min(code for code, _ in endings)
    if communicator.is_root:
        for text in dict.fromkeys(text for _, text in endings):
            _say(text)
    _finalize(code, communicator.heartbeat)
    if communicator.is_root:  # after the others: a launcher may kill those that are still there once one fails
        time.sleep(LAST_RANK)
        raise SystemExit(code)
    raise SystemExit(0)


def abort_unless_all_failed(
    communicator: Communicator, code: int, message: str, keep: Callable[[str], None] | None = None
) -> None:
    """Return where every rank of the job failed; else print this rank's message and abort the job. Of a failed rank.

    Raises SystemExit, if MPI lets it.
    """
    if isinstance(communicator, JobCommunicator) and not _all_arrive(communicator):
        text = f"rank {communicator.rank}: {message}" if communicator.size > 1 else message
        _say(text)
        if keep is not None and not communicator.is_root:
            keep(text)
        _abort(code)


def _all_arrive(communicator: JobCommunicator) -> bool:
    # Where a few of many ranks failed, the lowest loses patience first and is the only one to speak.
    deadline = time.monotonic() + PATIENCE + 0.1 * min(communicator.rank, 20)
    try:
        barrier = communicator.farewell.Ibarrier()
        while not barrier.Test():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
    except Exception:  # MPI itself is what failed
        return False
    return True


def _abort(code: int) -> NoReturn:
    from mpi4py import MPI

    sys.stdout.flush()
    _await_reader(2)
    # MPI libraries add a line of their own about the abort; the message above is the one to read.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    # Where a rank is gone without a word, MPI may wait for it even here.
    _leave_within(ABORT_LIMIT, code)
    # The world's, not a duplicate's: on that MPICH's mpiexec often returns 9 (its own SIGKILL) and not the code.
    MPI.COMM_WORLD.Abort(code)
    raise SystemExit(code)


def _await_reader(descriptor: int) -> None:
    # A launcher that sees the abort and the message at once may act on the abort first, and drop the message.
    try:
        if not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            return
        deadline = time.monotonic() + READER_LIMIT
        while _unread(descriptor) and time.monotonic() < deadline:
            time.sleep(0.01)
    except OSError:
        return


def _unread(descriptor: int) -> int:
    """Bytes in a pipe that its reader has not taken yet."""
    return int.from_bytes(fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)), sys.byteorder)


def _finalize(code: int, heartbeat: Heartbeat | None) -> None:
    from mpi4py import MPI

    # Messages that the failure left in flight may keep MPI from shutting down: then leave without it.
    watchdog = _leave_within(FINALIZE_LIMIT, code)
    if heartbeat is not None:
        atexit.unregister(heartbeat.stop)
        heartbeat.stop()
    MPI.Finalize()
    watchdog.cancel()


def _leave_within(seconds: float, code: int) -> threading.Timer:
    """End this process at once in so many seconds, unless the timer is cancelled."""
    watchdog = threading.Timer(seconds, os._exit, (code,))
    watchdog.daemon = True
    watchdog.start()
    return watchdog


def _say(message: str) -> None:
    if message:
        print(message, file=sys.stderr, flush=True)
