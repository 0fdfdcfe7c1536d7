"""The 3D U-Net of a configuration.

Ronneberger, Fischer & Brox, "U-Net" (MICCAI 2015); Cicek et al., "3D U-Net" (MICCAI 2016): two convolutions with norm
and activation per stage, max-pooling down, up-convolution, skip connections by concatenation. With residual blocks in
the encoder as nnU-Net's ResEnc presets (Isensee et al., "nnU-Net Revisited", MICCAI 2024); with ``down = "stride"``
the first convolution of a stage has the stride, and the means of as many voxels go through the 1x1x1 convolution of the
block's skip, as in theirs. Kernels and strides are those of each axis and stage.
"""

from __future__ import annotations

from functools import lru_cache

from volseg.config import ModelConfig
from volseg.geometry import Triple
from volseg.networks.activations import LINEAR, Activation, activation_named
from volseg.networks.description import (
    IMAGE,
    ONES,
    Addition,
    AveragePool,
    Convolution,
    Head,
    Interpolation,
    MaxPool,
    Network,
    Node,
    Normalization,
    UpConvolution,
)

_MODULES = ("encoder", "down", "up", "decoder", "head", "deep_heads")


@lru_cache(maxsize=64)
def unet(config: ModelConfig) -> Network:
    """The description of the U-Net of `config`."""
    builder = _Builder(config)
    skips: list[str] = []
    x = IMAGE
    for level in range(config.levels + 1):
        x = builder.encoder(level, x)
        if level < config.levels:
            skips.append(x)
            x = builder.down(level, x)
    for level in reversed(range(config.levels)):
        x = builder.decoder(level, (skips.pop(), builder.up(level, x)))
    builder.add(Head("head", (x,), 0, config.classes or 2, "head"))
    return Network(config.in_channels or 1, (ONES, *config.halvings), tuple(builder.nodes), _MODULES)


class _Builder:
    """Adds nodes, and gives the name by which the next one reads them."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.nodes: list[Node] = []
        self.activation = activation_named(config.activation)

    def add(self, node: Node) -> str:
        self.nodes.append(node)
        return node.name

    def encoder(self, level: int, x: str) -> str:
        blocks = self.config.block_counts[level]
        if not blocks:
            return self._convolutions(f"encoder {level}", level, (x,), f"encoder.{level}", self._entering(level))
        for number in range(blocks):
            dropping = f"encoder.{level}.{blocks}" if number == blocks - 1 and self.config.dropout else ""
            x = self._residual(f"encoder {level}", level, number, x, f"encoder.{level}.{number}", dropping)
        return x

    def decoder(self, level: int, reads: tuple[str, ...]) -> str:
        return self._convolutions(f"decoder {level}", level, reads, f"decoder.{level}", ONES)

    def down(self, level: int, x: str) -> str:
        """What the next stage reads; where its first convolution has the stride, the tensor itself."""
        if self.config.down == "stride":
            return x
        width, window = self.config.widths[level], self.config.halvings[level]
        return self.add(MaxPool(f"pooled {level}", (x,), level + 1, width, window))

    def _entering(self, level: int) -> Triple:
        """The stride of a stage's first convolution in the encoder."""
        return self.config.halvings[level - 1] if level and self.config.down == "stride" else ONES

    def up(self, level: int, x: str) -> str:
        name, width, module = f"up {level}", self.config.widths[level], f"up.{level}"
        factors = self.config.halvings[level]
        if self.config.up == "transpose":
            return self.add(UpConvolution(name, (x,), level, width, factors, True, module))
        narrow = self.add(Convolution(f"{name}.1", (x,), level + 1, width, ONES, ONES, True, f"{module}.0"))
        return self.add(Interpolation(name, (narrow,), level, width, factors, self.config.up, f"{module}.1"))

    def _convolutions(self, part: str, level: int, reads: tuple[str, ...], module: str, stride: Triple) -> str:
        """The convolutions of a stage's encoder or decoder; the first has the stride."""
        count = self.config.convolutions
        for number in range(count):
            dropping = f"{module}.{3 * count}" if self.config.dropout and number == count - 1 else ""
            x = self._convolved(f"{part}.{number + 1}", level, reads, module, 3 * number, dropping, stride=stride)
            reads, stride = (x,), ONES
        return reads[0]

    def _convolved(
        self, name: str, level: int, reads: tuple[str, ...], module: str, first: int, dropping: str = "",
        kernel: Triple | None = None, activation: Activation | None = None, stride: Triple = ONES,
    ) -> str:  # fmt: skip
        """A convolution, its norm and its activation, which are the layers `first`, ... of `module`.

        activation  that of the configuration by default
        """
        norm, width, kernel = self.config.norm, self.config.widths[level], kernel or self.config.stage_kernels[level]
        bias = norm == "none"
        self.add(Convolution(name, reads, level, width, kernel, stride, bias=bias, module=f"{module}.{first}"))
        return self._activated(name, level, f"{module}.{first + 1}", dropping, activation or self.activation)

    def _activated(self, name: str, level: int, module: str, dropping: str, activation: Activation) -> str:
        norm, width = self.config.norm if module else "none", self.config.widths[level]
        return self.add(
            Normalization(
                f"{name}, activated", (name,), level, width, norm, activation.slope,
                module=module if norm != "none" else "", groups=min(8, width) if norm == "group" else 0,
                dropout=self.config.dropout if dropping else 0.0, dropping=dropping, activation=activation.kind,
            )
        )  # fmt: skip

    def _residual(self, part: str, level: int, number: int, x: str, module: str, dropping: str) -> str:
        """``activation(norm(conv(activation(norm(conv(x))))) + skip(x))`` (He et al., CVPR 2016)."""
        width, first = self.config.widths[level], f"{part}.{2 * number + 1}"
        stride = self._entering(level) if number == 0 else ONES
        inputs = next((node.channels for node in self.nodes if node.name == x), self.config.in_channels or 1)
        second = f"{part}.{2 * number + 2}"
        skip = x
        if stride != ONES:
            skip = self.add(AveragePool(f"{first} averaged", (x,), level, inputs, stride))
        if inputs != width:
            skip = self._convolved(
                f"{first} skip", level, (skip,), f"{module}.skip", 0, kernel=ONES, activation=LINEAR
            )  # fmt: skip
        y = self._convolved(first, level, (x,), f"{module}.body", 0, stride=stride)
        y = self._convolved(second, level, (y,), f"{module}.body", 3, activation=LINEAR)
        total = self.add(Addition(f"{second} sum", (y, skip), level, width))
        return self._activated(total, level, "", dropping, self.activation)
