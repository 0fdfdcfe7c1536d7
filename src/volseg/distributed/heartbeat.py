"""Ranks that hear each other's pulse: where one falls silent for long, its neighbour ends the job.

A rank that is killed, stopped or on a machine that is gone leaves the others waiting in MPI, for ever unless the
launcher sees it (srun without --kill-on-bad-exit does not). So a thread of each rank sends a byte to the next rank
every few seconds and listens to the one before. Threads run while the rank computes, reads or waits in MPI.

A silence is counted in the pulses that this rank itself made: a job that was suspended as a whole, or a laptop that
slept, has heard nothing for hours and goes on.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mpi4py import MPI

VARIABLE = "VOLSEG_SILENCE"
SILENCE = 300.0
"""Seconds without a sign of life; `VARIABLE` says others, 0 for no watch."""

_ALIVE, _DONE = 1, 2
_PULSES = 20  # in so long a silence, and at least one every ten seconds


def allowed_silence(text: str | None = None) -> float:
    """Seconds that a rank may be silent, as the environment says or `text`; what is no number counts as the default."""
    text = os.environ.get(VARIABLE, "") if text is None else text
    try:
        seconds = float(text)
    except ValueError:
        return SILENCE
    return seconds if seconds >= 0 else SILENCE


class Heartbeat:
    """The pulse of this rank, and its watch over the rank before it in a ring.

    comm   of all ranks, for nothing else; MPI must take calls of several threads
    limit  seconds of silence that end the job
    lost   is called with the number of a rank that was silent for so long, in the thread
    """

    def __init__(self, comm: MPI.Comm, limit: float, lost: Callable[[int], None]) -> None:
        self._comm, self._limit, self._lost = comm, limit, lost
        self._next, self._before = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
        self._interval = min(10.0, limit / _PULSES)
        self._leaving = threading.Event()
        self._sent: list[MPI.Request] = []
        self._gone = False  # the rank before has said that it is done
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Say that this rank is done, and wait until the one before has said so too. Collective, in a sense.

        To be called once, before MPI ends.
        """
        self._leaving.set()
        self._thread.join()

    def _run(self) -> None:
        silence, last, said = 0.0, time.monotonic(), False
        while not (self._gone and said):
            leaving = self._leaving.wait(min(0.02, self._interval) if said else self._interval)
            now = time.monotonic()
            # More than two intervals: this process itself was stopped.
            silence, last = silence + min(now - last, 2 * self._interval), now
            try:
                if self._heard() or self._gone:
                    silence = 0.0
                if leaving and not said:
                    self._send(_DONE)
                    said = True
                elif not said:
                    self._send(_ALIVE)
            except Exception:  # MPI itself failed: whoever waits in it is told so by MPI
                return
            if silence > self._limit:
                self._lost(self._before)
                return

    def _heard(self) -> bool:
        heard = False
        while self._comm.Iprobe(source=self._before):
            message = bytearray(1)
            self._comm.Recv(message, source=self._before)
            self._gone = self._gone or message[0] == _DONE
            heard = True
        return heard

    def _send(self, what: int) -> None:
        self._sent = [request for request in self._sent if not request.Test()]
        if len(self._sent) < _PULSES or what == _DONE:  # who takes none of them in is being watched by another
            self._sent.append(self._comm.Isend(bytes([what]), dest=self._next))


def watch(comm: MPI.Comm, lost: Callable[[int], None]) -> Heartbeat | None:
    """Begin to listen, until the program's end; None where nobody is to, or this MPI cannot. Collective.

    comm  a communicator for nothing else
    """
    from mpi4py import MPI

    limit = allowed_silence()
    limits = comm.allgather(limit)
    if comm.size == 1 or min(limits) == 0 or MPI.Query_thread() < MPI.THREAD_MULTIPLE:
        return None
    heartbeat = Heartbeat(comm, max(limits), lost)
    atexit.register(heartbeat.stop)
    return heartbeat
