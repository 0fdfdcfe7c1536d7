"""Partitioned convolutions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from volseg.geometry import Triple
from volseg.nn.kernels.convolution import convolve, transposed_convolve, weight_gradient
from volseg.nn.layer import (
    LayerPlan,
    PartitionedLayer,
    expanded_outputs,
    fetch_window,
    no_view,
    strided_outputs,
    triple,
)
from volseg.partition.layout import Layout
from volseg.partition.window import Range, plan_window
from volseg.program.kinds import Kind


class _Convolve(torch.autograd.Function):
    """Unpadded convolution through the kernels of `kernels.convolution`, forward and backward."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Triple, dilation: Triple, groups: int,
        origin: Triple, layer: PartitionedLayer,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(x, weight)
        ctx.settings, ctx.layer = (stride, dilation, groups), layer
        ctx.has_bias = bias is not None
        return no_view(convolve(x, weight, bias, stride, dilation, groups, origin))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        stride, dilation, groups = ctx.settings
        shape = (x.shape[2], x.shape[3], x.shape[4])
        wanted_x, wanted_w = ctx.needs_input_grad[:2]
        with ctx.layer.backward_at_work():
            grad_x = transposed_convolve(grad, weight, stride, dilation, groups, shape) if wanted_x else None
            grad_w = weight_gradient(x, grad, weight, stride, dilation, groups) if wanted_w else None
            grad_b = grad.sum((0, 2, 3, 4)) if ctx.has_bias and ctx.needs_input_grad[2] else None
        return grad_x, grad_w, grad_b, *[None] * 5


class _TransposedConvolve(torch.autograd.Function):
    """Unpadded transposed convolution, forward and backward: the same three kernels with their roles exchanged."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, stride: Triple, dilation: Triple, groups: int, shape: Triple,
        layer: PartitionedLayer,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(x, weight)
        ctx.settings, ctx.layer = (stride, dilation, groups), layer
        return no_view(transposed_convolve(x, weight, stride, dilation, groups, shape))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        with ctx.layer.backward_at_work():
            grad_x = convolve(grad, weight, None, *ctx.settings) if ctx.needs_input_grad[0] else None
            grad_w = weight_gradient(grad, x, weight, *ctx.settings) if ctx.needs_input_grad[1] else None
        return grad_x, grad_w, *[None] * 5


class PartitionedConv3d(nn.Conv3d, PartitionedLayer):
    """nn.Conv3d over one block of a partitioned volume: any kernel, stride, dilation, groups; zero padding.

    x       [N, C, D, H, W]     this rank's block
    window  [N, C, D', H', W']  after the exchange; D' = (D_out - 1) * stride + dilation * (kernel - 1) + 1
    y       [N, K, D_out, ...]  this rank's block of nn.Conv3d's output; its bits are the same on every grid
    """

    kind = Kind.CONVOLUTION

    def forward(self, x: Tensor) -> Tensor:
        plan = self.plan(x)
        window = fetch_window(x, plan.window, self.context.grid)
        z0, y0, x0 = plan.outputs.block(self.context.grid.coords).start
        y: Tensor = _Convolve.apply(
            window, self.weight, self.bias, triple(self.stride), triple(self.dilation), self.groups,
            (-(z0 % 2), -(y0 % 2), -(x0 % 2)), self,
        )  # fmt: skip
        return y

    def _plan(self, layout: Layout) -> LayerPlan:
        if self.padding_mode != "zeros":
            raise self.refuse(f"padding_mode={self.padding_mode!r} cannot be partitioned, only 'zeros'")
        kernel, stride, dilation = triple(self.kernel_size), triple(self.stride), triple(self.dilation)
        low, high = self._padding(kernel, dilation)
        reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        shape = tuple(
            (n + a + b - r - 1) // s + 1 for n, a, b, r, s in zip(layout.shape, low, high, reach, stride, strict=True)
        )
        outputs = strided_outputs(layout, (shape[0], shape[1], shape[2]), stride)

        def needs(axis: int, r: Range) -> Range:
            start = r[0] * stride[axis] - low[axis]
            return start, (r[1] - 1) * stride[axis] - low[axis] + reach[axis] + 1

        return LayerPlan(plan_window(layout, self.context.grid.coords, needs, outputs), layout, outputs)

    def _padding(self, kernel: Triple, dilation: Triple) -> tuple[Triple, Triple]:
        """Zeros before and after each axis; torch's 'same' puts the odd one after."""
        if self.padding == "valid":
            return (0, 0, 0), (0, 0, 0)
        if self.padding == "same":
            total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
            return triple([t // 2 for t in total]), triple([t - t // 2 for t in total])
        return triple(self.padding), triple(self.padding)


class PartitionedConvTranspose3d(nn.ConvTranspose3d, PartitionedLayer):
    """nn.ConvTranspose3d over one block of a partitioned volume: any kernel, stride, padding, dilation, groups.

    x  [N, C, D, H, W]      this rank's block
    y  [N, K, D_out, ...]   this rank's block of the output; with kernel = stride nothing is exchanged
    """

    kind = Kind.UP

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        if output_size is not None:
            raise self.refuse("output_size is not supported in a partitioned network; set output_padding")
        plan = self.plan(x)
        window = fetch_window(x, plan.window, self.context.grid)
        stride, dilation, padding = triple(self.stride), triple(self.dilation), triple(self.padding)
        kernel = triple(self.kernel_size)
        shape, cut = [], []
        for axis in range(3):
            a, b = plan.window.axes[axis].window
            coordinate = self.context.grid.coords[axis]
            first, last = plan.outputs.boundaries[axis][coordinate : coordinate + 2]
            start = first + padding[axis] - a * stride[axis]
            length = (b - a - 1) * stride[axis] + dilation[axis] * (kernel[axis] - 1) + 1
            shape.append(max(length, start + last - first))
            cut.append(slice(start, start + last - first))
        y: Tensor = _TransposedConvolve.apply(window, self.weight, stride, dilation, self.groups, triple(shape), self)
        if any(c != slice(0, n) for c, n in zip(cut, shape, strict=True)):
            y = y[:, :, cut[0], cut[1], cut[2]]
        return y if self.bias is None else y + self.bias.view(1, -1, 1, 1, 1)

    def _plan(self, layout: Layout) -> LayerPlan:
        kernel, stride, dilation = triple(self.kernel_size), triple(self.stride), triple(self.dilation)
        padding, extra = triple(self.padding), triple(self.output_padding)
        reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        shape = tuple(
            (n - 1) * s - 2 * p + r + e + 1
            for n, s, p, r, e in zip(layout.shape, stride, padding, reach, extra, strict=True)
        )
        outputs = expanded_outputs(layout, (shape[0], shape[1], shape[2]), stride)

        def needs(axis: int, r: Range) -> Range:
            # output o sums inputs i with o = i * stride - padding + tap, 0 <= tap <= reach
            start = -(-(r[0] + padding[axis] - reach[axis]) // stride[axis])
            start = min(start, (r[0] + padding[axis]) // stride[axis])  # a kernel below the stride leaves gaps
            stop = (r[1] - 1 + padding[axis]) // stride[axis] + 1
            return start, max(stop, start + 1)

        return LayerPlan(plan_window(layout, self.context.grid.coords, needs, outputs), layout, outputs)
