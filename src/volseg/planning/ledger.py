"""A ledger of tensors: what is held, and the moment at which most is."""

from __future__ import annotations

from dataclasses import dataclass, field

FLOAT = 4
"""Bytes of a float32 value."""


@dataclass
class Ledger:
    """Tensors by name with their stage and bytes; remembers the largest total and what was live then."""

    live: dict[str, tuple[int, int]] = field(default_factory=dict)
    total: int = 0
    peak: int = 0
    peak_at: str = ""
    at_peak: dict[int, int] = field(default_factory=dict)
    operation: str = ""

    def make(self, name: str, stage: int, floats: int) -> None:
        """Enter a tensor of `floats` float32 values."""
        self.drop(name)
        self.live[name] = stage, floats * FLOAT
        self.total += floats * FLOAT
        if self.total > self.peak:
            self.peak, self.peak_at = self.total, self.operation
            self.at_peak = {}
            for at, size in self.live.values():
                self.at_peak[at] = self.at_peak.get(at, 0) + size

    def drop(self, *names: str) -> None:
        """Strike tensors out; those that are not there are passed by."""
        for name in names:
            if name in self.live:
                self.total -= self.live.pop(name)[1]
