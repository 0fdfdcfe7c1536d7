"""What the layers of `partition_module` hold, one by one: for networks that the fused layers do not cover."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

from volseg.config import ModelConfig
from volseg.geometry import Triple
from volseg.networks.deep_supervision import deep_levels
from volseg.partition.layout import Layout

FLOAT = 4


@dataclass
class Ledger:
    """Tensors by name with their level and bytes; remembers the largest total and what was live then."""

    live: dict[str, tuple[int, int]] = field(default_factory=dict)
    total: int = 0
    peak: int = 0
    peak_at: str = ""
    at_peak: dict[int, int] = field(default_factory=dict)
    operation: str = ""

    def make(self, name: str, level: int, floats: int) -> None:
        """Enter a tensor of `floats` float32 values."""
        self.drop(name)
        self.live[name] = level, floats * FLOAT
        self.total += floats * FLOAT
        if self.total > self.peak:
            self.peak, self.peak_at = self.total, self.operation
            self.at_peak = {}
            for at, size in self.live.values():
                self.at_peak[at] = self.at_peak.get(at, 0) + size

    def drop(self, *names: str) -> None:
        """Strike tensors out; those that are not there are passed by."""
        for name in names:
            if name in self.live:
                self.total -= self.live.pop(name)[1]


def _with_halo(sides: Triple, kernel: Triple, times: int) -> int:
    """Voxels of a block with `times` halves of the kernel more on each axis."""
    return prod(n + times * (k // 2) for n, k in zip(sides, kernel, strict=True))


class LayerWalk:
    """The U-Net's steps on one block; `training` keeps what backward needs."""

    def __init__(
        self, model: ModelConfig, layout: Layout, training: bool, halos: bool = True, deep: bool = False
    ) -> None:
        self.model, self.training = model, training
        self.deep = deep_levels(model.levels) if deep else range(0)
        self.widths = model.widths
        self.inputs = model.in_channels or 1
        self.classes = model.classes or 2
        self.ledger = Ledger()
        kernels = model.stage_kernels if halos else [(1, 1, 1)] * (model.levels + 1)
        sides = [layout.coarser(factor).largest_block for factor in model.factors]
        self.voxels = [prod(side) for side in sides]
        self.haloed, self.wide = (
            [_with_halo(side, kernel, times) for side, kernel in zip(sides, kernels, strict=True)] for times in (2, 4)
        )

    def forward(self) -> None:
        book, top = self.ledger, self.model.levels
        book.operation = "input"
        book.make("x", 0, self.inputs * self.voxels[0])
        book.live["image"] = book.live.pop("x")
        name = "image"
        for level in range(top):
            name = self._encode(name, level)
            book.operation = f"pooling {level}"
            book.make(f"pooled {level}", level + 1, self.widths[level] * self.voxels[level + 1])
            if self.training:
                book.make(f"indices {level}", level + 1, 2 * self.widths[level] * self.voxels[level + 1])
            name = f"pooled {level}"
        name = self._encode(name, top)
        for level in reversed(range(top)):
            width, voxels = self.widths[level], self.voxels[level]
            book.operation = f"up-convolution {level}"
            for part in ("tiles", "placed", f"up {level}"):  # 1x1x1 convolution, depth to space, bias
                book.make(part, level, width * voxels)
                if part == "placed":
                    book.drop("tiles")
            book.drop("placed")
            if not self.training:
                book.drop(name)
            book.operation = f"concatenation {level}"
            book.make(f"joined {level}", level, 2 * width * voxels)
            book.drop(f"up {level}")
            if not self.training:
                book.drop(f"encoder {level} out")
            name = self._double(f"decoder {level}", f"joined {level}", level, 2 * width, keep_input=False)
            if level in self.deep:
                book.operation = f"head {level}"
                book.make(f"logits {level}", level, self.classes * voxels)
        self.last = name

    def _encode(self, x: str, level: int) -> str:
        name, inputs, blocks = f"encoder {level}", self._inputs_of(level), self.model.block_counts[level]
        if not blocks:
            return self._double(name, x, level, inputs, keep_input=level == 0)
        before = x
        for number in range(blocks):
            out = f"{name} out" if number == blocks - 1 else f"{name} block {number}"
            self._residual(f"{name} block {number}", level, inputs if number == 0 else self.widths[level], out)
            if before != x:
                self.ledger.drop(before)
            before = out
        # The first skip's convolution keeps what it read.
        if level and not (self.training and self.model.has_projection(level)):
            self.ledger.drop(x)
        return f"{name} out"

    def _inputs_of(self, level: int) -> int:
        return (self.inputs, *self.widths)[level]

    def _residual(self, name: str, level: int, inputs: int, out: str) -> None:
        """A residual block; the caller holds its input to the end."""
        book, width = self.ledger, self.widths[level]
        size = width * self.voxels[level]
        for number, channels in ((1, inputs), (2, width)):
            book.operation = f"{name}, convolution {number}"
            book.make(f"{name} window {number}", level, channels * self.haloed[level])
            book.make(f"{name} conv {number}", level, size)
            book.drop(f"{name} normed 1")
            if not self.training:
                book.drop(f"{name} window {number}")
            book.operation = f"{name}, norm {number}"
            book.make(f"{name} normed {number}", level, size)
            if not self.training:
                book.drop(f"{name} conv {number}")
        if inputs != width:
            book.operation = f"{name}, skip"
            book.make(f"{name} skip conv", level, size)
            book.make(f"{name} skip normed", level, size)
            if not self.training:
                book.drop(f"{name} skip conv")
        book.operation = f"{name}, sum"
        book.make(f"{name} sum", level, size)
        book.drop(f"{name} normed 2", f"{name} skip normed")
        book.make(out, level, size)
        if not self.training:
            book.drop(f"{name} sum")

    def _double(self, name: str, x: str, level: int, inputs: int, keep_input: bool) -> str:
        """Two times convolution, norm and activation; the caller holds `x` to the end. Returns the output's name."""
        book, width = self.ledger, self.widths[level]
        before = x
        for number, channels in ((1, inputs), (2, width)):
            book.operation = f"{name}, convolution {number}"
            book.make(f"{name} window {number}", level, channels * self.haloed[level])
            book.make(f"{name} conv {number}", level, width * self.voxels[level])
            if before != x:
                book.drop(before)
            if not self.training:
                book.drop(f"{name} window {number}")
            book.operation = f"{name}, norm {number}"
            before = f"{name} out" if number == 2 else f"{name} between"
            book.make(before, level, width * self.voxels[level])
            if not self.training:
                book.drop(f"{name} conv {number}")
        if not keep_input and not x.endswith(" out"):
            book.drop(x)
        return f"{name} out"

    def loss(self) -> None:
        book, voxels, classes = self.ledger, self.voxels[0], self.classes
        book.operation = "head and loss"
        book.make("logits", 0, classes * voxels)
        book.make("target", 0, voxels // 4)
        book.make("probabilities", 0, classes * voxels)
        book.make("labels", 0, 2 * voxels)
        book.make("log softmax", 0, classes * voxels)
        book.make("targets as long", 0, 2 * voxels)
        book.drop("log softmax", "targets as long")
        book.make("masked", 0, classes * voxels)
        book.drop("masked", "labels", "logits")

    def backward(self) -> None:
        book, classes, top = self.ledger, self.classes, self.model.levels
        book.operation = "loss backward"
        book.make("labels", 0, 2 * self.voxels[0])
        book.make("slope", 0, classes * self.voxels[0])
        book.make("gradient", 0, classes * self.voxels[0])
        book.make("share", 0, classes * self.voxels[0])
        book.drop("slope", "share", "labels", "probabilities")
        book.operation = "head backward"
        book.make("g", 0, self.widths[0] * self.voxels[0])
        book.drop("gradient")
        for level in range(top):
            self._double_backward(f"decoder {level}", level, 2 * self.widths[level])
            book.operation = f"up-convolution {level} backward"
            book.make(f"skip gradient {level}", level, 2 * self.widths[level] * self.haloed[level])
            book.drop("g window")
            size = self.widths[level + 1] * self.voxels[level + 1]
            book.make("g", level + 1, size)
            if level + 1 in self.deep:
                book.operation = f"head {level + 1} backward"
                book.make("g of head", level + 1, size)
                book.make("sum", level + 1, size)
                book.drop("g", "g of head", f"logits {level + 1}")
                book.live["g"] = book.live.pop("sum")
        for level in reversed(range(top + 1)):
            if level < top:
                book.operation = f"pooling {level} backward"
                book.make("g", level, self.widths[level] * self.voxels[level])
                book.drop("g window", f"indices {level}")
                book.make("sum", level, self.widths[level] * self.voxels[level])
                book.drop("g", f"skip gradient {level}")
                book.live["g"] = book.live.pop("sum")
            self._encode_backward(level)

    def _encode_backward(self, level: int) -> None:
        """From the gradient "g" of a level's output to "g window", that of its input."""
        name, inputs, blocks = f"encoder {level}", self._inputs_of(level), self.model.block_counts[level]
        if not blocks:
            self._double_backward(name, level, inputs)
            return
        book = self.ledger
        book.drop(f"{name} out")
        for number in reversed(range(blocks)):
            first = number == 0
            self._residual_backward(
                f"{name} block {number}", level, inputs if first else self.widths[level], image=first and level == 0
            )
        if level:
            book.drop(f"pooled {level - 1}")
            book.live["g window"] = book.live.pop("g")

    def _residual_backward(self, name: str, level: int, inputs: int, *, image: bool) -> None:
        """From the gradient "g" of the block's output to that of its input; none of an image."""
        book, width = self.ledger, self.widths[level]
        size = width * self.voxels[level]
        book.operation = f"{name}, sum backward"
        book.make("g sum", level, size)
        book.drop("g", "g window", f"{name} sum")
        if inputs != width:  # later in forward, so first in backward
            book.operation = f"{name}, skip backward"
            book.make("g conv", level, size)
            book.drop(f"{name} skip conv")
            if not image:
                book.make("g of skip", level, inputs * self.voxels[level])
            book.drop("g conv")
        for number, channels in ((2, width), (1, inputs)):
            book.operation = f"{name}, norm {number} backward"
            if number == 1:
                book.make("g here", level, size)  # before the activation
            book.make("g conv", level, size)
            book.drop("g here", "g window", f"{name} conv {number}")
            if number == 2 and inputs != width:
                book.drop("g sum")
            book.operation = f"{name}, convolution {number} backward"
            if number == 1 and image:
                book.drop("g conv", "g sum", f"{name} window 1")
                return
            self._window_backward(name, number, level, channels)
        book.operation = f"{name}, input's gradient"
        book.make("g", level, inputs * self.voxels[level])
        book.drop("g window", "g of skip", "g sum")

    def _window_backward(self, name: str, number: int, level: int, channels: int) -> None:
        """From "g conv", the gradient of a convolution's output, to "g window", that of its input."""
        book = self.ledger
        book.make("padded", level, self.widths[level] * self.wide[level])
        book.make("g of window", level, channels * self.haloed[level])
        book.drop("padded")
        book.make("g window", level, channels * self.haloed[level])  # the adjoint exchange works on a copy
        book.drop("g of window", "g conv", f"{name} window {number}")

    def _double_backward(self, name: str, level: int, inputs: int) -> None:
        """From the gradient "g" of the block's output to "g window", that of its haloed input."""
        book, width, voxels = self.ledger, self.widths[level], self.voxels[level]
        book.drop(f"{name} out")
        for number, channels in ((2, width), (1, inputs)):
            book.operation = f"{name}, norm {number} backward"
            book.make("g here", level, width * voxels)  # contiguous, or before the activation
            book.make("g conv", level, width * voxels)
            book.drop("g", "g here", "g window", f"{name} conv {number}")
            book.operation = f"{name}, convolution {number} backward"
            if number == 1 and name == "encoder 0":
                book.drop("g conv", f"{name} window 1")
                return
            self._window_backward(name, number, level, channels)
