"""Where the time of all ranks went: how much of it is work, and how well the work is shared.

The measures are those of the POP centre of excellence (https://pop-coe.eu), as
https://co-design.pop-coe.eu/metrics defines them; with the computing time C_r of rank r,

    load balance              mean(C) / max(C)
    communication efficiency  max(C) / whole time
    parallel efficiency       mean(C) / whole time, their product

Computing is every kind of work but those in `COMMUNICATING`, reading and writing files included, which POP would count
on its own. What a rank does not compute it communicates, and of that max(C) - C_r is no fault of the messages: it
waits for the slowest rank, its imbalance. Communication proper is the rest. Where ranks are slower by turns they wait
for each other though all compute as long in the end; that, POP's serialization, is part of communication here.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from volseg.distributed.communicator import Communicator
from volseg.program.kinds import COMMUNICATING, Kind

IMBALANCE = "waiting for slower ranks"


@dataclass(frozen=True)
class TimeAccount:
    """Seconds of each kind of work, by rank."""

    seconds: Mapping[Kind, Sequence[float]]

    @property
    def whole(self) -> tuple[float, ...]:
        """Seconds of each rank in all."""
        return tuple(map(sum, zip(*self.seconds.values(), strict=True)))

    @property
    def communicating(self) -> tuple[float, ...]:
        """Seconds in which each rank packed, sent and waited, for whatever reason."""
        return tuple(map(sum, zip(*(self.seconds[kind] for kind in COMMUNICATING), strict=True)))

    @property
    def computing(self) -> tuple[float, ...]:
        """Seconds of all else."""
        return tuple(whole - part for whole, part in zip(self.whole, self.communicating, strict=True))

    @property
    def imbalance(self) -> tuple[float, ...]:
        """Seconds that each rank computed less than the one that computed longest."""
        return tuple(max(self.computing) - own for own in self.computing)

    @property
    def communication(self) -> tuple[float, ...]:
        """Seconds that each rank communicated beyond its imbalance."""
        return tuple(max(0.0, a - b) for a, b in zip(self.communicating, self.imbalance, strict=True))

    @property
    def load_balance(self) -> float:
        """1 where all ranks compute as long."""
        return _ratio(statistics.fmean(self.computing), max(self.computing))

    @property
    def communication_efficiency(self) -> float:
        """The share of the time in which the rank that computes longest does."""
        return _ratio(max(self.computing), max(self.whole))

    def shares(self) -> dict[str, float]:
        """Of the time of all ranks the share of each kind and of `IMBALANCE`, largest first; together 1.

        What ranks communicate beyond their imbalance is divided among the kinds of communication as all of it is.
        """
        total = sum(self.whole)
        proper = [_ratio(a, b) for a, b in zip(self.communication, self.communicating, strict=True)]
        found = {
            str(kind): sum(s * p for s, p in zip(seconds, proper, strict=True))
            if kind in COMMUNICATING
            else sum(seconds)
            for kind, seconds in self.seconds.items()
        }
        found[IMBALANCE] = sum(self.communicating) - sum(self.communication)
        return {name: _ratio(s, total) for name, s in sorted(found.items(), key=lambda item: -item[1])}

    def facts(self) -> dict[str, Any]:
        """As they stand in a report."""
        return {
            "seconds_by_rank": {str(kind): _rounded(seconds) for kind, seconds in self.seconds.items() if any(seconds)},
            "computing_by_rank": _rounded(self.computing),
            "imbalance_by_rank": _rounded(self.imbalance),
            "communication_by_rank": _rounded(self.communication),
            "load_balance": round(self.load_balance, 4),
            "communication_efficiency": round(self.communication_efficiency, 4),
            "parallel_efficiency": round(self.load_balance * self.communication_efficiency, 4),
        }


def account_of_time(communicator: Communicator, phase: str | None = None) -> TimeAccount:
    """Where the ranks' time went since their meters were reset, in one phase or in all. Collective."""
    ranks = communicator.gather_all(communicator.meter.by_kind(phase))
    return TimeAccount({kind: tuple(rank[kind] for rank in ranks) for kind in Kind})


def phase_facts(communicator: Communicator, phase: str) -> dict[str, Any]:
    """How often all ranks entered a phase, the longest rank's seconds in all, and its median. Collective."""
    lasted = communicator.meter.lasted[phase]
    ranks = communicator.gather_all((len(lasted), sum(lasted), statistics.median(lasted) if lasted else 0.0))
    times, seconds, median = (max(values) for values in zip(*ranks, strict=True))
    return {"times": times, "seconds": round(seconds, 3), "median_seconds": round(median, 4)}


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 1.0


def _rounded(seconds: Sequence[float]) -> list[float]:
    return [round(value, 3) for value in seconds]
