"""What the layers of `partition_module` hold, one by one: for networks that the fused layers do not cover."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

from volseg.config import ModelConfig
from volseg.partition.deep_supervision import deep_levels
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
        halo = model.kernel_size // 2 if halos else 0
        sides = [layout.at_level(level).largest_block for level in range(model.levels + 1)]
        self.voxels = [prod(side) for side in sides]
        self.haloed = [prod(n + 2 * halo for n in side) for side in sides]
        self.wide = [prod(n + 4 * halo for n in side) for side in sides]

    def forward(self) -> None:
        book, top = self.ledger, self.model.levels
        book.operation = "input"
        book.make("x", 0, self.inputs * self.voxels[0])
        book.live["image"] = book.live.pop("x")
        name = "image"
        for level in range(top):
            name = self._double(
                f"encoder {level}", name, level, (self.inputs, *self.widths)[level], keep_input=level == 0
            )
            book.operation = f"pooling {level}"
            book.make(f"pooled {level}", level + 1, self.widths[level] * self.voxels[level + 1])
            if self.training:
                book.make(f"indices {level}", level + 1, 2 * self.widths[level] * self.voxels[level + 1])
            name = f"pooled {level}"
        name = self._double(f"encoder {top}", name, top, (self.inputs, *self.widths)[top], keep_input=top == 0)
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
            self._double_backward(f"encoder {level}", level, (self.inputs, *self.widths)[level])

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
            book.make("padded", level, width * self.wide[level])
            book.make("g of window", level, channels * self.haloed[level])
            book.drop("padded")
            book.make("g window", level, channels * self.haloed[level])  # the adjoint exchange works on a copy
            book.drop("g of window", "g conv", f"{name} window {number}")
