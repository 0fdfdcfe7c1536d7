"""Weights that fit a description."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from volseg.errors import CheckpointError, first_few
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
