"""Intensities as a network wants them: CT clipped and scaled by the training set's foreground, others by their own.

The two schemes are nnU-Net's (Isensee et al., Nature Methods 2021): for CT the 0.5 and 99.5 percentiles, mean and
standard deviation of the foreground voxels of all training cases; otherwise mean and standard deviation of each
volume. Both come from counts (`tally.py`), which add up to the same on any number of ranks. Unlike nnU-Net, which takes
some of the foreground voxels, all are counted, and mean and deviation are those of the clipped values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from volseg.distributed.communicator import Communicator
from volseg.errors import CheckpointError, VolumeError
from volseg.volumes.portrait import Portrait
from volseg.volumes.tally import Close, Occurring, Tally

Method = Literal["zscore", "zscore_nonzero", "rescale", "rescale_nonzero"]

QUANTILES = (0.0, 0.005, 0.5, 0.995, 1.0)
"""What is known of a foreground's values exactly."""


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


UNCHANGED = Normalization(-np.inf, np.inf, 0.0, 1.0)
"""Of what is normalised already."""


class NonzeroNormalization(Normalization):
    """The same of voxels other than zero; the others stay zero."""

    def apply(self, values: np.ndarray) -> np.ndarray:
        """As `Normalization.apply`."""
        out = super().apply(values)
        out *= values != 0
        return out


@dataclass(frozen=True)
class RangeNormalization(Normalization):
    """The range of what another normalisation gives, as another range.

    before  the other one
    """

    before: Normalization

    def apply(self, values: np.ndarray) -> np.ndarray:
        """As `Normalization.apply`."""
        return super().apply(self.before.apply(values))

    def undo(self, values: np.ndarray) -> np.ndarray:
        """As `Normalization.undo`."""
        return self.before.undo(super().undo(values))


