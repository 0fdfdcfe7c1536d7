"""Where a rank's time goes: by phase of the command, by layer and kind of work, and how long it waits in MPI."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from volseg.distributed.spans import LAYER, PHASE, Spans
from volseg.program.kinds import Kind

if TYPE_CHECKING:
    from volseg.distributed.communicator import Communicator


Taken = defaultdict[tuple[str, Kind], float]
"""Seconds by layer and kind."""


class Meter:
    """Kept by a communicator and shared with all that are split from it.

    seconds   waited in MPI, by layer
    messages  messages and reductions, by layer
    bytes     sent, by layer; a reduction counts its own array once
    taken     seconds by phase, layer and kind, each moment counted once: what is done within a piece of work is not
              its own; the phase "" is what lies between phases
    lasted    seconds of each phase, once for each time that it was entered
    spans     pieces of work one by one, where they are asked for with `record`
    """

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.messages: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.taken: defaultdict[str, Taken] = defaultdict(_nothing_taken)
        self.lasted: defaultdict[str, list[float]] = defaultdict(list)
        self.spans: Spans | None = None
        self._layer, self._kind = "other", Kind.OTHER
        self._phase = self._title = ""
        self._now_taken = self.taken[""]
        self._mark = self._entered = time.perf_counter()

    @property
    def total(self) -> float:
        """Seconds waited in all."""
        return float(sum(self.seconds.values()))

    def by_layer(self) -> dict[str, tuple[float, int, int]]:
        """Seconds waited, messages and bytes sent of each layer."""
        layers = self.seconds.keys() | self.messages.keys()
        return {layer: (self.seconds[layer], self.messages[layer], self.bytes[layer]) for layer in layers}

    def by_kind(self, phase: str | None = None) -> dict[Kind, float]:
        """Seconds of each kind of work since the last `reset`, of one phase or of all; all together that whole time."""
        self._charge()
        found = dict.fromkeys(Kind, 0.0)
        for taken in list(self.taken.values()) if phase is None else [self.taken[phase]]:
            for (_, kind), seconds in taken.items():
                found[kind] += seconds
        return found

    def by_phase(self) -> dict[str, float]:
        """Seconds of each phase that has ended, in the order in which they began."""
        return {phase: sum(seconds) for phase, seconds in self.lasted.items()}

    def record(self) -> None:
        """Keep every piece of work that begins from now on."""
        self.spans = Spans()

    def enter(self, phase: str, number: int | None = None) -> None:
        """What is done from now on is this phase of the command, which ends the one before; "" is none.

        number  of a phase that comes again and again, such as a step
        """
        now = self._charge()
        if self._phase:
            self.lasted[self._phase].append(now - self._entered)
            if self.spans is not None:
                self.spans.add(self._title, PHASE, "", self._entered, now)
        self._phase, self._title, self._entered = phase, phase if number is None else f"{phase} {number}", now
        self._now_taken = self.taken[phase]

    @contextmanager
    def during(self, layer: str) -> Iterator[None]:
        """What is done and waited for in the body counts for `layer`."""
        begin = self._charge()
        before, self._layer = self._layer, layer
        try:
            yield
        finally:
            end = self._charge()
            self._layer = before
            if self.spans is not None:
                self.spans.add(layer, LAYER, layer, begin, end)

    @contextmanager
    def doing(self, kind: Kind) -> Iterator[None]:
        """The body is work of this kind."""
        begin = self._charge()
        before, self._kind = self._kind, kind
        try:
            yield
        finally:
            end = self._charge()
            self._kind = before
            if self.spans is not None:
                self.spans.add(kind, kind, self._layer, begin, end)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """The body does nothing but wait."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[self._layer] += time.perf_counter() - begin

    def sent(self, messages: int, size: int) -> None:
        """Count what begins to travel."""
        self.messages[self._layer] += messages
        self.bytes[self._layer] += size

    def reset(self) -> None:
        """Begin again, in no phase; spans stay."""
        self.seconds.clear()
        self.messages.clear()
        self.bytes.clear()
        self._charge()
        self.taken.clear()
        self.lasted.clear()
        self._phase = self._title = ""
        self._now_taken = self.taken[""]

    def _charge(self) -> float:
        """Count the time since the last call for what was being done; returns now."""
        now = time.perf_counter()
        self._now_taken[self._layer, self._kind] += now - self._mark
        self._mark = now
        return now


def _nothing_taken() -> Taken:
    return defaultdict(float)


def communication_facts(communicator: Communicator, seconds: float) -> dict[str, Any]:
    """How long ranks waited in MPI for what computation did not hide, in all and by layer. Collective.

    seconds  of this rank since its meter was reset: the same time in which it waited; by layer it is the rank that
             waited longest who counts
    """
    meters, lasted = zip(*communicator.gather_all((communicator.meter.by_layer(), seconds)), strict=True)
    layers = sorted({layer for meter in meters for layer in meter})
    by_layer = {
        layer: {
            "seconds": round(max(meter.get(layer, (0.0, 0, 0))[0] for meter in meters), 6),
            "messages": max(meter.get(layer, (0.0, 0, 0))[1] for meter in meters),
            "bytes": max(meter.get(layer, (0.0, 0, 0))[2] for meter in meters),
        }
        for layer in layers
    }
    waited = [sum(entry[0] for entry in meter.values()) for meter in meters]
    shares = [one / max(whole, 1e-9) for one, whole in zip(waited, lasted, strict=True)]
    return {
        "share_of_time": round(max(shares), 4),
        "seconds_by_rank": [round(value, 3) for value in waited],
        "by_layer": dict(sorted(by_layer.items(), key=lambda item: -float(item[1]["seconds"]))),
    }
