"""The weights of a module under the names that the module of its description has."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from volseg.errors import PartitionError
from volseg.models.described import DescribedModule
from volseg.models.node_layers import identity
from volseg.networks.description import Network


def state_for(network: Network, module: nn.Module) -> dict[str, Tensor]:
    """What `DescribedModule(network)` loads to compute what `module` does: its tensors, shared with it.

    Raises PartitionError where `module` lacks a tensor or has it in another shape.
    """
    return state_from(network, module.state_dict(keep_vars=True), type(module).__name__)


def state_from(network: Network, tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """`state_for` of a state dict; `where` begins the messages."""
    passing = {node.module for node in network.heads if node.passes}
    with torch.device("meta"):
        wanted = DescribedModule(network).state_dict()
    state = {}
    for name, like in wanted.items():
        tensor = tensors.get(name)
        if name.rpartition(".")[0] in passing:
            tensor = identity(like)
        if tensor is None or tensor.shape != like.shape:
            shape = "nothing" if tensor is None else list(tensor.shape)
            raise PartitionError(f"{where}: has {shape} as {name}, where the network has {list(like.shape)}")
        state[name] = tensor.detach()
    return state
