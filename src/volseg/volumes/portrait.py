"""What an image's values look like as a whole: whether they can be Hounsfield units, and whether two images are alike.

A network that learned from CT makes garbage of CT that lost its slope or intercept, or was squeezed into a window; and
no error tells. Hounsfield units are known by what every scan of a body has: values of soft tissue, something below
water (fat, gas or air), and hardly anything denser than bone. The shares that are asked for leave room for other parts
of the body, contrast, metal, noise, scans cropped to the body or full of air, and for padding (one value below -1100).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from volseg.errors import VolumeError
from volseg.volumes.tally import Occurring, Tally

PADDING = -1100
SHARES = (0.005, 0.5, 0.995)
_ENDS = (0.001, 0.999)
_LIKE = 5  # times as wide or as narrow are still alike
_MOVED = 0.4  # of the width, both ends in one direction, are not


@dataclass(frozen=True)
class Portrait:
    """The values of an image, padding left out.

    low, median, high  the percentiles 0.5, 50 and 99.5
    strange  why they can hardly be Hounsfield units, ready to follow "its values"; empty where they can
    """

    low: float
    median: float
    high: float
    strange: str = ""

    @classmethod
    def of(cls, tally: Tally) -> Portrait:
        """Real numbers to 1/256 of them. Raises VolumeError where the tally has no voxel."""
        if not tally.total:
            raise VolumeError("there is no voxel to measure; the volume is empty")
        found = _without_padding(Occurring.of(tally))
        low, median, high = found.quantiles(SHARES)
        return cls(low, median, high, _strangeness(found))

    @property
    def text(self) -> str:
        """The figures in words."""
        return f"0.5 % {self.low:.5g}, median {self.median:.5g}, 99.5 % {self.high:.5g}"

    def is_like(self, other: Portrait) -> bool:
        """Whether both may be of one scale, whatever that is."""
        ours, theirs = (max(one.high - one.low, 1e-12) for one in (self, other))
        if not 1 / _LIKE <= ours / theirs <= _LIKE:
            return False
        moved = sorted((self.low - other.low, self.high - other.high))
        return not (moved[0] > _MOVED * theirs or moved[1] < -_MOVED * theirs)

    def as_json(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return vars(self)

    @classmethod
    def from_json(cls, value: Any) -> Portrait | None:
        """The inverse of `as_json`; None of None. Raises TypeError, KeyError or ValueError where it is malformed."""
        if value is None:
            return None
        low, median, high = (float(value[name]) for name in ("low", "median", "high"))
        return cls(low, median, high, str(value["strange"]))


def typical(portraits: Sequence[Portrait]) -> Portrait:
    """What most of some images look like: the median of each figure; strange where more than half are."""
    figures = np.median([(one.low, one.median, one.high) for one in portraits], axis=0)
    low, median, high = figures.tolist()
    strange = sorted(one.strange for one in portraits if one.strange)
    return Portrait(low, median, high, strange[len(strange) // 2] if 2 * len(strange) > len(portraits) else "")


def difference(portrait: Portrait, learned: Portrait) -> str | None:
    """Why an image is not of the scale of `learned`, ready to follow "its values"; None where it may be."""
    if not learned.strange:
        return f"do not look like Hounsfield units: {portrait.strange}" if portrait.strange else None
    return None if portrait.is_like(learned) else "are of another scale"


def _without_padding(found: Occurring) -> Occurring:
    """Without the smallest value where only padding is as low; with it where there is nothing else."""
    keep = found.values > found.values[0] if found.values[0] < PADDING and len(found.values) > 1 else slice(None)
    return Occurring(*(part[keep] for part in (found.values, found.counts, found.sums, found.squares)))


def _strangeness(found: Occurring) -> str:
    """Why values can hardly be Hounsfield units, in words; empty where they can."""
    total = found.counts.sum()

    def share(low: float, high: float = np.inf) -> float:
        return float(found.counts[(found.values >= low) & (found.values < high)].sum() / total)

    least, most = found.quantiles(_ENDS)
    if most - least < 40:
        return f"nearly all lie between {least:.3g} and {most:.3g}"
    if share(4000) > 0.03 or share(-np.inf, -1500) > 0.03:
        return "many lie below -1500 or above 4000"
    soft = share(-200, 300)
    if soft < 0.002 or (soft < 0.03 and share(-1500, -1060) > 0.1):
        return "next to none lie between -200 and 300, as soft tissue does"
    if share(-np.inf, 0) < 0.001:
        return "none lie below 0, as fat and air do"
    peak, air = share(900, 1250), share(-np.inf, -500)
    if found.counts[0] > 0.02 * total and found.values[0] < 0:  # may be padding that was moved with the rest
        air -= float(found.counts[0] / total)
    if peak > 0.03 and peak > 3 * share(500, 850) and peak > 2 * air:
        return "many lie near 1024, as soft tissue does where the intercept of -1024 was lost"
    if least > -115 and most < 200:
        return "all lie between -115 and 200, as neither air nor bone do"
    return ""
