"""The layers of a partitioned U-Net as the fused code runs them, by their place in the network."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from volseg.models.unet import UNet
from volseg.nn.context import PartitionContext
from volseg.nn.fused.layer import Layer, kept_channels
from volseg.nn.layer import PartitionedLayer


def layer_of(twin: UNet, part: str, level: int, number: int) -> Layer:
    """Convolution 1 or 2 of the "encoder" or "decoder" of a level, with its norm and activation."""
    modules: Any = getattr(twin, part)[level]
    first = 3 * (number - 1)
    dropout = modules[6] if number == 2 and len(modules) > 6 else None
    return Layer(f"{part} {level}.{number}", modules[first], modules[first + 1], slope_of(twin), dropout)


def slope_of(twin: UNet) -> float:
    """Of the (leaky) ReLUs, below zero."""
    return 0.01 if twin.config.activation == "leaky_relu" else 0.0


def output_of(twin: UNet, level: int) -> str:
    """The layer whose output a level gives to the one above."""
    return f"{'encoder' if level == twin.config.levels else 'decoder'} {level}.2"


def sit_out(twin: UNet, first: int) -> None:
    """Draw what the layers of the levels from `first` on draw, where this rank takes no part in them. Collective.

    All ranks must have drawn the same numbers when the next layer does, and the random state is theirs together.
    """
    top = twin.config.levels
    for level in range(first, top + 1):
        kept_channels(layer_of(twin, "encoder", level, 2))
    for level in reversed(range(first, top)):
        kept_channels(layer_of(twin, "decoder", level, 2))


def running_statistics(twin: UNet, first: int) -> list[Tensor]:
    """What a pass changes of the batch norms of the levels from `first` on; nothing where none is training."""
    parts: Any = (twin.encoder, twin.decoder)
    modules = [module for part in parts for level in list(part)[first:] for module in level]
    return [
        tensor for norm in modules if isinstance(norm, nn.BatchNorm3d) and norm.training for tensor in norm.buffers()
    ]


def context_of(twin: UNet) -> PartitionContext:
    """What the partitioned layers share."""
    first = next(module for module in twin.encoder.modules() if isinstance(module, PartitionedLayer))
    return first.context


def as_batch(rows: Tensor) -> Tensor:
    """[d, h, w, C] as [1, C, d, h, w]."""
    return rows.permute(3, 0, 1, 2).unsqueeze(0)
