"""The settings of spatial multigrid: training on a hierarchy of resolutions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from volseg.config.ranges import check_range
from volseg.errors import ConfigError


@dataclass(frozen=True)
class MultigridConfig:
    """Training on several resolutions of the volumes, each half as fine as the one before, with the same weights.

    levels  resolutions; 1: only the volumes as they are
    cycle   fmg: from the coarsest to the finest, each once (nested iteration); v: down and up again, `cycles` times
    cycles  how often cycle v goes down and up
    shares  shares of the steps by level, finest first, such as [1, 1, 2]; empty: equal
    """

    levels: int = 1
    cycle: Literal["fmg", "v"] = "fmg"
    cycles: int = 2
    shares: tuple[float, ...] = ()

    def check(self) -> None:
        """Raise ConfigError where a value is outside its range."""
        check_range("multigrid", self, levels=(1, 6), cycles=(1, 1000))
        if self.shares and (len(self.shares) != self.levels or min(self.shares) <= 0):
            raise ConfigError(
                f"multigrid.shares = {list(self.shares)} must be {self.levels} numbers above 0, one for each of "
                f"multigrid.levels = {self.levels} (--multigrid), the finest first, or empty for equal ones; they are "
                "in the configuration file, or in that of the run to go on with: change them there"
            )
