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
from volseg.networks.deep_supervision import without_training_heads
from volseg.networks.description import ONES, Convolution, Head, Network, UpConvolution
from volseg.networks.nnunet import Architecture, nnunet
from volseg.precision import Precision

CLASSES = 3


_THIN: dict[str, Any] = {
    "kernels": ((1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)),
    "strides": ((1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2)),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "residual": {"encoder": "residual"},
    "anisotropic": _THIN,
}
"""Settings of U-Nets of volseg; the residual encoder has the blocks of nnU-Net's presets, the anisotropic network four
halvings."""

NETWORKS = (*SETTINGS, "nnunet", "nnunet-resenc", "nnunet-anisotropic")
"""All that is measured: those of nnU-Net are its PlainConvUNet, that of kernels and strides as the anisotropic U-Net
has, and its ResEnc M."""


def configuration(base_channels: int, levels: int, network: str = "plain", classes: int = CLASSES) -> ModelConfig:
    """The settings of a U-Net of volseg: one image channel, instance norm."""
    sizes = {"in_channels": 1, "classes": classes, "base_channels": base_channels, "levels": levels}
    return ModelConfig(**sizes, **SETTINGS[network])


def network_named(name: str, base_channels: int, levels: int, classes: int = CLASSES) -> Network:
    """One of `NETWORKS`, without heads for training alone."""
    if name in SETTINGS:
        return described(configuration(base_channels, levels, name, classes))
    thin, cube, twice = name.endswith("anisotropic"), (3, 3, 3), (2, 2, 2)
    blocks = (1, 3, 4, 6, 6, 6, 6, 6, 6)[: levels + 1]
    architecture = Architecture(
        family="residual encoder" if name.endswith("resenc") else "plain",
        features=tuple(min(320, base_channels * 2**n) for n in range(levels + 1)),
        kernels=(*_THIN["kernels"], *(cube,) * levels)[: levels + 1] if thin else (cube,) * (levels + 1),
        strides=(ONES, *((*_THIN["strides"], *(twice,) * levels)[:levels] if thin else (twice,) * levels)),
        encoder=blocks if name.endswith("resenc") else (2,) * (levels + 1),
        decoder=(1 if name.endswith("resenc") else 2,) * levels,
    )
    return without_training_heads(nnunet(architecture, 1, classes))


def module_of(network: Network) -> UNet:
    """The plain torch module of a network."""
    return UNet(ModelConfig(in_channels=1, classes=network.classes), described=network)


def shape_of(text: str) -> Triple:
    """A cube's side, or D x H x W, such as 40x320x320."""
    sides = [int(side) for side in text.split("x")]
    d, h, w = sides * 3 if len(sides) == 1 else sides
    return d, h, w


def fused(
    model: UNet, communicator: Communicator | None = None, dims: tuple[int, int, int] = (1, 1, 1),
    precision: str = "float32",
) -> FusedNetwork:  # fmt: skip
    """The network as `volseg train` and `volseg segment` run it, with weights of its own."""
    grid = ProcessGrid(communicator or SerialCommunicator(), dims)
    return FusedNetwork(copy.deepcopy(model), grid, precision=Precision(precision))


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


def forward_operations(network: Network, voxels: int) -> float:
    """Multiplications and additions of the direct sums of a forward pass, whatever the kernels do."""
    total = 0.0
    for node in network.nodes:
        inputs = sum(network.inputs_of(node))
        here = voxels / prod(network.factors[node.stage])
        match node:
            case Convolution():
                total += 2 * prod(node.kernel) * here * inputs * node.channels
            case UpConvolution() | Head():  # one of an up-convolution's taps meets each voxel
                total += 2 * here * inputs * node.channels
    return total
