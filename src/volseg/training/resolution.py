"""The resolutions to train at: the volumes as each sees them, and how the ranks share them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch

from volseg.config import Config
from volseg.distributed.communicator import Communicator
from volseg.distributed.grid import ProcessGrid
from volseg.distributed.replicas import Replicas
from volseg.errors import ConfigError, PartitionError
from volseg.geometry import PerAxis, Triple, format_triple, halved
from volseg.models.forecast import Machine, agglomeration_of_run
from volseg.models.fused import FusedNetwork
from volseg.models.unet import UNet
from volseg.partition.agglomeration import Agglomeration
from volseg.partition.layout import padded_shape
from volseg.planning.hierarchy import fastest_sharing, is_too_small
from volseg.planning.memory import MemoryPlan, among_replicas, training_memory, validation_memory
from volseg.planning.planner import grid_for, grid_named
from volseg.planning.sample_memory import sample_bytes, with_sample
from volseg.planning.search import Question
from volseg.precision import Precision
from volseg.training.data import CaseBlocks
from volseg.training.job import TrainingJob
from volseg.training.sampling import Samples
from volseg.volumes.crops import crop_shape
from volseg.volumes.dataset import Case, Dataset
from volseg.volumes.resampling import Spacing


@dataclass(frozen=True)
class Resolution:
    """The volumes halved `level` times, on replicas and grids of their own; the weights are those of all resolutions.

    level    0: as the network will see volumes in the end
    largest  (D, H, W) voxels, padded, of what a step sees of the largest case
    grid     of this rank's replica
    blocks   of the cases
    samples  what a step sees of them
    twin     the network partitioned for that grid
    planned  memory of the rank with most, of the case that needs most
    """

    level: int
    largest: Triple
    replicas: Replicas
    grid: ProcessGrid
    blocks: CaseBlocks
    samples: Samples
    twin: FusedNetwork
    planned: MemoryPlan

    @property
    def voxels(self) -> int:
        """Of `largest`."""
        return math.prod(self.largest)

    def rest(self) -> None:
        """Give back the memory that the network's passes keep for each other: another resolution comes next."""
        self.twin.rest()


