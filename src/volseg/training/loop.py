"""The training loop, readable top to bottom."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from math import isfinite

from volseg.distributed.communicator import Communicator
from volseg.errors import VolumeError
from volseg.events import Caution, Listener, Progress, ignore
from volseg.machine import gibibytes
from volseg.partition.operations import Kind
from volseg.training.cases import write_split
from volseg.training.inputs import check_same_inputs, hash_inputs, write_inputs
from volseg.training.job import TrainingJob, open_run_folder
from volseg.training.keeping import Checkpoints, stored_checkpoints
from volseg.training.optimization import batch_of, set_learning_rate, steps_per_epoch
from volseg.training.record import Record
from volseg.training.report import TrainingReport, gather_peaks, largest_resident, make_report
from volseg.training.run_lock import RunLock
from volseg.training.setup import prepare
from volseg.training.step import training_step
from volseg.training.stopping import Reason, Stopping
from volseg.training.tracing import StepTrace
from volseg.training.validation import Validation, is_validation_due, validate
from volseg.volumes.dataset import Case
from volseg.volumes.fingerprint import write_fingerprint


def train(job: TrainingJob, communicator: Communicator, listen: Listener = ignore) -> TrainingReport:
    """Train a U-Net on whole volumes, each split over the ranks of a replica. Collective.

    It stops early, with its state saved, on SIGTERM or SIGUSR1, and in time for `job.max_time`.

    Raises VolsegError, on all ranks, where data set, configuration, grid or run folder cannot be used; nothing is
    written then.
    """
    with RunLock(job.run) as lock, Stopping(communicator, job.max_time) as stopping:
        with communicator.together():
            if communicator.is_root and job.proceed and stored_checkpoints(job.run):  # nobody trains on while we read
                lock.acquire()
        return _train(job, communicator, listen, lock, stopping)


def _train(
    job: TrainingJob, communicator: Communicator, listen: Listener, lock: RunLock, stopping: Stopping
) -> TrainingReport:  # fmt: skip
    setup = prepare(job, communicator, listen)
    settings, cases, card, steps = setup.config.training, setup.cases, setup.card, setup.steps
    if card.step >= steps:
        listen(Caution(f"nothing to do: the run has its {steps} steps; give more --epochs to go on"))
        return TrainingReport(job.run, card.step, 0.0, None, None, None, gather_peaks(communicator), setup.planned.peak)
    inputs = hash_inputs(setup.dataset, communicator)
    checkpoints: Checkpoints | None = None
    with communicator.together():
        if communicator.is_root:
            if job.proceed:
                check_same_inputs(job.run, setup.dataset, inputs)
            open_run_folder(job, setup.config, lock, card.step)
            write_fingerprint(job.run, setup.fingerprint)
            write_split(job.run, setup.split)
            write_inputs(job.run, inputs)
            checkpoints = Checkpoints(job.run, settings.keep, settings.checkpoint_seconds, listen)
    record = Record(job, setup)

    meter, trace = communicator.meter, StepTrace(job, setup.finest, card.step, steps, listen)
    meter.reset()
    started = time.monotonic()
    stopping.begin()
    stop: Reason | None = None
    in_epoch = steps_per_epoch(len(cases), card.batch)
    loss = dice = float("nan")
    listen(Progress("train", card.step, steps, "steps"))
    before = setup.resolution(card.step)
    for step in range(card.step, steps):
        trace.before(step)
        begun = time.monotonic()
        meter.enter("step", step + 1)
        epoch = step // in_epoch
        if (resolution := setup.resolution(step)) is not before:
            before.rest()
            before = resolution
        batch = batch_of(cases, step, card.batch, settings.seed)
        rate = set_learning_rate(setup.optimizer, settings, step, steps)
        figures = training_step(setup, batch, step)
        loss, dice = figures.loss, figures.dice
        if not isfinite(loss):
            raise VolumeError(
                f"loss or gradients became {loss} at step {step + 1}, case {_names(figures.faulty)}: lower "
                f"--learning-rate (now {settings.learning_rate:g}), or look for outliers in that image"
            )
        seconds = time.monotonic() - begun
        validation: Validation | None = None
        if setup.held_out and is_validation_due(settings, step + 1, in_epoch):
            meter.enter("validation")
            with setup.averaged.in_use():
                validation = validate(
                    resolution.twin, resolution.blocks, setup.held_out, len(setup.dataset.labels),
                    record.looking_at(resolution.blocks),
                )  # fmt: skip
        meter.enter("log and checkpoint")
        card = dataclasses.replace(
            card, step=step + 1, validation_dice=None if validation is None else validation.mean
        )  # fmt: skip
        memory = largest_resident(communicator)
        stop = stopping.after_step(0.0 if checkpoints is None else checkpoints.longest)
        with meter.doing(Kind.FILES):
            record.step(
                validation, step=step + 1, epoch=epoch + 1, loss=loss, dice=dice, learning_rate=rate, seconds=seconds,
                voxels_per_second=figures.voxels / seconds, memory_bytes=memory, case=_names(batch),
                level=resolution.level,
            )  # fmt: skip
            if checkpoints is not None:
                if resolution is setup.finest:  # the Dice of a coarser one is another measure
                    checkpoints.offer(setup.model, setup.averaged, card)
                if checkpoints.due or stop or step + 1 == steps:
                    checkpoints.save(setup.model, setup.optimizer, setup.averaged, card)
        shown = {"epoch": f"{epoch + 1}/{settings.epochs}", "loss": f"{loss:.4f}", "Dice": f"{dice:.3f}"}
        if record.last is not None and record.last.mean is not None:
            shown["held out"] = f"{record.last.mean:.3f}"
        shown |= {"voxels/s": f"{figures.voxels / seconds / 1e6:.2f} M", "memory": gibibytes(memory)}
        listen(Progress("train", step + 1, steps, "steps", shown))
        meter.enter("")
        trace.after(step)
        if stop:
            break
    stopped = stop if card.step < steps else None
    seconds = time.monotonic() - started
    record.finish()
    return make_report(job, setup, card.step, seconds, loss, dice, record.last, inputs, stopped)


def _names(cases: Sequence[Case]) -> str:
    return "+".join(case.name for case in cases)
