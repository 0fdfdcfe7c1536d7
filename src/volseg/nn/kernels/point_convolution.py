"""One front for the convolutions that need no neighbours: in float32 by `pointwise`, of bfloat16 tensors on tiles.

Both have the same functions; which of them a convolution goes to is said in `block_convolution`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from volseg.nn.kernels import pointwise
from volseg.nn.kernels.amx import pointwise as tiled
from volseg.nn.kernels.block_convolution import on_tiles
from volseg.nn.kernels.pointwise import up_weight_gradient
from volseg.nn.kernels.rows import Activation, Rows
from volseg.partition.window import Range

__all__ = [
    "PointWeight", "apply", "gradients", "pack_point", "pack_turned_point", "pack_turned_up", "pack_up",
    "up_weight_gradient",
]  # fmt: skip

PointWeight = pointwise.PointWeight | tiled.PointWeight


def pack_point(weight: Tensor, bias: Tensor | None, stored: torch.dtype) -> PointWeight:
    """The weight of a 1x1x1 convolution, [K, C, 1, 1, 1], for `apply`.

    stored  the type in which the network's tensors are stored
    """
    if on_tiles([weight.shape[1]], stored):
        return tiled.pack_point(weight, bias)
    return pointwise.pack_point(weight, bias)


def pack_up(weight: Tensor, bias: Tensor | None, stored: torch.dtype) -> PointWeight:
    """The weight of a transposed convolution whose stride is its kernel, [C, K, sd, sh, sw], for `apply`."""
    if on_tiles([weight.shape[0]], stored):
        return tiled.pack_up(weight, bias)
    return pointwise.pack_up(weight, bias)


def apply(x: Activation, weight: PointWeight, out: Rows, planes: Range | None = None) -> None:
    """Fill `out` from the planes of `x`; see `pointwise.apply`."""
    if isinstance(weight, tiled.PointWeight):
        tiled.apply(x, weight, out, planes)
    else:
        pointwise.apply(x, weight, out, planes)


def pack_turned_point(weight: Tensor, channels: int, stored: torch.dtype) -> PointWeight:
    """The weight of `gradients` for a 1x1x1 convolution, [K, C, 1, 1, 1], whose output has so many channels stored."""
    if on_tiles([weight.shape[1]], stored):
        return tiled.pack_turned_point(weight, channels)
    return pointwise.pack_turned_point(weight, channels)


def pack_turned_up(weight: Tensor, stored: torch.dtype) -> PointWeight:
    """The weight of `gradients` for a transposed convolution whose stride is its kernel, [C, K, sd, sh, sw]."""
    if on_tiles([weight.shape[0]], stored):
        return tiled.pack_turned_up(weight)
    return pointwise.pack_turned_up(weight)


def gradients(
    x: Activation, upstream: Rows, weight: PointWeight, target: Rows, sums: Tensor | None, planes: Range | None = None,
    *, add: bool = False,
) -> Tensor:  # fmt: skip
    """Gradients of `apply`: of its input to `target`, of its weight as the result; see `pointwise.gradients`."""
    if isinstance(weight, tiled.PointWeight):
        return tiled.gradients(x, upstream, weight, target, sums, planes, add=add)
    return pointwise.gradients(x, upstream, weight, target, sums, planes, add=add)
