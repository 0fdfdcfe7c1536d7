"""What a run says about itself on disk while it goes on: log.csv, progress.png, previews, TensorBoard."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from volseg.errors import first_line
from volseg.events import Caution, Listener
from volseg.training.data import CaseBlocks
from volseg.training.job import TrainingJob
from volseg.training.log import CLASS, TrainingLog
from volseg.training.previews import Previews
from volseg.training.progress import PICTURE, draw_progress
from volseg.training.setup import Setup
from volseg.training.tensorboard import EventFiles
from volseg.training.validation import Look, Validation

DRAWING_SECONDS = 30.0


class Record:
    """Keeps it; every rank has one, and the root's writes.

    To make one is collective, once the run folder is there.

    last  what the latest validation found; None before the first
    """

    def __init__(self, job: TrainingJob, setup: Setup, listen: Listener) -> None:
        self._job, self._world, self._names = job, setup.world, setup.dataset.label_names[1:]
        self._previews = Previews(job.run, setup.held_out[: job.previews], setup.dataset.labels, setup.world)
        self._log: TrainingLog | None = None
        self._events: EventFiles | None = None
        self._listen = listen
        self._complained = False
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
        self._log.add(figures)
        if self._events is not None:
            self._events.add(figures)
            with self._or_complain("pictures for TensorBoard"):
                self._events.add_pictures(pictures, figures["step"])
        if time.monotonic() - self._drawn > DRAWING_SECONDS:
            self._draw()

    def found(self, validation: Validation, epoch: int) -> list[Path]:
        """This after an epoch; the pictures that were drawn of it. Collective."""
        self.last = validation
        pictures, failure = self._previews.write(epoch, validation.case_means)
        if failure is not None:
            self._complain(failure)
        return pictures

    def finish(self) -> None:
        """No step follows: draw what there is. Collective."""
        with self._world.together():
            if self._world.is_root:
                self._draw()
                if self._events is not None:
                    self._events.close()

    def _draw(self) -> None:
        assert self._log is not None
        with self._or_complain(str(self._job.run / PICTURE)):
            draw_progress(self._job.run, self._log.rows)
        if self._events is not None:
            self._events.flush()
        self._drawn = time.monotonic()

    @contextmanager
    def _or_complain(self, what: str) -> Iterator[None]:
        """A picture that cannot be drawn does not end a run of days; its log and checkpoints say when they cannot."""
        try:
            yield
        except Exception as error:
            self._complain(f"{what}: {first_line(error)}")

    def _complain(self, failure: str) -> None:
        if not self._complained:
            self._listen(Caution(f"{failure}\ntraining goes on without this picture; no more is said of others"))
        self._complained = True
