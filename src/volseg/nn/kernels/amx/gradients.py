"""Runs the kernel of the gradients: of a convolution, and of what needs no neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
from volseg.partition.amx_tiling import GradientRoom, Pairing, gradient_room, pairing_of, plan_tile_gradients
from volseg.partition.direct_tiling import Reach
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
    channels = sum(x.rows.channels for x in inputs)
    counts = [group.counts for group in weight.groups]
    kernel = None if into is None else into.kernel
    cut = plan_tile_gradients(
        planes, h, w, reach, stride, counts, voxel, channels, layout.width, kernel, threads
    )  # fmt: skip
    room = gradient_room(
        cut, reach, stride, voxel, weight.columns, channels, layout.width, weight=into is not None
    )  # fmt: skip
    window, pairing = room.window, pairing_of(cut, reach)
    pairs = None if into is None else _pairing_fields(pairing, room, channels, stride)
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
    for order in in_stages(reads_of(cut, reach), windows.gradient, ghosts):
        jobs = [
            library["backward"].bind(
                **common, cutting=cutting_fields(cut, order, h, w),
                into=None if into is None else weight_gradient_fields(into.sums, into.totals, n, cut),
                a=input_gradient_fields(targets, sums, 0, n), b=input_gradient_fields(targets, sums, 1, n),
            )
            for n in range(threads)
        ]  # fmt: skip
        workers.run(jobs, order.numel(), room.floats)
    add_sums(targets, sums)


def _pairing_fields(pairing: Pairing, room: GradientRoom, channels: int, stride: Triple) -> dict[str, Any]:
    """The `outer.Pairing` of blocks that work in `room`, for inputs of so many channels."""
    line = pairing.line_numbers(stride[2], channels)
    offsets = []
    for pair in range(ROWS):
        at = pair // pairing.pairs * stride[1] * line
        columns = [(pair % pairing.pairs * 2 + n) * pairing.steps * stride[2] for n in range(2)]
        offsets.append([at + column * channels for column in columns])
    return {
        "pairs": pairing.pairs, "together": pairing.together, "steps": pairing.steps, "shifts": pairing.shifts,
        "lines": pairing.lines, "tile_lines": pairing.tile_lines, "columns": pairing.columns,
        "blocks": -(-channels // ROWS), "offsets": torch.tensor(offsets),
        "plane": pairing.tile_lines * stride[1] * line, "line": line,
        "floats": room.tile, "left": room.left, "right": room.right,
    }  # fmt: skip
