"""How long a rank waits in MPI, by layer: communication that computation did not hide."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


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
