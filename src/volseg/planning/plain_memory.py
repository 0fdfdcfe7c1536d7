"""What the same U-Net holds in training as one writes it with plain torch modules: what volseg is compared with.

Autograd keeps each operation's input until backward: of every convolution its input, the norm's input and the
activation's input, of a decoder the concatenation, and of pooling its indices (int64). What torch's convolutions work
in is not counted: at 96^3 with 16 channels the model says 0.94 of what was measured, with 8 channels 0.91.
"""

from __future__ import annotations

from math import prod

from volseg.config import ModelConfig
from volseg.geometry import Triple
from volseg.partition.layout import padded_shape
from volseg.planning.layer_memory import Ledger
from volseg.planning.memory import parameter_count

_LONG = 2
"""float32 values that an int64 takes."""


def plain_training_bytes(model: ModelConfig, shape: Triple, weight_copies: int = 4) -> int:
    """Peak bytes of a training step on a whole volume in one process, without the process itself.

    weight_copies  weights, gradients and what the optimizer keeps: 4 with AdamW
    """
    walk = _PlainWalk(model, padded_shape(shape, model.multiple))
    walk.forward()
    walk.backward()
    return walk.book.peak + weight_copies * parameter_count(model) * 4


class _PlainWalk:
    def __init__(self, model: ModelConfig, padded: Triple) -> None:
        self.model, self.book = model, Ledger()
        self.widths, self.classes = model.widths, model.classes or 2
        self.voxels = [prod(padded) // prod(factor) for factor in model.factors]

    def forward(self) -> None:
        book, top = self.book, self.model.levels
        book.make("image", 0, (self.model.in_channels or 1) * self.voxels[0])
        for level in range(top + 1):
            self._encode(level)
            if level < top:
                below = self.widths[level] * self.voxels[level + 1]
                book.make(f"pooled {level}", level + 1, below)
                book.make(f"indices {level}", level + 1, _LONG * below)
        for level in reversed(range(top)):
            size = self.widths[level] * self.voxels[level]
            book.make("up", level, size)
            book.make(f"joined {level}", level, 2 * size)
            book.drop("up")
            self._double(f"decoder {level}", level)
        size = self.classes * self.voxels[0]
        for name in ("logits", "probabilities", "logarithms"):
            book.make(name, 0, size)
        book.make("labels", 0, _LONG * self.voxels[0])
        book.make("one-hot labels", 0, _LONG * size)

    def _encode(self, level: int) -> None:
        """A residual block holds as much, a sum in place of its second norm; a projection what its norm reads."""
        for number in range(self.model.block_counts[level]):
            self._double(f"encoder {level} block {number}", level)
        if not self.model.block_counts[level]:
            self._double(f"encoder {level}", level)
        elif self.model.has_projection(level):
            self.book.make(f"encoder {level} skip", level, self.widths[level] * self.voxels[level])

    def _double(self, name: str, level: int) -> None:
        for number in (1, 2):
            for what in ("convolution", "norm", "activation"):
                self.book.make(f"{name}.{number} {what}", level, self.widths[level] * self.voxels[level])

    def backward(self) -> None:
        book, top, size = self.book, self.model.levels, self.classes * self.voxels[0]
        book.make("gradient of logits", 0, size)
        book.make("another", 0, size)
        book.drop("logits", "probabilities", "logarithms", "labels", "one-hot labels", "another")
        book.make("gradient", 0, self.widths[0] * self.voxels[0])
        book.drop("gradient of logits")
        for level in range(top):
            self._double_backward(f"decoder {level}", level)
            book.make("gradient", level, 2 * self.widths[level] * self.voxels[level])
            book.drop(f"joined {level}")
            book.make(f"gradient of skip {level}", level, self.widths[level] * self.voxels[level])
            book.make("gradient", level + 1, self.widths[level + 1] * self.voxels[level + 1])
        for level in reversed(range(top + 1)):
            for number in reversed(range(self.model.block_counts[level])):
                self._double_backward(f"encoder {level} block {number}", level)
            if not self.model.block_counts[level]:
                self._double_backward(f"encoder {level}", level)
            book.drop(f"encoder {level} skip")
            if level:
                book.make("unpooled", level - 1, self.widths[level - 1] * self.voxels[level - 1])
                book.drop(f"pooled {level - 1}", f"indices {level - 1}", "gradient", f"gradient of skip {level - 1}")
                book.live["gradient"] = book.live.pop("unpooled")

    def _double_backward(self, name: str, level: int) -> None:
        size = self.widths[level] * self.voxels[level]
        for number in (2, 1):
            for what in ("activation", "norm", "convolution"):
                self.book.make("next gradient", level, size)
                self.book.drop("gradient", f"{name}.{number} {what}")
                self.book.live["gradient"] = self.book.live.pop("next gradient")
