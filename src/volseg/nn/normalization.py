"""Instance, group and batch normalisation with the statistics of the whole volume.

The statistics have the same bits on any number of ranks (see `kernels.reproducible`), so the normalised values have,
too. A leaky ReLU that follows is taken into the same passes (`slope`), and only the layer's input is kept for backward.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from volseg.distributed.communicator import Communicator
from volseg.nn.kernels.channelwise import activation_gradient, affine_activate, channels_last, combine
from volseg.nn.kernels.reproducible import moments
from volseg.nn.layer import LayerPlan, PartitionedLayer
from volseg.partition.layout import Layout
from volseg.partition.window import plan_halo
from volseg.program.kinds import Kind

CANCELLED = 100.0
"""Above this ratio of mean^2 to variance, E[x^2] - E[x]^2 from float32 sums loses too much: centre first, sum again."""


@dataclass(frozen=True)
class Pooling:
    """Which (sample, channel) pairs share statistics, and over how many voxels in all.

    groups      channels of one group share; C groups: instance norm
    over_batch  the samples share, too: batch norm
    """

    groups: int
    over_batch: bool

    def spread(self, sums: np.ndarray) -> np.ndarray:
        """[N, ..., C] sums to the sums over everything that shares statistics, in the same shape."""
        shape = sums.shape
        grouped = sums.reshape(*shape[:-1], self.groups, -1).sum(-1, keepdims=True)
        if self.over_batch:
            grouped = grouped.sum(0, keepdims=True)
        grouped = np.broadcast_to(grouped, (*shape[:-1], self.groups, shape[-1] // self.groups))
        return grouped.copy().reshape(shape)


class _Normalize(torch.autograd.Function):
    """``leaky_relu((x - mean) * rstd * weight + bias)`` with mean and rstd as tensors of [N, C] float64."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, rstd: Tensor, slope: float,
        pooling: Pooling | None, count: int, layer: PartitionedNorm,
    ) -> Tensor:  # fmt: skip
        gain = rstd if weight is None else rstd * weight.double()
        offset = -mean * gain if bias is None else bias.double() - mean * gain
        ctx.save_for_backward(x, weight, mean, rstd, gain.to(x.dtype), offset.to(x.dtype))
        ctx.settings, ctx.layer = (slope, pooling, count, bias is not None), layer
        return affine_activate(x, gain.to(x.dtype), offset.to(x.dtype), slope)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        with ctx.layer.backward_at_work():
            return _Normalize._gradients(ctx, grad)

    @staticmethod
    def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, rstd, gain, offset = ctx.saved_tensors
        slope, pooling, count, has_bias = ctx.settings
        communicator: Communicator = ctx.layer.context.grid.communicator
        grad, sums = activation_gradient(x, channels_last(grad), gain, offset, slope)
        normalized = rstd * (sums[:, 1] - mean * sums[:, 0])
        grad_w = normalized.sum(0).to(weight.dtype) if weight is not None else None
        grad_b = sums[:, 0].sum(0).to(x.dtype) if has_bias else None
        factor = rstd if weight is None else rstd * weight.double()
        if pooling is None:  # fixed statistics (batch norm in evaluation)
            zero = torch.zeros_like(factor)
            grad_x = combine(grad, x, *(c.to(x.dtype) for c in (factor, zero, zero)))
            return grad_x, grad_w, grad_b, *[None] * 6
        share = torch.ones_like(rstd) if weight is None else weight.double().expand_as(rstd)
        local = torch.stack([share * sums[:, 0], share * normalized], dim=1)
        total = torch.from_numpy(pooling.spread(communicator.reduce_all(local.cpu().numpy()))).to(x.device)
        first, second = total[:, 0] / count, total[:, 1] / count
        constant = rstd * (rstd * mean * second - first)
        grad_x = combine(grad, x, *(c.to(x.dtype) for c in (factor, -rstd * rstd * second, constant)))
        return grad_x, grad_w, grad_b, *[None] * 6


