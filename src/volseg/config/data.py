"""The settings of what a step sees of a case."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from volseg.config.ranges import check_range
from volseg.errors import ConfigError

Readers = Literal["majority", "random", "first"]
"""What is learned where a scan has masks of several readers."""


@dataclass(frozen=True)
class DataConfig:
    """What a step sees of a case.

    spacing     mm, D, H, W, at which the network sees the volumes, such as "3x1.5x1.5"; "own": each volume as it is;
                "median": the median of the training cases, axis by axis; an axis of a case that differs from it by
                1 % or less stays as it is. "auto": today the same; later versions may choose another one
    crop        voxels, D, H, W, of a random crop of each case a step, such as [64, 256, 256]; empty: whole
                volumes
    foreground  share of the crops that hold a voxel of a foreground class drawn at random (nnU-Net: a third)
    readers     where a case has masks of several readers: "majority": a voxel has the label that most give it, of
                equals the first one's; "random": each step sees the mask of one drawn at random, and validation the
                majority; "first": the first one's mask
    """

    spacing: str = "auto"
    crop: tuple[int, ...] = ()
    foreground: float = 1 / 3
    readers: Readers = "majority"

    def check(self) -> None:
        """Raise ConfigError where a value is outside its range."""
        check_range("data", self, foreground=(0.0, 1.0))
        if self.crop and (len(self.crop) != 3 or min(self.crop) < 1):
            raise ConfigError(f"data.crop = {list(self.crop)} must be three sides of 1 voxel or more, or empty")
        if self.spacing not in ("auto", "own", "median"):
            sides = self.spacing.split("x")
            if len(sides) not in (1, 3) or not all(_is_positive(side) for side in sides):
                raise ConfigError(
                    f"data.spacing = {self.spacing!r} is not auto, own, median or sides in mm such as 1 or 3x1.5x1.5"
                )

    @property
    def named_spacing(self) -> tuple[float, float, float] | None:
        """The spacing in mm that `spacing` names; None for auto, own and median."""
        if self.spacing in ("auto", "own", "median"):
            return None
        sides = [float(side) for side in self.spacing.split("x")]
        d, h, w = sides * 3 if len(sides) == 1 else sides
        return d, h, w


def _is_positive(text: str) -> bool:
    try:
        return 0 < float(text) < 1e6
    except ValueError:
        return False
