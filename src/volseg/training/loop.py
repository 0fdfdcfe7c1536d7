"""The training loop, readable top to bottom."""

from __future__ import annotations

import dataclasses
import time

import numpy as np

from volseg.distributed.communicator import Communicator
from volseg.errors import VolumeError
from volseg.events import Caution, Listener, Progress, ignore
from volseg.nn.gradients import sum_gradients
from volseg.partition.operations import Kind
from volseg.training.checkpoint import save_checkpoint
from volseg.training.data import Sample
from volseg.training.job import TrainingJob, open_run_folder
from volseg.training.log import TrainingLog
from volseg.training.optimization import case_order, set_learning_rate
from volseg.training.report import TrainingReport, gather_peaks, make_report
from volseg.training.setup import Setup, prepare
from volseg.training.tracing import StepTrace
from volseg.training.validation import validate

CHECKPOINT_SECONDS = 30.0


def train(job: TrainingJob, communicator: Communicator, listen: Listener = ignore) -> TrainingReport:
    """Train a U-Net on whole volumes, each split over all ranks. Collective.

    Raises VolsegError, on all ranks, where data set, configuration, grid or run folder cannot be used; nothing is
    written then.
    """
    setup = prepare(job, communicator, listen)
    settings, cases, card, steps = setup.config.training, setup.cases, setup.card, setup.steps
    if card.step >= steps:
        listen(Caution(f"nothing to do: the run has its {steps} steps; give more --epochs to go on"))
        return TrainingReport(job.run, card.step, 0.0, None, None, None, gather_peaks(communicator), setup.planned.peak)
    log: TrainingLog | None = None
    with communicator.together():
        if communicator.is_root:
            open_run_folder(job, setup.config)
            log = TrainingLog(job.run, card.step)

    meter, trace = communicator.meter, StepTrace(job, setup.grid, card.step, steps, listen)
    meter.reset()
    started = saved = time.monotonic()
    loss = dice = float("nan")
    held_out_dice: float | None = None
    listen(Progress("train", card.step, steps, "steps"))
    for step in range(card.step, steps):
        trace.before(step)
        begun = time.monotonic()
        meter.enter("step", step + 1)
        epoch, position = divmod(step, len(cases))
        case = cases[case_order(settings.seed, epoch, len(cases))[position]]
        with meter.doing(Kind.FILES):
            sample = setup.blocks.load(case)
        rate = set_learning_rate(setup.optimizer, settings, step, steps)
        loss, dice = training_step(setup, sample)
        if not np.isfinite(loss):
            raise VolumeError(
                f"loss or gradients became {loss} at step {step + 1}, case {case.name}: lower --learning-rate "
                f"(now {settings.learning_rate:g}), or look for outliers in that image"
            )
        seconds = time.monotonic() - begun
        held_out_dice = None
        if setup.held_out and position == len(cases) - 1:
            meter.enter("validation")
            held_out_dice = validate(setup.twin, setup.blocks, setup.held_out, len(setup.dataset.labels))
        meter.enter("log and checkpoint")
        card = dataclasses.replace(card, step=step + 1)
        if log is not None:
            log.add(
                step=step + 1, epoch=epoch + 1, loss=loss, dice=dice, learning_rate=rate, seconds=seconds,
                voxels_per_second=sample.voxels / seconds, case=case.name, validation_dice=held_out_dice,
            )  # fmt: skip
            if time.monotonic() - saved > CHECKPOINT_SECONDS or step + 1 == steps:
                with meter.doing(Kind.FILES):
                    save_checkpoint(job.run, setup.model, setup.optimizer, card)
                    log.draw(job.run)
                saved = time.monotonic()
        figures = {"epoch": f"{epoch + 1}/{settings.epochs}", "loss": f"{loss:.4f}", "Dice": f"{dice:.3f}"}
        if held_out_dice is not None:
            figures["held out"] = f"{held_out_dice:.3f}"
        figures["voxels/s"] = f"{sample.voxels / seconds / 1e6:.2f} M"
        listen(Progress("train", step + 1, steps, "steps", figures))
        meter.enter("")
        trace.after(step)
    return make_report(job, setup, card.step, time.monotonic() - started, loss, dice, held_out_dice)


def training_step(setup: Setup, sample: Sample) -> tuple[float, float]:
    """One step on one case: loss and mean soft foreground Dice before it. Collective.

    Where the gradients are not finite no step is made, and the loss returned is NaN; on all ranks alike.
    """
    communicator = setup.grid.communicator
    setup.twin.train()
    loss, dice = setup.twin.loss(sample.image, sample.target)
    setup.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    with communicator.meter.during("gradients of the weights"), communicator.meter.doing(Kind.OPTIMIZER):
        sum_gradients(setup.model.parameters(), communicator)
    if not all(p.grad is None or bool(p.grad.isfinite().all()) for p in setup.model.parameters()):
        return float("nan"), float("nan")
    with communicator.meter.doing(Kind.OPTIMIZER):
        setup.optimizer.step()
    return float(loss.detach()), float(dice[1:].mean())
