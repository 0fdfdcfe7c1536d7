"""What a module made from a description holds, node by node, as torch's autograd goes forward and backward through it.

A tensor goes when nobody refers to it any more. Those who do: the output of a node, until its last reader is through;
an operation that saved it for backward, until it has gone backward; a gradient, until its node has gone backward.
Several may refer to one tensor, as the parts of a gradient do that was made for a concatenation.
"""

from __future__ import annotations

from collections import Counter
from math import prod

from volseg.geometry import Triple
from volseg.networks.description import (
    IMAGE,
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
from volseg.networks.layered import LayeredNode, everywhere
from volseg.planning.ledger import Ledger

LONG = 2
"""float32 values that an int64 takes."""


def keeps_result(node: Normalization) -> bool:
    """Whether torch's activation keeps its result for backward, and not its input, as ReLU and sigmoid do."""
    return node.activation == "sigmoid" or (node.activation == "leaky_relu" and node.slope == 0)


class AutogradWalk:
    """Goes through the nodes of a network; a subclass says what an operation makes and saves.

    finest    sides of the block at stage 0
    training  whether operations save what their backward needs
    """

    def __init__(self, network: Network, finest: Triple, training: bool) -> None:
        self.network, self.training = network, training
        self.ledger = Ledger()
        self.sides = [_divided(finest, factor) for factor in network.factors]
        self.voxels = [prod(sides) for sides in self.sides]
        self._everywhere = everywhere(network)
        self._referred: dict[str, list[str]] = {}
        self._references: Counter[str] = Counter()

    def forward(self) -> None:
        """To what the head of the logits reads, with the heads that are for the loss alone."""
        self.ledger.operation = "input"
        self._make(IMAGE, 0, self.network.in_channels)
        self._refer(IMAGE, _value(IMAGE), "the caller")
        for node in self.network.nodes:
            if node is self.network.head:
                self._head_reads(node)
                continue
            self.ledger.operation = node.name
            self._run(node, self._input(node))
            self._release("input")

    def backward(self) -> None:
        """From the gradient of what the head of the logits reads, which is there, to those of all weights."""
        for node in reversed(self.network.nodes):
            if node is not self.network.head:
                self.ledger.operation = f"{node.name}, backward"
                self._run_backward(node)

    def head_backward(self) -> None:
        """The gradient of what the head of the logits reads."""
        head = self.network.head
        (read,) = head.reads
        self.ledger.operation = f"{head.name}, backward"
        self._gradient_made(head, self.network.channels_of(read), head.stage)
        self._finish_backward(head)

    def convolution(self, node: Convolution, x: str) -> None:
        """A convolution of `x`, the input side by side."""
        raise NotImplementedError

    def convolution_backward(self, node: Convolution) -> None:
        """The gradient of a convolution's input."""
        raise NotImplementedError

    def normalization(self, node: Normalization, x: str) -> None:
        """A norm, an activation, a dropout, or several of them."""
        raise NotImplementedError

    def normalization_backward(self, node: Normalization) -> None:
        """The gradient of what a norm reads."""
        raise NotImplementedError

    def up(self, node: UpConvolution | Interpolation, x: str) -> None:
        """Up-sampling; only a transposed convolution saves its input."""
        self._output(node)
        if isinstance(node, UpConvolution):
            self._save(node, x)

    def _head_reads(self, head: Node) -> None:
        """What the head of the logits reads stays: in training saved, in segmenting as the value that is wanted."""
        value = _value(head.reads[0])
        self._save(head, self._tensor_of(value))
        if self.training:
            self._release(value)

    def _run(self, node: Node, x: str) -> None:
        match node:
            case Convolution():
                self.convolution(node, x)
            case Normalization():
                self.normalization(node, x)
            case UpConvolution() | Interpolation():
                self.up(node, x)
            case MaxPool():
                self._output(node)
                indices = self._make(f"{node.name}, indices", node.stage, LONG * node.channels)
                self._save(node, x, indices)
                if not self.training:
                    self.ledger.drop(indices)
            case Head():
                if self.training:  # else it is for the loss alone, and is not computed
                    self._output(node)
                    self._save(node, x)
            case AveragePool():
                self._output(node)
                self._save(node, x)
            case Addition():
                self._output(node)
            case LayeredNode():
                self._layered(node, x)
            case _:
                raise TypeError(f"{node.name}: what a {type(node).__name__} holds is not known")

    def _layered(self, node: LayeredNode, x: str) -> None:
        """An operation that torch runs: taken to save its input for backward, and to work on no copy of it."""
        voxels = 1 if node.name in self._everywhere else None
        self._make(node.name, node.stage, node.channels, voxels)
        self._refer(node.name, _value(node.name))
        self._save(node, x)

    def _run_backward(self, node: Node) -> None:
        inputs = sum(self.network.inputs_of(node))
        match node:
            case Convolution():
                if node.reads != (IMAGE,):
                    self.convolution_backward(node)
            case Normalization():
                self.normalization_backward(node)
            case Addition():
                self._refer(self._tensor_of(_gradient(node.name)), "gradient made")
            case _:
                self._gradient_made(node, inputs, self.network.stage_of(node.reads[0]))
        self._finish_backward(node)

    def _finish_backward(self, node: Node) -> None:
        """What backward used goes, and its result is added to the gradients of what the node read."""
        self._done_with(node)
        if not self._referred.get("gradient made"):
            return
        tensor = self._tensor_of("gradient made")
        for read in node.reads:
            holder = _gradient(read)
            if holder not in self._referred:
                self._refer(tensor, holder)
                continue
            total = self._make(f"{holder} with that from {node.name}", *self._shape_of(read))
            self._release(holder)
            self._refer(total, holder)
        self._release("gradient made")

    def _done_with(self, node: Node) -> None:
        """What a node saved, its output and its gradient are needed no more."""
        self._release(_saved(node), _value(node.name), _gradient(node.name))

    def _input(self, node: Node) -> str:
        """The tensor that an operation reads, several side by side; values that it is the last to read go."""
        if len(node.reads) > 1 and not isinstance(node, Addition):
            channels = sum(self.network.inputs_of(node))
            joined = self._make(f"{node.name}, joined", self.network.stage_of(node.reads[0]), channels)
            self._refer(joined, "input")
        else:
            for read in node.reads:
                self._refer(self._tensor_of(_value(read)), "input")
        for read in node.reads:
            if self.network.readers[read][-1] is node:
                self._release(_value(read))
        return self._tensor_of("input")

    def _output(self, node: Node) -> str:
        """The tensor of a node's output."""
        self._make(node.name, node.stage, node.channels)
        self._refer(node.name, _value(node.name))
        return node.name

    def _save(self, node: Node, *tensors: str) -> None:
        """Keep tensors for a node's backward, in training."""
        if self.training:
            for tensor in tensors:
                self._refer(tensor, _saved(node))

    def _gradient_made(self, node: Node, channels: int, stage: int, voxels: int | None = None) -> None:
        tensor = self._make(f"gradient from {node.name}", stage, channels, voxels)
        self._refer(tensor, "gradient made")

    def _next_gradient(self, node: Node, what: str) -> None:
        """The gradient of one of a node's operations, made from that of the operation behind it, which goes."""
        tensor = self._make(f"gradient of {node.name}, {what}", node.stage, node.channels)
        self._release("gradient made", _gradient(node.name))
        self._refer(tensor, "gradient made")

    def _make(self, tensor: str, stage: int, channels: int, voxels: int | None = None) -> str:
        self.ledger.make(tensor, stage, channels * (self.voxels[stage] if voxels is None else voxels))
        return tensor

    def _shape_of(self, name: str) -> tuple[int, int]:
        """Stage and channels of a node's output."""
        return self.network.stage_of(name), self.network.channels_of(name)

    def _refer(self, tensor: str, *holders: str) -> None:
        for holder in holders:
            self._referred.setdefault(holder, []).append(tensor)
            self._references[tensor] += 1

    def _release(self, *holders: str) -> None:
        for holder in holders:
            for tensor in self._referred.pop(holder, ()):
                self._references[tensor] -= 1
                if not self._references[tensor]:
                    self.ledger.drop(tensor)

    def _tensor_of(self, holder: str) -> str:
        return self._referred[holder][0]


def _value(name: str) -> str:
    return f"value of {name}"


def _gradient(name: str) -> str:
    return f"gradient of {name}"


def _saved(node: Node) -> str:
    return f"saved by {node.name}"


def _divided(sides: Triple, factor: Triple) -> Triple:
    d, h, w = (n // f for n, f in zip(sides, factor, strict=True))
    return d, h, w
