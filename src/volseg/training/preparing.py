"""Everything that is settled before the first step: data, grid, model, where to go on from."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import nn

from volseg.distributed.communicator import Communicator
from volseg.distributed.devices import choose_device
from volseg.events import Caution, Listener
from volseg.models.forecast import this_machine
from volseg.models.stored import ModelCard
from volseg.planning.multigrid import steps_per_epoch
from volseg.training.announcing import announce
from volseg.training.as_imported import labels_of_resampled
from volseg.training.averaging import AveragedWeights
from volseg.training.cases import check_same_split, fingerprint_of_run
from volseg.training.checkpoint import load_checkpoint
from volseg.training.going_on import changes, check_same_batch, check_same_run, finest_from
from volseg.training.job import TrainingJob
from volseg.training.opening import Opened, open_run
from volseg.training.optimization import make_optimizer
from volseg.training.resolution import Hierarchy
from volseg.training.room_on_device import check_room
from volseg.training.setup import Setup
from volseg.volumes.dataset import Fault
from volseg.volumes.dataset.at_spacing import lost_in, lost_labels


def prepare(job: TrainingJob, communicator: Communicator, listen: Listener) -> Setup:
    """Read, check and build all that a run needs; writes nothing. Collective.

    Raises VolsegError, on all ranks, where data set, configuration, grid, run folder or checkpoint cannot be used.
    """
    opened = open_run(job, communicator, listen)
    setup = _built(job, opened, communicator, listen)
    check_room(setup.planned, setup.device, communicator)
    said: list[str] = []
    if opened.begun.path is not None:
        setup, said = _going_on(job, setup, opened.begun.path)
    else:
        for fault in _lost_labels(opened, setup, communicator, listen):
            listen(Caution(fault.message))
    for resolution in setup.resolutions:
        resolution.blocks.schemes = setup.card.schemes
    _same_weights(setup.model, communicator)
    if not job.proceed:
        setup.averaged.begin()
    announce(setup, job, opened.resampled, said, listen)
    return setup


def _lost_labels(opened: Opened, setup: Setup, communicator: Communicator, listen: Listener) -> list[Fault]:
    """Labels that the network does not see. Collective."""
    dataset, known = opened.dataset, setup.fingerprint
    if not opened.views:
        return lost_labels(dataset, known, opened.spacing, communicator, listen)
    with communicator.together():
        seen = labels_of_resampled(dataset, opened.cases, opened.views)
    return lost_in(seen, dataset, known, communicator, listen)


def _built(job: TrainingJob, opened: Opened, communicator: Communicator, listen: Listener) -> Setup:
    """The run as it is before its first step. Collective."""
    config, dataset = opened.config, opened.dataset
    torch.manual_seed(config.training.seed)
    device = choose_device(job.device, communicator)
    model = opened.begun.module().to(device.name)
    machine = this_machine(model.network, communicator)
    hierarchy = Hierarchy(
        job=job, config=config, dataset=dataset, cases=opened.cases,
        held_out=[case.name for case in opened.split.validation], spacing=opened.spacing, shapes=opened.shapes,
        model=model, machine=machine, views=opened.views,
    )  # fmt: skip
    resolutions = [hierarchy.finest(communicator)]
    for level in range(1, config.multigrid.levels):
        resolutions.append(hierarchy.coarse(level, resolutions))
    fingerprint = opened.fingerprint or fingerprint_of_run(job, dataset, opened.spaces, communicator, listen)
    card = ModelCard(
        config=config, labels=dataset.labels, schemes=opened.begun.schemes_or(fingerprint.schemes()),
        spacing=opened.median, step=0, batch=job.batch, network=opened.begun.network, origin=opened.begun.origin,
        regions=dataset.regions,
    )  # fmt: skip
    return Setup(
        config=config, dataset=dataset, split=opened.split, fingerprint=fingerprint, resolutions=tuple(resolutions),
        model=model, optimizer=make_optimizer(model, config.training),
        averaged=AveragedWeights(model, config.training.ema), card=card, machine=machine,
        why_network=opened.why_network, device=device,
    )  # fmt: skip


def _going_on(job: TrainingJob, setup: Setup, path: Path) -> tuple[Setup, list[str]]:
    """The run as a checkpoint left it, and what is done otherwise from here on, in words. Collective."""
    config = setup.config
    with setup.world.together():
        stored = load_checkpoint(path, setup.model, setup.optimizer, setup.averaged)
        check_same_run(stored, config, setup.dataset, job)
        check_same_batch(stored, job)
        check_same_split(job.run, setup.split)
        in_epoch = steps_per_epoch(len(setup.cases), job.batch)
        said = changes(stored, config, in_epoch)
        finest = finest_from(stored, config, in_epoch)
        card = dataclasses.replace(stored, config=config, network=setup.card.network, finest_from=finest)
    return dataclasses.replace(setup, card=card), said


def _same_weights(model: nn.Module, communicator: Communicator) -> None:
    """Every rank starts from the root's weights, bit for bit."""
    for tensor in model.state_dict().values():
        tensor.copy_(torch.from_numpy(communicator.broadcast(tensor.cpu().numpy())))
