"""When a run ends because its validations do not improve."""

from __future__ import annotations

from collections.abc import Iterable

from volseg.config import TrainingConfig
from volseg.training.log import Rows, finest


class Patience:
    """Counts the validations at the finest resolution since the last one that was better.

    best   the Dice that the next one has to be above, by more than `TrainingConfig.improvement`; None before the first
    since  validations since that one
    """

    def __init__(self, settings: TrainingConfig, before: Iterable[float] = ()) -> None:
        """before: the Dice of the validations that the run has seen, in their order."""
        self._most, self._least = settings.patience, settings.improvement
        self.best: float | None = None
        self.since = 0
        for dice in before:
            self.see(dice)

    def see(self, dice: float | None) -> None:
        """A validation's Dice; None, where no case holds a class, says nothing."""
        if dice is None:
            return
        if self.best is None or dice > self.best + self._least:
            self.best, self.since = dice, 0
        else:
            self.since += 1

    @property
    def is_over(self) -> bool:
        """Whether as many validations as the settings say were not better."""
        return 0 < self._most <= self.since

    @property
    def reason(self) -> str:
        """Why it is over, in words."""
        few = "the last validation was" if self.since == 1 else f"the last {self.since} validations were"
        return f"{few} not above a Dice of {self.best:.4f} by more than {self._least:g} (training.patience)"


def validations(rows: Rows) -> list[float]:
    """The Dice of each validation at the finest resolution that a log holds."""
    return [float(row["validation_dice"]) for row in finest(rows) if row.get("validation_dice")]
