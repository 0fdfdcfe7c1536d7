"""A training run from beginning to end: make ready, open the folder, make the steps, report."""

from __future__ import annotations

import time
from pathlib import Path

from volseg.distributed.communicator import Communicator
from volseg.distributed.meter import communication_facts
from volseg.events import Caution, Listener, Message, ignore
from volseg.messages import MessageLog
from volseg.training.cases import write_split
from volseg.training.inputs import INPUTS, check_same_inputs, hash_inputs
from volseg.training.job import TrainingJob
from volseg.training.keeping import Checkpoints, stored_checkpoints
from volseg.training.log import read_log
from volseg.training.patience import Patience, validations
from volseg.training.preparing import prepare
from volseg.training.record import Record
from volseg.training.report import TrainingReport, gather_peaks, is_reported, make_report
from volseg.training.run_folder import check_room_of_run, open_run_folder
from volseg.training.run_lock import RunLock
from volseg.training.setup import Setup
from volseg.training.step_loop import StepLoop, validate_averaged
from volseg.training.stopping import Reason, Stopping
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
    setup = prepare(job, communicator, log.listen)
    if job.proceed:
        check_same_inputs(job.run, setup.dataset, communicator)
    patience = setup.world.on_root(lambda: _patience(job, setup))
    if setup.card.step >= setup.steps or patience.is_over:
        return _complete(job, setup, log, lock, patience)
    checkpoints = _open_folder(job, setup, log, lock)
    record = Record(job, setup, log.listen)
    inputs = hash_inputs(setup.dataset, communicator, job.run / INPUTS)
    steps = StepLoop(job, setup, record, checkpoints, stopping, patience, log.listen)
    started = time.monotonic()
    communicator.meter.reset()
    stopping.begin()
    stopped = steps.run()
    if stopped == "patience":
        log.listen(Message(f"ends at step {steps.card.step} of {setup.steps}: {patience.reason}"))
    # Of the same time: the others wait for the root's last picture, which is no work of theirs.
    seconds = time.monotonic() - started
    communication = communication_facts(communicator, seconds)
    record.finish()
    dice = record.dice_of_last_epoch()
    return make_report(
        job, setup, steps.card.step, seconds, communication, steps.loss, dice, record.last, inputs, stopped
    )  # fmt: skip


def _open_folder(job: TrainingJob, setup: Setup, log: MessageLog, lock: RunLock) -> Checkpoints | None:
    """Make the run folder ready for the first step; its checkpoints on the root, None elsewhere. Collective."""
    settings, checkpoints = setup.config.training, None
    with setup.world.together():
        if setup.world.is_root:
            check_room_of_run(job.run, setup.model, settings)
            open_run_folder(job, setup.config, lock, setup.card.step, log)
            write_fingerprint(job.run, setup.fingerprint)
            write_split(job.run, setup.split)
            checkpoints = Checkpoints(job.run, settings.keep, settings.checkpoint_seconds, log.listen)
    return checkpoints


def _patience(job: TrainingJob, setup: Setup) -> Patience:
    """As the validations up to the step that the run goes on from leave it. On the root."""
    rows = [row for row in read_log(job.run) if int(row["step"]) <= setup.card.step] if job.proceed else []
    return Patience(setup.config.training, validations(rows))


def _complete(
    job: TrainingJob, setup: Setup, log: MessageLog, lock: RunLock, patience: Patience
) -> TrainingReport:  # fmt: skip
    """No step is left; what a job that was killed after the last one has not written is written now."""
    communicator, step = setup.world, setup.card.step
    listen = log.listen
    last = communicator.on_root(lambda: _unreported_row(job.run, step))
    if last is None:
        said = f"the run has its {setup.steps} steps; give more --epochs to go on"
        if patience.is_over and step < setup.steps:
            said = f"the run ended at step {step}: {patience.reason}; give more --patience, or 0, to go on"
        listen(Caution(f"nothing to do: {said}"))
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
    listen(Message(f"the run has its last step, {step}, but no report: it is written now"))
    communicator.on_root(lambda: open_run_folder(job, setup.config, lock, step, log))
    record = Record(job, setup, listen)
    inputs = hash_inputs(setup.dataset, communicator, job.run / INPUTS)
    started = time.monotonic()
    communicator.meter.reset()
    if setup.held_out:
        communicator.meter.enter("validation")
        record.found(validate_averaged(setup, setup.finest, record), int(last["epoch"]))
        communicator.meter.enter("")
    seconds = time.monotonic() - started
    communication = communication_facts(communicator, seconds)
    record.finish()
    dice = record.dice_of_last_epoch()
    stopped: Reason | None = "patience" if step < setup.steps else None
    return make_report(
        job, setup, step, seconds, communication, float(last["loss"]), dice, record.last, inputs, stopped
    )  # fmt: skip


def _unreported_row(run: Path, step: int) -> dict[str, str] | None:
    """The log's row of `step`, which no report tells of; None where there is a report, or no such row. On the root."""
    if is_reported(run, step):
        return None
    return next((row for row in read_log(run) if int(row["step"]) == step), None)
