"""Everything that is settled before the first step: data, grid, model, where to go on from."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from volseg.config import Config
from volseg.distributed.communicator import Communicator
from volseg.distributed.grid import ProcessGrid
from volseg.distributed.replicas import Replicas
from volseg.errors import CheckpointError, ConfigError, PartitionError
from volseg.events import Caution, Listener, Message
from volseg.geometry import Triple, format_triple
from volseg.models.forecast import Machine, agglomeration_of_run, this_machine
from volseg.models.fused_unet import FusedUNet
from volseg.models.stored import ModelCard
from volseg.models.unet import UNet
from volseg.partition.layout import padded_shape
from volseg.partition.memory import MemoryPlan, training_memory
from volseg.partition.planner import grid_for, grid_named
from volseg.partition.schedule import covers
from volseg.training.checkpoint import load_checkpoint
from volseg.training.data import CaseBlocks, split_cases
from volseg.training.job import TrainingJob, check_run_folder
from volseg.training.keeping import newest_whole
from volseg.training.optimization import make_optimizer, steps_per_epoch
from volseg.volumes.dataset import Case, Dataset, read_dataset


@dataclass(frozen=True)
class Setup:
    """A run that is ready to begin, or to go on after `card.step` steps.

    grid     of this rank's replica
    model    the plain U-Net; `twin` is its partitioned twin, which shares its parameters
    planned  memory of the rank with the largest block of the largest case
    machine  to foretell times from; None where nothing is known of it
    """

    config: Config
    dataset: Dataset
    cases: tuple[Case, ...]
    held_out: tuple[Case, ...]
    replicas: Replicas
    grid: ProcessGrid
    blocks: CaseBlocks
    planned: MemoryPlan
    model: UNet
    twin: FusedUNet
    optimizer: torch.optim.Optimizer
    card: ModelCard
    machine: Machine | None

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.config.training.epochs * steps_per_epoch(len(self.cases), self.card.batch)


def prepare(job: TrainingJob, communicator: Communicator, listen: Listener) -> Setup:
    """Read, check and build all that a run needs; writes nothing. Collective.

    Raises VolsegError, on all ranks, where data set, configuration, grid, run folder or checkpoint cannot be used.
    """
    dataset = read_dataset(job.dataset)
    model_config = job.config.model.for_data(len(dataset.channel_names), len(dataset.labels))
    config = dataclasses.replace(job.config, model=model_config)
    config.check()
    replicas = Replicas(communicator, job.replicas)
    with communicator.together():
        if communicator.is_root:
            check_run_folder(job)
    cases, held_out = split_cases(dataset, config.training.validation, config.training.seed)
    shapes, multiple = canonical_shapes(dataset), model_config.multiple
    d, h, w = (min(sides) for sides in zip(*shapes, strict=True))  # the grid must suit the largest, and hold all
    biggest = max(shapes, key=math.prod)
    grid = ProcessGrid(replicas.own, _grid_of_replica(job, replicas, biggest, multiple, narrowest=(d, h, w)))
    blocks = CaseBlocks(dataset, [*cases, *held_out], grid, multiple, replicas)
    layouts = [grid.layout(padded_shape(shape, multiple), multiple) for shape in shapes]
    machine = this_machine(model_config, communicator) if covers(model_config) else None
    stages = agglomeration_of_run(
        job.agglomerate, "train", model_config, config.training,
        grid.layout(padded_shape(biggest, multiple), multiple), machine, communicator, replicas.count,
    )  # fmt: skip
    threads = torch.get_num_threads()
    plans = [training_memory(model_config, config.training, layout, threads, stages) for layout in layouts]
    planned = max(plans, key=lambda plan: plan.peak)
    _check_depth(dataset, shapes, config)
    blocks.check()

    torch.manual_seed(config.training.seed)
    model = UNet(model_config)
    optimizer = make_optimizer(model, config.training)
    card = ModelCard(config, dataset.labels, (), _spacing(blocks, cases), 0, job.batch)
    if job.proceed:
        path = newest_whole(job.run, communicator, listen)
        with communicator.together():
            stored, _ = load_checkpoint(path, model, optimizer)
            check_same_run(stored, config, dataset, job)
            check_same_batch(stored, job)
            card = dataclasses.replace(stored, config=config)
        blocks.schemes = card.schemes
    else:
        blocks.measure()
        card = dataclasses.replace(card, schemes=blocks.schemes)
    _same_weights(model, communicator)
    twin = FusedUNet(model, grid, config.training.checkpoint_levels, stages)
    setup = Setup(
        config, dataset, tuple(cases), tuple(held_out), replicas, grid, blocks, planned, model, twin, optimizer, card,
        machine,
    )  # fmt: skip
    listen(Message(_describe(setup, padded_shape(biggest, multiple))))
    if replicas.count > len(cases):
        listen(
            Caution(f"{replicas.count} replicas, but cases to train on: {len(cases)}; use fewer, or some do nothing")
        )
    if job.proceed:
        listen(Message(f"going on from step {card.step} of {setup.steps}"))
    return setup


def canonical_shapes(dataset: Dataset) -> list[Triple]:
    """(D, H, W) of every case in canonical order; only headers are read."""
    from volseg.volumes.canonical import canonical
    from volseg.volumes.reading import open_volume

    return [canonical(open_volume(case.images[0])).shape for case in dataset.cases]


def check_same_run(card: ModelCard, config: Config, dataset: Dataset, job: TrainingJob) -> None:
    """Raise CheckpointError where a run would go on with other data than it began with."""
    before, now = card.config.training, config.training
    for what, old, new in (
        ("labels", card.labels, dataset.labels),
        ("channels", tuple(scheme.name for scheme in card.schemes), dataset.channel_names),
        ("training.seed", before.seed, now.seed),
        ("training.validation", before.validation, now.validation),
    ):
        if old != new:
            raise CheckpointError(
                f"{job.run}: was trained with {what} {old}, but {job.dataset} or the options give {new}; "
                "continue with the run's own, or train into another folder"
            )


def check_same_batch(card: ModelCard, job: TrainingJob) -> None:
    """Raise CheckpointError where a run would go on with larger or smaller steps than it began with."""
    if card.batch == job.batch:
        return
    fits = card.batch % job.replicas == 0
    options = f"--accumulate {card.batch // job.replicas}" if fits else f"--replicas 1 --accumulate {card.batch}"
    raise CheckpointError(
        f"{job.run}: was trained with {card.batch} cases a step, but --replicas {job.replicas} and training.accumulate "
        f"{job.config.training.accumulate} give {job.batch}; continue with {options}, or train into another folder"
    )


def _grid_of_replica(
    job: TrainingJob, replicas: Replicas, shape: Triple, multiple: int, narrowest: Triple
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


def _check_depth(dataset: Dataset, shapes: Sequence[Triple], config: Config) -> None:
    """Raise ConfigError where a case is so small that its deepest level is one voxel, which has no statistics."""
    multiple = config.model.multiple
    for case, shape in zip(dataset.cases, shapes, strict=True):
        if config.model.norm != "none" and math.prod(padded_shape(shape, multiple)) == multiple**3:
            raise ConfigError(
                f"{case.images[0]}: {format_triple(shape)} voxels are one voxel after {config.model.levels} halvings; "
                "use fewer --levels"
            )


def _spacing(blocks: CaseBlocks, cases: Sequence[Case]) -> tuple[float, float, float]:
    d, h, w = np.median([blocks.scan(case).space.spacing for case in cases], axis=0)
    return float(d), float(h), float(w)


def _same_weights(model: nn.Module, communicator: Communicator) -> None:
    """Every rank starts from the root's weights, bit for bit."""
    for tensor in model.state_dict().values():
        tensor.copy_(torch.from_numpy(communicator.broadcast(tensor.numpy())))


def _describe(setup: Setup, largest: Triple) -> str:
    ranks, count, dataset = setup.grid.communicator.size, setup.replicas.count, setup.dataset
    where = f"{ranks} rank{'s' if ranks > 1 else ''} as {format_triple(setup.grid.dims)}"
    where = f"{count} replicas of {where}" if count > 1 else where
    batch = f", {setup.card.batch} cases a step" if setup.card.batch > 1 else ""
    return (
        f"{dataset.folder}: {len(setup.cases)} cases to train on, {len(setup.held_out)} held out, "
        f"labels {', '.join(dataset.label_names)}\n"
        f"U-Net of {format_triple(setup.config.model.widths)} channels; {format_triple(largest)} voxels on {where}"
        f"{setup.twin.grids.agglomeration.described}, {torch.get_num_threads()} threads each{batch}"
    )
