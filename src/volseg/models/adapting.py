"""The weights of one network in another that differs from it in channels of the image and of the logits alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from volseg.errors import CheckpointError
from volseg.models.unet import UNet
from volseg.networks.description import IMAGE, Convolution, Network

Kept = Sequence[int | None]
"""By channel of the new network, the one of the old network that it continues; None: it has none."""


@torch.no_grad()
def take_weights(
    model: UNet, tensors: Mapping[str, Tensor], source: Network, *, channels: Kept, classes: Kept, where: str
) -> None:
    """Fill `model` with `tensors`, which are those of a module of `source`.

    channels, classes  of the image and of the logits
    where              begins the message of an error

    Weights of new channels and classes, and those of heads for training that `source` lacks, stay as they are.

    Raises CheckpointError where another weight is missing or has another shape.
    """
    state, taken = model.state_dict(), dict(tensors)
    heads = {head.stage: head for head in source.heads}
    for head in model.network.heads:
        if head.stage in heads:
            for part in ("weight", "bias"):
                name, before = f"{head.module}.{part}", f"{heads[head.stage].module}.{part}"
                if name in state and before in tensors:
                    taken[name] = _rows(state[name], tensors[before], classes)
        elif head.training:
            taken |= {name: tensor for name, tensor in state.items() if name.startswith(f"{head.module}.")}
    if list(channels) != list(range(source.in_channels)):
        for name, columns in _image_columns(model.network, source, channels).items():
            if name in tensors:
                new, old = state[name].transpose(0, 1), tensors[name].transpose(0, 1)
                taken[name] = _rows(new, old, columns).transpose(0, 1)
    for name, tensor in state.items():
        if name not in taken or taken[name].shape != tensor.shape:
            there = f"is {tuple(taken[name].shape)}" if name in taken else "is missing"
            raise CheckpointError(
                f"{where}: its weight {name} {there}, its network needs {tuple(tensor.shape)}; it does not fit its own "
                "description"
            )
        tensor.copy_(taken[name])


def _rows(new: Tensor, old: Tensor, kept: Kept) -> Tensor:
    """`new` with the rows of `old` that it continues, along the first axis."""
    found = new.clone()
    for place, row in enumerate(kept):
        if row is not None:
            found[place] = old[row]
    return found


def _image_columns(network: Network, source: Network, channels: Kept) -> dict[str, list[int | None]]:
    """By the name of each weight that reads the image: which input of the old one each of its inputs continues."""
    columns: dict[str, list[int | None]] = {}
    for node in network.readers[IMAGE]:
        assert isinstance(node, Convolution)  # `networks.adapting.for_data` refuses others
        continued: list[int | None] = []
        before = 0
        for name in node.reads:
            own = channels if name == IMAGE else range(network.channels_of(name))
            continued += [None if n is None else before + n for n in own]
            before += source.channels_of(name)
        columns[f"{node.module}.weight"] = continued
    return columns
