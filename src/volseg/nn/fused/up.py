"""Up-sampling in slabs: by an up-convolution or an interpolation, whose output exists for a few planes at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Protocol

import torch
from torch import Tensor, nn

from volseg.networks.description import Interpolation
from volseg.nn.fused.backend import Interpolation as Interpolating
from volseg.nn.fused.backend import PackedPoint, PointConvolutions
from volseg.nn.fused.operand import Operand, Workplace
from volseg.nn.kernels import passes
from volseg.nn.kernels.block_convolution import Target
from volseg.nn.kernels.forms import readable
from volseg.nn.kernels.rows import Activation, Rows
from volseg.partition.slabs import Lift, UpSlab, up_slabs, up_slabs_of, up_sources
from volseg.partition.tiling import padded_channels
from volseg.partition.window import Range
from volseg.program.kinds import Kind


class Filling(Protocol):
    """What makes a lifted tensor from the one below it.

    channels  of the lifted tensor
    """

    @property
    def channels(self) -> int: ...

    def fill(self, below: Operand, planes: Range, slab: Rows) -> None:
        """Fill a slab with what planes of `below` become, which may begin in its ghosts, with those on H and W.

        slab  counted from the voxel that the own first voxel of `below` becomes
        """


@dataclass(frozen=True)
class UpFilling:
    """A transposed convolution whose kernel is its stride.

    stored  the type in which the network's tensors are stored
    points  of the backend
    """

    module: nn.ConvTranspose3d
    stored: torch.dtype
    points: PointConvolutions

    @property
    def channels(self) -> int:
        """Of the lifted tensor."""
        return int(self.module.weight.shape[1])

    @cached_property
    def _weight(self) -> PackedPoint:
        return self.points.pack_up(self.module.weight, self.module.bias, self.stored)

    def fill(self, below: Operand, planes: Range, slab: Rows) -> None:
        """As `Filling.fill`."""
        start, stop = (n + below.rows.low[0] for n in planes)
        source = Rows.of(below.rows.buffer[start:stop])  # the ghosts on H and W as part of the block
        self.points.apply(Activation(source, below.affine), self._weight, Rows.of(slab.buffer))


@dataclass(frozen=True)
class InterpolatedFilling:
    """An interpolation.

    backend  its functions
    """

    node: Interpolation
    backend: Interpolating

    @property
    def channels(self) -> int:
        """Of the lifted tensor."""
        return self.node.channels

    def fill(self, below: Operand, planes: Range, slab: Rows) -> None:
        """As `Filling.fill`."""
        self.backend.interpolate(below.activation, self.node.factors, self.node.mode, slab, planes, beside=True)


@dataclass(frozen=True)
class Up:
    """A lifted tensor, and the one that it is made from, with its ghosts.

    lift  how it follows from that, and how far beside a slab it is read
    """

    filling: Filling
    below: Operand
    lift: Lift

    @property
    def channels(self) -> int:
        """Of the lifted tensor."""
        return self.filling.channels

    def slabs(self, work: Workplace, multiple: int) -> Iterator[tuple[Range, Operand]]:
        """The lifted tensor slab by slab, each with the planes and ghosts around it that a convolution of it reads.

        multiple  slabs begin on multiples of it
        """
        rows = self.below.rows
        return self._made(
            work, up_slabs(rows.sides, rows.low, rows.high, padded_channels(self.channels), multiple, self.lift)
        )

    def slabs_of(self, work: Workplace, planes: Sequence[Range]) -> Iterator[tuple[Range, Operand]]:
        """The same for the planes given, which may begin in the ghosts."""
        rows = self.below.rows
        return self._made(work, up_slabs_of(planes, rows.sides, rows.low, rows.high, self.lift))

    def _made(self, work: Workplace, slabs: Sequence[UpSlab]) -> Iterator[tuple[Range, Operand]]:
        rows, stored = self.below.rows, padded_channels(self.channels)
        low, high, lift = rows.low, rows.high, self.lift
        deep, tall, wide = lift.factors
        largest = max(prod(lift.factors) * prod(source) * stored for _, source in slabs)
        for planes, (_, h, w) in slabs:
            start, stop = up_sources(planes, rows.sides[0], low[0], high[0], lift)
            buffer = work.buffers.slab("lifted", (deep * (stop - start), tall * h, wide * w), stored, largest).buffer
            before = (-deep * start, tall * low[1], wide * low[2])
            slab = Rows(buffer, before, (deep * rows.sides[0], tall * rows.sides[1], wide * rows.sides[2]))
            with work.meter.doing(Kind.UP):
                self.filling.fill(self.below, (start, stop), slab)
            yield planes, Operand(slab, self.channels)


@dataclass
class UpGradient:
    """The gradients of an up-convolution; those of weight and bias are the sums over slabs.

    target  where that of its input goes
    points  of the backend
    """

    module: nn.ConvTranspose3d
    below: Activation
    target: Target
    points: PointConvolutions
    weight: Tensor | None = None
    bias: Tensor | None = None

    @cached_property
    def _turned(self) -> PackedPoint:
        return self.points.pack_turned_up(self.module.weight, self.below.rows.buffer.dtype)

    def add(self, planes: Range, gradient: Rows) -> None:
        """Take in the output's gradient in some planes."""
        factor = self.module.stride[0]
        source, target = (planes[0] // factor, planes[1] // factor), self.target
        weight = self.points.gradients(
            self.below, gradient, self._turned, target.rows, target.sums, source, add=target.add
        )
        bias = bias_sums(gradient, planes)
        self.weight = weight if self.weight is None else self.weight + weight
        self.bias = bias if self.bias is None else self.bias + bias

    def finished(self) -> tuple[Tensor, Tensor]:
        """The gradients of weight and bias."""
        assert self.weight is not None
        assert self.bias is not None
        shape = self.module.weight.shape
        return self.points.up_weight_gradient(self.weight, shape), self.bias[: shape[1]].float()


def bias_sums(rows: Rows, planes: Range | None = None) -> Tensor:
    """Sums over all voxels of planes of a block, by default all, [C] float64."""
    if planes is not None:
        rows = rows.seen_from((planes[0], 0, 0), (planes[1] - planes[0], *rows.sides[1:]))
    if readable(rows.buffer):
        return passes.channel_sums(rows)
    own = rows.own
    if own.dtype == torch.float32 or own.device.type != "cpu":  # a processor would make a copy of it all in float32
        return own.sum((0, 1), dtype=torch.float32).double().sum(0)
    lines = torch.zeros(own.shape[2:], dtype=torch.float64, device=own.device)
    for plane in own:  # a copy in float32 of one plane at a time
        lines += plane.float().sum(0)
    return lines.sum(0)
