"""Passes over channels-last activations with one coefficient per channel, a cache-sized piece at a time.

Channels-last memory is a table of voxels x channels. Broadcasting a [C] vector over it makes torch loop over C values
at a time, which for 16 channels is mostly loop overhead; so several voxels are taken together as one *lane* of about a
thousand values, and the vector is repeated to match. Each piece stays in cache through all operations on it.

Products and sums are separate operations on purpose: each is rounded once, whatever the position in the tensor, while
a fused multiply-add may be used in a vector loop and not in its tail.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_LANE = 1024
_PIECE = 65536


def channels_last(x: Tensor) -> Tensor:
    """`x` [N, C, D, H, W] in channels-last memory; itself where it is so already."""
    return x.contiguous(memory_format=torch.channels_last_3d)


class Lanes:
    """The pieces of one sample's [C, D, H, W] channels-last activations as [rows, lane] tables.

    `pieces` gives (number, pieces) for tensors of equal shape; `number` says which of the two repeated coefficient
    vectors of `repeat` belongs to them.
    """

    def __init__(self, channels: int, voxels: int) -> None:
        self.channels = channels
        self.together = max(1, min(voxels, _LANE // channels))
        self.main_rows = voxels // self.together
        self.tail = voxels % self.together

    def repeat(self, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        """A [C] vector as ([lane], [C]): for the main pieces and for the tail."""
        return coefficients.repeat(self.together), coefficients

    def pieces(self, *samples: Tensor) -> Iterator[tuple[int, tuple[Tensor, ...]]]:
        """Matching pieces of several [C, D, H, W] samples, which must be channels-last."""
        flat = [s.permute(1, 2, 3, 0).reshape(-1) for s in samples]
        lane = self.together * self.channels
        end = self.main_rows * lane
        step = max(1, _PIECE // lane)
        tables = [f[:end].view(self.main_rows, lane) for f in flat]
        for start in range(0, self.main_rows, step):
            yield 0, tuple(t[start : start + step] for t in tables)
        if self.tail:
            yield 1, tuple(f[end:].view(self.tail, self.channels) for f in flat)

    def scratch(self, like: Tensor) -> Tensor:
        """Room for one piece: a fresh allocation per piece would cost more than the arithmetic."""
        return torch.empty(max(_PIECE, self.together * self.channels), dtype=like.dtype, device=like.device)

    @staticmethod
    def like(piece: Tensor, scratch: Tensor) -> Tensor:
        """`scratch` in the shape of `piece`."""
        return scratch[: piece.numel()].view(piece.shape)

    def fold(self, lane_sums: Tensor) -> Tensor:
        """Sums per lane position [lane] to sums per channel [C]."""
        return lane_sums.view(self.together, self.channels).sum(0)


def affine_activate(x: Tensor, scale: Tensor, shift: Tensor, slope: float) -> Tensor:
    """``leaky_relu(x * scale + shift)``; slope 1 leaves out the activation.

    x      [N, C, D, H, W] channels-last
    scale  [N, C]
    shift  [N, C]
    """
    y = torch.empty_like(x, memory_format=torch.preserve_format)
    for n in range(x.shape[0]):
        lanes = Lanes(x.shape[1], x[n, 0].numel())
        scales, shifts = lanes.repeat(scale[n]), lanes.repeat(shift[n])
        for which, (xs, ys) in lanes.pieces(x[n], y[n]):
            torch.mul(xs, scales[which], out=ys)
            ys += shifts[which]
            if slope != 1:
                torch.nn.functional.leaky_relu_(ys, slope)
    return y


def activation_gradient(x: Tensor, grad: Tensor, scale: Tensor, shift: Tensor, slope: float) -> tuple[Tensor, Tensor]:
    """The gradient before the activation of `affine_activate`, and its sums per channel.

    grad  [N, C, D, H, W] gradient of its output, channels-last; not modified
    out   [N, C, D, H, W] gradient of ``x * scale + shift``
    sums  [N, 2, C] float64: of that gradient, and of its product with x
    """
    out = torch.empty_like(x, memory_format=torch.preserve_format) if slope != 1 else grad
    sums = torch.zeros((x.shape[0], 2, x.shape[1]), dtype=torch.float64, device=x.device)
    for n in range(x.shape[0]):
        lanes = Lanes(x.shape[1], x[n, 0].numel())
        scales, shifts = lanes.repeat(scale[n]), lanes.repeat(shift[n])
        main = torch.zeros((2, lanes.together * lanes.channels), dtype=torch.float64, device=x.device)
        scratch = lanes.scratch(x)
        for which, (xs, gs, os) in lanes.pieces(x[n], grad[n], out[n]):
            before = lanes.like(xs, scratch)
            if slope != 1:
                torch.mul(xs, scales[which], out=before)
                before += shifts[which]
                torch.ops.aten.leaky_relu_backward.grad_input(gs, before, slope, False, grad_input=os)
            target = main if which == 0 else sums[n]
            target[0] += os.sum(0)
            target[1] += torch.mul(os, xs, out=before).sum(0)
        sums[n, 0] += lanes.fold(main[0])
        sums[n, 1] += lanes.fold(main[1])
    return out, sums


def combine(grad: Tensor, x: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """``a * grad + b * x + c`` per channel: the gradient of a normalisation in its input.

    grad, x  [N, C, D, H, W] channels-last
    a, b, c  [N, C]
    """
    out = torch.empty_like(x, memory_format=torch.preserve_format)
    for n in range(x.shape[0]):
        lanes = Lanes(x.shape[1], x[n, 0].numel())
        ra, rb, rc = lanes.repeat(a[n]), lanes.repeat(b[n]), lanes.repeat(c[n])
        scratch = lanes.scratch(x)
        for which, (gs, xs, os) in lanes.pieces(grad[n], x[n], out[n]):
            torch.mul(xs, rb[which], out=os)
            os += torch.mul(gs, ra[which], out=lanes.like(gs, scratch))
            os += rc[which]
    return out
