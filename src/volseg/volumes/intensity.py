"""Intensities as a network wants them: CT clipped and scaled by the training set's foreground, others by their own.

The two schemes are nnU-Net's (Isensee et al., Nature Methods 2021): for CT the 0.5 and 99.5 percentiles, mean and
standard deviation of the foreground voxels of all training cases; otherwise mean and standard deviation of each
volume. Both come from histograms, whose counts add up to the same on any number of ranks.
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

    def undo(self, values: np.ndarray) -> np.ndarray:
        """What `apply` was given, as far as it was within `low` and `high`; to the eye, not to the bit."""
        return values * np.float32(self.std) + np.float32(self.mean)


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


Pieces = Callable[[], Iterable[np.ndarray]]


def measure_volume(pieces: Pieces, communicator: Communicator) -> Normalization:
    """Mean and standard deviation of all ranks' voxels, without clipping. Collective."""
    centres, counts = _histogram(pieces, communicator)
    mean, std = _mean_and_deviation(centres, counts)
    return Normalization(-np.inf, np.inf, mean, std)


def measure_foreground(pieces: Pieces, communicator: Communicator) -> Normalization:
    """Percentiles, mean and standard deviation of all ranks' foreground voxels. Collective.

    Raises VolumeError where there is no voxel at all.
    """
    centres, counts = _histogram(pieces, communicator)
    cumulated = np.cumsum(counts)
    low, high = (float(centres[np.searchsorted(cumulated, q * cumulated[-1])]) for q in (0.005, 0.995))
    mean, std = _mean_and_deviation(np.clip(centres, low, high), counts)
    return Normalization(low, high, mean, std)


def _histogram(pieces: Pieces, communicator: Communicator) -> tuple[np.ndarray, np.ndarray]:
    """Values (bin centres) and how often they occur over all ranks. Whole numbers in a short range are kept exactly."""
    low, high, whole = np.inf, -np.inf, True
    for piece in pieces():
        if piece.size:
            low, high = min(low, float(piece.min())), max(high, float(piece.max()))
            whole = whole and piece.dtype.kind in "iu"
    low, high, fraction = communicator.reduce_all(np.array([-low, high, 0.0 if whole else 1.0]), "max")
    low = -low
    if low > high:
        raise VolumeError("no voxel carries a label; there is nothing to learn from: check the label files")
    exact = fraction == 0 and high - low < BINS
    width = 1.0 if exact else max((high - low) / (BINS - 1), np.finfo(np.float64).tiny)
    counts = np.zeros(BINS, dtype=np.int64)
    for piece in pieces():
        places = np.rint((piece.ravel().astype(np.float64) - low) / width).astype(np.int64)
        counts += np.bincount(np.clip(places, 0, BINS - 1), minlength=BINS)
    return low + width * np.arange(BINS), communicator.reduce_all(counts)


def _mean_and_deviation(values: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    total = counts.sum()
    mean = float((values * counts).sum() / total)
    deviation = float(np.sqrt(((values - mean) ** 2 * counts).sum() / total))
    return mean, deviation if deviation > 1e-8 else 1.0
