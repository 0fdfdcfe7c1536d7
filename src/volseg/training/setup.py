"""Everything that is settled before the first step: data, grid, model, where to go on from."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from volseg.config import Config
from volseg.distributed.communicator import Communicator
from volseg.events import Caution, Listener, Message
from volseg.geometry import format_triple
from volseg.models.forecast import Machine, this_machine
from volseg.models.stored import ModelCard
from volseg.models.unet import UNet
from volseg.networks.architectures import NAMES
from volseg.networks.choice import described
from volseg.planning.memory import MemoryPlan
from volseg.planning.multigrid import Stage, stages, steps_per_epoch
from volseg.training.averaging import AveragedWeights
from volseg.training.cases import (
    Split,
    canonical_spaces,
    check_same_split,
    fingerprint_of_run,
    median_spacing,
    spacing_to_train_at,
    split_cases,
)
from volseg.training.checkpoint import load_checkpoint
from volseg.training.going_on import changes, check_same_batch, check_same_run, finest_from
from volseg.training.job import TrainingJob
from volseg.training.keeping import newest_whole
from volseg.training.network import with_network
from volseg.training.optimization import make_optimizer
from volseg.training.resolution import Hierarchy, Resolution
from volseg.training.run_folder import check_run_folder
from volseg.training.sides import without_mirrored_sides
from volseg.volumes.dataset import Case, Dataset, read_dataset
from volseg.volumes.dataset.at_spacing import lost_labels
from volseg.volumes.fingerprint import Fingerprint
from volseg.volumes.scan import space_at


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A run that is ready to begin, or to go on after `card.step` steps.

    resolutions  that it is made at, finest first; one where it is no multigrid
    model        the plain U-Net, which shares its parameters with its partitioned twin at each resolution
    averaged     their moving average
    machine      to foretell times from; None where nothing is known of it
    why_network  why kernels and strides are what they are; empty where nothing was chosen
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


def prepare(job: TrainingJob, communicator: Communicator, listen: Listener) -> Setup:
    """Read, check and build all that a run needs; writes nothing. Collective.

    Raises VolsegError, on all ranks, where data set, configuration, grid, run folder or checkpoint cannot be used.
    """
    dataset = communicator.on_root(lambda: read_dataset(job.source))
    for note in dataset.notes:
        listen(Message(note))
    for warning in dataset.warnings:
        listen(Caution(warning))
    model_config = job.config.model.for_data(len(dataset.channel_names), len(dataset.labels))
    config = dataclasses.replace(job.config, model=model_config)
    config, of_sides = without_mirrored_sides(config, dataset.labels, job)
    config.check()
    communicator.on_root(lambda: check_run_folder(job))
    if of_sides is not None:
        listen(Caution(of_sides))
    split = split_cases(dataset, config.training)
    cases, held_out = split.training, split.validation
    spaces = canonical_spaces(dataset)
    own = [spaces[case.name] for case in cases]
    spacing = spacing_to_train_at(config.data, own)
    shapes = {name: space_at(space, spacing).shape for name, space in spaces.items()}
    config, why_network = with_network(
        job, config, spacing or median_spacing(own), [shapes[case.name] for case in cases]
    )
    if why_network:
        listen(Message(why_network))
    config.check()
    model_config = config.model
    torch.manual_seed(config.training.seed)
    model = UNet(model_config, config.training.deep_supervision)
    machine = this_machine(model.network, communicator)
    optimizer, averaged = make_optimizer(model, config.training), AveragedWeights(model, config.training.ema)
    hierarchy = Hierarchy(
        job=job, config=config, dataset=dataset, cases=[*cases, *held_out], held_out=[case.name for case in held_out],
        spacing=spacing, shapes=shapes, model=model, machine=machine,
    )  # fmt: skip
    resolutions = [hierarchy.finest(communicator)]
    for level in range(1, config.multigrid.levels):
        resolutions.append(hierarchy.coarse(level, resolutions))
    fingerprint = fingerprint_of_run(job, dataset, spaces, communicator, listen)

    if not job.proceed:
        for fault in lost_labels(dataset, fingerprint, spacing, communicator, listen):
            listen(Caution(fault.message))
    card = ModelCard(
        config=config, labels=dataset.labels, schemes=(), spacing=spacing or median_spacing(own), step=0,
        batch=job.batch,
    )  # fmt: skip
    said: list[str] = []
    if job.proceed:
        path = newest_whole(job.run, communicator, listen)
        with communicator.together():
            stored = load_checkpoint(path, model, optimizer, averaged)
            check_same_run(stored, config, dataset, job)
            check_same_batch(stored, job)
            check_same_split(job.run, split)
            in_epoch = steps_per_epoch(len(cases), job.batch)
            said = changes(stored, config, in_epoch)
            card = dataclasses.replace(
                stored, config=config, network=None, finest_from=finest_from(stored, config, in_epoch)
            )
    else:
        card = dataclasses.replace(card, schemes=fingerprint.schemes())
    for resolution in resolutions:
        resolution.blocks.schemes = card.schemes
    _same_weights(model, communicator)
    if not job.proceed:
        averaged.begin()
    setup = Setup(
        config=config, dataset=dataset, split=split, fingerprint=fingerprint, resolutions=tuple(resolutions),
        model=model, optimizer=optimizer, averaged=averaged, card=card, machine=machine, why_network=why_network,
    )  # fmt: skip
    resampled = 0 if spacing is None else sum(space_at(one, spacing) is not one for one in spaces.values())
    _announce(setup, job, resampled, said, listen)
    return setup


def _announce(setup: Setup, job: TrainingJob, resampled: int, said: Sequence[str], listen: Listener) -> None:
    """Say what is about to be done.

    resampled  cases of the data set that are trained at another spacing than their own
    said       of a run that goes on with other settings
    """
    settings, cases = setup.config.training, setup.dataset.cases
    listen(Message(_describe(setup)))
    if settings.folds and settings.validation > 0:
        listen(Caution(f"training.validation = {settings.validation} is not used: with folds, one of them is held out"))
    if resampled:
        sides = format_triple(tuple(f"{side:.4g}" for side in setup.card.spacing))
        listen(Message(f"trained at a spacing of {sides} mm: {resampled} of {len(cases)} cases are resampled to it"))
    if not setup.held_out and len(cases) > 1:
        listen(Message(
            "nothing is held out: no validation, no best.safetensors, no previews; hold cases out with --validation 1"
        ))  # fmt: skip
    if job.replicas > len(setup.cases):
        listen(Caution(
            f"{job.replicas} replicas, but cases to train on: {len(setup.cases)}; use fewer, or some do nothing"
        ))  # fmt: skip
    if job.proceed:
        listen(Message(f"going on from step {setup.card.step} of {setup.steps}"))
        for text in said:
            listen(Caution(f"{job.run}: {text}"))


def _same_weights(model: nn.Module, communicator: Communicator) -> None:
    """Every rank starts from the root's weights, bit for bit."""
    for tensor in model.state_dict().values():
        tensor.copy_(torch.from_numpy(communicator.broadcast(tensor.numpy())))


