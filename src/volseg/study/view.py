"""What figures and report are made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from volseg.planning.profile import Profile
from volseg.study.cases import Case, Ranges
from volseg.study.extrapolation import (
    MOST_RANKS,
    RANKS_PER_MACHINE,
    Foretold,
    doublings,
    foretell,
    over_blocks,
    over_ranks,
)
from volseg.study.means import Means
from volseg.study.rows import Row
from volseg.study.summary import chosen, scaled_side


@dataclass(frozen=True)
class View:
    """A study's rows, and what the model is asked with."""

    rows: Sequence[Row]
    ranges: Ranges
    profile: Profile
    means: Means

    def of_network(self, task: str) -> list[Row]:
        """Rows of the network that scaling is studied with, run the fastest way."""
        return chosen(self.rows, task=task, fastest=True, base_channels=self.ranges.channels[-1])

    def side(self, task: str) -> int:
        """Of the volume whose scaling was measured."""
        return scaled_side(self.rows, self.ranges, task)

    def over_ranks(self, case: Case, last: int = MOST_RANKS) -> list[Foretold]:
        """The model of a volume on 1, 2, 4 ... ranks: on this machine as far as its cores go, then on many."""
        far = over_ranks(case, doublings(1, last), self.profile, self.per_machine)
        return [self.placed(one) for one in far]

    def over_blocks(self, case: Case, block: int, last: int = MOST_RANKS) -> list[Foretold]:
        """The same of a volume that grows with the ranks."""
        far = over_blocks(case, block, doublings(1, last), self.profile, self.per_machine)
        return [self.placed(one) for one in far]

    @property
    def per_machine(self) -> int:
        """Ranks on each of the machines that nobody measured."""
        return self.means.cores_per_node if self.means.scheduler else RANKS_PER_MACHINE

    def placed(self, one: Foretold) -> Foretold:
        """On this machine as far as its cores go."""
        if one.case.ranks > self.means.cores:
            return one
        return foretell(one.case, self.profile, self.means.cores_per_node)
