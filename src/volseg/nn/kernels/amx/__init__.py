"""Convolutions of bfloat16 tensors on AMX tiles, and their gradients: kernels of 1, 3, 5, 7, strides of 1, 2.

Inputs, read through their activations, and weights are rounded to bfloat16; products are added in float32. Inputs have
8 channels or more; tiles are full from 16 on. The interface is that of `direct`, whose windows these are.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import lcm

from torch import Tensor

from volseg.nn.kernels.amx.forward import build_forward
from volseg.nn.kernels.amx.gradients import Windows, gradients
from volseg.nn.kernels.amx.hardware import available, refusal, tile_configuration
from volseg.nn.kernels.amx.weights import Weight, WeightSums, pack_turned_weight, pack_weight
from volseg.nn.kernels.direct import cutting_fields, reads_of, view_fields
from volseg.nn.kernels.direct.weights import group_fields
from volseg.nn.kernels.forms import Forms, element_of, forms_of
from volseg.nn.kernels.jit import workers
from volseg.nn.kernels.jit.compiler import Library, compiled_once
from volseg.nn.kernels.jit.language import Element
from volseg.nn.kernels.jit.tiles import INNER, ROWS
from volseg.nn.kernels.operands import brick_fields, pool_fields, source_fields, target_fields
from volseg.nn.kernels.rows import Activation, Rows
from volseg.nn.kernels.stages import Ghosts, in_stages
from volseg.nn.kernels.winograd import BrickSums, Pooled, Target
from volseg.partition.amx_tiling import plan_tiles, results_floats, tile_products, window_of
from volseg.partition.direct_tiling import backward_reach, forward_reach
from volseg.partition.tiling import Registers
from volseg.partition.window import Range

__all__ = [
    "BrickSums", "Pooled", "Target", "Weight", "WeightSums", "available", "backward", "forward", "pack_turned_weight",
    "pack_weight", "refusal",
]  # fmt: skip


@compiled_once
def _forward_library(layout: Registers, forms: Forms, element: Element) -> Library:
    return build_forward(layout, forms, element)


def forward(
    inputs: Sequence[Activation],
    weight: Weight,
    bias: Tensor | None,
    out: Rows,
    *,
    planes: Range | None = None,
    sums: BrickSums | None = None,
    pooled: Pooled | None = None,
    ghosts: Sequence[Ghosts] = (),
) -> None:
    """Fill `out` with the convolution of one or two inputs side by side; as `direct.forward`."""
    brick, pool = sums.brick if sums is not None else (1, 1, 1), pooled.window if pooled is not None else (1, 1, 1)
    deep, high, wide = (lcm(*sides) for sides in zip(brick, pool, strict=True))
    layout, reach, voxel = weight.layout, forward_reach(weight.kernel, weight.stride), weight.voxel
    d, h, w = out.sides
    products = tile_products([group.counts for group in weight.groups], voxel, weight.channels)
    cut = plan_tiles(
        planes or (0, d), h, w, reach, voxel, 4 * layout.width, products, (deep, high, wide), workers.count()
    )
    rows, window = inputs[0].rows, window_of(cut, reach, voxel, weight.columns)
    values = {
        "tiles": tile_configuration(min(layout.width, ROWS)),
        "view": view_fields(reach, rows, voxel, window, (h, w)),
        "groups": group_fields(weight.groups, reach, window.lines, window.line, window.plane, voxel, 1, INNER),
        "a": source_fields(inputs[0]), "b": source_fields(inputs[1]) if len(inputs) > 1 else None,
        "weight": weight.packed, "bias": bias,
        "target": target_fields(out),
        "bricks": None if sums is None else brick_fields(sums.sums, sums.brick),
        "pools": None if pooled is None else pool_fields(pooled.rows, pooled.signs, pooled.window),
    }  # fmt: skip
    entry = _forward_library(layout, forms_of(inputs, 2), element_of(out))["forward"]
    room = window.size + results_floats(cut, window, reach.step[2], layout.width)
    for order in in_stages(reads_of(cut, reach), rows, ghosts):
        workers.run(entry.bind(**values, cutting=cutting_fields(cut, order, h, w)), order.numel(), room)


def backward(
    inputs: Sequence[Activation], gradient: Rows, weight: Weight, targets: Sequence[Target], into: WeightSums | None,
    *, planes: Range | None = None, ghosts: Sequence[Ghosts] = (),
) -> None:  # fmt: skip
    """Gradients of `forward`: of its inputs to `targets`, of its weight added to `into`; as `direct.backward`."""
    windows = Windows(gradient, backward_reach(weight.kernel, weight.stride), weight.stride)
    gradients(windows, inputs, weight, targets, into, planes or (0, gradient.sides[0]), ghosts)
