"""Drawing events and results: progress and messages on standard error, results on standard output."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from volseg import events
from volseg.cli.streams import forgiving
from volseg.cli.terminal import terminal_columns
from volseg.machine import gibibytes
from volseg.messages import MessageLog, ProgressLines, figure_text
from volseg.planning.agreement import off_by_a_tenth

SHORT_SECONDS = 0.2  # of which no plan is worth a word
PLAIN_WIDTH = 120  # columns of a table that goes to a file or a pipe


class Screen:
    """Draws events as bars on a terminal and as plain lines elsewhere, and prints results.

    quiet     no messages; warnings and results stay
    progress  whether progress is shown at all
    log       of the run, which keeps what is shown too; None for none
    """

    log: MessageLog | None = None

    def __init__(self, *, quiet: bool = False, progress: bool = True) -> None:
        self.quiet = quiet
        columns = terminal_columns()
        self.errors = Console(
            stderr=True, force_terminal=columns is not None, width=columns or PLAIN_WIDTH, highlight=False
        )
        self.results = Console(width=columns or PLAIN_WIDTH, highlight=False)
        self._bars: Bars | Lines | None = None
        if progress:
            self._bars = Bars(self.errors) if columns is not None else Lines(self.errors)

    def draw(self, event: events.Event) -> None:
        """Show one event."""
        if self.log is not None:
            self.log.listen(event)
        match event:
            case events.Progress():
                if self._bars is not None:
                    self._bars.update(event)
            case events.Caution(text):
                self._write(f"warning: {text}", style="yellow")
            case events.Message(text):
                if not self.quiet:
                    self._write(text)

    def print(self, renderable: Any) -> None:
        """Print a result; a `str` goes out exactly as it is."""
        self.close()
        if isinstance(renderable, str):
            print(renderable, flush=True)
        else:
            self.results.print(renderable)

    def tell(self, renderable: Any) -> None:
        """Print how it went: as a result, but of a command whose results are files, so that it may be lost."""
        with forgiving():
            self.print(renderable)
        if self.log is not None and isinstance(renderable, str):
            self.log.add(renderable)

    def close(self) -> None:
        """Stop drawing; the next progress event starts it again."""
        if self._bars is not None:
            self._bars.close()

    def _write(self, text: str, style: str | None = None) -> None:
        # Off a terminal a line stays one line, whatever its length, so that it can be searched for.
        self.errors.print(text, style=style, markup=False, soft_wrap=not self.errors.is_terminal)


class Bars:
    """Progress as rich bars: percentage, elapsed and remaining time, figures."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def update(self, event: events.Progress) -> None:
        """Move the bar of `event.task`, starting it where it is new."""
        progress = self._started()
        task = self._tasks.get(event.task)
        if task is None:
            task = self._tasks[event.task] = progress.add_task(event.task, total=event.total, figures="")
        progress.update(
            task, completed=event.share * event.total, total=event.total, figures=figure_text(event.figures)
        )
        if event.done >= event.total:
            del self._tasks[event.task]  # the same name again is a new task
            if not self._tasks:
                self.close()

    def close(self) -> None:
        """Leave the bars as they are and give the terminal back."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
            self._tasks.clear()

    def _started(self) -> Progress:
        if self._progress is None:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                TaskProgressColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(compact=True),
                TextColumn("{task.fields[figures]}"),
                console=self._console,
                refresh_per_second=4,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._progress.start()
        return self._progress


class Lines:
    """Progress as plain lines."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lines = ProgressLines()

    def update(self, event: events.Progress) -> None:
        """Print a line where one is due."""
        text = self._lines.line(event)
        if text is not None:
            self._console.print(text, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Nothing to give back."""


def peak_memory_text(peaks: Sequence[int], planned: int) -> str:
    """Measured peaks by rank against the plan, in bytes, as a run's last lines show them."""
    measured = ", ".join(gibibytes(peak) for peak in peaks)
    ratio = f"{planned / max(peaks):.2f} of the largest measured"
    return f"peak memory a rank {measured}; planned {gibibytes(planned)}, {ratio}"


def time_text(shares: Mapping[str, float], waited: float | None) -> str:
    """Where the time went, largest share first, as far as it is seen in whole per cents.

    waited  the largest share of its time that a rank was blocked in MPI; None where there is only one rank
    """
    seen = [f"{name} {share * 100:.0f} %" for name, share in shares.items() if share >= 0.005]
    end = "" if waited is None else f"; a rank waited for the others {waited:.1%} of the time at most"
    return f"time: {', '.join(seen)}{end}"


def step_time_text(what: str, measured: float, planned: float | None) -> str:
    """Measured seconds against the plan, as a run's last lines show them; without it where it says nothing."""
    text = f"{what} {measured:.3g} s"
    if planned is None or _too_short(measured, planned):
        return text
    return f"{text}; planned {planned:.3g} s, {planned / measured:.2f} of the measured"


def _too_short(measured: float, planned: float) -> bool:
    """Whether times are so short that what no plan knows, such as compiling, is most of them."""
    return min(measured, planned) < SHORT_SECONDS


def warn_of_time(measured: float, planned: float | None, listen: events.Listener) -> None:
    """Say so where planned and measured time differ by more than 10 %, and are long enough to matter."""
    if planned is None or _too_short(measured, planned):
        return
    if off_by_a_tenth(planned / measured):
        text = f"planned and measured time differ by {abs(planned / measured - 1):.0%}"
        listen(events.Message(f"{text}; `volseg calibrate` measures this machine, and plans come closer"))


def warn_of_plan(peaks: Sequence[int], planned: int, listen: events.Listener) -> None:
    """Say so where planned and measured memory differ by more than 10 %."""
    ratio = planned / max(peaks)
    if off_by_a_tenth(ratio):
        listen(events.Caution(f"planned and measured memory differ by {abs(ratio - 1):.0%}"))


def warn_of_limit(peaks: Sequence[int], limit: int, given: bool, listen: events.Listener) -> None:
    """Say so where a limit that the user gave was not kept."""
    if given and max(peaks) > limit:
        listen(events.Caution(f"{gibibytes(max(peaks))} were used, more than --memory-limit {gibibytes(limit)}"))


def millilitres(value: float, decimals: int = 2) -> str:
    """A volume with as many decimals; below 1 ml with three digits, for an organ of a mouse has microlitres."""
    return f"{value:,.{decimals}f}" if value >= 1 or value == 0 else f"{value:.3g}"


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], *, text_columns: int = 1) -> Table:
    """A table whose first `text_columns` columns are text and whose others are figures, set to the right."""
    drawn = Table(title=title, title_justify="left", title_style="bold")
    for index, column in enumerate(columns):
        drawn.add_column(column, justify="left" if index < text_columns else "right", overflow="fold")
    for row in rows:
        drawn.add_row(*(str(cell) for cell in row))
    return drawn


def class_text(by_class: Mapping[str, float], most: int = 8) -> str:
    """Dice by label name, worst first, as far as they fit a line."""
    worst = sorted(by_class.items(), key=lambda item: item[1])
    more = f", and {len(worst) - most} better" if len(worst) > most else ""
    return ", ".join(f"{name} {dice:.3f}" for name, dice in worst[:most]) + more
