"""Up-sampling by factors of 1 or 2 on each axis and its gradient, axis by axis, by torch's operators.

A new voxel lies a quarter of a voxel beside the middle of the one that it is made from; it takes three quarters of that
and, "trilinear", one of the next on its side, or the same again at the edge. "nearest" it takes all of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from volseg.geometry import Triple
from volseg.nn.kernels.rows import Activation, Rows
from volseg.nn.torch_ops.reading import Reading, box_of, hand_over, lines, region, write
from volseg.nn.torch_ops.workspace import Workspace
from volseg.partition.window import Range
from volseg.partition.windows_by_torch import Box

_OWN, _BESIDE = 0.75, 0.25


@dataclass(frozen=True)
class TorchInterpolation:
    """As `nn.fused.backend.Interpolation`."""

    work: Workspace

    def interpolate(
        self, x: Activation, factors: Triple, mode: str, out: Rows, planes: Range | None = None, *,
        beside: bool = False,
    ) -> None:  # fmt: skip
        """As `Interpolation.interpolate`."""
        _, high, wide = x.rows.valid if beside else box_of(x.rows)
        for some in self.work.planes(planes or (0, x.rows.sides[0]), x.rows.sides, x.rows.channels * 8):
            box = some, high, wide
            read = _with_neighbours(box, x.rows.valid, factors, mode)
            flat = Reading.of(x.affine, read[2][1] - read[2][0]).activated(lines(x.rows, read, self.work))
            values = flat.unflatten(2, (-1, x.rows.channels))
            for axis, factor in enumerate(factors):
                values = _longer(values, axis, box[axis], read[axis], factor, mode)
            d, h, w = ((a * factor, b * factor) for (a, b), factor in zip(box, factors, strict=True))
            write(values, region(out, (d, h, w)))

    def gradient(
        self, fine: Rows, x: Activation | None, factors: Triple, mode: str, target: Rows, sums: Tensor | None, *,
        add: bool = False,
    ) -> None:  # fmt: skip
        """As `Interpolation.gradient`."""
        raw, valid = x or Activation(target), fine.valid
        for some in self.work.planes((0, target.sides[0]), target.sides, target.channels * 8):
            box = box_of(target, some)
            d, h, w = (
                (max(low, a * factor - 1), min(high, b * factor + 1))
                for (a, b), (low, high), factor in zip(box, valid, factors, strict=True)
            )
            read = d, h, w
            values = region(fine, read).to(self.work.device).float()
            for axis, factor in enumerate(factors):
                values = _shorter(values, axis, box[axis], read[axis], factor, mode)
            hand_over(values.flatten(2), raw.rows, raw.affine, box, target, sums, add, self.work)


def _with_neighbours(box: Box, valid: Box, factors: Triple, mode: str) -> Box:
    """What a box is made from: where it is interpolated, a voxel more on each side if there is one."""
    d, h, w = (
        (max(low, a - 1), min(high, b + 1)) if factor > 1 and mode == "trilinear" else (a, b)
        for (a, b), (low, high), factor in zip(box, valid, factors, strict=True)
    )
    return d, h, w


def _at(values: Tensor, axis: int, places: Tensor, there: Range) -> Tensor:
    """Planes of an axis at places that are counted as `there`, its planes, is; at the edge those beyond it."""
    return values.index_select(axis, places.clamp(there[0], there[1] - 1) - there[0])


def _longer(values: Tensor, axis: int, made: Range, there: Range, factor: int, mode: str) -> Tensor:
    """An axis whose planes are `there`, from which those `made` become `factor` times as many."""
    if factor == 1:
        return _at(values, axis, torch.arange(*made, device=values.device), there)
    new = torch.arange(made[0] * factor, made[1] * factor, device=values.device)
    own = _at(values, axis, new // factor, there)
    if mode != "trilinear":
        return own
    side = torch.where(new % 2 == 0, -1, 1)
    return own.mul_(_OWN).add_(_at(values, axis, new // factor + side, there), alpha=_BESIDE)


def _shorter(values: Tensor, axis: int, wanted: Range, there: Range, factor: int, mode: str) -> Tensor:
    """The transpose: of a gradient whose planes are `there`, that of the planes `wanted`."""
    old = torch.arange(*wanted, device=values.device)
    if factor == 1:
        return _at(values, axis, old, there)
    total = _at(values, axis, old * factor, there).add_(_at(values, axis, old * factor + 1, there))
    if mode != "trilinear":
        return total
    around = _at(values, axis, old * factor - 1, there).add_(_at(values, axis, old * factor + 2, there))
    return total.mul_(_OWN).add_(around, alpha=_BESIDE)
