"""Stopping a run before its end: signals of a batch system, and a limit of time.

All ranks stop after the same step, whichever of them was told to.
"""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any, Literal

import numpy as np

from volseg.distributed.communicator import Communicator

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
FINISHING = 2.0  # seconds for the report and the end of the job

Reason = Literal["signal", "max-time"]


class Stopping:
    """Notes SIGTERM and SIGUSR1 while it is entered, and watches the time.

    Signals reach Python in its main thread alone; in another one only the time counts.

    limit  seconds from when this was made, of the root's clock; None for no limit
    """

    def __init__(self, communicator: Communicator, limit: float | None) -> None:
        self._communicator, self._limit = communicator, limit
        self._begun = self._mark = time.monotonic()
        self._slowest = 0.0
        self._told = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Stopping:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *ended: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        # Batch systems may send it to launcher and ranks, and more than once: the first counts, no other does harm.
        self._told = True

    def begin(self) -> None:
        """The first step begins now."""
        self._mark = time.monotonic()

    def after_step(self, saving: float) -> Reason | None:
        """Why the run is to stop here, the same on all ranks; None where it goes on. Collective, once a step.

        The time is up where another step as slow as the slowest so far, with all that came between it and the next,
        and a checkpoint might end after the limit.

        saving  seconds that a checkpoint takes, as far as the root knows
        """
        now = time.monotonic()
        self._slowest = max(self._slowest, now - self._mark)
        self._mark = now
        late = False
        if self._limit is not None and self._communicator.is_root:
            late = now - self._begun + 1.1 * self._slowest + saving + FINISHING > self._limit
        told, late = self._communicator.reduce_all(np.array([self._told, late], np.int64), "max").astype(bool)
        return "signal" if told else "max-time" if late else None