def _describe(setup: Setup) -> str:
    dataset, batch = setup.dataset, setup.card.batch
    held_out = f"{len(setup.held_out)} held out{setup.split.described}"
    model = setup.config.model
    apart = f", {described(model)}" if described(model) else ""
    lines = [
        f"{dataset.folder}: {len(setup.cases)} cases to train on, {held_out}, labels {', '.join(dataset.label_names)}",
        f"{NAMES[model.architecture]} of {format_triple(model.widths)} channels{apart}; "
        f"{_describe_resolution(setup.finest)}, "
        f"{torch.get_num_threads()} threads each" + (f", {batch} cases a step" if batch > 1 else ""),
    ]
    if len(setup.resolutions) > 1:
        coarse = "; ".join(_describe_resolution(resolution) for resolution in setup.resolutions[1:])
        lines.append(f"multigrid, {setup.config.multigrid.cycle}: also {coarse}")
    return "\n".join(lines)


def _describe_resolution(resolution: Resolution) -> str:
    ranks, count = resolution.grid.communicator.size, resolution.replicas.count
    where = f"{ranks} rank{'s' if ranks > 1 else ''} as {format_triple(resolution.grid.dims)}"
    where = f"{count} replicas of {where}" if count > 1 else where
    return f"{format_triple(resolution.largest)} voxels on {where}{resolution.twin.grids.agglomeration.described}"
