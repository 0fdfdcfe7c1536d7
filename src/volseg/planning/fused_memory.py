"""What the fused U-Net of `models.fused_unet` holds in training: the same pieces of an arena, in the same order."""

from __future__ import annotations

from collections.abc import Collection
from math import prod

from volseg.config import ModelConfig
from volseg.geometry import Triple
from volseg.networks.deep_supervision import deep_levels
from volseg.partition.arena import Arena, Piece
from volseg.partition.layout import Layout
from volseg.partition.share import Share, busy_shares
from volseg.partition.slabs import deep_slab_planes, head_slab_planes, up_slabs
from volseg.partition.tiling import (
    FLUSH_TILES,
    LANES,
    POSITIONS,
    TAPS,
    backward_room,
    forward_room,
    padded_channels,
    plan_blocks,
    registers_for,
)

FLOAT = 4
_LOSS_PIECE = 2**16
_LOSS_TENSORS = 5

SLABS, HALOS = "slabs and windows", "halos"
"""Parts of a plan: what exists a few planes at a time, and ghosts."""


def made_again(model: ModelConfig, part: str, level: int, checkpoint_levels: Collection[int]) -> bool:
    """Whether backward computes the first convolution of a level again, instead of keeping its output.

    That of an image of few channels always: it costs a hundredth of a step, and its output is a fifth of what there is.
    """
    first = part == "encoder" and level == 0 and model.in_channels <= 4
    return first or level in checkpoint_levels


