"""What the core tells the outside while it works. The command line draws these; the core prints nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Message:
    """One line worth reading."""

    text: str


@dataclass(frozen=True)
class Caution:
    """Something the user should know: the work goes on, but perhaps not as meant."""

    text: str


@dataclass(frozen=True)
class Progress:
    """A long task moved on. `done == total` ends it; `figures` are shown beside the bar.

    work  share of the whole work that is done, 0 to 1, where some units take longer than others; None: all are alike
    """

    task: str
    done: float
    total: float
    unit: str = ""
    figures: Mapping[str, str] = field(default_factory=dict)
    work: float | None = None

    @property
    def share(self) -> float:
        """Of the work that is done, 0 to 1: what the time left follows from."""
        if self.done >= self.total:
            return 1.0
        return self.done / self.total if self.work is None else self.work


Event = Message | Caution | Progress
Listener = Callable[[Event], None]


def ignore(event: Event) -> None:
    """The listener that does nothing."""
