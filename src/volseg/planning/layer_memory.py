"""What the layers of `partition_module` hold, one by one: for networks that the program's kernels do not cover."""

from __future__ import annotations

from math import prod

from volseg.networks.description import ONES, Convolution, Interpolation, Network, Normalization, UpConvolution
from volseg.partition.layout import Layout
from volseg.planning.autograd_walk import LONG, AutogradWalk, keeps_result

_WINOGRAD = (3, 3, 3)
"""The kernel whose backward reads a gradient without a margin of zeros around it."""


class LayerWalk(AutogradWalk):
    """The network on the largest block of `layout`.

    halos  whether convolutions read windows wider than the block; without, as if the volume went on nowhere
    """

    def __init__(self, network: Network, layout: Layout, training: bool, halos: bool = True) -> None:
        super().__init__(network, layout.largest_block, training)
        self.halos = halos

    def loss(self) -> None:
        """Cross-entropy and Dice of the logits: the sums, without gradients."""
        book, voxels, classes = self.ledger, self.voxels[0], self.network.classes
        book.operation = "head and loss"
        book.make("logits", 0, classes * voxels)
        book.make("target", 0, voxels // 4)
        book.make("probabilities", 0, classes * voxels)
        book.make("labels", 0, LONG * voxels)
        book.make("log softmax", 0, classes * voxels)
        book.make("targets as long", 0, LONG * voxels)
        book.drop("log softmax", "targets as long")
        book.make("masked", 0, classes * voxels)
        book.drop("masked", "labels", "logits")

    def backward(self) -> None:
        """From the loss to the gradients of all weights."""
        book, voxels, classes = self.ledger, self.voxels[0], self.network.classes
        book.operation = "loss, backward"
        book.make("labels", 0, LONG * voxels)
        for name in ("slope", "gradient of logits", "share"):
            book.make(name, 0, classes * voxels)
        book.drop("slope", "share", "labels", "probabilities")
        self.head_backward()
        book.drop("gradient of logits")
        super().backward()

    def convolution(self, node: Convolution, x: str) -> None:
        stage, inputs = self.network.stage_of(node.reads[0]), sum(self.network.inputs_of(node))
        if _windowed(node):
            x = self._make(f"{node.name}, window", stage, inputs, self._window(node, stage))
        self._output(node)
        self._save(node, x)
        if _windowed(node) and not self.training:
            self.ledger.drop(x)

    def convolution_backward(self, node: Convolution) -> None:
        stage, inputs = self.network.stage_of(node.reads[0]), sum(self.network.inputs_of(node))
        if not _windowed(node):
            self._gradient_made(node, inputs, stage)
            return
        window, margin = self._window(node, stage), f"{node.name}, gradient with a margin"
        if node.kernel != _WINOGRAD or node.stride != ONES:
            sides = zip(self.sides[node.stage], node.kernel, strict=True)
            self._make(margin, node.stage, node.channels, prod(n + 2 * (k - 1) * self.halos for n, k in sides))
        whole = self._make(f"{node.name}, gradient of the window", stage, inputs, window)
        self.ledger.drop(margin)
        self._done_with(node)
        self._gradient_made(node, inputs, stage, window)  # the adjoint exchange works on a copy
        self.ledger.drop(whole)

    def normalization(self, node: Normalization, x: str) -> None:
        dropping = self.training and node.dropout > 0
        apart = _activated_apart(node)
        if apart:
            self._save(node, x)
            x = self._make(f"{node.name}, normalised", node.stage, node.channels)
            self._refer(x, "input")
        if node.norm == "none" and not node.activates:
            y = x
        else:
            y = self._make(f"{node.name}, before dropout" if dropping else node.name, node.stage, node.channels)
            # A norm with the activation in it keeps its input.
            self._save(node, y if (apart or node.norm == "none") and keeps_result(node) else x)
        self._refer(y, "input")
        self._refer(self._make(node.name, node.stage, node.channels) if dropping else y, f"value of {node.name}")

    def normalization_backward(self, node: Normalization) -> None:
        if node.dropout > 0:
            self._next_gradient(node, "dropout")
        if _activated_apart(node):
            self._next_gradient(node, "activation")
            self._next_gradient(node, "norm")
        elif node.norm != "none":
            before = f"{node.name}, gradient before the activation"
            if node.activates:
                self._make(before, node.stage, node.channels)
            self._next_gradient(node, "norm")
            self.ledger.drop(before)
        elif node.activates:
            self._next_gradient(node, "activation")
        elif not node.dropout:
            self._refer(self._tensor_of(f"gradient of {node.name}"), "gradient made")

    def up(self, node: UpConvolution | Interpolation, x: str) -> None:
        """A transposed convolution without its bias, then with it; an interpolation axis by axis."""
        parts = [f"{node.name}, part {axis}" for axis in range(3)]
        if isinstance(node, UpConvolution):
            self._make(parts[0], node.stage, node.channels)
        elif node.mode == "trilinear":
            self._interpolated(node, parts)
        super().up(node, x)
        self.ledger.drop(*parts)

    def _interpolated(self, node: Interpolation, parts: list[str]) -> None:
        """Of each axis the lower and the upper neighbours of all voxels; the last axis' lower ones are the output."""
        sides = list(self.sides[self.network.stage_of(node.reads[0])])
        axes = [axis for axis in range(3) if node.factors[axis] > 1]
        for axis in axes:
            sides[axis] *= node.factors[axis]
            if axis != axes[-1]:
                self._make(f"{node.name}, upper", node.stage, node.channels, prod(sides))
                self._make(parts[axis], node.stage, node.channels, prod(sides))
                self.ledger.drop(f"{node.name}, upper", *parts[:axis])
        if axes:
            self._make(parts[axes[-1]], node.stage, node.channels)

    def _window(self, node: Convolution, stage: int) -> int:
        """Voxels that a convolution of the block reads: of a side n, n - stride + kernel."""
        axes = zip(self.sides[stage], node.kernel, node.stride, strict=True)
        return prod(n + (k - s) * self.halos for n, k, s in axes)


def _activated_apart(node: Normalization) -> bool:
    """Whether the activation behind a norm is torch's own, and not taken into the norm's passes."""
    return node.norm != "none" and node.activation != "leaky_relu"


def _windowed(node: Convolution) -> bool:
    """Whether it reads a copy of its input with voxels from around the block."""
    return max(node.kernel) > 1
