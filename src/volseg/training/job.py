"""What a training run is asked to do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from volseg.config import Config
from volseg.volumes.dataset import DataSource

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
    begins   run folder, weights file or checkpoint whose network and weights the run begins with; None: the network of
             `config`, with weights that are drawn
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
    begins: Path | None = None
    flip_asked: bool = False

    @property
    def source(self) -> DataSource:
        """The data set."""
        return DataSource(self.dataset, self.labels, self.label_names, self.channel_names)

    @property
    def batch(self) -> int:
        """Cases of a step."""
        return self.replicas * self.config.training.accumulate
