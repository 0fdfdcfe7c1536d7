"""Events as lines of text, and the file in a run folder that keeps them: whether anybody reads them or not."""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping
from pathlib import Path

from volseg.errors import VolsegError
from volseg.events import Caution, Event, Listener, Message, Progress, ignore
from volseg.files import utf8

MESSAGES = "messages.log"
SILENCE = 30.0  # seconds after which a plain progress line is due, however little was done


class ProgressLines:
    """Progress as plain lines: at the start, at each tenth, after half a minute of silence, and at the end."""

    def __init__(self) -> None:
        self._started: dict[str, tuple[float, float]] = {}  # when, and at which share: a run may go on from the middle
        self._last: dict[str, tuple[int, float]] = {}  # tenth shown last, and when

    def line(self, event: Progress) -> str | None:
        """A line, where one is due."""
        now = time.monotonic()
        share = event.share
        start, first = self._started.setdefault(event.task, (now, share))
        tenth, shown = self._last.get(event.task, (-1, start))
        if int(share * 10) <= tenth and now - shown < SILENCE and share < 1.0:
            return None
        self._last[event.task] = (int(share * 10), now)
        text = f"{event.task} {share:4.0%} ({event.done:g}/{event.total:g}{' ' + event.unit if event.unit else ''})"
        if event.done:
            text += f"  elapsed {duration(now - start)}"
        if first < share < 1.0:
            text += f"  remaining {duration((now - start) * (1 - share) / (share - first))}"
        if share >= 1.0:
            del self._started[event.task], self._last[event.task]
        return f"{text}  {figure_text(event.figures)}".rstrip()


class MessageLog:
    """Passes events on, and keeps them in FOLDER/messages.log, each line with the time.

    Until `begin` nothing is written: a job that is refused leaves no trace in a folder. What comes before is written
    then. That the file cannot be written ends nothing; it is said once, and tried again with the next message.
    """

    def __init__(self, folder: Path, listen: Listener = ignore, *, writes: bool = True) -> None:
        """writes: False on the ranks that leave the file to another."""
        self.path = folder / MESSAGES
        self._listen, self._writes = listen, writes
        self._progress = ProgressLines()
        self._waiting: list[str] = []
        self._begun = self._complained = False

    @classmethod
    def going_on(cls, folder: Path) -> MessageLog:
        """Of a job whose log was begun and that has more to say."""
        log = cls(folder)
        log._begun = True
        return log

    def begin(self, what: str, anew: bool) -> None:
        """The folder may be written to from now on.

        what  what is begun, as the first line
        anew  whether what an earlier job left there is replaced
        """
        self._begun = True
        if anew:
            try:
                self.path.unlink(missing_ok=True)
            except OSError as error:
                self._complain(error)
        self._waiting.insert(0, _stamped(what))
        self._write()

    def listen(self, event: Event) -> None:
        """Take an event."""
        self._listen(event)
        if not self._writes:
            return
        match event:
            case Progress():
                text = self._progress.line(event)
            case Caution(said):
                text = f"warning: {said}"
            case Message(said):
                text = said
        if text is not None:
            self.add(text)

    def add(self, text: str) -> None:
        """Keep a text that is no event."""
        self._waiting.append(_stamped(text))
        self._write()

    def failed(self, error: BaseException) -> None:
        """Keep what ends the job; of what is no VolsegError with the traceback."""
        known = isinstance(error, VolsegError | KeyboardInterrupt)
        text = str(error) if known else "".join(traceback.format_exception(error)).rstrip()
        if self._begun and self._writes:
            self.add(f"error: {text}" if text else "interrupted")

    def _write(self) -> None:
        if not (self._begun and self._writes):
            return
        try:
            with self.path.open("ab") as file:
                file.write(utf8("".join(self._waiting)))
            self._waiting.clear()
        except OSError as error:
            self._complain(error)

    def _complain(self, error: OSError) -> None:
        if not self._complained:
            self._complained = True
            self._listen(Caution(f"{self.path}: {error.strerror or error}; the job goes on, and tries again later"))


def _stamped(text: str) -> str:
    """Of several lines those after the first are indented."""
    return f"{time.strftime('%Y-%m-%d %H:%M:%S')} " + text.rstrip("\n").replace("\n", "\n" + " " * 20) + "\n"


def figure_text(figures: Mapping[str, str]) -> str:
    """``{"loss": "0.41"}`` as ``loss 0.41``."""
    return "  ".join(f"{name} {value}" for name, value in figures.items())


def duration(seconds: float) -> str:
    """Seconds as ``m:ss``, or ``h:mm:ss`` from an hour on."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
