"""The U-Net under test: as volseg runs it and as one would write it with torch, its operations, and steps of both."""

from __future__ import annotations

import copy
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from volseg.config import ModelConfig
from volseg.distributed.communicator import Communicator, SerialCommunicator
from volseg.distributed.grid import ProcessGrid
from volseg.geometry import Triple
from volseg.models.fused import FusedNetwork
from volseg.models.unet import UNet
from volseg.networks.architectures import described
from volseg.networks.description import Convolution, Head, UpConvolution

CLASSES = 3


NETWORKS: dict[str, dict[str, Any]] = {
    "plain": {},
    "residual": {"encoder": "residual"},
    "anisotropic": {
        "kernels": ((1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)),
        "strides": ((1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2)),
    },
}
"""Settings of the networks that are measured; the residual encoder has the blocks of nnU-Net's presets, the anisotropic
network four halvings."""


def configuration(base_channels: int, levels: int, network: str = "plain", classes: int = CLASSES) -> ModelConfig:
    """One image channel, instance norm."""
    sizes = {"in_channels": 1, "classes": classes, "base_channels": base_channels, "levels": levels}
    return ModelConfig(**sizes, **NETWORKS[network])


def shape_of(text: str) -> Triple:
    """A cube's side, or D x H x W, such as 40x320x320."""
    sides = [int(side) for side in text.split("x")]
    d, h, w = sides * 3 if len(sides) == 1 else sides
    return d, h, w


def fused(
    model: UNet, communicator: Communicator | None = None, dims: tuple[int, int, int] = (1, 1, 1)
) -> FusedNetwork:
    """The network as `volseg train` and `volseg segment` run it, with weights of its own."""
    return FusedNetwork(copy.deepcopy(model), ProcessGrid(communicator or SerialCommunicator(), dims))


def data(sides: tuple[int, int, int], seed: int = 0) -> tuple[Tensor, Tensor]:
    """An image [1, 1, D, H, W] and labels [1, D, H, W]."""
    source = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (1, *sides), dtype=torch.uint8, generator=source)
    return torch.randn(1, 1, *sides, generator=source), labels


def plain_forward(model: nn.Module, x: Tensor, _: Tensor) -> None:
    """Logits and their arg-max."""
    with torch.inference_mode():
        model(x).argmax(1)


def plain_step(model: nn.Module, x: Tensor, target: Tensor) -> None:
    """Forward, Dice + cross-entropy and backward, as one would write it with torch."""
    logits = model(x)
    labels = target.long()
    p, t = logits.softmax(1), F.one_hot(labels, CLASSES).permute(0, 4, 1, 2, 3)
    dice = (2 * (p * t).sum((0, 2, 3, 4)) + 1e-5) / (p.sum((0, 2, 3, 4)) + t.sum((0, 2, 3, 4)) + 1e-5)
    (F.cross_entropy(logits, labels) + 1 - dice[1:].mean()).backward()
    model.zero_grad(set_to_none=True)


def our_forward(model: FusedNetwork, x: Tensor, _: Tensor) -> None:
    """The arg-max of the logits, slab by slab, as `segment` takes it."""
    model.eval()
    with torch.inference_mode():
        for _, logits in model.logit_slabs(x):
            logits[0].argmax(0)


def our_step(model: FusedNetwork, x: Tensor, target: Tensor) -> None:
    """Forward, Dice + cross-entropy and backward, as `train` takes it; no optimizer, and no sum over ranks."""
    model.train()
    loss, _ = model.loss(x, target)
    loss.backward()
    model.zero_grad(set_to_none=True)


def forward_operations(config: ModelConfig, voxels: int) -> float:
    """Multiplications and additions of the direct sums of a forward pass, whatever the kernels do."""
    network, total = described(config), 0.0
    for node in network.nodes:
        inputs = sum(network.inputs_of(node))
        here = voxels / prod(network.factors[node.stage])
        match node:
            case Convolution():
                total += 2 * prod(node.kernel) * here * inputs * node.channels
            case UpConvolution() | Head():  # one of an up-convolution's taps meets each voxel
                total += 2 * here * inputs * node.channels
    return total
