"""What the rows say, in figures and sentences: how well plans came true, and how memory and time grow."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import log, prod

from volseg.geometry import format_triple
from volseg.machine import gibibytes
from volseg.planning.profile import Profile
from volseg.study.cases import SEGMENT, TRAIN, VARIANTS, Case, Ranges, cube
from volseg.study.extrapolation import MOST_RANKS, fewest_that_fit, foretell
from volseg.study.rows import Row

MEMORY_WORST, MEMORY_MEDIAN, TIME_MEDIAN = 0.10, 0.04, 0.15
"""How far plans may be off: each row's memory, the median of it, and the median of times."""

_LANES = 8
"""Channels that kernels work on at a time: tensors of fewer are as large."""

MACHINE_LIMIT = 4 * 10**9
"""Bytes a rank: 32 of them on a machine of 128 GB."""


@dataclass(frozen=True)
class Agreement:
    """Planned over measured of some rows.

    what    in words
    median  of how far the ratios are from 1
    worst   the row farthest off, and its ratio
    """

    what: str
    count: int
    median: float
    worst: float
    worst_row: Row

    @property
    def text(self) -> str:
        """One line."""
        return (
            f"{self.what}: {self.count} rows, planned off by {self.median:.1%} in the median, by "
            f"{abs(self.worst - 1):.1%} at worst ({case_text(self.worst_row.case)}: {self.worst:.3f} of the measured)"
        )


def agreements(rows: Iterable[Row]) -> list[Agreement]:
    """Of memory and of time, by task; those for which there are rows."""
    found = []
    for what in ("memory", "time"):
        for task in (TRAIN, SEGMENT):
            pairs = [
                (ratio, row)
                for row in rows
                if row.case.task == task
                and (ratio := row.memory_ratio if what == "memory" else row.time_ratio) is not None
            ]
            if pairs:
                worst, row = max(pairs, key=lambda pair: abs(log(pair[0])))
                median = statistics.median(abs(r - 1) for r, _ in pairs)
                found.append(Agreement(f"{what}, {doing(task)}", len(pairs), median, worst, row))
    return found


def doing(task: str) -> str:
    """A task as a word in a sentence."""
    return {TRAIN: "training", SEGMENT: "segmenting"}[task]


def size_text(case: Case) -> str:
    """The volume in a few characters."""
    return f"{case.shape[0]}³" if case.cube else format_triple(case.shape)


def case_text(case: Case) -> str:
    """A case in a few words."""
    ranks = f"{case.ranks} rank{'s' if case.ranks > 1 else ''}"
    return f"{case.task} {size_text(case)}, {case.base_channels} channels, {ranks}, {case.variant}"


def chosen(rows: Iterable[Row], **wanted: object) -> list[Row]:
    """The rows that are done whose case has these values, by size, channels and ranks."""
    found = [row for row in rows if row.done and all(getattr(row.case, k) == v for k, v in wanted.items())]
    return sorted(found, key=lambda row: (prod(row.case.shape), row.case.base_channels, row.case.ranks))


def exponent(points: Sequence[tuple[float, float]]) -> float | None:
    """Slope of a straight line through points in logarithms, by least squares; None for fewer than two."""
    if len({x for x, _ in points}) < 2 or any(y <= 0 for _, y in points):
        return None
    return statistics.linear_regression([log(x) for x, _ in points], [log(y) for _, y in points]).slope


def sentences(rows: Sequence[Row], ranges: Ranges, profile: Profile) -> list[str]:
    """What the study shows, generated from its rows and from the model."""
    found: list[str] = []
    for task in (TRAIN, SEGMENT):
        found += _side_sentence(rows, ranges, profile, task)
    for task in (TRAIN, SEGMENT):
        found += _channel_sentence(rows, ranges, profile, task)
    for task in (TRAIN, SEGMENT):
        found += _ranks_sentence(rows, ranges, profile, task)
    found += _thousands(ranges, profile)
    for task in (TRAIN, SEGMENT):
        found += _scaling_sentences(rows, ranges, task)
    return found


def of_volume(row: Row, profile: Profile) -> float:
    """Measured peak without the process, the weights and the kernels' own memory, as the model has them."""
    memory = foretell(row.case, profile, 1).memory
    return float((row.peak or 0) - memory.process - memory.weights - memory.work)


