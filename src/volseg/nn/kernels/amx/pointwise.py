"""Convolutions that need no neighbours on AMX tiles: 1x1x1, and transposed ones whose kernel is their stride.

The interface is that of `kernels.pointwise`. Both voxels that an up-convolution makes along W lie side by side in
memory, as if they were one of twice the channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from math import prod

import torch
from torch import Tensor

from volseg.geometry import Triple
from volseg.nn.kernels.amx.gradients import Windows
from volseg.nn.kernels.amx.gradients import gradients as run_gradients
from volseg.nn.kernels.amx.hardware import tile_configuration
from volseg.nn.kernels.amx.spread import build_spread
from volseg.nn.kernels.amx.weights import Sums, Weight, layout_for, packed
from volseg.nn.kernels.direct import axes, cutting_fields, reads_of, view_fields
from volseg.nn.kernels.direct.weights import TapGroup, group_fields
from volseg.nn.kernels.forms import Form, element_of, forms_of
from volseg.nn.kernels.jit import workers
from volseg.nn.kernels.jit.compiler import Library, compiled_once
from volseg.nn.kernels.jit.language import Element
from volseg.nn.kernels.jit.tiles import INNER, ROWS
from volseg.nn.kernels.operands import source_fields, target_fields
from volseg.nn.kernels.rows import Activation, Rows
from volseg.nn.kernels.stages import in_stages
from volseg.nn.kernels.winograd import Target
from volseg.partition.amx_tiling import plan_tiles, results_floats, tile_products, window_of
from volseg.partition.direct_tiling import Reach
from volseg.partition.tiling import Registers, padded_channels
from volseg.partition.window import Range

_OWN_VOXEL = Reach((1, 1, 1), (0, 0, 0), (1, 1, 1))


@compiled_once
def _library(layout: Registers, form: Form, element: Element) -> Library:
    return build_spread(layout, form, element)


@dataclass(frozen=True)
class PointWeight:
    """A weight made ready for `apply` or `gradients`.

    bias    [channels], or None
    spread  outputs of an input voxel on D, H, W
    """

    weight: Weight
    bias: Tensor | None
    spread: Triple

    @property
    def channels(self) -> int:
        """Of the outputs that an input voxel has on a line."""
        return self.weight.channels


def pack_point(weight: Tensor, bias: Tensor | None) -> PointWeight:
    """The weight of a 1x1x1 convolution, [K, C, 1, 1, 1]; outputs are rounded up to vectors."""
    taps = _padded(weight.detach(), 0, padded_channels(weight.shape[0]))
    return _pack(taps[None, None, None, :, :, 0, 0, 0], bias, (1, 1, 1))


def pack_up(weight: Tensor, bias: Tensor | None) -> PointWeight:
    """The weight of a transposed convolution whose stride is its kernel, [C, K, sd, sh, sw]; K is rounded up."""
    taps = _up_taps(weight)
    k, wide = taps.shape[1], taps.shape[4]
    if bias is not None:
        bias = _padded(bias.detach(), 0, k).repeat(wide)
    return _pack(taps.permute(2, 3, 4, 1, 0).unsqueeze(2), bias, (taps.shape[2], taps.shape[3], wide))


def _up_taps(weight: Tensor) -> Tensor:
    """[C, K as stored, sd, sh, sw] of an up-convolution's weight, which must have kernels of 1 or 2."""
    if not set(weight.shape[2:]) <= {1, 2}:
        raise AssertionError(f"up-convolution by {tuple(weight.shape[2:])}: factors are 1 or 2 on each axis")
    return _padded(weight.detach(), 1, padded_channels(weight.shape[1]))


def _padded(values: Tensor, dim: int, length: int) -> Tensor:
    """Zeros behind, up to a length."""
    if values.shape[dim] == length:
        return values
    return torch.nn.functional.pad(values, [0, 0] * (values.dim() - dim - 1) + [0, length - values.shape[dim]])


def _pack(taps: Tensor, bias: Tensor | None, spread: Triple) -> PointWeight:
    """The weight of `apply` from taps [deep, high, 1, results' channels .., C], those of results as they are stored."""
    deep, high, channels = taps.shape[0], taps.shape[1], prod(taps.shape[3:-1])
    taps = _padded(taps, taps.dim() - 1, padded_channels(taps.shape[-1]))
    if bias is not None:
        bias = _padded(bias.detach(), 0, channels).contiguous()
    groups = [TapGroup((p, q, 0), ([(0, p)], [(0, q)], [(0, 0)])) for p, q in product(range(deep), range(high))]
    layout = layout_for([channels], [taps.shape[-1]])
    return PointWeight(packed(taps, groups, layout, (deep, high, 1), (1, 1, 1)), bias, spread)


