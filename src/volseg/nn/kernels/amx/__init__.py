"""Convolutions of bfloat16 tensors on AMX tiles, and their gradients: kernels of 1, 3, 5, 7, strides of 1, 2 on an axis.

Inputs, read through their activations, and weights are rounded to bfloat16; products are added in float32. Inputs have
8 channels or more; tiles are full from 16 on. The interface is that of `direct`, whose windows these are.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import lcm, prod

import torch
from torch import Tensor

from volseg.geometry import Triple
from volseg.nn.kernels.amx.backward import build_backward
from volseg.nn.kernels.amx.forward import build_forward
from volseg.nn.kernels.amx.hardware import available, refusal, tile_configuration
from volseg.nn.kernels.amx.weights import Weight, WeightSums, pack_turned_weight, pack_weight
from volseg.nn.kernels.direct import (
    add_sums,
    axes,
    cutting_fields,
    reads_of,
    sums_by_thread,
    view_fields,
    weight_gradient_fields,
)
from volseg.nn.kernels.direct.weights import group_fields
from volseg.nn.kernels.forms import Forms, element_of, forms_of
from volseg.nn.kernels.jit import workers
from volseg.nn.kernels.jit.compiler import Library, compiled_once
from volseg.nn.kernels.jit.language import Element
from volseg.nn.kernels.jit.tiles import INNER, ROWS
from volseg.nn.kernels.operands import Fields, brick_fields, pool_fields, source_fields, target_fields
from volseg.nn.kernels.rows import Activation, Rows
from volseg.nn.kernels.stages import Ghosts, in_stages
from volseg.nn.kernels.winograd import BrickSums, Pooled, Target, input_gradient_fields
from volseg.partition.amx_tiling import Pairing, pairing_of, plan_tiles, results_floats, tile_products, window_of
from volseg.partition.direct_tiling import backward_reach, forward_reach
from volseg.partition.tiling import Registers
from volseg.partition.window import Range

__all__ = [
    "BrickSums", "Pooled", "Target", "Weight", "WeightSums", "available", "backward", "forward", "pack_turned_weight", "pack_weight", "refusal",
]  # fmt: skip


@compiled_once
def _forward_library(layout: Registers, forms: Forms, element: Element) -> Library:
    return build_forward(layout, forms, element)


@compiled_once
def _backward_library(layout: Registers, columns: int, forms: Forms) -> Library:
    return build_backward(layout, columns, forms)


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
    cut = plan_tiles(planes or (0, d), h, w, reach, voxel, 4 * layout.width, products, (deep, high, wide), workers.count())
    rows, window = inputs[0].rows, window_of(cut, reach, voxel, weight.columns)
    values = {
        "tiles": tile_configuration(min(layout.width, ROWS)),
        "view": view_fields(reach, rows, voxel, window),
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
    stride, voxel, layout = weight.stride, weight.voxel, weight.layout
    reach = backward_reach(weight.kernel, stride)
    _, h, w = (-(-n // s) for n, s in zip(inputs[0].rows.sides, stride, strict=True))
    channels, threads = sum(x.rows.channels for x in inputs), workers.count() if into is None else len(into.sums)
    counts = [group.counts for group in weight.groups]
    products = tile_products(counts, voxel, channels)
    beside = 4 * layout.width
    if into is not None:  # a product adds up over 32 voxels there, not 16
        products += prod(weight.kernel) * -(-voxel // ROWS) * into.blocks // 2
        beside += 2 * channels * (prod(stride) + 1) + 3 * voxel
    cut = plan_tiles(
        planes or (0, gradient.sides[0]), h, w, reach, voxel, beside, products, (1, 1, 1), threads
    )  # fmt: skip
    pairing = pairing_of(cut, reach)
    more = (0, 0) if into is None else (pairing.lines, pairing.columns + pairing.shifts - pairing.steps)
    window = window_of(cut, reach, voxel, weight.columns, more)
    fields = _pairing_fields(pairing, cut.planes, reach.extent(0, cut.planes), voxel, channels, stride)
    sums = [sums_by_thread(target, threads, stride[2]) for target in targets]
    common = {
        "tiles": tile_configuration(min(layout.width, ROWS)),
        "sum_tiles": tile_configuration(8 if voxel % ROWS else ROWS),
        "view": view_fields(reach, gradient, voxel, window),
        "groups": group_fields(weight.groups, reach, window.lines, window.line, window.plane, voxel, 1, INNER),
        "source": source_fields(Activation(gradient)), "weight": weight.packed,
        "tile": {
            "a": source_fields(inputs[0]), "b": source_fields(inputs[1]) if len(inputs) > 1 else None,
            "channels": channels, "stride": axes(stride), "sides": axes(inputs[0].rows.sides), "floats": 0,
        },
        "pairing": fields, "terms": None if into is None else into.term_fields(pairing),
    }  # fmt: skip
    library = _backward_library(layout, 8 if voxel % ROWS else ROWS, forms_of([Activation(gradient), *inputs], 3))
    room = window.size + results_floats(cut, window, 1, layout.width)
    if into is not None:
        room += sum(int(fields[name]) for name in ("floats", "left", "right"))
    for order in in_stages(reads_of(cut, reach), gradient, ghosts):
        jobs = [
            library["backward"].bind(
                **common, cutting=cutting_fields(cut, order, h, w),
                into=None if into is None else weight_gradient_fields(into.sums, into.totals, n, cut),
                a=input_gradient_fields(targets, sums, 0, n), b=input_gradient_fields(targets, sums, 1, n),
            )
            for n in range(threads)
        ]  # fmt: skip
        workers.run(jobs, order.numel(), room)
    add_sums(targets, sums)


def _pairing_fields(pairing: Pairing, planes: int, planes_read: int, voxel: int, channels: int, stride: Triple) -> Fields:
    """The `outer.Pairing` of blocks of so many planes, whose windows have `planes_read`."""
    line = pairing.columns * stride[2] * channels
    plane = pairing.tile_lines * stride[1] * line
    offsets = []
    for pair in range(ROWS):
        at = pair // pairing.pairs * stride[1] * line
        columns = [(pair % pairing.pairs * 2 + n) * pairing.steps * stride[2] for n in range(2)]
        offsets.append([at + column * channels for column in columns])
    floats = (planes * stride[0] * plane // 2 + 2 * ROWS) // ROWS * ROWS  # the last channels are read beyond their end
    return {
        "pairs": pairing.pairs, "together": pairing.together, "steps": pairing.steps, "shifts": pairing.shifts,
        "lines": pairing.lines, "tile_lines": pairing.tile_lines, "columns": pairing.columns,
        "blocks": -(-channels // ROWS), "offsets": torch.tensor(offsets), "plane": plane, "line": line,
        "floats": floats, "left": pairing.left_floats(planes, channels),
        "right": -(-pairing.right_floats(planes_read, voxel) // ROWS) * ROWS,
    }  # fmt: skip
