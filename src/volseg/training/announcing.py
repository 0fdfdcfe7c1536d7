"""What `train` tells its user before the first step."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from volseg.events import Caution, Listener, Message
from volseg.geometry import format_triple
from volseg.networks.architectures import NAMES
from volseg.networks.choice import described
from volseg.training.job import TrainingJob
from volseg.training.resolution import Resolution
from volseg.training.setup import Setup


def announce(setup: Setup, job: TrainingJob, resampled: int, said: Sequence[str], listen: Listener) -> None:
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


def _describe(setup: Setup) -> str:
    dataset, batch = setup.dataset, setup.card.batch
    held_out = f"{len(setup.held_out)} held out{setup.split.described}"
    model = setup.config.model
    apart = f", {described(model)}" if described(model) else ""
    lines = [
        f"{dataset.folder}: {len(setup.cases)} cases to train on, {held_out}, labels {', '.join(dataset.label_names)}",
        f"{NAMES[model.architecture]} of {format_triple(setup.model.network.widths)} channels{apart}; "
        f"{_describe_resolution(setup.finest)}, "
        f"{torch.get_num_threads()} threads each{_on_device(setup)}" + (f", {batch} cases a step" if batch > 1 else ""),
    ]
    if len(setup.resolutions) > 1:
        coarse = "; ".join(_describe_resolution(resolution) for resolution in setup.resolutions[1:])
        lines.append(f"multigrid, {setup.config.multigrid.cycle}: also {coarse}")
    return "\n".join(lines)


def _on_device(setup: Setup) -> str:
    return f", on {setup.device.described}" if setup.device.is_gpu else ""


def _describe_resolution(resolution: Resolution) -> str:
    ranks, count = resolution.grid.communicator.size, resolution.replicas.count
    where = f"{ranks} rank{'s' if ranks > 1 else ''} as {format_triple(resolution.grid.dims)}"
    where = f"{count} replicas of {where}" if count > 1 else where
    return f"{format_triple(resolution.largest)} voxels on {where}{resolution.twin.grids.agglomeration.described}"