def apply(x: Activation, weight: PointWeight, out: Rows, planes: Range | None = None) -> None:
    """Fill `out` from the planes of `x`, all by default.

    out  `weight.spread` times as long on D, H, W; float32 or bfloat16
    """
    own, rows = weight.weight, x.rows
    layout, voxel, (d, h, w) = own.layout, own.voxel, rows.sides
    products = tile_products([group.counts for group in own.groups], voxel, own.channels)
    cut = plan_tiles(planes or (0, d), h, w, _OWN_VOXEL, voxel, 4 * layout.width, products, (1, 1, 1), workers.count())
    window, (order,) = window_of(cut, _OWN_VOXEL, voxel, 1), in_stages(reads_of(cut, _OWN_VOXEL), rows, ())
    target = target_fields(out)
    assert target is not None
    job = _library(layout, *forms_of([x], 1), element_of(out))["spread"].bind(
        tiles=tile_configuration(min(layout.width, ROWS)), cutting=cutting_fields(cut, order, h, w),
        view=view_fields(_OWN_VOXEL, rows, voxel, window, (h, w)),
        groups=group_fields(own.groups, _OWN_VOXEL, window.lines, window.line, window.plane, voxel, 1, INNER),
        source=source_fields(x), weight=own.packed, bias=weight.bias,
        target=target | {"channels": own.channels}, factors=axes(weight.spread),
    )  # fmt: skip
    workers.run(job, order.numel(), window.size + results_floats(cut, window, 1, layout.width))


def pack_turned_point(weight: Tensor, stored: int) -> PointWeight:
    """The weight of `gradients` for a 1x1x1 convolution, [K, C, 1, 1, 1], whose output has `stored` channels."""
    return _pack_turned(_padded(weight.detach(), 0, stored)[None, None, None, :, :, 0, 0, 0], (1, 1, 1))


def pack_turned_up(weight: Tensor) -> PointWeight:
    """The weight of `gradients` for a transposed convolution whose stride is its kernel, [C, K, sd, sh, sw]."""
    taps = _up_taps(weight)
    return _pack_turned(taps.permute(2, 3, 4, 1, 0).unsqueeze(2), (taps.shape[2], taps.shape[3], taps.shape[4]))


def _pack_turned(taps: Tensor, spread: Triple) -> PointWeight:
    """The weight of `gradients` from taps [deep, high, 1, results' channels .., C]."""
    taps = _padded(taps, taps.dim() - 1, padded_channels(taps.shape[-1]))
    deep, high, n, c = taps.shape[0], taps.shape[1], prod(taps.shape[3:-1]), taps.shape[-1]
    group = TapGroup((0, 0, 0), ([(p, p) for p in range(deep)], [(q, q) for q in range(high)], [(0, 0)]))
    turned, inner = taps.movedim(-1, 3), taps.dim() - 4
    return PointWeight(packed(turned, [group], layout_for([c], [n]), (deep, high, 1), (1, 1, 1), inner), None, spread)


def gradients(
    x: Activation, upstream: Rows, weight: PointWeight, target: Rows, sums: Tensor | None, planes: Range | None = None,
    *, add: bool = False,
) -> Tensor:  # fmt: skip
    """Gradients of `apply`: of its input to `target`, of its weight as the result; as `kernels.pointwise.gradients`."""
    own, (deep, high, wide) = weight.weight, weight.spread
    buffer, (z, y, column), (d, h, w) = upstream.buffer, upstream.low, upstream.sides
    lines = Rows(buffer.view(*buffer.shape[:2], -1, own.voxel), (z, y, column // wide), (d, h, w // wide))
    rows, first_last = x.rows, planes or (0, x.rows.sides[0])
    voxels = (first_last[1] - first_last[0]) * rows.sides[1] * rows.sides[2]
    into = Sums((deep, high, 1), own.groups, own.voxel, [rows.channels], voxels)
    windows = Windows(lines, Reach((deep, high, 1), (0, 0, 0), (deep, high, 1)), (1, 1, 1))
    run_gradients(windows, [x], own, [Target(target, sums, add)], into, first_last)
    by_tap = torch.empty(deep, high, 1, own.voxel, rows.channels)
    into.finish_to(by_tap.permute(3, 4, 0, 1, 2), range(rows.channels))
    return by_tap.double().view(deep * high, own.voxel, rows.channels)
