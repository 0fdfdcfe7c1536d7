"""Up-convolution in slabs: its output exists for a few planes at a time, forward and backward."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

from torch import Tensor, nn

from volseg.nn.fused.operand import Operand, Workplace
from volseg.nn.kernels import pointwise
from volseg.nn.kernels.block_convolution import Target
from volseg.nn.kernels.rows import Activation, Rows
from volseg.partition.slabs import Lift, UpSlab, up_slabs, up_slabs_of, up_sources
from volseg.partition.tiling import padded_channels
from volseg.partition.window import Range
from volseg.program.kinds import Kind


@dataclass(frozen=True)
class Up:
    """A transposed convolution whose kernel is its stride, and the tensor it reads, with its ghosts.

    reach  planes beside a slab that are read, too
    """

    module: nn.ConvTranspose3d
    below: Operand
    reach: int = 1

    @property
    def channels(self) -> int:
        """Of the output."""
        return int(self.module.weight.shape[1])

    @property
    def lift(self) -> Lift:
        """How the output follows from the input."""
        d, h, w = self.module.stride
        return Lift((d, h, w), self.reach)

    def slabs(self, work: Workplace, multiple: int) -> Iterator[tuple[Range, Operand]]:
        """The output slab by slab, each with a plane and the ghosts around it: what a convolution of it reads.

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
        weight = pointwise.pack_up(self.module.weight, self.module.bias)
        low, high = rows.low, rows.high
        lift = self.lift
        deep, tall, wide = lift.factors
        largest = max(prod(lift.factors) * prod(source) * stored for _, source in slabs)
        for planes, _ in slabs:
            start, stop = up_sources(planes, rows.sides[0], low[0], high[0], lift)
            source = _with_ghosts_as_own(rows, start, stop)
            shape = (deep * source.sides[0], tall * source.sides[1], wide * source.sides[2])
            slab = work.buffers.slab("up-convolution", shape, stored, largest)
            with work.meter.doing(Kind.UP):
                pointwise.apply(Activation(source, self.below.affine), weight, slab)
            before = (-deep * start, tall * low[1], wide * low[2])
            sides = (deep * rows.sides[0], tall * rows.sides[1], wide * rows.sides[2])
            yield planes, Operand(Rows(slab.buffer, before, sides), self.channels)

    def backward(self, planes: Range, given: Rows, target: Target, total: Tensor | None) -> Tensor:
        """The gradient of the input to `target` for the input planes of a slab; that of the weight added to `total`."""
        weight, factor = pointwise.pack_turned_up(self.module.weight), self.lift.factors[0]
        source = planes[0] // factor, planes[1] // factor
        x = self.below.activation
        part = pointwise.gradients(x, given, weight, target.rows, target.sums, source, add=target.add)
        return part if total is None else total + part

    def finished(self, total: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients of weight and bias, from the sums of `backward` and [K as stored]."""
        shape = self.module.weight.shape
        return pointwise.up_weight_gradient(total, shape), bias[: shape[1]].float()


def _with_ghosts_as_own(rows: Rows, start: int, stop: int) -> Rows:
    """The planes start ... stop of the block with all ghosts on H and W, as a block of its own."""
    part = rows.buffer[start + rows.low[0] : stop + rows.low[0]]
    return Rows.of(part)


def bias_sums(rows: Rows) -> Tensor:
    """Sums over all voxels, [C] float64."""
    return rows.own.sum((0, 1)).double().sum(0)
