"""Partitioned pooling. Stride-2 pooling of blocks on even boundaries exchanges nothing; other cases fetch a window."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from volseg.errors import PartitionError
from volseg.geometry import Triple
from volseg.nn.kernels.channelwise import channels_last
from volseg.nn.kernels.reproducible import moments
from volseg.nn.layer import LayerPlan, PartitionedLayer, fetch_window, strided_outputs, triple
from volseg.partition.layout import Layout
from volseg.partition.window import Range, plan_halo, plan_window
from volseg.program.kinds import Kind


def _plan_pooling(
    layer: PartitionedLayer,
    layout: Layout,
    kernel: Triple,
    stride: Triple,
    padding: Triple,
    dilation: Triple,
    ceil: bool,
) -> LayerPlan:
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    room = [n + 2 * p - r - 1 for n, p, r in zip(layout.shape, padding, reach, strict=True)]
    shape = tuple(r // s + 1 for r, s in zip(room, stride, strict=True))
    if ceil and any(r % s for r, s in zip(room, stride, strict=True)):
        raise PartitionError("ceil_mode=True changes the output here and cannot be partitioned; pad the volume instead")
    outputs = strided_outputs(layout, (shape[0], shape[1], shape[2]), stride)

    def needs(axis: int, r: Range) -> Range:
        start = r[0] * stride[axis] - padding[axis]
        return start, (r[1] - 1) * stride[axis] - padding[axis] + reach[axis] + 1

    return LayerPlan(plan_window(layout, layer.context.grid.coords, needs, outputs), layout, outputs)


class PartitionedMaxPool3d(nn.MaxPool3d, PartitionedLayer):
    """nn.MaxPool3d over one block, exactly; x [N, C, D, H, W] to y [N, C, D_out, H_out, W_out]."""

    kind = Kind.POOLING

    def forward(self, x: Tensor) -> Tensor:
        plan = self.plan(x)
        window = fetch_window(x, plan.window, self.context.grid, fill=float("-inf"))
        return F.max_pool3d(window, self.kernel_size, self.stride, 0, self.dilation)

    def _plan(self, layout: Layout) -> LayerPlan:
        if self.return_indices:
            raise self.refuse("return_indices=True cannot be partitioned")
        sizes = (triple(self.kernel_size), triple(self.stride), triple(self.padding), triple(self.dilation))
        return _plan_pooling(self, layout, *sizes, bool(self.ceil_mode))


class PartitionedAvgPool3d(nn.AvgPool3d, PartitionedLayer):
    """nn.AvgPool3d over one block; the divisor counts what torch counts, at the volume's faces too."""

    kind = Kind.POOLING

    def forward(self, x: Tensor) -> Tensor:
        plan = self.plan(x)
        window = fetch_window(x, plan.window, self.context.grid)
        total = F.avg_pool3d(window, self.kernel_size, self.stride, 0, divisor_override=1)
        if self.divisor_override is not None:
            return total / self.divisor_override
        counts = [self._counts(plan, axis).to(total) for axis in range(3)]
        return total / (counts[0].view(-1, 1, 1) * counts[1].view(-1, 1) * counts[2])

    def _counts(self, plan: LayerPlan, axis: int) -> Tensor:
        """Voxels under the kernel on one axis for each of this rank's outputs; the divisor is their product."""
        kernel, stride, padding = triple(self.kernel_size), triple(self.stride), triple(self.padding)
        coordinate = self.context.grid.coords[axis]
        first, last = plan.outputs.boundaries[axis][coordinate : coordinate + 2]
        start = torch.arange(first, last) * stride[axis] - padding[axis]
        stop = start + kernel[axis]
        n = plan.inputs.shape[axis]
        if self.count_include_pad:
            return (stop.clamp(max=n + padding[axis]) - start).clamp(min=1)
        return (stop.clamp(max=n) - start.clamp(min=0)).clamp(min=1)

    def _plan(self, layout: Layout) -> LayerPlan:
        sizes = (triple(self.kernel_size), triple(self.stride), triple(self.padding), (1, 1, 1))
        return _plan_pooling(self, layout, *sizes, bool(self.ceil_mode))


class _GlobalMean(torch.autograd.Function):
    """The mean of a whole volume from its sums; its gradient is the same at every voxel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, sums: Tensor, count: int, layer: PartitionedLayer) -> Tensor:
        ctx.shape, ctx.count, ctx.layer = x.shape, count, layer
        return (sums / count).to(x.dtype).reshape(*x.shape[:2], 1, 1, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        with ctx.layer.backward_at_work():
            communicator = ctx.layer.context.grid.communicator
            total = torch.from_numpy(communicator.reduce_all(grad.double().cpu().numpy())).to(grad) / ctx.count
        return total.expand(ctx.shape), None, None, None


class GlobalAverage(nn.Module):
    """The mean of all voxels, [N, C, D, H, W] to [N, C, 1, 1, 1]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3, 4), keepdim=True)


class PartitionedGlobalAverage(GlobalAverage, PartitionedLayer):
    """`GlobalAverage` of the whole volume, on every rank, in sums that do not depend on their order."""

    kind = Kind.POOLING

    def forward(self, x: Tensor) -> Tensor:
        x = channels_last(x)
        layout = self.plan(x).inputs
        brick, bricks = self.context.brick(layout)
        sums = moments(x.detach(), brick, bricks, self.context.grid.communicator)[:, 0]
        count = layout.shape[0] * layout.shape[1] * layout.shape[2]
        y: Tensor = _GlobalMean.apply(x, torch.from_numpy(sums).to(x.device), count, self)
        return y

    def _plan(self, layout: Layout) -> LayerPlan:
        return LayerPlan(plan_halo(layout, self.context.grid.coords, (0, 0, 0)), layout, layout)
