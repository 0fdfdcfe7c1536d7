"""The memory model: what a rank holds, operation by operation, in the order in which the program does them.

A `Ledger` is walked through the same steps as the network: each tensor is entered when it is made and struck out when
its last reference goes. The peak is the largest sum, and the plan names the operation at which it occurs. Nothing is
fitted but the size of the process itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

from volseg.config import ModelConfig
from volseg.geometry import Triple
from volseg.partition.layout import Layout

FLOAT = 4
TRAINING_PROCESS = 420 * 2**20
SEGMENTING_PROCESS = 300 * 2**20
"""Python, torch, MPI and their libraries, measured by running on 16^3 voxels (see docs/memory.md). Training has torch's
optimizers, which bring its compiler along, and the pictures."""

FREED_HEAP = 64 * 2**20
"""What glibc may keep of freed memory (`machine.tune_allocator`); small tensors leave a tenth of the whole there."""

_WEIGHT_COPIES = {"sgd": 4, "adamw": 5}
"""Weights, gradients, their message buffer, and the optimizer's state."""


@dataclass(frozen=True)
class MemoryPlan:
    """Predicted memory of the rank with the largest block, in bytes.

    process      the program itself, and freed memory that the allocator keeps
    weights      weights, and in training gradients, their message buffer and the optimizer's state
    activations  tensors at the moment of the peak
    by_level     of the activations, by level of the U-Net, finest first
    peak_at      the operation at which the peak occurs
    """

    process: int
    weights: int
    activations: int
    by_level: tuple[int, ...]
    peak_at: str

    @property
    def peak(self) -> int:
        """Everything together."""
        return self.process + self.weights + self.activations


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


class _Walk:
    """The U-Net's steps on one block; `training` keeps what backward needs."""

    def __init__(self, model: ModelConfig, layout: Layout, training: bool, halos: bool = True) -> None:
        self.model, self.training = model, training
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
            book.make("g", level + 1, self.widths[level + 1] * self.voxels[level + 1])
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


def parameter_count(model: ModelConfig) -> int:
    """Weights of the U-Net of `models.unet`."""
    cube, widths = model.kernel_size**3, model.widths
    affine = 0 if model.norm == "none" else 2
    bias = 1 if model.norm == "none" else 0
    below = (model.in_channels or 1, *widths[:-1])
    count = 0
    for level, width in enumerate(widths):
        pairs = [(below[level], width), (width, width)]
        if level < model.levels:
            pairs += [(2 * width, width), (width, width)]
            count += widths[level + 1] * width * (8 if model.up == "transpose" else 1) + width
        count += sum(a * b * cube + b * (affine + bias) for a, b in pairs)
    return count + widths[0] * (model.classes or 2) + (model.classes or 2)


def training_memory(model: ModelConfig, optimizer: str, layout: Layout) -> MemoryPlan:
    """What a rank needs to train on one case of `layout`."""
    walk = _Walk(model, layout, training=True)
    walk.forward()
    walk.loss()
    walk.backward()
    return _finish(walk, TRAINING_PROCESS, fixed_memory(model, optimizer, "train") - TRAINING_PROCESS)


def segmenting_memory(
    model: ModelConfig, layout: Layout, *, kept_bytes: int = 0, mask_bytes: int | None = None
) -> MemoryPlan:
    """What a rank needs to segment one scan of `layout`.

    kept_bytes  held from the beginning to the end: the image, where it is drawn or measured
    mask_bytes  made beside the network's last features: the mask (by default a byte a voxel) and what goes with it
    """
    walk = _Walk(model, layout, training=False)
    walk.ledger.make("kept", 0, -(-kept_bytes // FLOAT))
    walk.forward()
    walk.ledger.operation = "mask"
    walk.ledger.make("mask", 0, -(-(walk.voxels[0] if mask_bytes is None else mask_bytes) // FLOAT))
    return _finish(walk, SEGMENTING_PROCESS, fixed_memory(model, "", "segment") - SEGMENTING_PROCESS)


def activations_without_halos(model: ModelConfig, padded: Triple, task: str) -> int:
    """Bytes of activations of a whole volume as if windows had no halos: P ranks hold at least 1/P of it each."""
    walk = _Walk(model, Layout.even(padded, (1, 1, 1), model.multiple), task == "train", halos=False)
    walk.forward()
    if task == "train":
        walk.loss()
        walk.backward()
    return walk.ledger.peak


def fixed_memory(model: ModelConfig, optimizer: str, task: str) -> int:
    """Bytes that more ranks do not lessen: the process and the weights with what belongs to them."""
    copies = _WEIGHT_COPIES.get(optimizer, 5) if task == "train" else 1
    process = TRAINING_PROCESS if task == "train" else SEGMENTING_PROCESS
    return process + copies * parameter_count(model) * FLOAT


def _finish(walk: _Walk, process: int, weights: int) -> MemoryPlan:
    book = walk.ledger
    by_level = tuple(book.at_peak.get(level, 0) for level in range(walk.model.levels + 1))
    kept = min(FREED_HEAP, book.peak // 10)
    return MemoryPlan(process + kept, weights, book.peak, by_level, book.peak_at)
