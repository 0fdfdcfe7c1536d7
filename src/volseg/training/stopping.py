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

Reason = Literal["signal", "max-time", "patience"]


class Stopping:
    """Notes SIGTERM and SIGUSR1 while it is entered, and watches the time.

    Signals reach Python in its main thread alone; in another one only the time counts.

    limit  seconds from when this was made, of the root's clock; None for no limit
    """

    def __init__(self, communicator: Communicator, limit: float | None) -> None:
        self._communicator, self._limit = communicator, limit
        self._begun = self._mark = time.monotonic()
        self._slowest: dict[int, float] = {}  # seconds, by the voxels of the resolution's largest volume
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

    def after_step(self, saving: float, made: int = 1, following: int = 1) -> Reason | None:
        """Why the run is to stop here, the same on all ranks; None where it goes on. Collective, once a step.

        The time is up where another step as slow as the slowest so far, with all that came between it and the next,
        and a checkpoint might end after the limit. At a resolution that no step was made at yet, one is reckoned with
        that is slower in proportion to its voxels.

        saving           seconds that a checkpoint takes, as far as the root knows
        made, following  voxels of the largest volume at the resolution of this step and of the next
        """
        now = time.monotonic()
        self._slowest[made] = max(self._slowest.get(made, 0.0), now - self._mark)
        self._mark = now
        expected = self._slowest.get(following, self._slowest[made] * following / made)
        late = False
        if self._limit is not None and self._communicator.is_root:
            late = now - self._begun + 1.1 * expected + saving + FINISHING > self._limit
        told, late = self._communicator.reduce_all(np.array([self._told, late], np.int64), "max").astype(bool)
        return "signal" if told else "max-time" if late else None
