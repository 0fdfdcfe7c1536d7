"""Times taken in turn, and ratios of those that were taken side by side."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Mapping


def seconds(call: Callable[[], object]) -> float:
    """How long one call takes."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def processor_seconds() -> float:
    """Seconds that processors have spent on those of this program's children that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def in_turn(calls: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each call, `repeats` times in turn after one turn that does not count."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            taken = seconds(call)
            if turn:
                times[name].append(taken)
    return times


def ratio(above: list[float], below: list[float]) -> float:
    """The median of the ratios of times taken in the same turn."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def best(*times: list[float]) -> list[float]:
    """Turn by turn the shortest of several."""
    return [min(turn) for turn in zip(*times, strict=True)]
