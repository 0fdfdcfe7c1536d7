"""Pooling by windows of 1 or 2 voxels on each axis, by torch's operators: the largest of a window, and its mean.

A window's voxels are views of the block that begin at each of them and go on by its sides.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import product
from math import prod

import torch
from torch import Tensor

from volseg.geometry import Triple
from volseg.networks.description import KEEPING_ORDER
from volseg.nn.kernels.rows import Activation, Rows
from volseg.nn.torch_ops.reading import Reading, box_of, hand_over, lines, region, write
from volseg.nn.torch_ops.workspace import Workspace
from volseg.partition.window import Range
from volseg.partition.windows_by_torch import Box


def _larger(box: Box, window: Triple) -> Box:
    """The voxels of a box of windows."""
    d, h, w = ((a * n, b * n) for (a, b), n in zip(box, window, strict=True))
    return d, h, w


def _voxels(block: Tensor, window: Triple) -> list[Tensor]:
    """Views [d / wd, h / wh, w / ww, C] of a block's voxels by their places in a window, in torch's order."""
    d, h, w = window
    return [block[z::d, y::h, x::w] for z, y, x in product(range(d), range(h), range(w))]


@dataclass(frozen=True)
class TorchPooling:
    """As `nn.fused.backend.Pooling`."""

    work: Workspace

    def pool(self, x: Activation, window: Triple, out: Rows, signs: Tensor, planes: Range | None = None) -> None:
        """As `Pooling.pool`."""
        for box in self._boxes(out, planes, window):
            raw, compared = self._compared(x, _larger(box, window), signs)
            (chosen, *values), (best, *others) = _voxels(raw, window), _voxels(compared, window)
            for value, candidate in zip(values, others, strict=True):
                chosen = torch.where(candidate > best, value, chosen)
                best = torch.maximum(best, candidate)
            region(out, box).copy_(chosen)

    def unpool(
        self, gradient: Rows, x: Activation, signs: Tensor, pooled: Rows, sums: Tensor | None,
        window: Triple = (2, 2, 2),
    ) -> None:  # fmt: skip
        """As `Pooling.unpool`."""
        for box in self._boxes(pooled, None, window):
            whole = _larger(box, window)
            _, compared = self._compared(x, whole, signs)
            share = region(pooled, box).to(self.work.device).float()
            new = region(gradient, whole).to(self.work.device, torch.float32, copy=True)
            for place, here in zip(_voxels(new, window), _first_largest(_voxels(compared, window)), strict=True):
                place.add_(share * here)
            hand_over(new.flatten(2), x.rows, x.affine, whole, gradient, sums, False, self.work)

    def _boxes(self, small: Rows, planes: Range | None, window: Triple) -> Iterator[Box]:
        for some in self.work.planes(planes or (0, small.sides[0]), small.sides, small.channels * prod(window)):
            yield box_of(small, some)

    def _compared(self, x: Activation, box: Box, signs: Tensor) -> tuple[Tensor, Tensor]:
        """Raw values of a box, and what is compared of them, both [d, h, w, C]."""
        flat = lines(x.rows, box, self.work)
        breadth = box[2][1] - box[2][0]
        if x.affine is None or x.affine.kind in KEEPING_ORDER:
            compared = flat.float() * signs.repeat(breadth)
        else:
            compared = Reading.of(x.affine, breadth).activated(flat)
        channels = (breadth, x.rows.channels)
        return flat.unflatten(2, channels), compared.unflatten(2, channels)


def _first_largest(compared: Sequence[Tensor]) -> Iterator[Tensor]:
    """For each voxel of windows whether it is the first of the largest."""
    best, taken = reduce(torch.maximum, compared), torch.zeros_like(compared[0], dtype=torch.bool)
    for candidate in compared:
        here = (candidate == best) & ~taken
        taken |= here
        yield here


@dataclass(frozen=True)
class TorchAveraging:
    """As `nn.fused.backend.Averaging`."""

    work: Workspace

    def average(self, x: Activation, window: Triple, out: Rows) -> None:
        """As `Averaging.average`."""
        for some in self.work.planes((0, out.sides[0]), out.sides, out.channels * prod(window)):
            box = box_of(out, some)
            whole = _larger(box, window)
            breadth = whole[2][1] - whole[2][0]
            flat = Reading.of(x.affine, breadth).activated(lines(x.rows, whole, self.work))
            total = reduce(torch.add, _voxels(flat.unflatten(2, (breadth, x.rows.channels)), window))
            write(total / prod(window), region(out, box))

    def gradient(
        self, pooled: Rows, x: Activation | None, window: Triple, out: Rows, sums: Tensor | None, *, add: bool = False
    ) -> None:
        """As `Averaging.gradient`."""
        read = x or Activation(out)
        for some in self.work.planes((0, pooled.sides[0]), pooled.sides, pooled.channels * prod(window)):
            box = box_of(pooled, some)
            part = region(pooled, box).to(self.work.device).float() / prod(window)
            for axis, factor in enumerate(window):
                part = part.repeat_interleave(factor, axis) if factor > 1 else part
            wide = _larger(box, window)
            hand_over(part.flatten(2), read.rows, read.affine, wide, out, sums, add, self.work)
