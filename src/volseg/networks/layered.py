"""Nodes without a kernel in the program: a network that has one runs through partitioned torch layers.

A node's output is mostly a tensor of voxels. `GlobalMean` makes one value a channel, [C], of the whole volume; so do
the nodes that read nothing else (`Dense`, `Function`, ...), and `Combination` joins such values with voxels.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from volseg.geometry import Triple
from volseg.networks.description import Network, Node

FunctionKind = Literal[
    "abs", "celu", "clamp", "elu", "exp", "gelu", "gelu_tanh", "hardsigmoid", "hardswish", "leaky_relu", "log",
    "mish", "neg", "power", "prelu", "reciprocal", "selu", "sigmoid", "silu", "softplus", "sqrt", "tanh",
]  # fmt: skip
JoinKind = Literal["add", "subtract", "multiply", "divide", "maximum", "minimum"]
ReductionKind = Literal["mean", "sum", "max", "min"]


@dataclass(frozen=True)
class LayeredNode(Node):
    """One operation that the program has no kernel for."""


def described_as(node: LayeredNode) -> str:
    """What a message calls it, with its article."""
    if isinstance(node, (Function, Combination, Scaling)):
        return f"the function {node.function}"
    words = re.sub("(?<=[a-z])(?=[A-Z])", " ", type(node).__name__).lower()
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def everywhere(network: Network) -> frozenset[str]:
    """Names of the nodes that make one value a channel, of the whole volume."""
    names: set[str] = set()
    for node in network.nodes:
        alone = isinstance(node, LayeredNode) and all(name in names for name in node.reads)
        if isinstance(node, GlobalMean) or alone:
            names.add(node.name)
    return frozenset(names)


@dataclass(frozen=True)
class GeneralConvolution(LayeredNode):
    """Any convolution of its inputs side by side, or any transposed one.

    kernel, stride, padding, dilation  per axis
    groups      of channels that are convolved apart
    module      path of the torch layer
    transposed  whether it is the adjoint of a convolution
    extra       voxels that a transposed convolution has more at the end of each axis
    """

    kernel: Triple
    stride: Triple
    padding: Triple
    dilation: Triple
    groups: int
    bias: bool
    module: str
    transposed: bool = False
    extra: Triple = (0, 0, 0)


@dataclass(frozen=True)
class GeneralPool(LayeredNode):
    """The largest value or the average of windows that may overlap.

    counts_padding  whether an average at a face counts the zeros beyond it
    """

    kind: Literal["max", "average"]
    kernel: Triple
    stride: Triple
    padding: Triple
    dilation: Triple = (1, 1, 1)
    counts_padding: bool = True


@dataclass(frozen=True)
class AlignedInterpolation(LayeredNode):
    """Trilinear up-sampling that keeps the corners' voxel centres (torch's ``align_corners=True``)."""

    factors: Triple


@dataclass(frozen=True)
class Function(LayeredNode):
    """A function of each value on its own.

    function  torch's function of that name; power is x ** values[0], clamp between values[0] and values[1]
    values    its numbers, in the order in which torch has them
    module    path of the layer that has a PReLU's slopes
    slopes    how many it has
    """

    function: FunctionKind
    values: tuple[float, ...] = ()
    module: str = ""
    slopes: int = 0


@dataclass(frozen=True)
class Combination(LayeredNode):
    """Two inputs joined value by value; one of the two may have one channel, or one value a channel."""

    function: JoinKind


@dataclass(frozen=True)
class Scaling(LayeredNode):
    """Its input joined with a constant or a parameter, of one value or of one a channel.

    values    the constant; of no account where there is a parameter
    module    path of the parameter
    shape     of the parameter, which has 1 value or as many as there are channels
    reversed  whether the constant is the first of the two
    """

    function: JoinKind
    values: tuple[float, ...] = ()
    module: str = ""
    shape: tuple[int, ...] = ()
    reversed: bool = False


@dataclass(frozen=True)
class Concatenation(LayeredNode):
    """Its inputs side by side, for a node that is no convolution."""


@dataclass(frozen=True)
class Channels(LayeredNode):
    """Channels `start`, `start` + `step`, ... before `stop` of its input."""

    start: int
    stop: int
    step: int = 1


@dataclass(frozen=True)
class ChannelReduction(LayeredNode):
    """One channel made of all channels of each voxel."""

    reduction: ReductionKind


@dataclass(frozen=True)
class ChannelSoftmax(LayeredNode):
    """The softmax over the channels of each voxel, or its logarithm."""

    logarithm: bool = False


@dataclass(frozen=True)
class PixelShuffle(LayeredNode):
    """Channels spread over space: voxel f*i + r of channel c is channel c*f^3 + r of voxel i, r in C order."""

    factors: Triple


@dataclass(frozen=True)
class PixelUnshuffle(LayeredNode):
    """The inverse of `PixelShuffle`: the voxels of a block of `factors` become channels."""

    factors: Triple


@dataclass(frozen=True)
class ChannelOrder(LayeredNode):
    """Channels in another order.

    split  what their number is a product of: channel c is an index into an array of this shape, in C order
    order  of the axes of that array, in which the output's channels go through it
    """

    split: tuple[int, ...]
    order: tuple[int, ...]


@dataclass(frozen=True)
class ChannelPad(LayeredNode):
    """Channels of one value before and after those of its input."""

    before: int
    after: int
    value: float = 0.0


@dataclass(frozen=True)
class VoxelPad(LayeredNode):
    """Voxels of one value before and after the volume, on each axis; below zero: so many of its own are cut off."""

    before: Triple
    after: Triple
    value: float = 0.0


@dataclass(frozen=True)
class GlobalMean(LayeredNode):
    """The mean over all voxels of the volume, one value a channel."""


@dataclass(frozen=True)
class Dense(LayeredNode):
    """A matrix product of one value a channel.

    module   path of the torch layer: a linear one, or a 1x1x1 convolution
    kernel   dimensions that its weight has behind [channels, inputs]: 0 or 3
    """

    bias: bool
    module: str
    kernel: int = 0


@dataclass(frozen=True)
class VoxelDropout(LayeredNode):
    """Each value dropped on its own, in training.

    dropout  probability
    module   path of the torch layer
    """

    dropout: float
    module: str
