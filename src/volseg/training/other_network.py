"""A run that begins with a network of the user's own, of MONAI, or of a plan of nnU-Net."""

from __future__ import annotations

from dataclasses import replace

import torch

from volseg.config import Config
from volseg.errors import ConfigError, PartitionError
from volseg.models.adapting import take_weights
from volseg.models.exported import describe, state_for
from volseg.models.unet import UNet
from volseg.models.user_module import module_named
from volseg.networks.axes import along, turned
from volseg.networks.deep_supervision import without_training_heads
from volseg.networks.imported import imported_model
from volseg.networks.nnunet import nnunet
from volseg.training.beginning import Beginning, spacing_text
from volseg.training.job import NetworkSource
from volseg.volumes.dataset import Dataset
from volseg.volumes.nnunet_plan import read_plan, read_plans

_USUAL = "3d_fullres"
"""The configuration of a plan where none is named."""


def from_module(source: NetworkSource, config: Config, dataset: Dataset) -> tuple[Beginning, str]:
    """A module that the user names, with its own first weights; what it is, in words.

    Raises ConfigError where it cannot be made or described, or gives another number of classes than the data set has.
    """
    assert source.module is not None
    channels, classes = len(dataset.channel_names), len(dataset.outputs)
    torch.manual_seed(config.training.seed)
    module = module_named(source.module, source.arguments, channels, classes)
    try:
        described = describe(module, channels)
        weights = state_for(described, module)
    except PartitionError as error:
        raise ConfigError(f"{source}: {error}") from error
    if described.classes != classes:
        raise ConfigError(
            f"{source}: gives {described.classes} channels, but {dataset.folder} has {classes} classes "
            f"or regions: {', '.join(dataset.outputs)}; have it make as many"
        )
    network = without_training_heads(described)

    def fill(made: UNet) -> None:
        same = range(channels), range(classes)
        take_weights(made, weights, described, channels=same[0], classes=same[1], where=str(source))

    begun = Beginning(config=replace(config, model=imported_model(network)), network=network, fill=fill)
    return begun, f"the network is {source.module}: {network.parameters():,} weights, as the module draws them"


def from_plans(source: NetworkSource, config: Config, dataset: Dataset) -> tuple[Beginning, str]:
    """The network, the spacing and the normalisation of a plan of nnU-Net, with weights that are drawn; said in words.

    Where the plan turns the axes, the network is turned to the canonical ones, in which volseg sees volumes.

    Raises ConfigError where the plan cannot be read, or has no such configuration.
    """
    assert source.plans is not None
    name = source.configuration or _USUAL
    plan = read_plan(read_plans(source.plans), name, dataset.channel_names, str(source.plans))
    own = nnunet(plan.architecture, len(dataset.channel_names), len(dataset.outputs))
    network = turned(without_training_heads(own), plan.transpose)
    data = config.data
    if data.spacing == "auto":
        data = replace(data, spacing=spacing_text(along(plan.spacing, plan.transpose)))
    begun = Beginning(
        config=replace(config, model=imported_model(network), data=data), network=network, schemes=plan.schemes
    )
    said = f"network, spacing and normalisation are those of {source}, {name}: {network.parameters():,} weights, drawn"
    return begun, "; ".join([said, *plan.notes])
