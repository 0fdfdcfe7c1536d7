"""The networks of nnU-Net: its plain U-Net, the one with a residual encoder, and the one that is residual throughout.

Isensee et al., "nnU-Net" (Nature Methods 2021) and "nnU-Net Revisited" (MICCAI 2024): strided convolutions down,
up-convolutions, concatenation, a head at each stage of the decoder. A residual block pools its skip by averages before
the 1x1x1 convolution (He et al., "Bag of tricks", CVPR 2019). Layers stand under the paths of the package
dynamic_network_architectures, so that the state dict of its module fits as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from volseg.geometry import Triple
from volseg.networks.activations import LINEAR, Activation, activation_named
from volseg.networks.description import (
    IMAGE,
    ONES,
    Addition,
    AveragePool,
    Convolution,
    Head,
    Network,
    Node,
    Normalization,
    NormKind,
    UpConvolution,
)

_LEAKY_RELU = activation_named("leaky_relu")
Family = Literal["plain", "residual encoder", "residual"]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A network of nnU-Net by its numbers.

    family      plain (PlainConvUNet), residual encoder (ResidualEncoderUNet) or residual (ResidualUNet)
    features    channels of each stage, finest first
    kernels     of the convolutions of each stage
    strides     of each stage from the one before it; the first is 1, 1, 1
    encoder     convolutions of each stage of the encoder, or where it is residual, blocks
    decoder     those of each stage of the decoder, coarsest first, as plans have them
    bias        whether convolutions add one
    norm        kind of the norms
    eps         added to a norm's variance
    affine      whether norms have scales and shifts
    activation  of all convolutions but those that end a residual block
    stem        channels of the convolution that a residual encoder begins with; 0: those of the finest stage
    """

    family: Family
    features: tuple[int, ...]
    kernels: tuple[Triple, ...]
    strides: tuple[Triple, ...]
    encoder: tuple[int, ...]
    decoder: tuple[int, ...]
    bias: bool = True
    norm: NormKind = "instance"
    eps: float = 1e-5
    affine: bool = True
    activation: Activation = _LEAKY_RELU
    stem: int = 0


def nnunet(architecture: Architecture, in_channels: int, classes: int) -> Network:
    """The description of a network of nnU-Net, with the heads that training has at the coarser stages."""
    builder = _Builder(architecture, in_channels)
    deepest = len(architecture.features) - 1
    x = builder.stem() if architecture.family != "plain" else IMAGE
    skips: list[str] = []
    for stage in range(deepest + 1):
        x = builder.encoder(stage, x)
        skips.append(x)
    skips.pop()
    for step in range(deepest):
        stage = deepest - 1 - step
        x = builder.decoder(step, stage, x, skips.pop())
        name = f"head {stage}" if stage else "head"
        builder.add(Head(name, (x,), stage, classes, f"decoder.seg_layers.{step}", training=stage > 0))
    return Network(in_channels, architecture.strides, tuple(builder.nodes), ("encoder", "decoder"))


class _Builder:
    """Adds nodes, and gives the name by which the next one reads them."""

    def __init__(self, architecture: Architecture, in_channels: int) -> None:
        self.of, self.channels = architecture, in_channels
        self.nodes: list[Node] = []

    def add(self, node: Node) -> str:
        self.nodes.append(node)
        return node.name

    def stem(self) -> str:
        """The convolution before the first stage of a residual encoder."""
        self.channels = self.of.stem or self.of.features[0]
        return self._convolved("stem", 0, (IMAGE,), self.channels, self.of.kernels[0], "encoder.stem.convs.0")

    def encoder(self, stage: int, x: str) -> str:
        plain = self.of.family == "plain"
        module = f"encoder.stages.{stage}" + (".0.convs" if plain else ".blocks")
        return self._stack(
            f"encoder {stage}", stage, (x,), self.of.encoder[stage], module, self.of.strides[stage], plain
        )

    def decoder(self, step: int, stage: int, x: str, skip: str) -> str:
        """What comes up, and beside it what the encoder made."""
        factors, width = self.of.strides[stage + 1], self.of.features[stage]
        module = f"decoder.transpconvs.{step}"
        up = self.add(UpConvolution(f"up {stage}", (x,), stage, width, factors, self.of.bias, module))
        plain = self.of.family != "residual"
        module = f"decoder.stages.{step}" + (".convs" if plain else ".blocks")
        self.channels = 2 * width
        return self._stack(f"decoder {stage}", stage, (up, skip), self.of.decoder[step], module, ONES, plain)

    def _stack(
        self, part: str, stage: int, reads: tuple[str, ...], count: int, module: str, stride: Triple, plain: bool
    ) -> str:  # fmt: skip
        """Convolutions or residual blocks one after another; the first has the stride."""
        width, kernel = self.of.features[stage], self.of.kernels[stage]
        for number in range(count):
            inside = f"{module}.{number}"
            if plain:
                x = self._convolved(f"{part}.{number + 1}", stage, reads, width, kernel, inside, stride)
            else:
                x = self._residual(part, stage, number, reads, inside, stride)
            reads, stride, self.channels = (x,), ONES, width
        return reads[0]

    def _convolved(
        self, name: str, stage: int, reads: tuple[str, ...], width: int, kernel: Triple, module: str,
        stride: Triple = ONES, activation: Activation | None = None, bias: bool | None = None,
    ) -> str:  # fmt: skip
        """A convolution, its norm and its activation.

        activation, bias  those of the architecture by default
        """
        biased = self.of.bias if bias is None else bias
        self.add(Convolution(name, reads, stage, width, kernel, stride, biased, f"{module}.conv"))
        norm = f"{module}.norm" if self.of.norm != "none" else ""
        return self._activated(name, stage, width, norm, activation or self.of.activation)

    def _activated(self, name: str, stage: int, width: int, module: str, activation: Activation) -> str:
        norm = self.of.norm if module else "none"
        kind, slope = activation
        return self.add(
            Normalization(
                f"{name}, activated", (name,), stage, width, norm, slope, module, self.of.eps, activation=kind,
                affine=self.of.affine,
            )
        )  # fmt: skip

    def _residual(
        self, part: str, stage: int, number: int, reads: tuple[str, ...], module: str, stride: Triple
    ) -> str:  # fmt: skip
        """``activation(norm(conv(activation(norm(conv(x))))) + skip(x))``, the package's `BasicBlockD`."""
        width, kernel = self.of.features[stage], self.of.kernels[stage]
        first, second = (f"{part}.{2 * number + n}" for n in (1, 2))
        skip, layer = reads, 0
        if stride != ONES:
            pooled = AveragePool(f"{first} skip pooled", reads, stage, self.channels, stride)
            skip, layer = (self.add(pooled),), 1
        if self.channels != width:
            projection = f"{module}.skip.{layer}"
            projected = self._convolved(f"{first} skip", stage, skip, width, ONES, projection, ONES, LINEAR, bias=False)
            skip = (projected,)
        y = self._convolved(first, stage, reads, width, kernel, f"{module}.conv1", stride)
        y = self._convolved(second, stage, (y,), width, kernel, f"{module}.conv2", ONES, LINEAR)
        total = self.add(Addition(f"{second} sum", (y, *skip), stage, width))
        return self._activated(total, stage, width, "", self.of.activation)
