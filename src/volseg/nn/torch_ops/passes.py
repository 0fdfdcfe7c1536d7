"""Passes over rows that need each voxel alone, by torch's operators."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from volseg.nn.kernels.rows import Activation, Rows
from volseg.nn.torch_ops.reading import Reading, box_of, hand_over, lines, region, write
from volseg.nn.torch_ops.workspace import Workspace
from volseg.partition.window import Range


@dataclass(frozen=True)
class TorchPasses:
    """As `nn.fused.backend.Passes`."""

    work: Workspace

    def activate(self, x: Activation, out: Rows, planes: Range | None = None) -> None:
        """As `Passes.activate`."""
        reading = Reading.of(x.affine, x.rows.sides[2])
        for some in self.work.planes(planes or (0, x.rows.sides[0]), x.rows.sides, x.rows.channels):
            values = reading.activated(lines(x.rows, box_of(x.rows, some), self.work))
            write(values, region(out, box_of(x.rows, some)).flatten(2))

    def combine(self, gradient: Rows, raw: Rows, a: Tensor, b: Tensor, c: Tensor) -> None:
        """As `Passes.combine`."""
        factor, weight, constant = (values.repeat(raw.sides[2]) for values in (a, b, c))
        for some in self.work.planes((0, raw.sides[0]), raw.sides, raw.channels):
            box = box_of(raw, some)
            place = region(gradient, box).flatten(2)
            value = torch.addcmul(constant, lines(raw, box, self.work).float(), weight)
            write(value.addcmul_(place.to(self.work.device).float(), factor), place)


@dataclass(frozen=True)
class TorchAddition:
    """As `nn.fused.backend.Addition`."""

    work: Workspace

    def add(
        self, x: Activation, other: Activation, out: Rows, slope: float, planes: Range | None = None
    ) -> None:  # fmt: skip
        """As `Addition.add`."""
        readings = [Reading.of(term.affine, x.rows.sides[2]) for term in (x, other)]
        for some in self.work.planes(planes or (0, x.rows.sides[0]), x.rows.sides, x.rows.channels):
            box = box_of(x.rows, some)
            terms = [
                reading.activated(lines(term.rows, box, self.work))
                for reading, term in zip(readings, (x, other), strict=True)
            ]
            total = terms[0] + terms[1]
            write(torch.nn.functional.leaky_relu_(total, slope) if slope != 1 else total, region(out, box).flatten(2))

    def divide(
        self, gradient: Rows, out: Rows, slope: float, x: Activation, other: Activation, *,
        x_sums: Tensor | None = None, other_sums: Tensor | None = None, copy: Rows | None = None, adding: bool = False,
    ) -> None:  # fmt: skip
        """As `Addition.divide`."""
        through = [
            term.affine is not None and term.affine.activates
            for term, sums in ((x, x_sums), (other, other_sums))
            if sums is not None
        ]
        if copy is None and any(through):
            raise AssertionError("the terms of a sum have different gradients: give `copy` rows of its own")
        result = Reading(None, None, None, slope, "leaky_relu")
        for some in self.work.planes((0, gradient.sides[0]), gradient.sides, gradient.channels):
            box = box_of(gradient, some)
            common = lines(gradient, box, self.work).float()
            if slope != 1:
                common = result.gradient_before(common, lines(out, box, self.work).float())
            for term, sums, target, add in ((other, other_sums, copy, adding), (x, x_sums, gradient, False)):
                if target is not None or sums is not None:  # without a copy both gradients are the same
                    hand_over(common, term.rows, term.affine, box, target or gradient, sums, add, self.work)
