"""What the busiest rank does in a training step, and in segmenting a scan: each operation, message and reduction.

The same steps as the fused U-Net (`models.fused_unet`, `models.streamed_unet`). Operations stand under the names that
its meter uses, so a time that was measured can be laid beside the time that was planned, layer by layer; messages stand
under the layer that makes them necessary. Tests count the program's messages and reductions against these.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from math import prod

from volseg.config import ModelConfig
from volseg.geometry import quotient
from volseg.networks.deep_supervision import deep_levels
from volseg.partition.layout import Layout
from volseg.partition.tiling import padded_channels
from volseg.planning.fused_memory import FLOAT, made_again
from volseg.program.kinds import Kind
from volseg.program.schedule import IN_PLACE, RECOMPUTE, Schedule

DOUBLE = 8
GRADIENTS = "gradients of the weights"
"""As the meter calls the layer of what is summed over all ranks once a step."""


class Family(StrEnum):
    """Operations whose time follows one law of channels and voxels, so that measuring some of them tells the others."""

    FORWARD = "convolution"
    BACKWARD = "convolution backward"
    IMAGE_BACKWARD = "convolution of an image, backward"
    UP = "up-convolution"
    UP_BACKWARD = "up-convolution backward"
    NORM = "norm"
    NORM_BACKWARD = "norm backward"
    POOLING = "pooling backward"
    HEAD = "head, loss and their backward"
    LOAD = "reading a block"
    OPTIMIZER = "optimizer"
    REST = "everything else of a step"
    SEGMENT_FORWARD = "convolution, segmenting"
    SEGMENT_UP = "up-convolution, segmenting"
    SEGMENT_NORM = "norm, segmenting"
    SEGMENT_HEAD = "head and mask"
    SEGMENT_LOAD = "reading planes"
    SEGMENT_REST = "everything else of segmenting"
    REFERENCE = "a convolution alone"


_SEGMENTING = {
    Family.FORWARD: Family.SEGMENT_FORWARD, Family.UP: Family.SEGMENT_UP, Family.NORM: Family.SEGMENT_NORM,
}  # fmt: skip


@dataclass(frozen=True)
class Operation:
    """Work of one kind in one layer.

    layer            as the meter names it, such as "decoder 1.1, backward"
    inputs, outputs  channels; of the optimizer 1 and 1
    voxels           of the rank's block at the operation's output; of the optimizer the number of weights
    times            how often it is done
    """

    layer: str
    kind: Kind
    family: Family
    level: int
    inputs: int
    outputs: int
    voxels: int
    times: float = 1.0

    @property
    def flops(self) -> float:
        """Multiplications and additions of the direct sums; 0 for what is no product."""
        return self.times * flops(self.family, self.inputs, self.outputs, self.voxels)


_TAPS = {
    Family.FORWARD: 27, Family.SEGMENT_FORWARD: 27, Family.REFERENCE: 27,
    Family.BACKWARD: 54, Family.IMAGE_BACKWARD: 27,
    Family.UP: 1, Family.SEGMENT_UP: 1, Family.UP_BACKWARD: 3, Family.HEAD: 4, Family.SEGMENT_HEAD: 1,
}  # fmt: skip


def flops(family: Family, inputs: int, outputs: int, voxels: int) -> float:
    """Multiplications and additions of the direct sums of one operation of a family."""
    return 2.0 * _TAPS.get(family, 0) * inputs * outputs * voxels


@dataclass(frozen=True)
class Exchange:
    """Ghosts of one tensor.

    axes  for each axis that is cut: the axis, messages, and bytes sent, of the busiest rank
    grid  the level whose grid exchanges it: where a level's output comes back from fewer ranks, that of the level above
    """

    layer: str
    level: int
    axes: tuple[tuple[int, int, int], ...]
    grid: int

    @property
    def bytes(self) -> int:
        """Sent in all."""
        return sum(size for _, _, size in self.axes)


@dataclass(frozen=True)
class Reduction:
    """A sum or maximum over all ranks of a level's grid, of so many bytes; or something small told to all of them.

    group  whether it goes over a group of ranks whose blocks are merged at this level instead
    """

    layer: str
    level: int
    bytes: int
    ranks: int
    group: bool = False


@dataclass(frozen=True)
class Transfer:
    """Blocks of a level gathered on fewer ranks, or scattered from there: what the leader receives or sends."""

    layer: str
    level: int
    messages: int
    bytes: int


@dataclass
class Work:
    """All of it, in the order in which it is done."""

    operations: list[Operation] = field(default_factory=list)
    exchanges: list[Exchange] = field(default_factory=list)
    reductions: list[Reduction] = field(default_factory=list)
    transfers: list[Transfer] = field(default_factory=list)

    @property
    def flops(self) -> float:
        """Of all operations."""
        return sum(operation.flops for operation in self.operations)


class _Walk:
    """What both walks share."""

    def __init__(self, model: ModelConfig, layouts: Sequence[Layout], segmenting: bool) -> None:
        self.model, self.layouts = model, layouts
        self.widths = model.widths
        self.image, self.classes = model.in_channels or 1, model.classes or 2
        self.sides = [layout.largest_block for layout in layouts]
        self.voxels = [prod(side) for side in self.sides]
        self.ranks = [prod(layout.dims) for layout in layouts]
        self.segmenting = segmenting
        self.work = Work()

    def inputs_of(self, part: str, level: int, number: int) -> int:
        """Channels that a convolution reads."""
        width = self.widths[level]
        if number == 2:
            return width
        return 2 * width if part == "decoder" else (self.image, *self.widths)[level]

    def add(
        self, layer: str, kind: Kind, family: Family, level: int, inputs: int, outputs: int, voxels: int | None = None,
        times: float = 1.0,
    ) -> None:  # fmt: skip
        family = _SEGMENTING.get(family, family) if self.segmenting else family
        count = self.voxels[level] if voxels is None else voxels
        self.work.operations.append(Operation(layer, kind, family, level, inputs, outputs, count, times))

    def convolve(self, layer: str, part: str, level: int, number: int, times: float = 1.0) -> None:
        """A convolution, and the up-convolution that it reads."""
        width = self.widths[level]
        if part == "decoder" and number == 1:
            self.add(layer, Kind.UP, Family.UP, level, self.widths[level + 1], width, times=times)
        self.add(
            layer, Kind.CONVOLUTION, Family.FORWARD, level, self.inputs_of(part, level, number), width, None, times
        )

    @property
    def takes_statistics(self) -> bool:
        """Whether norms take the statistics of what they are given; batch norms have theirs when segmenting."""
        return self.model.norm != "none" and not (self.segmenting and self.model.norm == "batch")

    def normalize(self, layer: str, level: int) -> None:
        """The norm behind it: the largest sum, and the sum."""
        width = self.widths[level]
        if not self.takes_statistics:
            return
        self.add(layer, Kind.NORM, Family.NORM, level, 1, width)
        for _ in range(2):
            self.reduce(layer, level, 2 * width * DOUBLE)

    def reduce(self, layer: str, level: int, size: int) -> None:
        if self.ranks[level] > 1:
            self.work.reductions.append(Reduction(layer, level, size, self.ranks[level]))

    def exchange_output(self, layer: str, level: int) -> None:
        """The ghosts of a level's output, on the grid of the level above, where the up-convolution reads it."""
        self.exchange(
            layer, level, padded_channels(self.widths[level]), grid=level - 1 if self.merged(level) else level
        )

    def merged(self, level: int) -> int:
        """Ranks of the level above whose blocks make one here; 0 where none are merged."""
        count = self.ranks[level - 1] // self.ranks[level] if level else 1
        return count if count > 1 else 0

    def exchange(self, layer: str, level: int, stored: int, grid: int | None = None) -> None:
        """The ghosts of a tensor of so many stored channels."""
        grid = level if grid is None else grid
        layout = self.layouts[grid].coarser(quotient(self.model.factors[level], self.model.factors[grid]))
        sides, axes = list(layout.largest_block), []
        for axis, parts in enumerate(layout.dims):
            if parts == 1:
                continue
            neighbours = min(2, parts - 1)
            face = prod(sides) // sides[axis]
            axes.append((axis, neighbours, neighbours * face * stored * FLOAT))
            sides[axis] += neighbours
        if axes:
            self.work.exchanges.append(Exchange(layer, level, tuple(axes), grid))

    def transfer(self, layer: str, level: int, channels: int) -> None:
        """Of the blocks of a level between the finer grid and its own, where they differ."""
        merged = self.merged(level)
        if merged:
            size = self.voxels[level] * padded_channels(channels) * FLOAT
            self.work.transfers.append(Transfer(layer, level, merged - 1, size * (merged - 1) // merged))

    def tell_group(self, layer: str, level: int, size: int) -> None:
        """Something small, from a leader to its group or summed over it."""
        if self.merged(level):
            self.work.reductions.append(Reduction(layer, level, size, self.merged(level), group=True))


def training_work(
    model: ModelConfig, layouts: Sequence[Layout], parameters: int, checkpoint_levels: Collection[int] = (),
    replicas: int = 1, deep: bool = False,
) -> Work:  # fmt: skip
    """A training step on one case of each replica.

    layouts     of each level, finest first
    parameters  of the network
    deep        with the loss at coarser levels too
    """
    walk, top = _Walk(model, layouts, segmenting=False), model.levels
    walk.add("other", Kind.FILES, Family.LOAD, 0, walk.image, 1)
    walk.reduce("other", 0, 2 * sum(layouts[0].dims) * DOUBLE)  # where the blocks lie
    walk.exchange("other", 0, walk.image)
    for level in range(top + 1):
        _encode(walk, level)
    for level in reversed(range(top)):
        _decode(walk, level)
    for level in (0, *(deep_levels(top) if deep else ())):
        walk.add("other", Kind.HEAD, Family.HEAD, level, walk.widths[level], walk.classes)
        walk.reduce("other", level, (2 + 4 * walk.classes) * DOUBLE)
    for level in range(top):
        _decode_backward(walk, level, checkpoint_levels)
    for level in reversed(range(top + 1)):
        _encode_backward(walk, level, checkpoint_levels)
    ranks = walk.ranks[0] * replicas
    if ranks > 1:
        walk.work.reductions.append(Reduction(GRADIENTS, 0, parameters * FLOAT, ranks))
    if replicas > 1:  # loss and Dice of all cases, and running statistics
        walk.work.reductions.append(Reduction(GRADIENTS, 0, 3 * replicas * DOUBLE, replicas))
    walk.add("other", Kind.OPTIMIZER, Family.OPTIMIZER, 0, 1, 1, parameters)
    walk.add("other", Kind.OTHER, Family.REST, 0, walk.image, walk.widths[0])
    return walk.work


def _encode(walk: _Walk, level: int) -> None:
    width = walk.widths[level]
    for number in (1, 2):
        layer = f"encoder {level}.{number}"
        walk.convolve(layer, "encoder", level, number)
        if number == 2 and 0 < level == walk.model.levels:
            walk.exchange_output(layer, level)
        elif number == 1 or walk.model.levels:
            walk.exchange(layer, level, padded_channels(width))
        walk.normalize(layer, level)
    if level < walk.model.levels:
        walk.transfer(f"encoder {level}.2", level + 1, width)
        walk.exchange(f"encoder {level}.2", level + 1, padded_channels(width))


def _spread(walk: _Walk, level: int) -> None:
    """A level's output and its coefficients come back from the leaders."""
    layer, width = f"decoder {level - 1}.1", walk.widths[level]
    walk.transfer(layer, level, width)
    walk.tell_group(layer, level, 2 * padded_channels(width) * FLOAT)


def _decode(walk: _Walk, level: int) -> None:
    _spread(walk, level + 1)
    for number in (1, 2):
        layer = f"decoder {level}.{number}"
        walk.convolve(layer, "decoder", level, number)
        if number == 1:
            walk.exchange(layer, level, padded_channels(walk.widths[level]))
        elif level > 0:
            walk.exchange_output(layer, level)
        walk.normalize(layer, level)


def _second_backward(walk: _Walk, part: str, level: int, checkpoint_levels: Collection[int]) -> None:
    width = walk.widths[level]
    if made_again(walk.model, part, level, checkpoint_levels):
        walk.convolve(f"{part} {level}.1, again", part, level, 1)
    layer = f"{part} {level}.2, backward"
    _normalize_backward(walk, layer, level)
    walk.exchange(layer, level, padded_channels(width))
    walk.add(layer, Kind.CONVOLUTION, Family.BACKWARD, level, width, width)


def _normalize_backward(walk: _Walk, layer: str, level: int) -> None:
    width = walk.widths[level]
    if walk.model.norm != "none":
        walk.add(layer, Kind.NORM, Family.NORM_BACKWARD, level, 1, width)
        walk.reduce(layer, level, 2 * width * DOUBLE)


def _decode_backward(walk: _Walk, level: int, checkpoint_levels: Collection[int]) -> None:
    _second_backward(walk, "decoder", level, checkpoint_levels)
    layer, width, below = f"decoder {level}.1, backward", walk.widths[level], walk.widths[level + 1]
    _normalize_backward(walk, layer, level)
    walk.exchange(layer, level, padded_channels(width))
    walk.add(layer, Kind.CONVOLUTION, Family.BACKWARD, level, 2 * width, width)
    walk.add(layer, Kind.UP, Family.UP_BACKWARD, level, below, width)
    walk.transfer(layer, level + 1, below)
    walk.tell_group(layer, level + 1, 2 * padded_channels(below) * DOUBLE)


def _encode_backward(walk: _Walk, level: int, checkpoint_levels: Collection[int]) -> None:
    width = walk.widths[level]
    if level < walk.model.levels:
        walk.transfer(f"encoder {level}.2, backward", level + 1, width)
        walk.add(f"encoder {level}.2, backward", Kind.POOLING, Family.POOLING, level, 1, width)
    _second_backward(walk, "encoder", level, checkpoint_levels)
    layer = f"encoder {level}.1, backward"
    _normalize_backward(walk, layer, level)
    if level:
        walk.exchange(layer, level, padded_channels(width))
        walk.add(layer, Kind.CONVOLUTION, Family.BACKWARD, level, walk.inputs_of("encoder", level, 1), width)
    else:
        walk.add(layer, Kind.CONVOLUTION, Family.IMAGE_BACKWARD, level, walk.image, width)


def segmenting_work(model: ModelConfig, layouts: Sequence[Layout], schedule: Schedule = IN_PLACE) -> Work:
    """The network's part of segmenting one scan.

    layouts  of each level, finest first
    """
    walk, top = _Walk(model, layouts, segmenting=True), model.levels
    if schedule is RECOMPUTE:
        for count in (1, 2):
            _pass(walk, count)
    else:
        walk.add("encoder 0.1", Kind.FILES, Family.SEGMENT_LOAD, 0, walk.image, 1)
        _encode(walk, 0)
    for level in range(1, top + 1):
        _encode(walk, level)
    for level in reversed(range(1, top)):
        _decode(walk, level)
    if schedule is RECOMPUTE:
        _spread(walk, 1)
        for count in (3, 4):
            _pass(walk, count)
        _pass(walk, 4, head=True)
    elif top:
        _decode(walk, 0)
    walk.add("head", Kind.HEAD, Family.SEGMENT_HEAD, 0, walk.widths[0], walk.classes)
    walk.add("other", Kind.OTHER, Family.SEGMENT_REST, 0, walk.image, walk.widths[0])
    return walk.work


def _pass(walk: _Walk, count: int, head: bool = False) -> None:
    """A pass of RECOMPUTE over the image through so many stages, each on more voxels than the one behind it."""
    if not (head or count == 2 or walk.takes_statistics):
        return  # nothing to find out
    layer = "head" if head else ("encoder 0.1", "encoder 0.2", "decoder 0.1", "decoder 0.2")[count - 1]
    walk.add(layer, Kind.FILES, Family.SEGMENT_LOAD, 0, walk.image, 1)
    for stage in range(count):
        part, number = ("encoder", "decoder")[stage // 2], stage % 2 + 1
        walk.convolve(layer, part, 0, number, times=_wider(walk, count - 1 - stage))
    if not head:
        walk.normalize(layer, 0)
    if count == 2:
        walk.transfer(layer, 1, walk.widths[0])
        walk.exchange(layer, 1, padded_channels(walk.widths[0]))


def _wider(walk: _Walk, width: int) -> float:
    """How many times a block's voxels a stage computes that reaches `width` voxels beyond it."""
    dims, sides = walk.layouts[0].dims, walk.sides[0]
    return prod(n + width * min(2, p - 1) for n, p in zip(sides, dims, strict=True)) / prod(sides)
