"""Pieces of work one by one, as a trace shows them: kept in a few bytes each, and moved between ranks as arrays."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

PHASE = "phase"
LAYER = "layer"
MOST = 2**20
"""So many pieces are kept, 28 MiB; of what ends later only phases. A step of the default U-Net has three hundred."""

ROW = np.dtype([("begin", "f8"), ("end", "f8"), ("name", "u4"), ("category", "u4"), ("layer", "u4")])


@dataclass(frozen=True)
class Span:
    """A piece of work, in seconds of `time.perf_counter`; pieces nest.

    category  PHASE, LAYER, or the kind of work, which is its name too
    layer     on which it was done
    """

    name: str
    category: str
    layer: str
    begin: float
    end: float


class Spans:
    """The pieces of work of one rank, in the order in which they ended.

    lost  those that were not kept
    """

    def __init__(self) -> None:
        self.lost = 0
        self._numbers: dict[str, int] = {}
        self._times, self._texts = array("d"), array("I")

    def add(self, name: str, category: str, layer: str, begin: float, end: float) -> None:
        """Keep a piece that has just ended."""
        if len(self) >= MOST and category != PHASE:
            self.lost += 1
            return
        numbers = self._numbers
        self._times.extend((begin, end))
        self._texts.extend([numbers.setdefault(text, len(numbers)) for text in (name, category, layer)])

    def __len__(self) -> int:
        return len(self._times) // 2

    def __iter__(self) -> Iterator[Span]:
        names = self.names
        for row in self.rows():
            yield Span(
                names[row["name"]], names[row["category"]], names[row["layer"]], float(row["begin"]), float(row["end"])
            )

    @property
    def names(self) -> list[str]:
        """What the numbers of `rows` stand for."""
        return list(self._numbers)

    def rows(self) -> np.ndarray:
        """All pieces as one contiguous array [n] of `ROW`."""
        rows = np.empty(len(self), ROW)
        rows["begin"], rows["end"] = np.frombuffer(self._times).reshape(-1, 2).T
        texts = np.frombuffer(self._texts, dtype=np.uintc).reshape(-1, 3).T
        rows["name"], rows["category"], rows["layer"] = texts
        return rows


def outermost_first(rows: np.ndarray) -> np.ndarray:
    """The rows by the time they began; of those that began together the one that lasted longest first.

    Of those that also ended together the one that was kept last contains the others.
    """
    order: np.ndarray = np.lexsort((-np.arange(len(rows)), -rows["end"], rows["begin"]))
    ordered: np.ndarray = rows[order]
    return ordered
