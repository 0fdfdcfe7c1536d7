"""Seconds by kind of work of training steps, from a trace. The first step, with the compilation, is not in it."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from volseg.distributed.time_account import TimeAccount
from volseg.program.kinds import Kind

_CONTAINERS = ("phase", "layer")
"""Categories of pieces that hold others; what none of those covers is other work."""


def time_by_kind(path: Path) -> tuple[dict[str, float], float]:
    """Mean seconds of a step by kind, each rank's waiting for slower ones apart, and the load balance.

    Communication is divided as `TimeAccount.shares` does.
    """
    events = [event for event in json.loads(path.read_text(encoding="utf-8"))["traceEvents"] if event["ph"] == "X"]
    ranks = sorted({event["pid"] for event in events})
    own = {rank: _exclusive(event for event in events if event["pid"] == rank) for rank in ranks}
    steps = max(1, sum(e["cat"] == "phase" and e["name"].startswith("step ") for e in events) // max(1, len(ranks)))
    account = TimeAccount({kind: tuple(own[rank].get(kind, 0.0) for rank in ranks) for kind in Kind})
    whole = sum(account.whole) / len(ranks) / steps
    return {kind: share * whole for kind, share in account.shares().items()}, account.load_balance


def _exclusive(events: Iterable[Mapping[str, Any]]) -> dict[Kind, float]:
    """Seconds of one rank by the innermost piece of work; of steps only."""
    taken: dict[Kind, float] = defaultdict(float)
    open_pieces: list[tuple[float, Kind]] = []  # when each ends, and its kind
    in_step = False
    for event in sorted(events, key=lambda e: (e["ts"], -e["dur"])):
        begin, length = event["ts"], event["dur"]
        if event["cat"] == "phase":
            in_step = event["name"].startswith("step ")
        if not in_step:
            continue
        while open_pieces and open_pieces[-1][0] <= begin:
            open_pieces.pop()
        kind = Kind.OTHER if event["cat"] in _CONTAINERS else Kind(event["cat"])
        if open_pieces:
            taken[open_pieces[-1][1]] -= length * 1e-6
        taken[kind] += length * 1e-6
        open_pieces.append((begin + length, kind))
    return taken
