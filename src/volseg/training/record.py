"""What a run says about itself on disk while it goes on: log.csv, progress.png, previews, TensorBoard."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from volseg.events import Caution, Listener
from volseg.files import flush_to_disk, what_is_wrong
from volseg.training import previews, tensorboard
from volseg.training.data import CaseBlocks
from volseg.training.job import TrainingJob
from volseg.training.log import CLASS, TrainingLog, dice_of_last_epoch
from volseg.training.previews import Previews
from volseg.training.progress import PICTURE, draw_progress
from volseg.training.setup import Setup
from volseg.training.tensorboard import EventFiles
from volseg.training.validation import Look, Validation

DRAWING_SECONDS = 30.0
NO_PICTURE = "training goes on without it; no more is said of others"


class Record:
    """Keeps it; every rank has one, and the root's writes.

    To make one is collective, once the run folder is there.

    last  what the latest validation found; None before the first
    """

    def __init__(self, job: TrainingJob, setup: Setup, listen: Listener) -> None:
        self._job, self._world, self._names = job, setup.world, setup.dataset.scored
        self._previews = Previews(job.run, setup.held_out[: job.previews], setup.dataset.labels, setup.world)
        self._log: TrainingLog | None = None
        self._events: EventFiles | None = None
        self._listen = listen
        self._complained: set[str] = set()
        self._drawn = time.monotonic()
        self.last: Validation | None = None
        with self._world.together():
            if self._world.is_root:
                classes = [CLASS + name for name in self._names] if setup.held_out else []
                self._log = TrainingLog(job.run, setup.card.step, classes)
                if job.tensorboard:
                    self._events = EventFiles(job.run, setup.card.step)

    def looking_at(self, blocks: CaseBlocks) -> Look:
        """What validation is to show its cases to, whose blocks these are."""
        return lambda case, sample, mask: self._previews.see(case, blocks, sample, mask)

    def step(self, validation: Validation | None = None, **figures: Any) -> None:
        """A step is done: write its row, and with `validation`, what was found after it, the previews. Collective.

        figures  by the names of `log.COLUMNS`
        """
        pictures: list[Path] = []
        if validation is not None:
            figures["validation_dice"] = validation.mean
            figures |= {CLASS + name: dice for name, dice in zip(self._names, validation.by_class, strict=True)}
            pictures = self.found(validation, figures["epoch"])
        if self._log is None:
            return
        with self._or_complain(self._log.path, "its rows are kept, and written when that is possible again"):
            self._log.add(figures)
        if self._events is not None:
            with self._or_complain(self._job.run / tensorboard.FOLDER, NO_PICTURE):
                self._events.add(figures)
                self._events.add_pictures(pictures, figures["step"])
        if time.monotonic() - self._drawn > DRAWING_SECONDS:
            self._draw()

    def found(self, validation: Validation, epoch: int) -> list[Path]:
        """This after an epoch; the pictures that were drawn of it. Collective."""
        self.last = validation
        pictures, failure = self._previews.write(epoch, validation.case_means)
        if failure is not None:
            self._complain(self._job.run / previews.FOLDER, failure, NO_PICTURE)
        return pictures

    def dice_of_last_epoch(self) -> float | None:
        """The mean soft Dice of the steps of the last epoch, those before an interruption too. Collective."""
        return self._world.on_root(lambda: None if self._log is None else dice_of_last_epoch(self._log.rows))

    def before_checkpoint(self) -> None:
        """A checkpoint is about to be written: the log is not to be behind it, if that can be."""
        if self._log is not None:
            with self._or_complain(self._log.path, "training goes on"):
                self._log.mend()
                flush_to_disk(self._log.path)  # even where the machine fails

    def finish(self) -> None:
        """No step follows: draw what there is. Collective."""
        self._world.on_root(self._end)

    def _end(self) -> None:
        assert self._log is not None
        with self._or_complain(self._log.path, "its last rows are missing"):
            self._log.mend()
        self._draw()
        if self._events is not None:
            with self._or_complain(self._job.run / tensorboard.FOLDER, NO_PICTURE):
                self._events.close()

    def _draw(self) -> None:
        assert self._log is not None
        with self._or_complain(self._job.run / PICTURE, NO_PICTURE):
            draw_progress(self._job.run, self._log.rows)
        if self._events is not None:
            with self._or_complain(self._job.run / tensorboard.FOLDER, NO_PICTURE):
                self._events.flush()
        self._drawn = time.monotonic()

    @contextmanager
    def _or_complain(self, what: Path, then: str) -> Iterator[None]:
        """A row or a picture that cannot be written does not end a run of days; checkpoints say when they cannot."""
        try:
            yield
        except Exception as error:
            self._complain(what, f"{what}: {what_is_wrong(error)}", then)

    def _complain(self, what: Path, failure: str, then: str) -> None:
        if str(what) not in self._complained:
            self._listen(Caution(f"{failure}\n{then}"))
        self._complained.add(str(what))
