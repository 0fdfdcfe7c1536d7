"""How often values occur: counts that add up to the same on any number of ranks, and exact figures from them.

Whole numbers of a short range are counted one by one. All others are counted as float32, which is what a network sees,
by the first half of their ordered bit pattern: a bin is at most 1/128 of its values wide, wherever they lie, so no wild
value makes the others coarse. Of each bin the last halves and their squares are added up besides, so mean and deviation
are exact. Where a quantile falls into a bin, a second look (`Close`) counts that bin value by value: a radix select.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from volseg.distributed.communicator import Communicator

SHORT = (-(2**15), 2**16 - 1)
"""The whole numbers that are counted one by one."""
BINS = 2**16
_WHOLE = SHORT[1] - SHORT[0] + 1
_MIDDLE = BINS // 2  # last halves are counted from here, so that the sum of their squares stays small
_PART = 2**18  # values counted at a time: in a step, with the network's tensors beside them

Packed = tuple[np.ndarray, np.ndarray]
"""A tally as the numbers of its counts that are not zero, and those."""


class Tally:
    """Counts of the finite values of one channel.

    whole   [98304] int64: of the whole numbers from SHORT[0] to SHORT[1]
    coarse  [3, 65536] int64, of all other values by the first half of their key: how many, the sum of their last halves
            and of the squares of those, both counted from the middle of the bin
    """

    def __init__(self) -> None:
        self._counts = np.zeros(_WHOLE + 3 * BINS, dtype=np.int64)
        self.whole, self.coarse = self._counts[:_WHOLE], self._counts[_WHOLE:].reshape(3, BINS)

    @property
    def total(self) -> int:
        """How many values were counted."""
        return int(self.whole.sum() + self.coarse[0].sum())

    def add(self, values: np.ndarray) -> None:
        """Count more values [...] of any type; NaN and infinity are passed over."""
        flat = values.reshape(-1)
        for start in range(0, flat.size, _PART):
            part = flat[start : start + _PART]
            if part.dtype.kind in "iu" and part.dtype.itemsize <= 2:
                self._add_whole(part)
                continue
            rest, others = _without_short_numbers(part)
            self._add_whole(rest)
            if others.size:
                keys = _keys(others)
                bins, ends = (keys >> 16).astype(np.int64), (keys & (BINS - 1)).astype(np.float64) - _MIDDLE
                self.coarse[0] += np.bincount(bins, minlength=BINS)
                self.coarse[1] += np.bincount(bins, ends, BINS).astype(np.int64)
                self.coarse[2] += np.bincount(bins, ends * ends, BINS).astype(np.int64)

    def _add_whole(self, values: np.ndarray) -> None:
        if values.size:
            self.whole += np.bincount(values.astype(np.int64) - SHORT[0], minlength=_WHOLE)

    def packed(self) -> Packed:
        """What is to be kept of many tallies."""
        there = np.flatnonzero(self._counts)
        return there.astype(np.int32), self._counts[there]

    def add_packed(self, packed: Packed) -> None:
        """Take in another tally."""
        self._counts[packed[0]] += packed[1]

    def reduce(self, communicator: Communicator) -> None:
        """Become the tally of all ranks' values. Collective."""
        communicator.reduce_all_in_place(self._counts)

    def bins_of(self, quantiles: Sequence[float]) -> list[int]:
        """The bins that have to be looked at closely to know these quantiles exactly; none where whole numbers tell."""
        counts = self.coarse[0] + np.bincount(_bins(np.arange(SHORT[0], SHORT[1] + 1)), self.whole, BINS).astype(int)
        cumulated = np.cumsum(counts)
        chosen = {int(np.searchsorted(cumulated, _rank(q, int(cumulated[-1])))) for q in quantiles}
        return sorted(number for number in chosen if self.coarse[0][number])


def has_any_of(packed: Packed, bins: Collection[int]) -> bool:
    """Whether a tally has values in one of these bins."""
    return bool(np.isin(packed[0], np.fromiter(bins, np.int64) + _WHOLE).any())


class Close:
    """The values of some bins of a tally, one by one.

    counts  [bins, 65536] int64, by the last half of their key
    """

    def __init__(self, bins: Sequence[int]) -> None:
        self.bins = tuple(bins)
        self.counts = np.zeros((len(bins), BINS), dtype=np.int64)

    def add(self, values: np.ndarray) -> None:
        """Count the same values that the tally has counted."""
        flat = values.reshape(-1)
        for start in range(0, flat.size, _PART):
            _, others = _without_short_numbers(flat[start : start + _PART])
            keys = _keys(others)
            firsts = keys >> 16
            for row, number in zip(self.counts, self.bins, strict=True):
                row += np.bincount((keys[firsts == number] & (BINS - 1)).astype(np.int64), minlength=BINS)


