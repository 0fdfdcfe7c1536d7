"""Weights that fit a description, and the configuration of a run whose network is described beside its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from volseg.config import Config, DataConfig, ModelConfig
from volseg.errors import CheckpointError, ConfigError, first_few
from volseg.geometry import Triple
from volseg.models.described import DescribedModule
from volseg.networks.description import Network


def fitted(weights: Mapping[str, Tensor], network: Network, where: str) -> dict[str, Tensor]:
    """The weights of a network in float32.

    Raises CheckpointError, which names them, where tensors are missing, have no place, have other shapes, or hold NaN
    or infinite values.
    """
    with torch.device("meta"):
        wanted = DescribedModule(network).state_dict()
    missing, strange = sorted(wanted.keys() - weights.keys()), sorted(weights.keys() - wanted.keys())
    if missing or strange:
        what = [f"{first_few(missing)} missing"] * bool(missing) + [f"{first_few(strange)} of no use"] * bool(strange)
        raise CheckpointError(
            f"{where}: its weights are not those of the network that it describes: {', '.join(what)}; a trainer that "
            "changes the network cannot be imported so: bring it as a torch.export archive (.pt2)"
        )
    for name, tensor in wanted.items():
        if weights[name].shape != tensor.shape:
            raise CheckpointError(
                f"{where}: {name} has the shape {tuple(weights[name].shape)}, but the network that it describes has "
                f"{tuple(tensor.shape)} there"
            )
        if not torch.isfinite(weights[name]).all():
            raise CheckpointError(f"{where}: {name} holds values that are NaN or infinite; the training went wrong")
    return {name: weights[name].to(tensor.dtype) for name, tensor in wanted.items()}


def imported_config(network: Network, kernels: Sequence[Triple], data: DataConfig | None = None) -> Config:
    """The configuration of such a run: what of the network the settings can say, for whoever reads it.

    kernels  of each stage's convolutions
    data     what the network sees of a case; by default volumes at the card's spacing
    """
    data = data or DataConfig()
    model = ModelConfig(
        architecture="imported", in_channels=network.in_channels, classes=network.classes, levels=network.deepest
    )
    full = replace(model, features=network.widths, kernels=tuple(kernels), strides=network.strides[1:])
    try:
        full.check()
    except ConfigError:
        return Config(model=model, data=data)
    return Config(model=full, data=data)