class PartitionedNorm(PartitionedLayer):
    """The part that instance, group and batch norm share.

    x  [N, C, D, H, W]  this rank's block
    y  [N, C, D, H, W]  the same block of the normalised volume
    """

    kind = Kind.NORM
    slope: float = 1.0

    def pooling(self, channels: int) -> Pooling:
        """Which channels share statistics."""
        raise NotImplementedError

    def _statistics(self, x: Tensor, pooling: Pooling, eps: float) -> tuple[Tensor, Tensor, Tensor, int]:
        """Mean, 1 / sqrt(var + eps), var (biased), each [N, C] float64, and how many voxels share them. Collective."""
        layout = self.plan(x).inputs
        brick, bricks = self.context.brick(layout)
        count = layout.shape[0] * layout.shape[1] * layout.shape[2] * (x.shape[1] // pooling.groups)
        count *= x.shape[0] if pooling.over_batch else 1

        def about(centre: np.ndarray, x: Tensor) -> tuple[np.ndarray, np.ndarray]:
            sums = pooling.spread(moments(x, brick, bricks, self.context.grid.communicator)) / count
            return centre + sums[:, 0], np.maximum(sums[:, 1] - sums[:, 0] * sums[:, 0], 0)

        mean, var = about(np.zeros(x.shape[:2]), x.detach())
        if (var * CANCELLED < mean * mean).any():  # the same answer on every rank: these bits are
            centre = torch.from_numpy(mean).to(x)
            mean, var = about(centre.double().cpu().numpy(), x.detach() - centre.view(*centre.shape, 1, 1, 1))
        tensors = (torch.from_numpy(t).to(x.device) for t in (mean, 1 / np.sqrt(var + eps), var))
        return *tensors, count  # type: ignore[return-value]

    def _normalize(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, rstd: Tensor,
        pooling: Pooling | None, count: int,
    ) -> Tensor:  # fmt: skip
        y: Tensor = _Normalize.apply(x, weight, bias, mean, rstd, self.slope, pooling, count, self)
        return y

    def _plan(self, layout: Layout) -> LayerPlan:
        return LayerPlan(plan_halo(layout, self.context.grid.coords, (0, 0, 0)), layout, layout)

    def _over_volume(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, pooling: Pooling, eps: float
    ) -> Tensor:
        x = channels_last(x)
        mean, rstd, _, count = self._statistics(x, pooling, eps)
        if self.training and count == 1:
            raise self.refuse("one voxel has no statistics to train with; the volume is too small for this depth")
        return self._normalize(x, weight, bias, mean, rstd, pooling, count)


class PartitionedInstanceNorm3d(PartitionedNorm, nn.InstanceNorm3d):
    """nn.InstanceNorm3d with the statistics of the whole volume."""

    def forward(self, x: Tensor) -> Tensor:
        if self.track_running_stats:
            raise self.refuse("track_running_stats=True is not supported")
        return self._over_volume(x, self.weight, self.bias, self.pooling(x.shape[1]), self.eps)

    def pooling(self, channels: int) -> Pooling:
        """Each channel on its own."""
        return Pooling(channels, over_batch=False)


class PartitionedGroupNorm(PartitionedNorm, nn.GroupNorm):
    """nn.GroupNorm with the statistics of the whole volume."""

    def forward(self, x: Tensor) -> Tensor:
        return self._over_volume(x, self.weight, self.bias, self.pooling(x.shape[1]), self.eps)

    def pooling(self, channels: int) -> Pooling:
        """The channels of a group together."""
        return Pooling(self.num_groups, over_batch=False)


class PartitionedBatchNorm3d(PartitionedNorm, nn.BatchNorm3d):
    """nn.BatchNorm3d with the statistics of the whole volumes of the batch; running statistics as torch keeps them."""

    def forward(self, x: Tensor) -> Tensor:
        x = channels_last(x)
        if not self.training and self.running_mean is not None and self.running_var is not None:
            mean = self.running_mean.double().expand(x.shape[:2])
            rstd = (self.running_var.double() + self.eps).rsqrt().expand(x.shape[:2])
            return self._normalize(x, self.weight, self.bias, mean, rstd, None, 1)
        pooling = self.pooling(x.shape[1])
        mean, rstd, var, count = self._statistics(x, pooling, self.eps)
        if self.training and count == 1:
            raise self.refuse("one voxel has no statistics to train with; the volume is too small for this depth")
        self.update(mean[0], var[0], count)
        return self._normalize(x, self.weight, self.bias, mean, rstd, pooling, count)

    def pooling(self, channels: int) -> Pooling:
        """Each channel on its own, over all samples."""
        return Pooling(channels, over_batch=True)

    def update(self, mean: Tensor, var: Tensor, count: int) -> None:
        """Take mean and biased variance [C] of `count` values into the running statistics, in training only."""
        if not self.training or self.running_mean is None or self.running_var is None:
            return
        unbiased = var * (count / (count - 1))
        with torch.no_grad():
            assert self.num_batches_tracked is not None
            self.num_batches_tracked += 1
            rate = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), rate)
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), rate)


def normalize_with_slope(norm: PartitionedNorm, x: Tensor, slope: float) -> Tensor:
    """``leaky_relu(norm(x), slope)`` in the norm's own passes; slope 1 is no activation."""
    norm.slope = slope
    try:
        y: Tensor = norm(x)
        return y
    finally:
        norm.slope = 1.0
