"""What a training run is asked to do, and the folder it is done in."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import tomli_w

from volseg.config import Config, config_tables
from volseg.config.stored_run import CONFIG, REPORT
from volseg.distributed.trace import check_trace_path
from volseg.errors import ConfigError
from volseg.files import remove_leftovers, write_text
from volseg.training import previews, tensorboard
from volseg.training.inputs import INPUTS
from volseg.training.keeping import CHECKPOINTS, clean_up, stored_checkpoints
from volseg.training.progress import PICTURE
from volseg.training.run_lock import RunLock
from volseg.training.tensorboard import check_tensorboard
from volseg.volumes.dataset import DataSource
from volseg.volumes.writing import check_small_output

HTML = "report.html"


@dataclass(frozen=True)
class TrainingJob:
    """What to train, on what, and where to.

    partition  "auto" or a grid such as "1x2x2", of each replica
    replicas   groups of ranks that train on cases of their own; they divide the ranks
    agglomerate  which levels run on fewer ranks (`models.forecast.agglomeration_of_run`)
    labels, label_names, channel_names  as in `DataSource`, for data without dataset.json
    proceed    go on from the run folder's checkpoint
    trace      file for a trace of `trace_steps` steps, None for none
    max_time   seconds after which the run should have stopped and saved its state; None for any
    previews   so many of the held-out cases are drawn after each validation
    tensorboard  whether event files are written too, which needs that package
    command    how the program was started, for the report; None where it was not by a command
    flip_asked  whether the axes to mirror were named for this run, and not by a recipe or a file of settings
    """

    dataset: Path
    run: Path
    config: Config
    partition: str = "auto"
    proceed: bool = False
    overwrite: bool = False
    trace: Path | None = None
    trace_steps: int = 3
    replicas: int = 1
    agglomerate: str = "auto"
    max_time: float | None = None
    labels: str | None = None
    label_names: Path | None = None
    channel_names: tuple[str, ...] = ()
    previews: int = 1
    tensorboard: bool = False
    command: str | None = None
    flip_asked: bool = False

    @property
    def source(self) -> DataSource:
        """The data set."""
        return DataSource(self.dataset, self.labels, self.label_names, self.channel_names)

    @property
    def batch(self) -> int:
        """Cases of a step."""
        return self.replicas * self.config.training.accumulate


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
    if run.is_dir() and any(run.iterdir()) and not job.overwrite:
        raise ConfigError(
            f"{run}: exists already; go on with --continue, replace it with --overwrite, or give another -o"
        )
    parent = next(p for p in (run, *run.absolute().parents) if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        what = "not writable" if parent.is_dir() else "a file"
        raise ConfigError(f"{run}: {parent} is {what}; give another run folder with -o")


def _check_trace(job: TrainingJob) -> None:
    """Raise VolsegError unless there is no trace to write, or it can be."""
    if job.trace_steps < 1:
        raise ConfigError(f"--trace-steps {job.trace_steps}: a trace holds one step at least")
    if job.trace is not None:
        check_trace_path(job.trace)
        if job.trace.parent != job.run or job.run.exists():  # the run folder will be made
            check_small_output(job.trace, job.overwrite)


def open_run_folder(job: TrainingJob, config: Config, lock: RunLock, step: int) -> None:
    """Make the folder, lock it and write its configuration. On the root rank, once everything else has been checked.

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
        for folder in (previews.FOLDER, tensorboard.FOLDER):
            shutil.rmtree(job.run / folder, ignore_errors=True)
    write_text(job.run / CONFIG, tomli_w.dumps(config_tables(config)))