@dataclass(frozen=True, kw_only=True)
class Hierarchy:
    """What all resolutions of a run have in common.

    cases     of the run; others of the data set do not matter
    held_out  names of those that are validated with, the others are trained on
    spacing   mm, at which the finest sees the cases; None: their own
    shapes    (D, H, W) of every case at the finest, by name
    """

    job: TrainingJob
    config: Config
    dataset: Dataset
    cases: Sequence[Case]
    held_out: Collection[str]
    spacing: Spacing | None
    shapes: Mapping[str, Triple]
    model: UNet
    machine: Machine | None

    def finest(self, communicator: Communicator) -> Resolution:
        """The resolution that the job's partition and replicas are given for. Collective.

        Raises VolsegError, on all ranks, where they do not suit the data set or the ranks.
        """
        replicas = Replicas(communicator, self.job.replicas)
        dims = _grid_of_replica(self.job, replicas, self._largest(0), self._multiple, self._narrowest(0))
        return self._resolution(0, replicas, ProcessGrid(replicas.own, dims))

    def coarse(self, level: int, finer: Sequence[Resolution]) -> Resolution:
        """The resolution `level` halvings below the finest, shared as is fastest with no more memory than that needs.

        finer  all of them, the finest first

        Collective. Raises as `finest`.
        """
        finest, next_finer = finer[0], finer[-1]
        world, config, machine = finest.replicas.world, self.config, self.machine
        question = None
        if machine is not None:
            question = Question(
                shape=self._largest(level),
                network=self.model.network,
                training=config.training,
                task="train",
                profile=machine.nominal,
                limit=finest.planned.peak,
                placing=machine.placing,
            )
        count, dims = fastest_sharing(
            self._largest(level), self.model.network, world.size, self.job.batch, self._narrowest(level), question
        )
        if (count, dims) == (next_finer.replicas.count, next_finer.grid.dims):
            return self._resolution(level, next_finer.replicas, next_finer.grid)
        replicas = Replicas(world, count)
        return self._resolution(level, replicas, ProcessGrid(replicas.own, dims))

    @property
    def _multiple(self) -> Triple:
        """What the sides of volumes are padded to a multiple of, per axis."""
        return self.model.network.multiple

    def _shapes(self, level: int) -> list[Triple]:
        return [halved(self.shapes[case.name], level) for case in self.cases]

    def _crop(self, level: int) -> tuple[int, ...]:
        """The crop of a step, which shows as much of the body at every resolution."""
        crop = self.config.data.crop
        return halved((crop[0], crop[1], crop[2]), level) if crop else ()

    def _views(self, level: int) -> list[Triple]:
        """(D, H, W) of what a step sees of every case."""
        return [crop_shape(shape, self._crop(level)) for shape in self._shapes(level)]

    def _largest(self, level: int) -> Triple:
        return max(self._views(level), key=math.prod)

    def _narrowest(self, level: int) -> Triple:
        d, h, w = (min(sides) for sides in zip(*self._views(level), strict=True))
        return d, h, w

    def _resolution(self, level: int, replicas: Replicas, grid: ProcessGrid) -> Resolution:
        config, multiple, world = self.config, self._multiple, replicas.world
        self._check_depth(level)
        blocks = CaseBlocks(self.dataset, self.cases, grid, multiple, replicas, level, self.spacing)
        largest = padded_shape(self._largest(level), multiple)
        stages = agglomeration_of_run(
            self.job.agglomerate if level == 0 else "none", "train", self.model.network, config.training,
            grid.layout(largest, multiple), self.machine, world, replicas.count,
        )  # fmt: skip
        samples = Samples(blocks, config, self._crop(level), torch.get_num_threads())
        twin = FusedNetwork(
            self.model, grid, config.training.checkpoint_levels, stages, config.training.class_weights,
            [region.values for region in self.dataset.regions], Precision(config.training.precision),
        )  # fmt: skip
        return Resolution(
            level=level,
            largest=largest,
            replicas=replicas,
            grid=grid,
            blocks=blocks,
            samples=samples,
            twin=twin,
            planned=among_replicas(self._planned(level, grid, stages), grid.dims, replicas.count),
        )

    def _planned(self, level: int, grid: ProcessGrid, agglomeration: Agglomeration) -> MemoryPlan:
        """Of a step on each case to train on, making its sample included, and of validating with each held out."""
        config, network, threads = self.config, self.model.network, torch.get_num_threads()
        plans = []
        for case, shape, view in zip(self.cases, self._shapes(level), self._views(level), strict=True):
            if case.name in self.held_out:
                whole = grid.layout(padded_shape(shape, self._multiple), self._multiple)
                plans.append(validation_memory(network, config.training, whole, threads, agglomeration))
                continue
            layout = grid.layout(padded_shape(view, self._multiple), self._multiple)
            sample = sample_bytes(config.augmentation, layout, shape, network.in_channels, threads, view != shape)
            plans.append(with_sample(training_memory(network, config.training, layout, threads, agglomeration), sample))
        return max(plans, key=lambda plan: plan.peak)

    def _check_depth(self, level: int) -> None:
        """Raise ConfigError where a case is so small that its deepest level is one voxel, which has no statistics."""
        settled = self.job.begins is not None or self.config.model.architecture == "imported"
        for case, whole, shape in zip(self.cases, self._shapes(level), self._views(level), strict=True):
            if is_too_small(self.model.network, shape):
                by_crop = not is_too_small(self.model.network, whole)
                what = f"--crop {format_triple(self.config.data.crop)}" if by_crop else str(case.images[0])
                remedies = ["a larger --crop"] * by_crop + ["larger volumes" if settled else "fewer --levels"]
                remedies += ["fewer --multigrid levels"] * (level > 0)
                halvings = f" after {level} halvings of --multigrid" if level else ""
                raise ConfigError(
                    f"{what}: {format_triple(shape)} voxels{halvings} are one voxel after "
                    f"{self.model.network.deepest} halvings; use {' or '.join(remedies)}"
                )


def _grid_of_replica(
    job: TrainingJob, replicas: Replicas, shape: Triple, multiple: PerAxis, narrowest: Triple
) -> Triple:  # fmt: skip
    """The grid of each replica. Raises PartitionError, in terms of the whole job."""
    world, ranks, named = replicas.world.size, replicas.own.size, grid_named(job.partition)
    if named is not None and math.prod(named) != ranks and replicas.count > 1:
        needed = replicas.count * math.prod(named)
        raise PartitionError(
            f"--partition {job.partition} needs {needed} ranks for {replicas.count} replicas, this job has {world}: "
            f"start it with mpirun -n {needed}, or use --partition auto"
        )
    try:
        return grid_for(job.partition, shape, ranks, multiple, narrowest)
    except PartitionError as error:
        if replicas.count == 1:
            raise
        raise PartitionError(f"each of {replicas.count} replicas has {ranks} ranks of {world}: {error}") from None