@dataclass(frozen=True)
class ChannelScheme:
    """How one image channel is normalised: with numbers from training, or (None) with each volume's own.

    name  the channel's name in dataset.json: "CT" is what chooses the first way
    learned  what the whole images of the training set look like; None in models of earlier versions
    method  what of a volume's own is taken: mean and deviation of all voxels, those of voxels other than zero (the
            others stay zero), or the range, which becomes 0 to 1 (nnU-Net's ZScoreNormalization with and without
            `use_mask_for_norm`, and RescaleTo01Normalization); or, of what comes of "zscore_nonzero", the range
    span    what the range becomes, where it is taken
    """

    name: str
    fixed: Normalization | None
    learned: Portrait | None = None
    method: Method = "zscore"
    span: tuple[float, float] = (0.0, 1.0)

    def as_json(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        learned = None if self.learned is None else self.learned.as_json()
        own: dict[str, Any] = {} if self.method == "zscore" else {"method": self.method}
        own |= {} if self.span == (0.0, 1.0) else {"span": list(self.span)}
        fixed = None if self.fixed is None else vars(self.fixed)
        return {"name": self.name, "fixed": fixed, "learned": learned, **own}

    @classmethod
    def from_json(cls, value: Any) -> ChannelScheme:
        """The inverse of `as_json`. Raises CheckpointError where something is missing."""
        try:
            fixed = value["fixed"]
            rule = None if fixed is None else Normalization(**{k: float(v) for k, v in fixed.items()})
            method = value.get("method", "zscore")
            if method not in get_args(Method):
                raise ValueError(method)
            low, high = (float(end) for end in value.get("span", (0.0, 1.0)))
            return cls(str(value["name"]), rule, Portrait.from_json(value.get("learned")), method, (low, high))
        except (TypeError, KeyError, ValueError, AttributeError):
            raise CheckpointError(f"the checkpoint's normalization is malformed: {value!r}; train again") from None


def expected_of(scheme: ChannelScheme) -> Portrait | None:
    """What a scan has to look like to be of the scale that a model learned; None where any scale will do.

    A model of an earlier version knows its foreground alone: whether that can have been Hounsfield units.
    """
    rule = scheme.fixed
    if rule is None or scheme.learned is not None:
        return None if rule is None else scheme.learned
    plausible = -1100 <= rule.low < 0 and rule.high <= 4000 and rule.high - rule.low >= 40
    return Portrait(rule.low, rule.mean, rule.high, "" if plausible else "not those of its foreground")


def is_ct(channel_name: str) -> bool:
    """Whether a channel of this name holds Hounsfield units (nnU-Net's rule: it is called CT)."""
    return channel_name.strip().lower() == "ct"


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
    def of(cls, tally: Tally, close: Close | None = None) -> Intensities:
        """Exactly, where `close` has the bins of `QUANTILES`. Raises VolumeError where the tally has no voxel."""
        if not tally.total:
            raise VolumeError("no voxel carries a label; there is nothing to learn from: check the label files")
        occurring = Occurring.of(tally, close)
        minimum, low, median, high, maximum = occurring.quantiles(QUANTILES)
        mean, std = occurring.clipped(low, high).mean_and_deviation()
        return cls(minimum, low, median, high, maximum, mean, std)

    @property
    def normalization(self) -> Normalization:
        """nnU-Net's for CT."""
        return Normalization(self.percentile_00_5, self.percentile_99_5, self.mean, self.std)


Pieces = Callable[[], Iterable[np.ndarray]]


def measure_volume(pieces: Pieces, communicator: Communicator) -> Normalization:
    """Mean and standard deviation of all ranks' voxels, exactly, without clipping. Collective.

    Raises VolumeError where there is no voxel at all.
    """
    mean, std = Occurring.of(_tally(pieces, communicator)).mean_and_deviation()
    return Normalization(-np.inf, np.inf, mean, std)


def measure_by(
    method: Method, pieces: Pieces, communicator: Communicator, span: tuple[float, float] = (0.0, 1.0)
) -> Normalization:
    """How a volume is normalised by what its own voxels hold. Collective.

    pieces  of this rank's voxels; those that are zero do not count for "zscore_nonzero"
    span    what the range becomes, where the method takes it

    Raises VolumeError where there is no voxel that counts.
    """
    if method == "zscore":
        return measure_volume(pieces, communicator)
    if method == "zscore_nonzero":
        own = measure_volume(lambda: (piece[piece != 0] for piece in pieces()), communicator)
        return NonzeroNormalization(**vars(own))
    if method == "rescale_nonzero":
        before = measure_by("zscore_nonzero", pieces, communicator)
        of = measure_by("rescale", lambda: (before.apply(piece) for piece in pieces()), communicator, span)
        return RangeNormalization(of.low, of.high, of.mean, of.std, before)
    ends = np.array([np.inf, np.inf])
    for piece in pieces():
        if piece.size:
            ends = np.minimum(ends, (float(piece.min()), -float(piece.max())))
    low, high = communicator.reduce_all(ends, "min")
    if not np.isfinite(low):
        raise VolumeError("there is no voxel to measure; the volume is empty")
    std = max(float(-high - low), 1e-8) / (span[1] - span[0])
    return Normalization(-np.inf, np.inf, float(low) - span[0] * std, std)


def occurring_values(pieces: Pieces, communicator: Communicator) -> tuple[np.ndarray, np.ndarray]:
    """What all ranks' voxels hold: values, float64, rising, and how often. Collective.

    Real numbers are in groups, by their mean, each at most 1/128 of its values wide; smallest and largest are exact.
    """
    tally = _tally(pieces, communicator)
    close = Close(tally.bins_of((0, 1)))
    for piece in pieces() if close.bins else ():
        close.add(piece)
    communicator.reduce_all_in_place(close.counts)
    found = Occurring.of(tally, close)
    means = found.values + found.sums / found.counts
    rising = np.argsort(means, kind="stable")
    return means[rising], found.counts[rising]


def _tally(pieces: Pieces, communicator: Communicator) -> Tally:
    tally = Tally()
    for piece in pieces():
        tally.add(piece)
    tally.reduce(communicator)
    if not tally.total:
        raise VolumeError("there is no voxel to measure; the volume is empty")
    return tally
