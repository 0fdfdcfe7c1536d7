"""SegResNet of a configuration: residual blocks of norm, activation, convolution; skip connections by addition.

Myronenko, "3D MRI brain tumor segmentation using autoencoder regularization" (BrainLes 2018), without the autoencoder,
as MONAI's `SegResNet` lays it out: one, two, two, four blocks a stage going down, one going up, convolutions without
bias, strided ones down; up a 1x1x1 convolution, and then a transposed one (``upsample_mode="deconv"``) or, with
``up = "trilinear"``, interpolation (``"nontrainable"``). The layers stand under the names that MONAI gives them, but
for the last convolution, which is `head`.
"""

from __future__ import annotations

from functools import lru_cache

from volseg.config import ModelConfig
from volseg.geometry import Triple
from volseg.networks.activations import activation_named
from volseg.networks.description import (
    IMAGE,
    ONES,
    Addition,
    Convolution,
    Head,
    Interpolation,
    Network,
    Node,
    Normalization,
    UpConvolution,
)

_MODULES = ("convInit", "down_layers", "up_layers", "up_samples", "conv_final", "head", "deep_heads")


@lru_cache(maxsize=64)
def segresnet(config: ModelConfig) -> Network:
    """The description of the SegResNet of `config`."""
    builder = _Builder(config)
    x = builder.convolution("initial", 0, IMAGE, config.stage_kernels[0], "convInit.conv")
    skips: list[str] = []
    for level, count in enumerate(config.block_counts):
        if level:
            stride, module = config.halvings[level - 1], f"down_layers.{level}.0.conv"
            x = builder.convolution(f"down {level}", level, x, config.stage_kernels[level], module, stride)
        for number in range(count):
            x = builder.block(f"encoder {level}", level, number, x, f"down_layers.{level}.{number + 1}")
        skips.append(x)
    skips.pop()
    for level in reversed(range(config.levels)):
        x = builder.up(level, x, skips.pop())
        x = builder.block(f"decoder {level}", level, 0, x, f"up_layers.{config.levels - 1 - level}.0")
    builder.add(Head("head", (builder.activated(x, 0, "conv_final.0"),), 0, config.classes or 2, "head"))
    return Network(config.in_channels or 1, (ONES, *config.halvings), tuple(builder.nodes), _MODULES)


class _Builder:
    """Adds nodes, and gives the name by which the next one reads them."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.nodes: list[Node] = []

    def add(self, node: Node) -> str:
        self.nodes.append(node)
        return node.name

    def convolution(
        self, name: str, level: int, x: str, kernel: Triple, module: str, stride: Triple = ONES, channels: int = 0
    ) -> str:  # fmt: skip
        """channels: those of the level, if 0."""
        width = channels or self.config.widths[level]
        return self.add(Convolution(name, (x,), level, width, kernel, stride, bias=False, module=module))

    def activated(self, x: str, level: int, module: str) -> str:
        """A tensor read through norm and activation."""
        norm, width = self.config.norm, self.config.widths[level]
        kind, slope = activation_named(self.config.activation)
        return self.add(
            Normalization(
                f"{x}, activated", (x,), level, width, norm, slope, module=module if norm != "none" else "",
                groups=min(8, width) if norm == "group" else 0, activation=kind,
            )
        )  # fmt: skip

    def block(self, part: str, level: int, number: int, x: str, module: str) -> str:
        """``x + conv(activation(norm(conv(activation(norm(x))))))`` (He et al., "Identity mappings", ECCV 2016)."""
        first, second = (f"{part}.{2 * number + n}" for n in (1, 2))
        kernel = self.config.stage_kernels[level]
        y = self.convolution(first, level, self.activated(x, level, f"{module}.norm1"), kernel, f"{module}.conv1.conv")
        y = self.convolution(second, level, self.activated(y, level, f"{module}.norm2"), kernel, f"{module}.conv2.conv")
        return self.add(Addition(f"{second} sum", (y, x), level, self.config.widths[level]))

    def up(self, level: int, x: str, skip: str) -> str:
        """Fewer channels, then more voxels, then the skip connection added."""
        name, width, module = f"up {level}", self.config.widths[level], f"up_samples.{self.config.levels - 1 - level}"
        narrow = self.convolution(f"{name}.1", level + 1, x, ONES, f"{module}.0.conv", channels=width)
        factors, how = self.config.halvings[level], self.config.up
        if how == "transpose":
            lifted = self.add(UpConvolution(name, (narrow,), level, width, factors, True, f"{module}.1.deconv"))
        else:
            layer = f"{module}.1.upsample_non_trainable"
            lifted = self.add(Interpolation(name, (narrow,), level, width, factors, how, layer))
        return self.add(Addition(f"{name} sum", (lifted, skip), level, width))
