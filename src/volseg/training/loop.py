"""The training loop, readable top to bottom."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from math import isfinite
from pathlib import Path

from volseg.distributed.communicator import Communicator
from volseg.distributed.meter import communication_facts
from volseg.errors import VolumeError
from volseg.events import Caution, Listener, Message, Progress, ignore
from volseg.machine import gibibytes
from volseg.messages import MessageLog
from volseg.planning.multigrid import steps_per_epoch
from volseg.program.kinds import Kind
from volseg.training.cases import write_split
from volseg.training.inputs import INPUTS, check_same_inputs, hash_inputs
from volseg.training.job import TrainingJob
from volseg.training.keeping import Checkpoints, stored_checkpoints
from volseg.training.log import read_log
from volseg.training.optimization import batch_of, set_learning_rate
from volseg.training.record import Record
from volseg.training.report import TrainingReport, gather_peaks, is_reported, largest_resident, make_report
from volseg.training.resolution import Resolution
from volseg.training.run_folder import check_room_of_run, open_run_folder
from volseg.training.run_lock import RunLock
from volseg.training.setup import Setup, prepare
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
    log = MessageLog(job.run, listen, writes=communicator.is_root)
    try:
        with RunLock(job.run) as lock, Stopping(communicator, job.max_time) as stopping:
            if job.proceed:  # nobody trains on while we read
                communicator.on_root(lambda: lock.acquire() if stored_checkpoints(job.run) else None)
            return _train(job, communicator, log, lock, stopping)
    except BaseException as error:
        log.failed(error)  # of a rank that fails alone, `cli.job` keeps the message
        raise


def _train(
    job: TrainingJob, communicator: Communicator, log: MessageLog, lock: RunLock, stopping: Stopping
) -> TrainingReport:  # fmt: skip
    listen = log.listen
    setup = prepare(job, communicator, listen)
    settings, cases, card, steps = setup.config.training, setup.cases, setup.card, setup.steps
    if job.proceed:
        check_same_inputs(job.run, setup.dataset, communicator)
    if card.step >= steps:
        return _complete(job, setup, log, lock)
    checkpoints: Checkpoints | None = None
    with communicator.together():
        if communicator.is_root:
            check_room_of_run(job.run, setup.model, settings)
            open_run_folder(job, setup.config, lock, card.step, log)
            write_fingerprint(job.run, setup.fingerprint)
            write_split(job.run, setup.split)
            checkpoints = Checkpoints(job.run, settings.keep, settings.checkpoint_seconds, listen)
    record = Record(job, setup, listen)
    inputs = hash_inputs(setup.dataset, communicator, job.run / INPUTS)

    meter, trace = communicator.meter, StepTrace(job, setup.finest, card.step, steps, listen)
    started = time.monotonic()
    meter.reset()
    stopping.begin()
    stop: Reason | None = None
    in_epoch = steps_per_epoch(len(cases), card.batch)
    loss = float("nan")
    dice: float | None = None
    listen(Progress("train", card.step, steps, "steps", work=setup.work(card.step)))
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
            validation = _validate(setup, resolution, record)
        meter.enter("log and checkpoint")
        card = dataclasses.replace(
            card, step=step + 1, validation_dice=None if validation is None else validation.mean
        )  # fmt: skip
        memory = largest_resident(communicator)
        following = setup.resolution(min(step + 1, steps - 1))
        saving = 0.0 if checkpoints is None else checkpoints.longest
        stop = stopping.after_step(saving, resolution.voxels, following.voxels)
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
                    record.before_checkpoint()
                    checkpoints.save(setup.model, setup.optimizer, setup.averaged, card)
        shown = {
            "epoch": f"{epoch + 1}/{settings.epochs}",
            "loss": f"{loss:.4f}",
            "Dice": "none" if dice is None else f"{dice:.3f}",
        }
        if record.last is not None and record.last.mean is not None:
            at = f" at level {record.last.level}" if record.last.level else ""
            shown["held out"] = f"{record.last.mean:.3f}{at}"
        shown |= {"voxels/s": f"{figures.voxels / seconds / 1e6:.2f} M", "memory": gibibytes(memory)}
        listen(Progress("train", step + 1, steps, "steps", shown, setup.work(step + 1)))
        meter.enter("")
        trace.after(step)
        if stop:
            break
    stopped = stop if card.step < steps else None
    # Of the same time: the others wait for the root's last picture, which is no work of theirs.
    seconds = time.monotonic() - started
    communication = communication_facts(communicator, seconds)
    record.finish()
    dice = record.dice_of_last_epoch()
    return make_report(job, setup, card.step, seconds, communication, loss, dice, record.last, inputs, stopped)


def _complete(job: TrainingJob, setup: Setup, log: MessageLog, lock: RunLock) -> TrainingReport:
    """No step is left; what a job that was killed after the last one has not written is written now."""
    communicator, step = setup.world, setup.card.step
    listen = log.listen
    last = communicator.on_root(lambda: _unreported_row(job.run, step))
    if last is None:
        listen(Caution(f"nothing to do: the run has its {setup.steps} steps; give more --epochs to go on"))
        peaks = gather_peaks(communicator)
        return TrainingReport(
            run=job.run,
            steps=step,
            seconds=0.0,
            loss=None,
            dice=None,
            validation_dice=None,
            peaks=peaks,
            planned=setup.planned.peak,
        )
    listen(Message(f"the run has its {setup.steps} steps, but no report of them: it is written now"))
    communicator.on_root(lambda: open_run_folder(job, setup.config, lock, step, log))
    record = Record(job, setup, listen)
    inputs = hash_inputs(setup.dataset, communicator, job.run / INPUTS)
    started = time.monotonic()
    communicator.meter.reset()
    if setup.held_out:
        communicator.meter.enter("validation")
        record.found(_validate(setup, setup.finest, record), int(last["epoch"]))
        communicator.meter.enter("")
    seconds = time.monotonic() - started
    communication = communication_facts(communicator, seconds)
    record.finish()
    dice = record.dice_of_last_epoch()
    return make_report(job, setup, step, seconds, communication, float(last["loss"]), dice, record.last, inputs)


def _unreported_row(run: Path, step: int) -> dict[str, str] | None:
    """The log's row of `step`, which no report tells of; None where there is a report, or no such row. On the root."""
    if is_reported(run, step):
        return None
    return next((row for row in read_log(run) if int(row["step"]) == step), None)


def _validate(setup: Setup, resolution: Resolution, record: Record) -> Validation:
    """Of the held-out cases, with the averaged weights, where there are any. Collective."""
    with setup.averaged.in_use():
        return validate(
            resolution.twin, resolution.blocks, setup.held_out, len(setup.dataset.labels),
            record.looking_at(resolution.blocks),
        )  # fmt: skip


def _names(cases: Sequence[Case]) -> str:
    return "+".join(case.name for case in cases)
