"""The settings of spatial multigrid: training on a hierarchy of resolutions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from volseg.config.ranges import check_range


@dataclass(frozen=True)
class MultigridConfig:
    """Training on several resolutions of the volumes, each half as fine as the one before, with the same weights.

    levels  resolutions; 1: only the volumes as they are
    cycle   fmg: from the coarsest to the finest, each once (nested iteration); v: up and down again and again
    """

    levels: int = 1
    cycle: Literal["fmg", "v"] = "fmg"

    def check(self) -> None:
        """Raise ConfigError where a value is outside its range."""
        check_range("multigrid", self, levels=(1, 6))
