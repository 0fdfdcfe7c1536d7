"""A run as the folder of a trained model that nnU-Net's predictor opens."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from volseg.errors import ConfigError
from volseg.exporting.job import Exported, ExportJob
from volseg.exporting.nnunet_files import dataset_json, plans_json, window_for
from volseg.exporting.stored_folds import models_of
from volseg.files import write_text
from volseg.models.described import DescribedModule
from volseg.models.stored import ModelCard
from volseg.networks.description import Convolution, Network, Node, Normalization, UpConvolution
from volseg.networks.nnunet import Architecture, nnunet
from volseg.networks.nnunet_writing import architecture_as_plan, architecture_in, architecture_of_ours

CHECKPOINT = "checkpoint_final.pth"
_CONFIGURATION = "3d_fullres"


def export_nnunet(job: ExportJob, folder: Path) -> Exported:
    """Write plans.json, dataset.json and a checkpoint of each fold into `folder`.

    Raises VolsegError where the run is damaged, or nnU-Net has no such network: the message says what would do.
    """
    notes: tuple[str, ...] = ()
    for fold, tensors, card in models_of(job.run):
        source = card.described
        architecture = architecture_in(source)
        ours = architecture is None
        if architecture is None:
            architecture = _ours(card)
        target = nnunet(architecture, source.in_channels, source.classes)
        weights = _under_their_names(tensors, source, target) if ours else tensors
        if not fold or not notes:
            notes = _describe(job, folder, card, architecture)
        place = folder / f"fold_{fold}"
        place.mkdir()
        torch.save(_checkpoint(_complete(weights, target), card, fold), place / CHECKPOINT)
    return Exported(
        files=tuple(sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())), notes=notes
    )


def _ours(card: ModelCard) -> Architecture:
    if card.config.model.architecture == "imported":
        raise ConfigError("its network is none of nnU-Net's plans; export it with --to torch")
    return architecture_of_ours(card.config.model)


def _describe(job: ExportJob, folder: Path, card: ModelCard, architecture: Architecture) -> tuple[str, ...]:
    """Write what describes the model; gives what nnU-Net does otherwise."""
    window, notes = window_for(card, job.window)
    plans = plans_json(card, architecture_as_plan(architecture), window, _CONFIGURATION)
    dataset, renamed = dataset_json(card)
    write_text(folder / "plans.json", json.dumps(plans, indent=4) + "\n")
    write_text(folder / "dataset.json", json.dumps(dataset, indent=4) + "\n")
    return (*notes, *renamed)


def _under_their_names(tensors: Mapping[str, Tensor], source: Network, target: Network) -> dict[str, Tensor]:
    """The weights of our U-Net under nnU-Net's names.

    Both are described in the order in which they are computed. Of what is joined, ours has the encoder's part first,
    theirs what comes up: the inputs of a convolution that reads both change places.
    """
    weights: dict[str, Tensor] = {}
    for ours, theirs in zip(_with_weights(source), _with_weights(target), strict=True):
        for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            if f"{_module(ours)}.{part}" in tensors:
                weights[f"{_module(theirs)}.{part}"] = tensors[f"{_module(ours)}.{part}"]
        if isinstance(ours, Convolution) and len(ours.reads) == 2:
            name, first = f"{_module(theirs)}.weight", source.channels_of(ours.reads[0])
            weights[name] = torch.cat([weights[name][:, first:], weights[name][:, :first]], dim=1)
    heads = {head.stage: head.module for head in source.heads}
    for head in target.heads:
        for part in ("weight", "bias"):
            tensor = tensors.get(f"{heads.get(head.stage)}.{part}")
            if tensor is not None:
                weights[f"{head.module}.{part}"] = tensor
    return weights


def _with_weights(network: Network) -> list[Node]:
    """The nodes that have a layer with weights, but for heads."""
    normed = (node for node in network.nodes if isinstance(node, Convolution | UpConvolution | Normalization))
    return [node for node in normed if _module(node)]


def _module(node: Node) -> str:
    return str(getattr(node, "module", ""))


def _complete(weights: Mapping[str, Tensor], target: Network) -> dict[str, Tensor]:
    """All tensors of nnU-Net's module, each under every name that it lists it by.

    Biases that the run has not are 0, and so are heads of coarser stages, which nnU-Net's predictor does not use.
    """
    with torch.device("meta"):
        wanted = DescribedModule(target).state_dict()
    state = {name: weights.get(name, torch.zeros(tensor.shape)).clone() for name, tensor in wanted.items()}
    for name in list(state):
        for layer, number in (("conv", 0), ("norm", 1)):
            module, _, part = name.rpartition(f".{layer}.")
            if module and "." not in part:
                state[f"{module}.all_modules.{number}.{part}"] = state[name]
    return state | {f"decoder.{name}": tensor for name, tensor in state.items() if name.startswith("encoder.")}


def _checkpoint(weights: dict[str, Tensor], card: ModelCard, fold: int) -> dict[str, Any]:
    """What nnU-Net's trainer saves, as far as its predictor reads it."""
    mirrored = card.origin.mirrored if card.origin is not None else _flipped(card)
    return {
        "network_weights": weights,
        "optimizer_state": None,
        "grad_scaler_state": None,
        "logging": {},
        "_best_ema": None,
        "current_epoch": card.step,
        "init_args": {"configuration": _CONFIGURATION, "fold": fold},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": mirrored or None,
    }


def _flipped(card: ModelCard) -> tuple[int, ...]:
    """The axes that training flipped."""
    return tuple(axis for axis, share in enumerate(card.config.augmentation.flip) if share > 0)
