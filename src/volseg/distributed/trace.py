"""A trace of what all ranks do, as a file in the Chrome Trace Event format, which opens in ui.perfetto.dev.

The ranks' clocks (`time.perf_counter`) have origins of their own on different machines. At the start all ranks meet in
`MEETINGS` barriers and note when they leave each; the median of a rank's differences from the root is taken as the
difference of their clocks, and how far the differences spread stands in the file. Ranks leave a barrier within some
microseconds of each other, on one machine as over a network; what the clocks drift apart afterwards, some ten
microseconds a second at most, is not corrected.

Every rank is a process of the trace, its phases, layers and kinds of work are complete events (ph "X"), one within the
other. The root asks the ranks for their pieces one after another and writes them out, so that no rank holds those of
more than one other.

Format: Trace Event Format, https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from volseg.distributed.communicator import Communicator
from volseg.distributed.grid import ProcessGrid
from volseg.distributed.spans import LAYER, PHASE, ROW, outermost_first
from volseg.errors import VolsegError
from volseg.files import replacing

SUFFIXES = (".json", ".json.gz")
MEETINGS = 9
TICKS = 8
"""A microsecond, which is the unit of the format. In eighths of it times are whole numbers and exact in floating point,
also where a viewer counts nanoseconds, so what is nested stays nested."""


@dataclass(frozen=True)
class Clock:
    """What a rank's `time.perf_counter` showed when the trace began, and how far off that may be, in seconds."""

    origin: float
    spread: float


class Trace:
    """What all ranks do from its making to `write`. To make one is collective."""

    def __init__(self, communicator: Communicator) -> None:
        self._communicator = communicator
        self._clock = common_clock(communicator)
        communicator.meter.record()

    def write(self, path: Path, command: str, grid: ProcessGrid, replica: int | None = None) -> int:
        """Write the file, whole or not at all, and record no longer; returns how many pieces were left out. Collective.

        grid     of this rank
        replica  whose grid that is, where there are several

        Raises VolsegError or OSError, on all ranks, where it cannot be written.
        """
        spans, self._communicator.meter.spans = self._communicator.meter.spans, None
        assert spans is not None
        rows = spans.rows()
        rows = outermost_first(rows[rows["begin"] >= self._clock.origin])
        place = f"grid {','.join(map(str, grid.coords))}" + ("" if replica is None else f" of replica {replica}")
        own = _RankTrace(
            node=socket.gethostname(), place=place, clock=self._clock, names=spans.names, lost=spans.lost, rows=rows
        )
        facts = {"command": f"volseg {command}", "ranks": self._communicator.size, "grid": list(grid.dims)}
        with self._communicator.meter.during("trace"):
            ranks = _one_after_another(own, self._communicator)
            error: Exception | None = None
            try:
                if self._communicator.is_root:
                    with replacing(path) as temporary, _opened(temporary, path) as file:
                        _write(file, ranks, facts)
            except Exception as raised:
                error = raised
            for _ in ranks:  # they wait to get rid of theirs
                pass
            self._communicator.raise_together(error)
            return sum(self._communicator.gather_all(spans.lost))


def check_trace_path(path: Path) -> None:
    """Raise VolsegError for a name that says no format of a trace."""
    if not path.name.endswith(SUFFIXES):
        raise VolsegError(f"{path}: a trace is written as {' or '.join(SUFFIXES)}; give --trace such a name")


def common_clock(communicator: Communicator) -> Clock:
    """This rank's clock against that of the root, as the module describes it. Collective."""
    left = np.empty(MEETINGS)
    for number in range(MEETINGS):
        communicator.barrier()
        left[number] = time.perf_counter()
    root = np.array(communicator.broadcast(left))
    differences = left - root
    middle = float(np.median(differences))
    return Clock(float(root[-1]) + middle, float(np.median(np.abs(differences - middle))))


@dataclass(frozen=True)
class _RankTrace:
    node: str
    place: str
    clock: Clock
    names: list[str]
    lost: int
    rows: np.ndarray


def _one_after_another(own: _RankTrace, communicator: Communicator) -> Iterator[_RankTrace]:
    """On the root what each rank has, by rank; elsewhere nothing, once the own has been sent. Collective."""
    sizes = communicator.gather_all((len(own.rows), own.node, own.place, own.clock, own.names, own.lost))
    if not communicator.is_root:
        communicator.send_receive([(0, own.rows.view(np.uint8))], [])
        return
    yield own
    for rank, (number, node, place, clock, names, lost) in enumerate(sizes[1:], 1):
        rows = np.empty(number, ROW)
        communicator.send_receive([], [(rank, rows.view(np.uint8))])
        yield _RankTrace(node=node, place=place, clock=clock, names=names, lost=lost, rows=rows)


@contextlib.contextmanager
def _opened(temporary: Path, path: Path) -> Iterator[IO[str]]:
    """Text to a file, compressed where the final name says so."""
    with contextlib.ExitStack() as stack:
        raw: Any = stack.enter_context(open(temporary, "wb"))
        if path.name.endswith(".gz"):
            raw = stack.enter_context(gzip.GzipFile("", "wb", 6, raw, mtime=0))
        yield stack.enter_context(io.TextIOWrapper(raw, encoding="utf-8"))


def _write(file: IO[str], ranks: Iterator[_RankTrace], facts: dict[str, Any]) -> None:
    """The JSON object, an event a line."""
    spreads, lost = [], []
    file.write('{"displayTimeUnit": "ms", "traceEvents": [')
    separator = "\n"
    for number, rank in enumerate(ranks):
        spreads.append(round(rank.clock.spread * 1e6, 1))
        lost.append(rank.lost)
        for event in (*_descriptions(number, rank), *_events(number, rank)):
            file.write(f"{separator}{event}")
            separator = ",\n"
    facts |= {"clock_spread_us_by_rank": spreads, "pieces_left_out_by_rank": lost}
    file.write(f'\n], "otherData": {json.dumps(facts)}}}\n')


def _descriptions(number: int, rank: _RankTrace) -> Iterator[str]:
    """What the rank's process and its thread are called, and where they stand."""
    name = f"rank {number} on {rank.node}, {rank.place}"
    for what, arguments in (
        ("process_name", {"name": name}),
        ("process_sort_index", {"sort_index": number}),
        ("thread_name", {"name": "work"}),
    ):
        yield json.dumps({"name": what, "ph": "M", "pid": number, "tid": 0, "args": arguments})


def _events(number: int, rank: _RankTrace) -> Iterator[str]:
    """The rank's pieces in the format's words; as text, since there may be a million of them."""
    texts = [json.dumps(name) for name in rank.names]
    plain = {texts[i] for i, name in enumerate(rank.names) if name in (PHASE, LAYER)}
    begins, ends = (np.floor((rank.rows[side] - rank.clock.origin) * 1e6 * TICKS) / TICKS for side in ("begin", "end"))
    for begin, end, row in zip(begins.tolist(), ends.tolist(), rank.rows.tolist(), strict=True):
        name, category, layer = (texts[i] for i in row[2:])
        arguments = "" if category in plain else f', "args": {{"layer": {layer}}}'
        yield (
            f'{{"name": {name}, "cat": {category}, "ph": "X", "ts": {begin}, "dur": {end - begin}, '
            f'"pid": {number}, "tid": 0{arguments}}}'
        )
