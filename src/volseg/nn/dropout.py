"""Partitioned dropout: a voxel is kept or dropped by its place in the whole volume, so the grid does not matter."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from volseg.nn.layer import LayerPlan, PartitionedLayer
from volseg.partition.layout import Layout
from volseg.partition.window import plan_halo


def _mix(x: Tensor) -> Tensor:
    """A 64-bit finaliser (splitmix64: Steele, Lea & Flood, OOPSLA 2014) on int64, which wraps as uint64 does."""
    x = (x ^ _shift(x, 30)) * -4658895280553007687
    x = (x ^ _shift(x, 27)) * -7723592293110705685
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


class _PartitionedDropout(PartitionedLayer):
    p: float

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        if self.p >= 1:
            return x * 0
        seed = self._seed()
        return x * self._kept(x, seed).to(x.dtype).div_(1 - self.p)

    def _seed(self) -> int:
        """One number from the root's random state, the same on every rank. Collective."""
        drawn = int(torch.randint(2**62, (1,)).item())
        return int(self.context.grid.communicator.broadcast(drawn))

    def _kept(self, x: Tensor, seed: int) -> Tensor:
        """The mask, in the shape of `x` or broadcastable to it."""
        raise NotImplementedError

    def _keys(self, x: Tensor, seed: int) -> Tensor:
        """A key for each sample and channel, [N * C]."""
        streams = torch.arange(x.shape[0] * x.shape[1], device=x.device)
        return streams * 0x5851F42D4C957F2D + seed

    def _uniform(self, key: Tensor) -> Tensor:
        """Uniform numbers in [0, 1) with 24 bits from int64 keys."""
        return _shift(_mix(_mix(key)), 40).to(torch.float32) * 2.0**-24

    def _plan(self, layout: Layout) -> LayerPlan:
        return LayerPlan(plan_halo(layout, self.context.grid.coords, (0, 0, 0)), layout, layout)


class PartitionedDropout(_PartitionedDropout, nn.Dropout):
    """nn.Dropout: each value is dropped on its own; the mask is the same on every grid for the same torch seed."""

    def _kept(self, x: Tensor, seed: int) -> Tensor:
        layout = self.plan(x).inputs
        box = layout.block(self.context.grid.coords)
        d, h, w = (torch.arange(a, b, device=x.device) for a, b in zip(box.start, box.stop, strict=True))
        index = (d.view(-1, 1, 1) * layout.shape[1] + h.view(-1, 1)) * layout.shape[2] + w
        keys = _mix(self._keys(x, seed))
        return torch.stack([self._uniform(index + key) >= self.p for key in keys]).view(x.shape)


class PartitionedDropout3d(_PartitionedDropout, nn.Dropout3d):
    """nn.Dropout3d: whole channels are dropped; the mask is the same on every grid for the same torch seed."""

    def _kept(self, x: Tensor, seed: int) -> Tensor:
        return (self._uniform(self._keys(x, seed)) >= self.p).view(*x.shape[:2], 1, 1, 1)

    def factors(self, channels: int, device: torch.device) -> Tensor | None:
        """What one sample's channels are multiplied by, [C] float64: 0 or 1 / (1 - p). Collective.

        None where all stay.
        """
        if not self.training or self.p == 0:
            return None
        if self.p >= 1:
            return torch.zeros(channels, dtype=torch.float64, device=device)
        kept = self._kept(torch.empty((1, channels, 1, 1, 1), device=device), self._seed())
        return kept.view(-1).double() / (1 - self.p)
