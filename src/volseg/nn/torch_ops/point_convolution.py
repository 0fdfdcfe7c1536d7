"""Convolutions that need no neighbours by torch's operators: products of matrices, some planes at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from volseg.geometry import Triple
from volseg.nn.kernels.pointwise import up_weight_gradient
from volseg.nn.kernels.rows import Activation, Rows
from volseg.nn.torch_ops.reading import Reading, box_of, hand_over, lines, region
from volseg.nn.torch_ops.workspace import Workspace, rounded
from volseg.partition.tiling import padded_channels
from volseg.partition.window import Range
from volseg.partition.windows_by_torch import Box


@dataclass(frozen=True)
class TorchPointWeight:
    """A weight as products read it.

    taps    [C, sd * sh * sw * K as stored] float32, with values as they are stored
    bias    [K as stored] float32, or None
    spread  outputs of an input voxel on D, H, W
    stored  the type in which the network's tensors are stored
    """

    taps: Tensor
    bias: Tensor | None
    spread: Triple
    stored: torch.dtype

    @property
    def outputs(self) -> int:
        """Channels of an output voxel, as stored."""
        deep, high, wide = self.spread
        return self.taps.shape[1] // (deep * high * wide)

    @property
    def channels(self) -> int:
        """Of the outputs that an input voxel has on a line."""
        return self.outputs * self.spread[2]


def _packed(taps: Tensor, bias: Tensor | None, stored: torch.dtype, outputs: int) -> TorchPointWeight:
    """From taps [C, K, sd, sh, sw], for outputs of which so many channels are stored."""
    c, k, deep, high, wide = taps.shape
    missing = outputs - k
    flat = functional.pad(taps.permute(0, 2, 3, 4, 1), [0, missing]).reshape(c, -1)
    own = None if bias is None else functional.pad(bias.detach(), [0, missing])
    return TorchPointWeight(rounded(flat, stored), own, (deep, high, wide), stored)


@dataclass(frozen=True)
class TorchPointConvolutions:
    """As `nn.fused.backend.PointConvolutions`."""

    work: Workspace

    def pack_point(self, weight: Tensor, bias: Tensor | None, stored: torch.dtype) -> TorchPointWeight:
        """As `PointConvolutions.pack_point`."""
        return _packed(weight.detach().transpose(0, 1), bias, stored, padded_channels(weight.shape[0]))

    def pack_up(self, weight: Tensor, bias: Tensor | None, stored: torch.dtype) -> TorchPointWeight:
        """As `PointConvolutions.pack_up`."""
        return _packed(weight.detach(), bias, stored, padded_channels(weight.shape[1]))

    def pack_turned_point(self, weight: Tensor, channels: int, stored: torch.dtype) -> TorchPointWeight:
        """As `PointConvolutions.pack_turned_point`."""
        return _packed(weight.detach().transpose(0, 1), None, stored, channels)

    def pack_turned_up(self, weight: Tensor, stored: torch.dtype) -> TorchPointWeight:
        """As `PointConvolutions.pack_turned_up`."""
        return self.pack_up(weight, None, stored)

    def apply(self, x: Activation, weight: TorchPointWeight, out: Rows, planes: Range | None = None) -> None:
        """As `PointConvolutions.apply`."""
        taps, k = self._taps(x, weight), weight.outputs
        with self.work.exactly(weight.stored):
            for some in self.work.planes(planes or (0, x.rows.sides[0]), x.rows.sides, len(taps) + taps.shape[1]):
                box = box_of(x.rows, some)
                y = self._values(x, box, weight.stored) @ taps
                if weight.bias is not None:
                    y = y.view(-1, k).add_(weight.bias)
                _spread(region(out, _finer(box, weight.spread)), weight.spread, k).copy_(y.view(_grouped(box, weight)))

    def gradients(
        self, x: Activation, upstream: Rows, weight: TorchPointWeight, target: Rows, sums: Tensor | None,
        planes: Range | None = None, *, add: bool = False,
    ) -> Tensor:  # fmt: skip
        """As `PointConvolutions.gradients`."""
        taps, k = self._taps(x, weight), weight.outputs
        total = torch.zeros(taps.shape[1], len(taps), dtype=torch.float64, device=self.work.device)
        with self.work.exactly(weight.stored):
            for some in self.work.planes(planes or (0, x.rows.sides[0]), x.rows.sides, len(taps) + taps.shape[1]):
                box = box_of(x.rows, some)
                whole = region(upstream, _finer(box, weight.spread)).to(self.work.device)
                of_outputs = _spread(whole, weight.spread, k).float().reshape(-1, taps.shape[1])
                total += of_outputs.t() @ self._values(x, box, weight.stored)
                part = (of_outputs @ taps.t()).view(_lines(box, x.rows.channels))
                hand_over(part, x.rows, x.affine, box, target, sums, add, self.work)
        return total.view(weight.spread[0] * weight.spread[1], -1, len(taps))

    def up_weight_gradient(self, total: Tensor, shape: Sequence[int]) -> Tensor:
        """As `PointConvolutions.up_weight_gradient`."""
        return up_weight_gradient(total, shape)

    def _taps(self, x: Activation, weight: TorchPointWeight) -> Tensor:
        """With zeros for channels of the input that are stored and not there."""
        return functional.pad(weight.taps, [0, 0, 0, x.rows.channels - len(weight.taps)])

    def _values(self, x: Activation, box: Box, stored: torch.dtype) -> Tensor:
        """[voxels, C] activated, float32, as they would be stored."""
        values = Reading.of(x.affine, box[2][1] - box[2][0]).activated(lines(x.rows, box, self.work))
        return rounded(values, stored).reshape(-1, x.rows.channels)


def _finer(box: Box, factors: Triple) -> Box:
    d, h, w = ((a * factor, b * factor) for (a, b), factor in zip(box, factors, strict=True))
    return d, h, w


def _lines(box: Box, channels: int) -> tuple[int, int, int]:
    d, h, w = (b - a for a, b in box)
    return d, h, w * channels


def _grouped(box: Box, weight: TorchPointWeight) -> tuple[int, ...]:
    """[d, h, w, sd, sh, sw, K]."""
    return (*(b - a for a, b in box), *weight.spread, weight.outputs)


def _spread(rows: Tensor, spread: Triple, channels: int) -> Tensor:
    """A view of [sd * d, sh * h, sw * w, C] as [d, h, w, sd, sh, sw, K]."""
    cut: Tensor = (
        rows[..., :channels].unflatten(2, (-1, spread[2])).unflatten(1, (-1, spread[1])).unflatten(0, (-1, spread[0]))
    )
    return cut.permute(0, 2, 4, 1, 3, 5, 6)
