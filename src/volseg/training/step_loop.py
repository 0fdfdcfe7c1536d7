"""The steps of a run, one after the other, with all that comes between two of them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

from volseg.errors import VolumeError
from volseg.events import Listener, Progress
from volseg.machine import gibibytes
from volseg.planning.multigrid import steps_per_epoch
from volseg.program.kinds import Kind
from volseg.training.job import TrainingJob
from volseg.training.keeping import Checkpoints
from volseg.training.optimization import batch_of, set_learning_rate
from volseg.training.patience import Patience
from volseg.training.record import Record
from volseg.training.report import largest_resident
from volseg.training.resolution import Resolution
from volseg.training.setup import Setup
from volseg.training.step import StepFigures, training_step
from volseg.training.stopping import Reason, Stopping
from volseg.training.tracing import StepTrace
from volseg.training.validation import Validation, is_validation_due, validate
from volseg.volumes.dataset import Case


@dataclass(frozen=True)
class _Made:
    """A step that was made.

    number   counted from 1, as is its `epoch`
    rate     learning rate
    seconds  that it took
    """

    number: int
    epoch: int
    resolution: Resolution
    batch: Sequence[Case]
    rate: float
    figures: StepFigures
    seconds: float

    @property
    def voxels_per_second(self) -> float:
        """Voxels of the padded volumes."""
        return self.figures.voxels / self.seconds


class StepLoop:
    """Makes the steps that are left of a run; every rank has one.

    checkpoints  the root's; None elsewhere
    stopping     tells when to end early
    patience     tells when nothing improves

    card  of the model after the last step that was made
    loss  of that step
    """

    def __init__(
        self, job: TrainingJob, setup: Setup, record: Record, checkpoints: Checkpoints | None, stopping: Stopping,
        patience: Patience, listen: Listener,
    ) -> None:  # fmt: skip
        self._job, self._setup, self._record, self._checkpoints = job, setup, record, checkpoints
        self._stopping, self._patience, self._listen = stopping, patience, listen
        self._meter = setup.world.meter
        self._in_epoch = steps_per_epoch(len(setup.cases), setup.card.batch)
        self._before = setup.resolution(setup.card.step)
        self.card = setup.card
        self.loss = float("nan")

    def run(self) -> Reason | None:
        """Make them; why it stopped before the last one, None where it did not. Collective.

        Raises VolumeError, on all ranks, where a loss or gradients are not finite.
        """
        first, steps = self.card.step, self._setup.steps
        trace = StepTrace(self._job, self._setup.finest, first, steps, self._listen)
        self._listen(Progress("train", first, steps, "steps", work=self._setup.work(first)))
        for step in range(first, steps):
            trace.before(step)
            made = self._make(step)
            validation = self._validate(made)
            self._meter.enter("log and checkpoint")
            stop = self._keep(made, validation)
            self._meter.enter("")
            trace.after(step)
            if stop:
                return stop if made.number < steps else None
        return None

    def _make(self, step: int) -> _Made:
        """A step of the optimizer. Collective."""
        setup, settings, begun = self._setup, self._setup.config.training, time.monotonic()
        self._meter.enter("step", step + 1)
        resolution = setup.resolution(step)
        if resolution is not self._before:
            self._before.rest()
            self._before = resolution
        batch = batch_of(setup.cases, step, self.card.batch, settings.seed)
        rate = set_learning_rate(setup.optimizer, settings, step, setup.steps)
        figures = training_step(setup, batch, step)
        if not isfinite(figures.loss):
            raise VolumeError(
                f"loss or gradients became {figures.loss} at step {step + 1}, case {_names(figures.faulty)}: lower "
                f"--learning-rate (now {settings.learning_rate:g}), or look for outliers in that image"
            )
        self.loss = figures.loss
        seconds, epoch = time.monotonic() - begun, step // self._in_epoch + 1
        return _Made(step + 1, epoch, resolution, batch, rate, figures, seconds)

    def _validate(self, made: _Made) -> Validation | None:
        """Of the held-out cases, where that is due after this step. Collective."""
        setup = self._setup
        if not (setup.held_out and is_validation_due(setup.config.training, made.number, self._in_epoch)):
            return None
        self._meter.enter("validation")
        return validate_averaged(setup, made.resolution, self._record)

    def _keep(self, made: _Made, validation: Validation | None) -> Reason | None:
        """Write the step's row and what is due after it, and say whether the run is to stop. Collective."""
        setup, checkpoints, number, steps = self._setup, self._checkpoints, made.number, self._setup.steps
        dice = None if validation is None else validation.mean
        self.card = dataclasses.replace(self.card, step=number, validation_dice=dice)
        memory = largest_resident(setup.world)
        following = setup.resolution(min(number, steps - 1))
        saving = 0.0 if checkpoints is None else checkpoints.longest
        if made.resolution is setup.finest:  # the Dice of a coarser one is another measure
            self._patience.see(dice)
        stop = self._stopping.after_step(saving, made.resolution.voxels, following.voxels)
        if self._patience.is_over and number < steps:
            stop = "patience"
        with self._meter.doing(Kind.FILES):
            self._record.step(
                validation, step=number, epoch=made.epoch, loss=made.figures.loss, dice=made.figures.dice,
                learning_rate=made.rate, seconds=made.seconds, voxels_per_second=made.voxels_per_second,
                memory_bytes=memory, case=_names(made.batch), level=made.resolution.level,
            )  # fmt: skip
            if checkpoints is not None:
                if made.resolution is setup.finest:
                    checkpoints.offer(setup.model, setup.averaged, self.card)
                if checkpoints.due or stop or number == steps:
                    self._record.before_checkpoint()
                    checkpoints.save(setup.model, setup.optimizer, setup.averaged, self.card)
        self._listen(Progress("train", number, steps, "steps", self._shown(made, memory), setup.work(number)))
        return stop

    def _shown(self, made: _Made, memory: int) -> dict[str, str]:
        """What stands beside the progress bar. memory: bytes of the rank that has most."""
        loss, dice, last = made.figures.loss, made.figures.dice, self._record.last
        shown = {
            "epoch": f"{made.epoch}/{self._setup.config.training.epochs}",
            "loss": f"{loss:.4f}",
            "Dice": "none" if dice is None else f"{dice:.3f}",
        }
        if last is not None and last.mean is not None:
            at = f" at level {last.level}" if last.level else ""
            shown["held out"] = f"{last.mean:.3f}{at}"
        return shown | {"voxels/s": f"{made.voxels_per_second / 1e6:.2f} M", "memory": gibibytes(memory)}


def validate_averaged(setup: Setup, resolution: Resolution, record: Record) -> Validation:
    """Of the held-out cases, with the averaged weights, where there are any. Collective."""
    with setup.averaged.in_use():
        return validate(
            resolution.twin, resolution.blocks, setup.held_out, record.looking_at(resolution.blocks)
        )  # fmt: skip


def _names(cases: Sequence[Case]) -> str:
    return "+".join(case.name for case in cases)
