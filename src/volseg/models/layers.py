"""The layers of a partitioned U-Net as the fused code runs them, by their place in the network."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from volseg.models.unet import UNet
from volseg.nn.context import PartitionContext
from volseg.nn.fused.layer import Layer
from volseg.nn.layer import PartitionedLayer


def layer_of(twin: UNet, part: str, level: int, number: int) -> Layer:
    """Convolution 1 or 2 of the "encoder" or "decoder" of a level, with its norm and activation."""
    modules: Any = getattr(twin, part)[level]
    first = 3 * (number - 1)
    dropout = modules[6] if number == 2 and len(modules) > 6 else None
    slope = 0.01 if twin.config.activation == "leaky_relu" else 0.0
    return Layer(f"{part} {level}.{number}", modules[first], modules[first + 1], slope, dropout)


def context_of(twin: UNet) -> PartitionContext:
    """What the partitioned layers share."""
    level: Any = twin.encoder[0]
    assert isinstance(level[0], PartitionedLayer)
    return level[0].context


def as_batch(rows: Tensor) -> Tensor:
    """[d, h, w, C] as [1, C, d, h, w]."""
    return rows.permute(3, 0, 1, 2).unsqueeze(0)
