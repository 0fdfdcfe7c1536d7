"""A network as data: what it computes, in order, from which tensors, with which of a torch module's parameters.

A *stage* is a resolution; stage 0 is the finest. Convolutions, additions and pooling make tensors. A `Normalization` (a
norm, an activation, or both) makes none: it is a way of reading a tensor. So `convolution, norm, activation` and `norm,
activation, convolution` are the same nodes in another order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Literal

from volseg.geometry import Triple, quotient

IMAGE = "image"
"""The name by which nodes read the network's input."""

ONES: Triple = (1, 1, 1)
NormKind = Literal["instance", "group", "batch", "none"]
ActivationKind = Literal["leaky_relu", "silu", "gelu", "gelu_tanh", "sigmoid"]
KEEPING_ORDER: frozenset[ActivationKind] = frozenset({"leaky_relu", "sigmoid"})
"""Activations that never fall: the largest of several results is that of the largest input."""


@dataclass(frozen=True)
class Node:
    """One operation.

    name      unique; steps, times and messages are named after it
    reads     the nodes whose outputs it reads
    stage     the resolution of its output
    channels  of its output
    """

    name: str
    reads: tuple[str, ...]
    stage: int
    channels: int


@dataclass(frozen=True)
class Convolution(Node):
    """A convolution of its inputs side by side, padded so that stride 1 keeps the sides.

    kernel, stride  per axis
    bias            whether it adds one
    module          path of the torch layer, whose weight is [channels, inputs, *kernel]
    """

    kernel: Triple
    stride: Triple
    bias: bool
    module: str

    @property
    def reach(self) -> Triple:
        """Voxels before and after a voxel that it is computed from, on each axis."""
        d, h, w = (side // 2 for side in self.kernel)
        return d, h, w


@dataclass(frozen=True)
class Normalization(Node):
    """``dropout(activation(norm(x)))`` of its one input.

    norm        the kind; none leaves the values as they are
    groups      of a group norm
    eps         added to the variance
    slope       of the leaky ReLU below zero: 0 is ReLU, 1 no activation; other activations have none
    dropout     probability of dropping a channel
    module      path of the norm's torch layer; empty without a norm
    dropping    path of the dropout's torch layer; empty without one
    activation  leaky_relu, silu (x * sigmoid(x)), gelu (x * Phi(x), by the error function), gelu_tanh (what
                approximates that by a hyperbolic tangent) or sigmoid
    affine      whether the norm has a weight and a bias
    """

    norm: NormKind
    slope: float
    module: str = ""
    eps: float = 1e-5
    groups: int = 0
    dropout: float = 0.0
    dropping: str = ""
    activation: ActivationKind = "leaky_relu"
    affine: bool = True

    @property
    def activates(self) -> bool:
        """Whether there is an activation."""
        return self.activation != "leaky_relu" or self.slope != 1

    @property
    def keeps_order(self) -> bool:
        """Whether the activation is one of `KEEPING_ORDER`."""
        return self.activation in KEEPING_ORDER


@dataclass(frozen=True)
class MaxPool(Node):
    """The largest value of each window; the window is the stride."""

    window: Triple


@dataclass(frozen=True)
class AveragePool(Node):
    """The mean of each window; the window is the stride."""

    window: Triple


@dataclass(frozen=True)
class UpConvolution(Node):
    """A transposed convolution whose kernel is its stride.

    factors  per axis
    module   path of the torch layer, whose weight is [inputs, channels, *factors]
    """

    factors: Triple
    bias: bool
    module: str

    def reach(self, above: Triple) -> Triple:
        """How far beyond a block its input is read to make the output up to `above` voxels beyond it, on each axis."""
        d, h, w = (-(-n // factor) for n, factor in zip(above, self.factors, strict=True))
        return d, h, w


@dataclass(frozen=True)
class Interpolation(Node):
    """Up-sampling by interpolation; `module` is the path of torch's layer, which has no parameters."""

    factors: Triple
    mode: Literal["trilinear", "nearest"]
    module: str

    @property
    def reads_beside(self) -> Triple:
        """Whether, on each axis, a voxel is made from two: 1 or 0. So is a voxel's gradient then from those beside."""
        d, h, w = (int(self.mode == "trilinear" and factor > 1) for factor in self.factors)
        return d, h, w

    def reach(self, above: Triple) -> Triple:
        """How far beyond a block its input is read to make the output up to `above` voxels beyond it, on each axis."""
        d, h, w = (
            n // factor + 1 if beside else -(-n // factor)
            for n, factor, beside in zip(above, self.factors, self.reads_beside, strict=True)
        )
        return d, h, w


@dataclass(frozen=True)
class Addition(Node):
    """The sum of its two inputs."""


@dataclass(frozen=True)
class Head(Node):
    """A 1x1x1 convolution to logits.

    module    path of the torch layer
    training  whether it is for the loss alone
    passes    whether it has as many inputs and passes them on as they are: the node before it makes the logits
    """

    module: str
    training: bool = False
    passes: bool = False


@dataclass(frozen=True)
class Network:
    """A description.

    in_channels  of the image
    strides      of each stage from the one before it, per axis; the first is 1, 1, 1
    nodes        in the order in which they are computed; the one head that is not for training gives the logits
    modules      names of the torch module's children in the order in which they are made and initialised
    """

    in_channels: int
    strides: tuple[Triple, ...]
    nodes: tuple[Node, ...]
    modules: tuple[str, ...] = ()

    @cached_property
    def by_name(self) -> dict[str, Node]:
        """The nodes."""
        return {node.name: node for node in self.nodes}

    @cached_property
    def readers(self) -> dict[str, tuple[Node, ...]]:
        """Who reads each node's output, in their order."""
        reading: dict[str, list[Node]] = {node.name: [] for node in self.nodes}
        reading[IMAGE] = []
        for node in self.nodes:
            for name in node.reads:
                reading[name].append(node)
        return {name: tuple(nodes) for name, nodes in reading.items()}

    @cached_property
    def factors(self) -> tuple[Triple, ...]:
        """How many voxels of stage 0 one of each stage stands for, per axis."""
        totals, before = [], ONES
        for stride in self.strides:
            d, h, w = (a * b for a, b in zip(before, stride, strict=True))
            before = d, h, w
            totals.append(before)
        return tuple(totals)

    @property
    def multiple(self) -> Triple:
        """What the sides of a volume are padded to a multiple of, per axis: the product of the strides."""
        return self.factors[-1]

    def factor_between(self, finer: int, coarser: int) -> Triple:
        """How many voxels of one stage one of a coarser stage stands for, per axis."""
        return quotient(self.factors[coarser], self.factors[finer])

    @cached_property
    def halo(self) -> tuple[Triple, ...]:
        """How far beyond a block its tensors are read, on D, H, W, of each stage."""
        widths = [[0, 0, 0] for _ in self.strides]
        for node in self.nodes:
            if isinstance(node, Convolution):
                for stage in {node.stage, *(self.stage_of(name) for name in node.reads)}:
                    widths[stage] = [max(n, side // 2) for n, side in zip(widths[stage], node.kernel, strict=True)]
            if isinstance(node, Interpolation):
                widths[node.stage] = [max(pair) for pair in zip(widths[node.stage], node.reads_beside, strict=True)]
        for node in self.nodes:
            if isinstance(node, (UpConvolution, Interpolation)):  # its output's ghosts are made from its input's
                d, h, w = widths[node.stage]
                coarser = self.stage_of(node.reads[0])
                below = zip(widths[coarser], node.reach((d, h, w)), strict=True)
                widths[coarser] = [max(pair) for pair in below]
        return tuple((d, h, w) for d, h, w in widths)

    @property
    def image_reach(self) -> int:
        """How far beyond a block the image is read, at most, on any axis; at least 1."""
        readers = (node for node in self.readers[IMAGE] if isinstance(node, Convolution))
        return max([1, *(max(node.kernel) // 2 for node in readers)])

    @property
    def deepest(self) -> int:
        """The last stage."""
        return len(self.strides) - 1

    @cached_property
    def head(self) -> Head:
        """The head that gives the logits."""
        return next(node for node in self.nodes if isinstance(node, Head) and not node.training)

    @property
    def heads(self) -> Iterator[Head]:
        """All heads, that of the logits included, in their order."""
        return (node for node in self.nodes if isinstance(node, Head))

    @property
    def classes(self) -> int:
        """Channels of the logits."""
        return self.head.channels

    @cached_property
    def widths(self) -> tuple[int, ...]:
        """The most channels of a tensor of each stage that is whole."""
        made = [node for node in self.nodes if isinstance(node, (Convolution, Addition, AveragePool))]
        at = [[node.channels for node in made if node.stage == n] for n in range(self.deepest + 1)]
        others = [[node.channels for node in self.nodes if node.stage == n] for n in range(self.deepest + 1)]
        return tuple(max(whole or rest) for whole, rest in zip(at, others, strict=True))

    @cached_property
    def kernels(self) -> tuple[Triple, ...]:
        """The largest kernel of each stage's convolutions; 1, 1, 1 where a stage has none."""
        made = [node for node in self.nodes if isinstance(node, Convolution)]
        sizes = [[node.kernel for node in made if node.stage == n] for n in range(self.deepest + 1)]
        return tuple(max(some, key=prod, default=ONES) for some in sizes)

    def channels_of(self, name: str) -> int:
        """Of a node's output, or of the image."""
        return self.in_channels if name == IMAGE else self.by_name[name].channels

    def stage_of(self, name: str) -> int:
        """Of a node's output, or of the image."""
        return 0 if name == IMAGE else self.by_name[name].stage

    def made_from(self, name: str) -> str:
        """The node that makes the tensor which a norm or a pooling reads."""
        node = self.by_name[name]
        return self.made_from(node.reads[0]) if isinstance(node, (Normalization, MaxPool)) else name

    def inputs_of(self, node: Node) -> tuple[int, ...]:
        """Channels of each tensor that a node reads."""
        return tuple(self.channels_of(name) for name in node.reads)

    def parameters(self, training: bool = False) -> int:
        """Number of weights; with `training` also those of heads for the loss alone."""
        return sum(
            _weights(node, sum(self.inputs_of(node)))
            for node in self.nodes
            if training or not (isinstance(node, Head) and node.training)
        )


def _weights(node: Node, inputs: int) -> int:
    match node:
        case Convolution():
            return node.channels * (inputs * prod(node.kernel) + node.bias)
        case UpConvolution():
            return node.channels * (inputs * prod(node.factors) + node.bias)
        case Normalization():
            return 2 * node.channels if node.norm != "none" and node.affine else 0
        case Head():
            return node.channels * (inputs + 1)
    return 0
