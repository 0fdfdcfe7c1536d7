"""Threads that share the work items of a kernel, each with scratch memory of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch
from torch import Tensor

Work = Callable[[int, int, int], None]

_scratch: dict[int, Tensor] = {}


def count() -> int:
    """How many threads work: as many as torch's own operations use."""
    return torch.get_num_threads()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="volseg-kernel")


def shares(items: int, threads: int | None = None) -> list[tuple[int, int]]:
    """Ranges of nearly equal length, at most one for each thread; the same for the same numbers."""
    parts = max(1, min(items, threads or count()))
    return [(items * n // parts, items * (n + 1) // parts) for n in range(parts)]


def scratch(thread: int, floats: int) -> Tensor:
    """Uninitialised memory of a thread, kept and grown from call to call."""
    held = _scratch.get(thread)
    if held is None or held.numel() < floats:
        with torch.inference_mode(False):
            held = _scratch[thread] = torch.empty(floats)
    return held


def scratch_bytes() -> int:
    """What the threads' memory takes in all."""
    return sum(4 * held.numel() for held in _scratch.values())


def release() -> None:
    """Give the threads' memory back."""
    _scratch.clear()


def run(work: Work | Sequence[Work], items: int, floats: int = 0) -> None:
    """``work(first, last, scratch address)`` for all items, shared among the threads; returns when all are done.

    work    one for all threads, or one for each
    floats  of scratch memory that each thread needs
    """
    parts = shares(items)
    works = [work] * len(parts) if callable(work) else list(work)
    places = [scratch(n, floats).data_ptr() if floats else 0 for n in range(len(parts))]
    if len(parts) == 1:
        works[0](0, items, places[0])
        return
    pool = _pool(count())
    futures = [pool.submit(works[n], *parts[n], places[n]) for n in range(1, len(parts))]
    works[0](*parts[0], places[0])
    for future in futures:
        future.result()