@dataclass(frozen=True, eq=False)
class Occurring:
    """The values of a tally in groups, rising; most have one value each.

    values    [n] float64; of a bin that was not looked at closely, its middle
    counts    [n] int64
    sums      [n] float64: of the distances of a group's values from its middle; 0 where it has one value
    squares   [n] float64: of their squares
    """

    values: np.ndarray
    counts: np.ndarray
    sums: np.ndarray
    squares: np.ndarray

    @classmethod
    def of(cls, tally: Tally, close: Close | None = None) -> Occurring:
        """close: of the tally's values, where quantiles are asked for."""
        whole = np.flatnonzero(tally.whole)
        bins = np.flatnonzero(tally.coarse[0])
        if close is not None:
            bins = bins[~np.isin(bins, close.bins)]
        middles, steps = _value(bins, _MIDDLE), _value(bins, 1) - _value(bins, 0)
        values, counts, order = [whole + float(SHORT[0]), middles], [tally.whole[whole], tally.coarse[0][bins]], [bins]
        for number, row in zip(close.bins, close.counts, strict=True) if close is not None else ():
            ends = np.flatnonzero(row)
            values.append(_value(np.array([number]), ends))
            counts.append(row[ends])
            order.append(np.full(len(ends), number))
        joined = np.concatenate(values)
        # Whole numbers of a bin that was not looked at closely may lie on both sides of its middle: by bins first.
        rising = np.lexsort((joined, np.concatenate([_bins(whole + SHORT[0]), *order])))
        more = [np.zeros(len(joined)) for _ in range(2)]
        for place, row, unit in zip(more, tally.coarse[1:], (steps, steps * steps), strict=True):
            place[len(whole) : len(whole) + len(bins)] = row[bins] * unit
        return cls(joined[rising], np.concatenate(counts)[rising], more[0][rising], more[1][rising])

    def quantiles(self, shares: Sequence[float]) -> list[float]:
        """The smallest value that at least this share of all values do not exceed, each."""
        cumulated = np.cumsum(self.counts)
        return [float(self.values[np.searchsorted(cumulated, _rank(q, int(cumulated[-1])))]) for q in shares]

    def clipped(self, low: float, high: float) -> Occurring:
        """With `low` or `high` in place of what lies beyond; both are values of groups of one value, or infinite."""
        inside = (self.values >= low) & (self.values <= high)
        return Occurring(np.clip(self.values, low, high), self.counts, self.sums * inside, self.squares * inside)

    def mean_and_deviation(self) -> tuple[float, float]:
        """Of all values, the population's; a deviation of next to nothing is given as 1."""
        total = self.counts.sum()
        mean = float((self.values * self.counts + self.sums).sum() / total)
        away = self.values - mean
        deviation = float(np.sqrt((away * away * self.counts + 2 * away * self.sums + self.squares).sum() / total))
        return mean, deviation if deviation > 1e-8 else 1.0


def _rank(share: float, total: int) -> float:
    return max(1.0, share * total)


def _without_short_numbers(part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The whole numbers of the short range, and all other finite values."""
    if part.dtype.kind in "iu":
        short = (part >= SHORT[0]) & (part <= SHORT[1])
        return part[short], part[~short]
    part = part[np.isfinite(part)]
    short = (part == np.rint(part)) & (part >= SHORT[0]) & (part <= SHORT[1])
    return part[short], part[~short]


def _keys(values: np.ndarray) -> np.ndarray:
    """uint32 that rise as the values do, as float32: their bits, those of negative numbers turned over."""
    with np.errstate(over="ignore"):
        bits = values.astype(np.float32).view(np.uint32)
    keys: np.ndarray = np.where(bits >> 31, ~bits, bits | np.uint32(2**31))
    return keys


def _bins(values: np.ndarray) -> np.ndarray:
    return (_keys(values) >> 16).astype(np.int64)


def _value(bins: np.ndarray, end: int | np.ndarray) -> np.ndarray:
    """float64: the values whose keys have these halves."""
    keys = (bins.astype(np.uint32) << np.uint32(16)) + np.asarray(end).astype(np.uint32)
    bits = np.where(keys >> 31, keys & np.uint32(2**31 - 1), ~keys)
    return bits.astype(np.uint32).view(np.float32).astype(np.float64)
