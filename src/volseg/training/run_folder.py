"""The folder of a run: whether it may be trained into, and what of it is volseg's own to replace."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import tomli_w
import torch

from volseg import __version__
from volseg.config import Config, TrainingConfig, config_tables
from volseg.config.stored_run import CONFIG, DATA, REPORT, OwnData, read_run_config
from volseg.distributed.trace import check_trace_path
from volseg.errors import ConfigError, VolsegError
from volseg.files import is_leftover, remove_leftovers, write_text
from volseg.messages import MessageLog
from volseg.models.stored import WEIGHTS
from volseg.training import previews, tensorboard
from volseg.training.begun import write_begun
from volseg.training.inputs import INPUTS
from volseg.training.job import HTML, TrainingJob
from volseg.training.keeping import CHECKPOINTS, clean_up, stored_checkpoints
from volseg.training.progress import PICTURE
from volseg.training.run_lock import LOCK, RunLock
from volseg.training.tensorboard import check_tensorboard
from volseg.volumes.trial import check_room
from volseg.volumes.writing import check_small_output

MADE = {
    previews.FOLDER: re.compile(r"epoch_\d{4,}_.+\.png"),
    tensorboard.FOLDER: re.compile(r"events\.out\.tfevents\..+"),
}
"""The folders in a run's, and the names of what volseg writes there: nothing else in them is ever removed."""


def check_run_folder(job: TrainingJob) -> None:
    """Raise ConfigError unless the run folder can be trained into as asked, and the trace be written."""
    run = job.run
    _check_trace(job)
    if job.previews < 0:
        raise ConfigError(f"--previews {job.previews}: give how many held-out cases to draw; 0 for none")
    if job.tensorboard:
        check_tensorboard()
    if job.proceed:
        if not stored_checkpoints(run):
            raise ConfigError(
                f"{run}: nothing in {CHECKPOINTS}/ to continue from; start anew with --overwrite in place of --continue"
            )
        return
    if run.exists() and not run.is_dir():
        raise ConfigError(f"{run}: is a file; give another run folder with -o")
    if run.is_dir() and any(run.iterdir()):
        _check_replaceable(run, job.overwrite)
    parent = next(p for p in (run, *run.absolute().parents) if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        what = "not writable" if parent.is_dir() else "a file"
        raise ConfigError(f"{run}: {parent} is {what}; give another run folder with -o")


def _check_replaceable(run: Path, overwrite: bool) -> None:
    """Raise ConfigError unless what a folder holds is a run, and is to be replaced."""
    try:
        read_run_config(run)
    except (VolsegError, OSError, UnicodeDecodeError):
        others = sorted(path.name for path in run.iterdir() if path.name != LOCK and not is_leftover(path))
        if others:
            some = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
            raise ConfigError(
                f"{run}: holds {some} and is no run of volseg (no {CONFIG} of one): it is left alone; give another -o"
            ) from None
        return
    if not overwrite:
        raise ConfigError(
            f"{run}: exists already; go on with --continue, replace it with --overwrite, or give another -o"
        )


def _check_trace(job: TrainingJob) -> None:
    """Raise VolsegError unless there is no trace to write, or it can be."""
    if job.trace_steps < 1:
        raise ConfigError(f"--trace-steps {job.trace_steps}: a trace holds one step at least")
    if job.trace is not None:
        check_trace_path(job.trace)
        if job.trace.parent != job.run or job.run.exists():  # the run folder will be made
            check_small_output(job.trace, job.overwrite)


def check_room_of_run(run: Path, model: torch.nn.Module, config: TrainingConfig) -> None:
    """Raise VolumeError unless the disk has room for the least that a run leaves: its weights, and a checkpoint."""
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    moments = 2 if config.optimizer == "adamw" else int(config.momentum > 0)
    check_room({run / CHECKPOINTS: weights * (1 + moments + (config.ema > 0)), run / WEIGHTS: weights})


def open_run_folder(job: TrainingJob, config: Config, lock: RunLock, step: int, log: MessageLog) -> None:
    """Make the folder, lock it, write its configuration and begin its log of messages.

    On the root rank, once everything else has been checked.

    step  that a run which goes on goes on from

    Raises ConfigError where another job trains into it.
    """
    job.run.mkdir(parents=True, exist_ok=True)
    lock.acquire()
    remove_leftovers(job.run / previews.FOLDER)
    clean_up(job.run, step if job.proceed else None)  # an earlier run's checkpoint must not be taken for this one's
    if not job.proceed:
        for name in (REPORT, HTML, PICTURE, INPUTS):
            (job.run / name).unlink(missing_ok=True)
        for path in _made(job.run):
            path.unlink(missing_ok=True)
        for name in MADE:
            with suppress(OSError):  # is not there, is a link, or holds what is not ours
                (job.run / name).rmdir()
        write_begun(job.run, job.begins)
    names = None if job.label_names is None else str(job.label_names.absolute())
    own = OwnData(str(job.dataset.absolute()), _labels(job), names, job.channel_names)
    write_text(job.run / DATA, own.as_json())
    write_text(job.run / CONFIG, tomli_w.dumps(config_tables(config)))
    log.begin(f"volseg {__version__}: {job.command or f'train {job.dataset} -o {job.run}'}", anew=not job.proceed)


def _labels(job: TrainingJob) -> str | None:
    """Of one scan its file of labels, wherever the run is gone on with; of others the name of a label image."""
    if job.labels is not None and Path(job.labels).exists():
        return str(Path(job.labels).absolute())
    return job.labels


def _made(run: Path) -> Iterator[Path]:
    """The pictures and event files that a run wrote into the folders of `MADE`."""
    for name, pattern in MADE.items():
        if (run / name).is_dir():
            yield from (path for path in (run / name).iterdir() if pattern.fullmatch(path.name) and not path.is_dir())
