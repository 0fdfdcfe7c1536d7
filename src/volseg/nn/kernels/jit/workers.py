"""Threads that share the work items of a kernel, each with scratch memory of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache, partial
from threading import Lock

import torch
from torch import Tensor

from volseg.nn.kernels.memory import grown, lasting

Work = Callable[[int, int, int], None]

_PORTIONS = 6
"""That a thread takes in turn."""

_running = Lock()
"""One kernel at a time: its threads have the scratch memory of their numbers."""

_scratch: dict[int, Tensor] = {}
_given: dict[str, Tensor] = {}


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
    return grown(_scratch, thread, floats)


def release() -> None:
    """Return that memory, and what was given back, to the system."""
    _scratch.clear()
    _given.clear()


def take(purpose: str, floats: int) -> Tensor:
    """Uninitialised memory of at least `floats`; what was last given back for this purpose, where that is enough."""
    held = _given.pop(purpose, None)
    if held is None or held.numel() < floats:
        held = None  # before the larger one is there
        held = lasting(floats)
    return held


def give(purpose: str, memory: Tensor) -> None:
    """Let the next `take` have this memory, which nobody reads any more: fresh memory costs more than writing it."""
    held = _given.get(purpose)
    if held is None or held.numel() < memory.numel():
        _given[purpose] = memory


def run(work: Work | Sequence[Work], items: int, floats: int = 0) -> None:
    """``work(first, last, scratch address)`` for all items, shared among the threads; returns when all are done.

    work    one for all threads: then each takes a few items at a time, so that none waits long for another. Or one for
            each thread, whose items are always the same: where they add to sums of their own, so that these do not
            change from run to run
    floats  of scratch memory that each thread needs
    """
    with _running:
        _run(work, items, floats, max(1, min(items, count())))


def _run(work: Work | Sequence[Work], items: int, floats: int, threads: int) -> None:
    if threads == 1:
        single = work if callable(work) else work[0]
        single(0, items, scratch(0, floats).data_ptr() if floats else 0)
        return
    tasks: list[Callable[[int], None]]
    if callable(work):
        queue = iter(shares(items, threads * _PORTIONS))  # to take the next element is one step of the interpreter
        tasks = [partial(_take_turns, work, queue)] * threads
    else:
        tasks = [partial(one, *part) for one, part in zip(work, shares(items, threads), strict=False)]
    places = [scratch(n, floats).data_ptr() if floats else 0 for n in range(threads)]
    pairs = list(zip(tasks, places, strict=True))
    futures = [_pool(count()).submit(task, place) for task, place in pairs[1:]]
    try:
        tasks[0](places[0])
    finally:
        wait(futures)  # also after Ctrl-C: they write to memory that the caller may give back
    for future in futures:
        future.result()


def _take_turns(work: Work, queue: Iterator[tuple[int, int]], place: int) -> None:
    for first, last in queue:
        work(first, last, place)
