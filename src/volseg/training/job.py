"""What a training run is asked to do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from volseg.config import Config
from volseg.volumes.dataset import DataSource

HTML = "report.html"


@dataclass(frozen=True, kw_only=True)
class NetworkSource:
    """Where a run takes its network from, in place of its configuration: one of `run`, `module` and `plans`.

    run            run folder, weights file or checkpoint: the network with its weights
    module         a function or class of the user's own, FILE.py:name, or a class of `monai.networks.nets`
    arguments      of that, TOML: "features = [16, 32], act = 'relu'", or a file of it
    plans          plans.json of nnU-Net
    configuration  of the plan, such as 3d_fullres
    """

    run: Path | None = None
    module: str | None = None
    arguments: str | None = None
    plans: Path | None = None
    configuration: str | None = None

    def __str__(self) -> str:
        """The option that names it."""
        if self.run is not None:
            return f"--from {self.run}"
        return f"--network {self.module}" if self.module is not None else f"--plans {self.plans}"


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
    begins   where the network comes from; None: from `config`
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
    begins: NetworkSource | None = None
    flip_asked: bool = False
    device: str = "auto"

    @property
    def source(self) -> DataSource:
        """The data set."""
        config = self.config
        return DataSource(
            self.dataset, self.labels, self.label_names, self.channel_names, config.labels, config.data.readers
        )  # fmt: skip

    @property
    def batch(self) -> int:
        """Cases of a step."""
        return self.replicas * self.config.training.accumulate