class FusedWalk:
    """A forward and a backward over the blocks of a rank.

    deep   with the loss at coarser levels too
    share  of the rank; by default of the busiest where all ranks take part in all levels

    arena    of the activations
    by_level what of it was held, in bytes, when most was
    peak_at  where that was
    work     bytes of the kernels' own memory, and of weights on their way, at the layer with most of it
    by_operation  bytes of tensors held in each operation at most, in their order
    """

    def __init__(
        self, model: ModelConfig, layout: Layout, checkpoint_levels: Collection[int] = (), threads: int = 1,
        share: Share | None = None, deep: bool = False,
    ) -> None:  # fmt: skip
        self.model, self.threads = model, threads
        self.deep = deep_levels(model.levels) if deep else range(0)
        self.share = share or busy_shares(layout, model.factors)[0]
        self.checkpoint_levels = checkpoint_levels
        self.widths = [padded_channels(width) for width in model.widths]
        self.inputs, self.classes = model.in_channels or 1, model.classes or 2
        self.sides = self.share.sides
        self.ghosts = [
            tuple(map(sum, zip(a, b, strict=True))) for a, b in zip(self.share.low, self.share.high, strict=True)
        ]
        self.arena = Arena()
        self.operation, self.peak_at = "", ""
        self.by_level: dict[int, int] = {}
        self.work = 0
        self.by_operation: dict[str, int] = {}
        self._held: dict[str, tuple[int, Piece, int]] = {}  # level, memory, values without the ghosts
        self._most = 0
        self._at_most: dict[str, int] = {}
        self._scratch = 0
        self._largest_slab = self._largest_gradient = self._largest_message = 0

    @property
    def tensors(self) -> int:
        """Bytes of all tensors, and of what is free between them when most is held."""
        return (self.arena.total + self._largest_slab + self._largest_gradient + self._largest_message) * FLOAT

    @property
    def parts(self) -> dict[str, int]:
        """Bytes of `tensors`, when most is held, by what they are for."""
        slabs = self._largest_slab + self._largest_gradient + self._largest_message
        free = self.arena.total - self._most
        return {name: n * FLOAT for name, n in {**self._at_most, SLABS: slabs, "free between tensors": free}.items()}

    @property
    def total(self) -> int:
        """Bytes of everything but what does not depend on the rank."""
        return self.tensors + self.image + self.work

    @property
    def image(self) -> int:
        """Bytes of the image on this rank, and of its copy with ghosts where the volume is cut, and of the target."""
        own = prod(self.sides[0])
        copies = own + (self._size(0, 1) if any(self.ghosts[0]) else 0)
        return self.inputs * copies * FLOAT + own

    def forward(self) -> None:
        """The layers in the order of `FusedNetwork._encode_decode`."""
        top, last = self.model.levels, self.share.last
        for level in range(last + 1):
            if level:
                self._gathered(level)
            self._encoder(level)
        if last < top:
            self._gathered(last + 1)
        for level in reversed(range(min(last + 1, top))):
            self._spread(level + 1)
            self._decoder(level)
        self.operation = "head and loss"
        _, h, w = self.sides[0]
        planes = head_slab_planes(self.sides[0], self.classes)
        logits = 2 * planes * h * w * padded_channels(self.classes)
        self._worked(logits + _loss_floats(planes * h * w, self.classes))
        for level in self.deep:
            _, h, w = self.sides[level]
            width = self.widths[level]
            planes = deep_slab_planes(self.sides[level], self.classes, width)
            slabs = planes * h * w * (2 * padded_channels(self.classes) + width)
            self._worked(slabs + _loss_floats(planes * h * w, self.classes))

    def _gathered(self, level: int) -> None:
        if level not in self.share.merges:
            return
        self.operation = f"level {level}, gathered"
        if level <= self.share.last:
            self._take(self._input(level), level, self.widths[level - 1])
        self._sent(level, self.widths[level - 1])
        self._give(f"pooled {level - 1}")

    def _spread(self, level: int) -> None:
        if level in self.share.merges:
            self.operation = f"level {level}, scattered"
            self._take_below(f"spread {level}", level - 1, self.widths[level])
            self._sent(level, self.widths[level])

    def _encoder(self, level: int) -> None:
        inputs = (self.inputs, *self.widths)[level]
        self.operation = f"encoder {level}, convolution 1"
        self._take(f"encoder {level}.1", level, self.widths[level])
        self._convolved(level, [inputs])
        self.operation = f"encoder {level}, convolution 2"
        self._take(f"encoder {level}.2", level, self.widths[level])
        if level < self.model.levels:
            self._take_below(f"pooled {level}", level, self.widths[level])
        self._convolved(level, [self.widths[level]])
        self._leave_first("encoder", level)

    def _decoder(self, level: int) -> None:
        width = self.widths[level]
        self.operation = f"decoder {level}, convolution 1"
        self._take(f"decoder {level}.1", level, width)
        self._slab(level)
        self._convolved(level, [width, width])
        self.operation = f"decoder {level}, convolution 2"
        self._take(f"decoder {level}.2", level, width)
        self._convolved(level, [width])
        self._leave_first("decoder", level)

    def _leave_first(self, part: str, level: int) -> None:
        if self._again(part, level):
            self._give(f"{part} {level}.1")

    def backward(self) -> None:
        """The layers in the order of `FusedNetwork._backward_from_logits`."""
        top = self.model.levels
        self.operation = "head, backward"
        self._take("gradient of decoder 0.2" if top else "gradient of encoder 0.2", 0, self.widths[0])
        for level in range(min(self.share.last + 1, top)):
            self._decoder_backward(level)
            self._gradient_gathered(level + 1)
        for level in reversed(range(self.share.last + 1)):
            self._encoder_backward(level)

    def _gradient_gathered(self, level: int) -> None:
        if level not in self.share.merges:
            return
        self.operation = f"level {level}, gathered, backward"
        if level <= self.share.last:
            self._take(f"gradient of {self._output(level)}", level, self.widths[level])
        self._sent(level, self.widths[level])
        self._give(f"gradient of spread {level}", f"spread {level}")

    def _second_backward(self, part: str, level: int) -> None:
        width, first, second = self.widths[level], f"{part} {level}.1", f"{part} {level}.2"
        if self._again(part, level):
            self.operation = f"{part} {level}, convolution 1, again"
            self._take(first, level, width)
            if part == "decoder":
                self._slab(level)
            self._convolved(level, [width, width] if part == "decoder" else [(self.inputs, *self.widths)[level]])
        self.operation = f"{part} {level}, convolution 2, backward"
        self._give(second)
        self._take(f"gradient of {first}", level, width)
        self._convolved_backward(level, width, [width])
        self._give(f"gradient of {second}")

    def _decoder_backward(self, level: int) -> None:
        self._second_backward("decoder", level)
        width, first = self.widths[level], f"decoder {level}.1"
        self.operation = f"decoder {level}, convolution 1, backward"
        self._give(first)
        self._take(f"gradient of encoder {level}.2", level, width)
        above = f"spread {level + 1}" if level + 1 in self.share.merges else self._output(level + 1)
        self._take_below(f"gradient of {above}", level, self.widths[level + 1])
        self._slab(level, with_gradient=True)
        self._convolved_backward(level, width, [width, width])
        self._give(f"gradient of {first}")

    def _encoder_backward(self, level: int) -> None:
        if level + 1 in self.share.merges:
            self.operation = f"level {level + 1}, scattered, backward"
            self._take_below(f"gradient of pooled {level}", level, self.widths[level])
            self._sent(level + 1, self.widths[level])
            self._give(f"gradient of {self._input(level + 1)}", self._input(level + 1))
        self._give(f"gradient of pooled {level}", f"pooled {level}")
        self._second_backward("encoder", level)
        width, first = self.widths[level], f"encoder {level}.1"
        self.operation = f"encoder {level}, convolution 1, backward"
        self._give(first)
        if level > 0:
            self._take(f"gradient of {self._input(level)}", level, self.widths[level - 1])
            self._convolved_backward(level, width, [self.widths[level - 1]])
        else:
            self._convolved_backward(level, width, [])
        self._give(f"gradient of {first}")

    def _output(self, level: int) -> str:
        return f"{'encoder' if level == self.model.levels else 'decoder'} {level}.2"

    def _input(self, level: int) -> str:
        return f"{'gathered' if level in self.share.merges else 'pooled'} {level - 1}"

    def _again(self, part: str, level: int) -> bool:
        return made_again(self.model, part, level, self.checkpoint_levels)

    def _slab(self, level: int, with_gradient: bool = False) -> None:
        """Enter the largest slab of the up-convolution to `level`, which has memory of its own (`Buffers.slab`)."""
        brick = 1 if level == self.model.levels else min(8, 2 ** (self.model.levels - level))
        width, share = self.widths[level], self.share
        _, h, w = self.sides[level]
        multiple = 2 if with_gradient else brick
        for planes, source in up_slabs(share.below(level), share.low[level], share.high[level], width, multiple):
            self._largest_slab = max(self._largest_slab, 8 * prod(source) * width)
            if with_gradient:
                self._largest_gradient = max(self._largest_gradient, (planes[1] - planes[0]) * h * w * width)

    # bookkeeping

    def _size(self, level: int, channels: int) -> int:
        return prod(n + g for n, g in zip(self.sides[level], self.ghosts[level], strict=True)) * channels

    def _take(self, name: str, level: int, channels: int) -> None:
        self._take_size(name, level, self._size(level, channels), prod(self.sides[level]) * channels)

    def _take_below(self, name: str, level: int, channels: int) -> None:
        """A tensor of the next level on the grid of this one."""
        below = self.share.below(level)
        whole = prod(n + g for n, g in zip(below, self.ghosts[level], strict=True))
        self._take_size(name, level + 1, whole * channels, prod(below) * channels)

    def _sent(self, level: int, channels: int) -> None:
        """A message between a group and its leader, which has memory of its own."""
        self._largest_message = max(self._largest_message, self.share.message(level, channels))

    def _take_size(self, name: str, level: int, size: int, own: int) -> None:
        self._held[name] = level, self.arena.take(size), own
        held = sum(piece.size for _, piece, _ in self._held.values())
        self.by_operation[self.operation] = max(self.by_operation.get(self.operation, 0), held * FLOAT)
        if held > self._most:
            self._most, self.peak_at = held, self.operation
            self.by_level, self._at_most = {}, {"activations kept": 0, "their gradients": 0, HALOS: 0}
            for other, (at, piece, values) in self._held.items():
                self.by_level[at] = self.by_level.get(at, 0) + piece.size * FLOAT
                self._at_most["their gradients" if other.startswith("gradient") else "activations kept"] += values
                self._at_most[HALOS] += piece.size - values

    def _give(self, *names: str) -> None:
        for name in names:
            if name in self._held:
                self.arena.give(self._held.pop(name)[1])

    def _convolved(self, level: int, inputs: list[int]) -> None:
        weights, scratch = _convolution_floats(self.sides[level], inputs, self.widths[level], self.threads)
        self._scratch = max(self._scratch, scratch)
        self._worked(weights)

    def _convolved_backward(self, level: int, given: int, inputs: list[int]) -> None:
        d, h, w = self.sides[level]
        tile = sum(inputs) or given
        window = given if inputs else padded_channels(self.inputs)
        layout = registers_for(inputs or [given], [], LANES)
        blocks = plan_blocks((0, d), h, w, window + tile, window, layout.rows, (1, 1, 1), self.threads)
        self._scratch = max(self._scratch, backward_room(blocks, window, tile, layout))
        many = d * h * w > 4 * FLUSH_TILES * self.threads
        sums = POSITIONS * TAPS * window * tile * (3 if many else 1)
        turned = POSITIONS * TAPS * window * tile if inputs else 0
        self._worked(self.threads * sums + turned + 2 * 27 * window * tile)

    def _worked(self, floats: int) -> None:
        self.work = max(self.work, (floats + self.threads * self._scratch) * FLOAT)


def convolution_work(sides: Triple, inputs: list[int], width: int, threads: int) -> int:
    """Bytes that a convolution's forward works in: scratch of the threads, its weight as given and transformed."""
    weights, scratch = _convolution_floats(sides, inputs, width, threads)
    return (weights + threads * scratch) * FLOAT


def _loss_floats(voxels: int, classes: int) -> int:
    """Values that `losses.LossSums` holds of a slab of so many voxels: a piece of it, several times.

    Where the slab has several pieces, one tensor of the last is still there when those of the next are made.
    """
    tensors = _LOSS_TENSORS + (voxels > _LOSS_PIECE)
    return tensors * min(voxels, _LOSS_PIECE) * classes


def _convolution_floats(sides: Triple, inputs: list[int], width: int, threads: int) -> tuple[int, int]:
    """Values of the weights, and of each thread's scratch."""
    (d, h, w), inner = sides, sum(inputs)
    layout = registers_for([width], [], LANES)
    blocks = plan_blocks((0, d), h, w, inner, width, layout.rows, (1, 1, 1), threads)
    return POSITIONS * TAPS * inner * width + 27 * inner * width, forward_room(blocks, padded_channels(inner), layout)
