"""A run that is ready to begin."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from volseg.config import Config
from volseg.distributed.communicator import Communicator
from volseg.distributed.devices import CPU, Device
from volseg.models.forecast import Machine
from volseg.models.stored import ModelCard
from volseg.models.unet import UNet
from volseg.planning.memory import MemoryPlan
from volseg.planning.multigrid import Stage, stages, steps_per_epoch
from volseg.training.averaging import AveragedWeights
from volseg.training.cases import Split
from volseg.training.resolution import Resolution
from volseg.volumes.dataset import Case, Dataset
from volseg.volumes.fingerprint import Fingerprint


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A run that is ready to begin, or to go on after `card.step` steps.

    resolutions  that it is made at, finest first; one where it is no multigrid
    model        the plain U-Net, which shares its parameters with its partitioned twin at each resolution
    averaged     their moving average
    machine      to foretell times from; None where nothing is known of it
    why_network  why kernels and strides are what they are; empty where nothing was chosen
    device       where the network of this rank runs
    """

    config: Config
    dataset: Dataset
    split: Split
    fingerprint: Fingerprint
    resolutions: tuple[Resolution, ...]
    model: UNet
    optimizer: torch.optim.Optimizer
    averaged: AveragedWeights
    card: ModelCard
    machine: Machine | None
    why_network: str = ""
    device: Device = CPU

    @property
    def cases(self) -> tuple[Case, ...]:
        """To train on."""
        return self.split.training

    @property
    def held_out(self) -> tuple[Case, ...]:
        """To validate with."""
        return self.split.validation

    @property
    def finest(self) -> Resolution:
        """The resolution that the network will see volumes at in the end."""
        return self.resolutions[0]

    @property
    def world(self) -> Communicator:
        """All ranks."""
        return self.finest.replicas.world

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.config.training.epochs * steps_per_epoch(len(self.cases), self.card.batch)

    @property
    def planned(self) -> MemoryPlan:
        """Memory of the rank with the largest block, at the resolution where that is most."""
        return max((resolution.planned for resolution in self.resolutions), key=lambda plan: plan.peak)

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """Which steps are made at which resolution."""
        return stages(self.config.multigrid, self.steps, self.card.finest_from)

    def resolution(self, step: int) -> Resolution:
        """The one that a step is made at."""
        return self.resolutions[next(stage.level for stage in self.stages if stage.first <= step < stage.last)]

    def work(self, steps: int) -> float | None:
        """Share of the run's work in its first `steps` steps, by the voxels of each; None where all are alike."""
        if len(self.resolutions) == 1:
            return None
        voxels = [resolution.voxels for resolution in self.resolutions]

        def first(count: int) -> int:
            return sum(
                voxels[one.level] * (min(one.last, count) - one.first) for one in self.stages if one.first < count
            )

        return first(steps) / first(self.steps)