def _side_sentence(rows: Sequence[Row], ranges: Ranges, profile: Profile, task: str) -> list[str]:
    whole = [row for row in of_network(rows, ranges, task) if row.case.ranks == 1 and row.case.cube]
    whole = [row for row in whole if of_volume(row, profile) > 0.1 * (row.peak or 0)]
    slope = exponent([(row.case.shape[0], of_volume(row, profile)) for row in whole])
    if slope is None:
        return []
    first, last = whole[0].case, whole[-1].case
    return [
        f"Memory of {doing(task)} on one rank grows as side^{slope:.2f} from {size_text(first)} to {size_text(last)} "
        f"(process, weights and kernels apart), to {gibibytes(whole[-1].peak or 0)}; 3 is in proportion to the voxels."
    ]


def _channel_sentence(rows: Sequence[Row], ranges: Ranges, profile: Profile, task: str) -> list[str]:
    middle = ranges.sides[len(ranges.sides) // 2]
    here = [row for row in run_fastest(rows, task) if row.case.ranks == 1 and row.case.shape == cube(middle)]
    here = [row for row in here if of_volume(row, profile) > 0 and row.case.base_channels >= _LANES]
    slope = exponent([(row.case.base_channels, of_volume(row, profile)) for row in here])
    if slope is None:
        return []
    counts = f"{here[0].case.base_channels} to {here[-1].case.base_channels}"
    return [
        f"Memory of {doing(task)} {middle}³ grows as channels^{slope:.2f} from {counts} channels at full resolution."
    ]


def _ranks_sentence(rows: Sequence[Row], ranges: Ranges, profile: Profile, task: str) -> list[str]:
    here = [row for row in of_network(rows, ranges, task) if row.case.shape == cube(scaled_side(rows, ranges, task))]
    if len(here) < 2 or here[0].case.ranks != 1 or of_volume(here[0], profile) <= 0:
        return []
    whole, last = here[0], here[-1]
    count = last.case.ranks
    share = of_volume(last, profile) * last.case.ranks / of_volume(whole, profile)
    return [
        f"{doing(task).capitalize()} {size_text(last.case)}, a rank of {count} holds {share:.2f} times 1/{count} of "
        "what one rank holds of the volume: what is above 1 is halo, and slabs of planes. With the "
        f"process of each the peak falls from {gibibytes(whole.peak or 0)} to {gibibytes(last.peak or 0)} a rank."
    ]


def _thousands(ranges: Ranges, profile: Profile) -> list[str]:
    parts = []
    for side in (1024, 2048, 4096):
        for task in (TRAIN, SEGMENT):
            case = main_case(ranges, task, side)
            least = fewest_that_fit(case, MACHINE_LIMIT, profile)
            count = f"more than {MOST_RANKS}" if least is None else str(least.case.ranks)
            parts.append(f"{count} to {'train' if task == TRAIN else 'segment'} {side}³")
    return [
        f"Predicted: with 4 GB a rank (32 ranks on a machine of 128 GB) it takes {', '.join(parts)}, in powers of two."
    ]


def _scaling_sentences(rows: Sequence[Row], ranges: Ranges, task: str) -> list[str]:
    timed = [row for row in of_network(rows, ranges, task) if row.timed and row.seconds]
    here = [row for row in timed if row.case.shape == cube(scaled_side(rows, ranges, task))]
    if len(here) < 2 or here[0].case.ranks != 1:
        return []
    first, last = here[0], here[-1]
    gain = (first.seconds or 0) / (last.seconds or 1)
    what = "A training step" if task == TRAIN else "Segmenting"
    return [
        f"{what} of {size_text(last.case)} is {gain:.2f} times as fast on {last.case.ranks} ranks as on one: "
        f"{gain / last.case.ranks:.0%} of what they could do."
    ]


def scaled_side(rows: Iterable[Row], ranges: Ranges, task: str) -> int:
    """The side of the cube that was run on most numbers of ranks, the largest of them; else what was meant."""
    counts: dict[int, set[int]] = {}
    for row in chosen(rows, task=task, fastest=True, cube=True, base_channels=ranges.channels[-1]):
        counts.setdefault(row.case.shape[0], set()).add(row.case.ranks)
    return max(counts, key=lambda side: (len(counts[side]), side), default=ranges.sides[-1])


def main_case(ranges: Ranges, task: str, side: int, ranks: int = 1) -> Case:
    """The case that curves are drawn for: most channels, the fastest way."""
    return Case(
        task=task,
        shape=cube(side),
        base_channels=ranges.channels[-1],
        levels=ranges.levels,
        ranks=ranks,
        variant=VARIANTS[task][0],
    )


def run_fastest(rows: Sequence[Row], task: str) -> list[Row]:
    return chosen(rows, task=task, fastest=True)


def of_network(rows: Sequence[Row], ranges: Ranges, task: str) -> list[Row]:
    return chosen(rows, task=task, fastest=True, base_channels=ranges.channels[-1])
