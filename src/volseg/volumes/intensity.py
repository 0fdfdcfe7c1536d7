"""Intensities as a network wants them: CT clipped and scaled by the training set's foreground, others by their own.

The two schemes are nnU-Net's (Isensee et al., Nature Methods 2021): for CT the 0.5 and 99.5 percentiles, mean and
standard deviation of the foreground voxels of all training cases; otherwise mean and standard deviation of each
volume. Both come from histograms, whose counts add up to the same on any number of ranks. Unlike nnU-Net, which takes
some of the foreground voxels, all are counted, and mean and deviation are those of the clipped values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from volseg.distributed.communicator import Communicator
from volseg.errors import CheckpointError, VolumeError

BINS = 65536


@dataclass(frozen=True)
class Normalization:
    """``(clip(x, low, high) - mean) / std``; low and high may be infinite."""

    low: float
    high: float
    mean: float
    std: float

    def apply(self, values: np.ndarray) -> np.ndarray:
        """[...] of any type to float32 [...]. Each step is rounded once: a voxel's bits do not depend on the rest."""
        out = values.astype(np.float32)
        if np.isfinite(self.low) or np.isfinite(self.high):
            np.clip(out, np.float32(self.low), np.float32(self.high), out=out)
        out -= np.float32(self.mean)
        out /= np.float32(self.std)
        return out


@dataclass(frozen=True)
class ChannelScheme:
    """How one image channel is normalised: with numbers from training, or (None) with each volume's own.

    name  the channel's name in dataset.json: "CT" is what chooses the first way
    """

    name: str
    fixed: Normalization | None

    def as_json(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {"name": self.name, "fixed": None if self.fixed is None else vars(self.fixed)}

    @classmethod
    def from_json(cls, value: Any) -> ChannelScheme:
        """The inverse of `as_json`. Raises CheckpointError where something is missing."""
        try:
            fixed = value["fixed"]
            return cls(
                str(value["name"]), None if fixed is None else Normalization(**{k: float(v) for k, v in fixed.items()})
            )
        except (TypeError, KeyError, ValueError, AttributeError):
            raise CheckpointError(f"the checkpoint's normalization is malformed: {value!r}; train again") from None


def is_ct(channel_name: str) -> bool:
    """Whether a channel of this name holds Hounsfield units (nnU-Net's rule: it is called CT)."""
    return channel_name.strip().lower() == "ct"


@dataclass(frozen=True, eq=False)
class Histogram:
    """How often values occur: `counts[n]` voxels of about ``low + n * width``; exactly that for whole numbers."""

    low: float
    width: float
    counts: np.ndarray

    @property
    def values(self) -> np.ndarray:
        """Of each bin, float64."""
        found: np.ndarray = self.low + self.width * np.arange(len(self.counts))
        return found

    def add(self, values: np.ndarray) -> None:
        """Count more values; those beyond the ends go into the last bins."""
        places = np.rint((values.ravel().astype(np.float64) - self.low) / self.width).astype(np.int64)
        self.counts[...] += np.bincount(np.clip(places, 0, len(self.counts) - 1), minlength=len(self.counts))


def histogram_between(low: float, high: float, *, whole: bool) -> Histogram:
    """An empty one for values from `low` to `high`; of `whole` numbers in a short range each has a bin of its own."""
    exact = whole and high - low < BINS
    width = 1.0 if exact else max((high - low) / (BINS - 1), np.finfo(np.float64).tiny)
    return Histogram(low, width, np.zeros(BINS, dtype=np.int64))


@dataclass(frozen=True)
class Intensities:
    """Figures of the foreground voxels of a channel, all cases together.

    mean, std  of the values clipped to the percentiles 0.5 and 99.5: with those, CT is normalised
    """

    minimum: float
    percentile_00_5: float
    median: float
    percentile_99_5: float
    maximum: float
    mean: float
    std: float

    @classmethod
    def of(cls, histogram: Histogram) -> Intensities:
        """Raises VolumeError where the histogram has no voxel."""
        cumulated = np.cumsum(histogram.counts)
        if not cumulated[-1]:
            raise VolumeError("no voxel carries a label; there is nothing to learn from: check the label files")
        values = histogram.values
        found = np.flatnonzero(histogram.counts)
        low, median, high = (float(values[np.searchsorted(cumulated, q * cumulated[-1])]) for q in (0.005, 0.5, 0.995))
        mean, std = _mean_and_deviation(np.clip(values, low, high), histogram.counts)
        return cls(float(values[found[0]]), low, median, high, float(values[found[-1]]), mean, std)

    @property
    def normalization(self) -> Normalization:
        """nnU-Net's for CT."""
        return Normalization(self.percentile_00_5, self.percentile_99_5, self.mean, self.std)


Pieces = Callable[[], Iterable[np.ndarray]]


def measure_volume(pieces: Pieces, communicator: Communicator) -> Normalization:
    """Mean and standard deviation of all ranks' voxels, without clipping. Collective.

    Raises VolumeError where there is no voxel at all.
    """
    found = histogram(pieces, communicator)
    mean, std = _mean_and_deviation(found.values, found.counts)
    return Normalization(-np.inf, np.inf, mean, std)


def histogram(pieces: Pieces, communicator: Communicator) -> Histogram:
    """Of all ranks' voxels. Collective. Raises VolumeError where there is no voxel at all."""
    low, high, whole = np.inf, -np.inf, True
    for piece in pieces():
        if piece.size:
            low, high = min(low, float(piece.min())), max(high, float(piece.max()))
            whole = whole and piece.dtype.kind in "iu"
    low, high, fraction = communicator.reduce_all(np.array([-low, high, 0.0 if whole else 1.0]), "max").tolist()
    low = -low
    if low > high:
        raise VolumeError("there is no voxel to measure; the volume is empty")
    found = histogram_between(low, high, whole=not fraction)
    for piece in pieces():
        found.add(piece)
    return Histogram(found.low, found.width, communicator.reduce_all(found.counts))


def _mean_and_deviation(values: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    total = counts.sum()
    mean = float((values * counts).sum() / total)
    deviation = float(np.sqrt(((values - mean) ** 2 * counts).sum() / total))
    return mean, deviation if deviation > 1e-8 else 1.0
