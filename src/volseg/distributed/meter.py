"""How long a rank waits in MPI, by layer: communication that computation did not hide."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from volseg.distributed.communicator import Communicator


class CommunicationMeter:
    """Kept by a communicator and shared with all that are split from it.

    seconds   waited in MPI, by layer
    messages  messages and reductions, by layer
    bytes     sent, by layer; a reduction counts its own array once
    """

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.messages: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self._layer = "other"

    @property
    def total(self) -> float:
        """Seconds waited in all."""
        return float(sum(self.seconds.values()))

    def by_layer(self) -> dict[str, tuple[float, int, int]]:
        """Seconds waited, messages and bytes sent of each layer."""
        layers = self.seconds.keys() | self.messages.keys()
        return {layer: (self.seconds[layer], self.messages[layer], self.bytes[layer]) for layer in layers}

    @contextmanager
    def during(self, layer: str) -> Iterator[None]:
        """What is waited for in the body counts for `layer`."""
        before, self._layer = self._layer, layer
        try:
            yield
        finally:
            self._layer = before

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
        """Begin again."""
        self.seconds.clear()
        self.messages.clear()
        self.bytes.clear()


def communication_facts(communicator: Communicator, seconds: float) -> dict[str, Any]:
    """How long ranks waited in MPI for what computation did not hide, in all and by layer. Collective.

    seconds  the time in which they did; by layer it is the rank that waited longest who counts
    """
    meters = communicator.gather_all(communicator.meter.by_layer())
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
    return {
        "share_of_time": round(max(waited) / max(seconds, 1e-9), 4),
        "seconds_by_rank": [round(value, 3) for value in waited],
        "by_layer": dict(sorted(by_layer.items(), key=lambda item: -float(item[1]["seconds"]))),
    }
