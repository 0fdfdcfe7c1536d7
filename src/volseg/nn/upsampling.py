"""Partitioned up-sampling: nearest and trilinear."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from volseg.geometry import Triple
from volseg.nn.kernels.channelwise import channels_last
from volseg.nn.layer import LayerPlan, PartitionedLayer, expanded_outputs, fetch_window, triple
from volseg.partition.layout import Layout
from volseg.partition.window import Range, plan_window
from volseg.program.kinds import Kind


class PartitionedUpsample(nn.Upsample, PartitionedLayer):
    """nn.Upsample by a whole factor, mode 'nearest' or 'trilinear', over one block.

    x  [N, C, D, H, W]           this rank's block
    y  [N, C, s*D, s*H, s*W]     this rank's block of the output
    """

    kind = Kind.UP

    def forward(self, x: Tensor) -> Tensor:
        plan = self.plan(x)
        scale = self._scale()
        if self.mode == "nearest":
            return F.interpolate(x, scale_factor=[float(s) for s in scale], mode="nearest")
        window = fetch_window(x, plan.window, self.context.grid)
        for axis in range(3):
            if scale[axis] > 1:
                window = self._interpolate(window, plan, axis, scale[axis])
        return channels_last(window)

    def _interpolate(self, x: Tensor, plan: LayerPlan, axis: int, scale: int) -> Tensor:
        """Linear interpolation along one axis, at torch's source coordinates counted in the whole volume."""
        start = plan.window.axes[axis].window[0]
        coordinate = self.context.grid.coords[axis]
        first, last = plan.outputs.boundaries[axis][coordinate : coordinate + 2]
        low, high, weight = _sources(first, last, plan.inputs.shape[axis], scale, bool(self.align_corners))
        shape = [1, 1, 1, 1, 1]
        shape[2 + axis] = last - first
        weight = weight.to(device=x.device, dtype=x.dtype).view(shape)
        # In place, to hold two tensors of the output's size and not five.
        below = x.index_select(2 + axis, (low - start).to(x.device)).mul_(1 - weight)
        return below.add_(x.index_select(2 + axis, (high - start).to(x.device)).mul_(weight))

    def _scale(self) -> Triple:
        factors = self.scale_factor if isinstance(self.scale_factor, tuple) else (self.scale_factor,) * 3
        whole = [int(f) for f in factors if f is not None and f == int(f) and f >= 1]
        if self.size is not None or len(whole) < 3:
            raise self.refuse("only whole scale_factors can be partitioned, not `size` or fractions")
        return triple(whole)

    def _plan(self, layout: Layout) -> LayerPlan:
        if self.mode not in ("nearest", "trilinear"):
            raise self.refuse(f"mode={self.mode!r} cannot be partitioned, only 'nearest' and 'trilinear'")
        scale = self._scale()
        shape = triple([n * s for n, s in zip(layout.shape, scale, strict=True)])
        outputs = expanded_outputs(layout, shape, scale)

        def needs(axis: int, r: Range) -> Range:
            if self.mode == "nearest":
                return r[0] // scale[axis], -(-r[1] // scale[axis])
            if scale[axis] == 1:
                return r
            low, high, _ = _sources(r[0], r[1], layout.shape[axis], scale[axis], bool(self.align_corners))
            return int(low[0]), int(high[-1]) + 1

        return LayerPlan(plan_window(layout, self.context.grid.coords, needs, outputs), layout, outputs)


def _sources(first: int, last: int, length: int, scale: int, align_corners: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Lower and upper source index and the upper one's weight for the outputs first..last of an axis.

    The coordinates are those of torch.nn.functional.interpolate.
    """
    out = torch.arange(first, last, dtype=torch.float64)
    if align_corners:
        place = out * ((length - 1) / (length * scale - 1)) if length * scale > 1 else out * 0
    else:
        place = ((out + 0.5) / scale - 0.5).clamp(min=0)
    low = place.floor().long().clamp(max=length - 1)
    high = (low + 1).clamp(max=length - 1)
    return low, high, place - low
