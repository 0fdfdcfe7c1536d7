"""Runs the kernel of the gradients: of a convolution, and of what needs no neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from volseg.geometry import Triple
from volseg.nn.kernels.amx.backward import build_backward
from volseg.nn.kernels.amx.hardware import tile_configuration
from volseg.nn.kernels.amx.weights import Sums, Weight
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
from volseg.nn.kernels.forms import Forms, forms_of
from volseg.nn.kernels.jit import workers
from volseg.nn.kernels.jit.compiler import Library, compiled_once
from volseg.nn.kernels.jit.tiles import INNER, ROWS
from volseg.nn.kernels.operands import source_fields
from volseg.nn.kernels.rows import Activation, Rows
from volseg.nn.kernels.stages import Ghosts, in_stages
from volseg.nn.kernels.winograd import Target, input_gradient_fields
from volseg.partition.amx_tiling import Pairing, pairing_of, plan_tiles, results_floats, tile_products, window_of
from volseg.partition.direct_tiling import Cut, Reach
from volseg.partition.tiling import Registers
from volseg.partition.window import Range


@compiled_once
def _library(layout: Registers, columns: int, forms: Forms) -> Library:
    return build_backward(layout, columns, forms)


@dataclass(frozen=True)
class Windows:
    """What windows of an output's gradient are cut from, and how.

    gradient  of as many channels as the windows of the weight
    stride    voxels of the inputs for each result on D, H, W
    """

    gradient: Rows
    reach: Reach
    stride: Triple


def gradients(
    windows: Windows, inputs: Sequence[Activation], weight: Weight, targets: Sequence[Target], into: Sums | None,
    planes: Range, ghosts: Sequence[Ghosts] = (),
) -> None:  # fmt: skip
    """The inputs' gradients, products of windows with the weight, to `targets`; the weight's gradient added to `into`.

    planes  of the results to compute, whose inputs are those from the stride times the first on
    """
    reach, stride, voxel, layout = windows.reach, windows.stride, weight.voxel, weight.layout
    _, h, w = (-(-n // s) for n, s in zip(inputs[0].rows.sides, stride, strict=True))
    threads = workers.count() if into is None else len(into.sums)
    channels, cut = sum(x.rows.channels for x in inputs), _cut(windows, inputs, weight, into, planes, threads)
    pairing = pairing_of(cut, reach)
    more = (0, 0) if into is None else (pairing.lines, pairing.columns + pairing.shifts - pairing.steps)
    window = window_of(cut, reach, voxel, weight.columns, more)
    pairs = None if into is None else _pairing_fields(pairing, cut, reach, voxel, channels, stride)
    sums = [sums_by_thread(target, threads, stride[2]) for target in targets]
    columns = 8 if voxel % ROWS else ROWS
    source = source_fields(Activation(windows.gradient))
    assert source is not None
    common = {
        "tiles": tile_configuration(min(layout.width, ROWS)), "sum_tiles": tile_configuration(columns),
        "view": view_fields(reach, windows.gradient, voxel, window, (h, w)),
        "groups": group_fields(weight.groups, reach, window.lines, window.line, window.plane, voxel, 1, INNER),
        "source": source, "weight": weight.packed,
        "tile": {
            "a": source_fields(inputs[0]), "b": source_fields(inputs[1]) if len(inputs) > 1 else None,
            "channels": channels, "stride": axes(stride), "sides": axes(inputs[0].rows.sides), "floats": 0,
        },
        "pairing": pairs, "terms": None if into is None else into.term_fields(pairing, reach),
    }  # fmt: skip
    library = _library(layout, columns, forms_of([Activation(windows.gradient), *inputs], 3))
    room = window.size + results_floats(cut, window, 1, layout.width)
    if pairs is not None:
        room += sum(pairs[name] for name in ("floats", "left", "right"))
    for order in in_stages(reads_of(cut, reach), windows.gradient, ghosts):
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


def _cut(
    windows: Windows, inputs: Sequence[Activation], weight: Weight, into: Sums | None, planes: Range, threads: int
) -> Cut:  # fmt: skip
    """The blocks: a product of tiles adds up over 32 channels for the inputs' gradients, over 32 voxels for `into`."""
    stride, voxel, channels = windows.stride, weight.voxel, sum(x.rows.channels for x in inputs)
    _, h, w = (-(-n // s) for n, s in zip(inputs[0].rows.sides, stride, strict=True))
    products = tile_products([group.counts for group in weight.groups], voxel, channels)
    beside = 4 * weight.layout.width
    if into is not None:
        products += prod(into.kernel) * -(-voxel // ROWS) * into.blocks // 2
        beside += 2 * channels * (prod(stride) + 1) + 3 * voxel * prod(windows.reach.step)
    return plan_tiles(planes, h, w, windows.reach, voxel, beside, products, (1, 1, 1), threads)


def _pairing_fields(
    pairing: Pairing, cut: Cut, reach: Reach, voxel: int, channels: int, stride: Triple
) -> dict[str, Any]:  # fmt: skip
    """The `outer.Pairing` of blocks, for inputs of so many channels and windows of `voxel`."""
    planes, planes_read = cut.planes, reach.extent(0, cut.planes) * reach.phases
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
