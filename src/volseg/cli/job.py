"""What a command that may run on many ranks needs: the ranks, somebody who draws, and a clean end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from volseg.cli.failure import describe
from volseg.distributed.placement import Placement, binding_advice
from volseg.distributed.start import start
from volseg.events import Caution, Listener, ignore
from volseg.messages import MESSAGES, MessageLog

if TYPE_CHECKING:
    from volseg.cli.render import Screen
    from volseg.distributed.communicator import Communicator


class Job:
    """One command at work on all its ranks.

    communicator  the ranks; a single one without a launcher
    placement     the cores of this rank
    listen        takes the core's events and draws them, on the root rank only
    folder        of the run, whose log a rank that fails alone adds its message to; None for none
    """

    folder: Path | None = None

    def __init__(self, communicator: Communicator, placement: Placement, screen: Screen | None) -> None:
        self.communicator, self.placement = communicator, placement
        self.listen: Listener = ignore if screen is None else screen.draw
        self._screen = screen

    def print(self, renderable: Any) -> None:
        """Print a result on standard output, on the root rank only; a `str` goes out exactly as it is."""
        if self._screen is not None:
            self._screen.print(renderable)

    def tell(self, renderable: Any) -> None:
        """Print how it went, for a command whose results are files: as `print`, but nothing fails where it is lost."""
        if self._screen is not None:
            self._screen.tell(renderable)

    def keep_failure(self, text: str) -> None:
        """Add what ends the job to the log of the run, where there is one."""
        if self.folder is not None and (self.folder / MESSAGES).is_file():
            MessageLog.going_on(self.folder).add(text)

    def log_to(self, log: MessageLog) -> None:
        """Keep what is shown from now on there too."""
        if self._screen is not None:
            self._screen.log = log


@contextmanager
def job(quiet: bool = False, no_progress: bool = False, debug: bool = False) -> Iterator[Job]:
    """Connect the ranks for the body of a ``with``; an error in it ends the whole job with one message.

    Raises
    ------
    LaunchError
        The MPI launcher and library do not belong together.
    SystemExit
        The body raised: 2 for a VolsegError, 1 for other errors, 130 for Ctrl-C.
    """
    communicator, placement = start()
    screen = None
    if communicator.is_root:
        from volseg.cli.render import Screen

        screen = Screen(quiet=quiet, progress=not (quiet or no_progress))
    work = Job(communicator, placement, screen)
    advice = binding_advice(placement)
    if advice is not None:
        work.listen(Caution(advice))
    try:
        yield work
    except typer.Exit:
        raise  # a command's own choice of exit code, made on every rank
    except (Exception, KeyboardInterrupt) as error:
        if screen is not None:
            screen.close()
        from volseg.distributed.ending import end_failed_job

        failure = describe(error, debug)
        end_failed_job(communicator, failure.code, failure.message, work.keep_failure)
    finally:
        if screen is not None:
            screen.close()
