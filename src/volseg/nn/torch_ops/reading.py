"""Rows as torch's operators read and write them: boxes of voxels, as lines of float32 that went through an activation.

A line holds the channels of all its voxels side by side, and coefficients are repeated to match: torch would loop over
a few channels at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from volseg.networks.description import ActivationKind
from volseg.nn.elementwise import activate
from volseg.nn.kernels.rows import Affine, Rows
from volseg.nn.torch_ops.workspace import Workspace
from volseg.partition.window import Range
from volseg.partition.windows_by_torch import Box


def box_of(rows: Rows, planes: Range | None = None) -> Box:
    """Planes of a block, by default all."""
    return planes or (0, rows.sides[0]), (0, rows.sides[1]), (0, rows.sides[2])


def region(rows: Rows, box: Box) -> Tensor:
    """A box of a block, which may reach into its ghosts: a view [d, h, w, C]."""
    d, h, w = (slice(low + first, low + last) for low, (first, last) in zip(rows.low, box, strict=True))
    return rows.buffer[d, h, w]


def lines(rows: Rows, box: Box, work: Workspace) -> Tensor:
    """The same as lines [d, h, w * C], on the device that works: a view, unless the rows lie elsewhere."""
    return region(rows, box).flatten(2).to(work.device, non_blocking=True)


@dataclass(frozen=True)
class Reading:
    """Coefficients of an activation, each repeated for all voxels of a line; None: as it is."""

    scale: Tensor | None
    shift: Tensor | None
    gain: Tensor | None
    slope: float
    kind: ActivationKind

    @classmethod
    def of(cls, affine: Affine | None, voxels: int) -> Reading:
        """For lines of so many voxels."""
        if affine is None:
            return cls(None, None, None, 1.0, "leaky_relu")
        gain = affine.gains
        return cls(
            affine.scale.repeat(voxels), affine.shift.repeat(voxels), None if gain is None else gain.repeat(voxels),
            affine.slope, affine.kind,
        )  # fmt: skip

    def before(self, raw: Tensor, out: Tensor | None = None) -> Tensor:
        """Raw lines as the activation's argument, float32; of no coefficients `raw` itself where that is float32."""
        if self.scale is None or self.shift is None:
            return raw.float()
        return torch.mul(raw, self.scale, out=out).add_(self.shift)

    def activated(self, raw: Tensor, out: Tensor | None = None) -> Tensor:
        """What raw lines are read as, float32, not to be written to.

        out  float32 lines that may be used for it
        """
        values = self.before(raw, out)
        if self.kind == "leaky_relu":
            if self.slope == 1:
                return values
            return torch.nn.functional.leaky_relu(values, self.slope, inplace=self.scale is not None)
        values = activate(values, self.kind, self.slope)
        return values if self.gain is None else values.mul_(self.gain)

    def gradient_before(self, gradient: Tensor, raw: Tensor) -> Tensor:
        """`gradient` of what raw lines are read as, as that of the activation's argument, float32."""
        if self.kind == "leaky_relu":
            if self.slope == 1:
                return gradient
            derived: Tensor = torch.ops.aten.leaky_relu_backward(gradient, self.before(raw), self.slope, False)
            return derived
        at = self.before(raw)
        if self.gain is not None:
            gradient = gradient * self.gain
        match self.kind:
            case "silu":
                derived = torch.ops.aten.silu_backward(gradient, at)
            case "sigmoid":
                derived = torch.ops.aten.sigmoid_backward(gradient, torch.sigmoid(at))
            case "gelu":
                derived = torch.ops.aten.gelu_backward(gradient, at)
            case "gelu_tanh":
                derived = torch.ops.aten.gelu_backward(gradient, at, approximate="tanh")
        return derived


def channel_sums(values: Tensor, channels: int) -> Tensor:
    """Sums of lines [d, h, w * C] over all voxels, [C] float64."""
    return values.sum((0, 1)).view(-1, channels).sum(0, dtype=torch.float64)


def write(part: Tensor, target: Tensor, add: bool = False) -> None:
    """Store values, or add them to what is stored: in float32, rounded once.

    target  of the same shape, of any type and device
    """
    if add:
        target.add_(part.to(target.device))
    else:
        target.copy_(part)


def hand_over(
    part: Tensor, x: Rows, affine: Affine | None, place: Box, target: Rows, sums: Tensor | None, add: bool,
    work: Workspace,
) -> None:  # fmt: skip
    """A part of a gradient to its target.

    part   lines of the gradient of what `x` is read as through `affine`, float32
    place  the box of `x` and of `target` that it belongs to
    sums   [2, C] float64: then the part goes through the activation first, and its sums, and those of its product with
           the raw values, are added here
    """
    if sums is not None:
        raw = lines(x, place, work)
        part = Reading.of(affine, place[2][1] - place[2][0]).gradient_before(part, raw)
        sums[0] += channel_sums(part, x.channels)
        sums[1] += channel_sums(part * raw, x.channels)
    write(part, region(target, place).flatten(2), add)
