"""Convolutions of any kernel of 1, 3, 5, 7 and stride of 1, 2 on each axis, and their gradients, as direct sums.

Output voxel o reads the voxels stride * o + tap - kernel // 2 of its inputs; zero lies beyond the ghosts. Work is cut
into blocks that are shared among threads; `blocks.py` says how one is computed, `forward.py` and `backward.py` are the
machine code. The interface is that of `winograd`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import lcm

import torch
from torch import Tensor

from volseg.geometry import Triple
from volseg.nn.kernels.direct.backward import build_backward
from volseg.nn.kernels.direct.forward import build_forward
from volseg.nn.kernels.direct.weights import (
    TapGroup,
    Weight,
    WeightSums,
    backward_groups,
    forward_groups,
    group_fields,
    pack_turned_weight,
    pack_weight,
)
from volseg.nn.kernels.forms import Forms, element_of, forms_of
from volseg.nn.kernels.jit import workers
from volseg.nn.kernels.jit.compiler import Library, compiled_once
from volseg.nn.kernels.jit.language import Element
from volseg.nn.kernels.operands import brick_fields, pool_fields, range_fields, source_fields, target_fields
from volseg.nn.kernels.rows import Activation, Rows
from volseg.nn.kernels.stages import Ghosts, Reads, in_stages
from volseg.nn.kernels.winograd import BrickSums, Pooled, Target, input_gradient_fields
from volseg.partition.direct_tiling import (
    FLUSH_VOXELS,
    Cut,
    Reach,
    Window,
    backward_reach,
    direct_room,
    forward_reach,
    plan_forward,
    plan_gradients,
    tile_size,
    window_of,
)
from volseg.partition.tiling import Registers
from volseg.partition.window import Range

__all__ = [
    "BrickSums", "Pooled", "Target", "Weight", "WeightSums", "add_for_image", "backward", "forward",
    "pack_turned_weight", "pack_weight",
]  # fmt: skip


@compiled_once
def _forward_library(layout: Registers, forms: Forms, element: Element) -> Library:
    return build_forward(layout, forms, element)


@compiled_once
def _backward_library(layout: Registers, together: int, pairs: int, forms: Forms) -> Library:
    return build_backward(layout, together, pairs, forms)


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
    """Fill `out` with the convolution of one or two inputs side by side, zero beyond their ghosts.

    inputs  blocks that begin at multiples of the stride; an image of fewer than 8 channels has no activation
    bias    [K], as many as `out` has stored, or None
    out     sides of the inputs divided by the stride, rounded up
    planes  of the output to compute; all by default
    ghosts  of the inputs, where they are still under way: blocks that need none are computed meanwhile
    """
    brick, pool = sums.brick if sums is not None else (1, 1, 1), pooled.window if pooled is not None else (1, 1, 1)
    deep, high, wide = (lcm(*sides) for sides in zip(brick, pool, strict=True))
    layout, reach, voxel = weight.layout, forward_reach(weight.kernel, weight.stride), weight.voxel
    d, h, w = out.sides
    cut = plan_forward(
        planes or (0, d), h, w, weight.kernel, weight.stride, voxel, weight.channels, layout, (deep, high, wide),
        workers.count(),
    )  # fmt: skip
    window = inputs[0].rows
    groups = _groups(cut, reach, forward_groups(weight.kernel), voxel, layout.columns, 1, 1)
    values = {
        "view": view_fields(reach, window, voxel, window_of(cut, reach, voxel, layout.columns), (h, w)),
        "groups": groups,
        "a": source_fields(inputs[0]), "b": source_fields(inputs[1]) if len(inputs) > 1 else None,
        "weight": weight.packed, "bias": bias,
        "target": target_fields(out),
        "bricks": None if sums is None else brick_fields(sums.sums, sums.brick),
        "pools": None if pooled is None else pool_fields(pooled.rows, pooled.signs, pooled.window),
    }  # fmt: skip
    entry = _forward_library(layout, forms_of(inputs, 2), element_of(out))["forward"]
    room = direct_room(cut, reach, voxel, 0, weight.stride, layout)
    for order in in_stages(reads_of(cut, reach), window, ghosts):
        workers.run(entry.bind(**values, cutting=cutting_fields(cut, order, h, w)), order.numel(), room)


def backward(
    inputs: Sequence[Activation], gradient: Rows, weight: Weight, targets: Sequence[Target], into: WeightSums | None,
    *, planes: Range | None = None, ghosts: Sequence[Ghosts] = (),
) -> None:  # fmt: skip
    """Gradients of `forward`: of its inputs to `targets`, of its weight added to `into`.

    inputs    whose ghosts are not read; where `into` is None, what they hold is read for activations alone
    gradient  of the output, with ghosts where the volume goes on; zero beyond them
    weight    from `pack_turned_weight`
    planes    of the output, whose inputs are those from the stride times the first on; all by default
    """
    window = _Windows(
        Activation(gradient), backward_reach(weight.kernel, weight.stride), weight.voxel,
        backward_groups(weight.kernel, weight.stride), weight.layout, weight.kernel, weight.stride,
    )  # fmt: skip
    _gradients(window, inputs, weight, targets, into, planes or (0, gradient.sides[0]), ghosts)


def add_for_image(x: Activation, gradient: Rows, into: WeightSums) -> None:
    """The weight's gradient alone added to `into`, from windows of an image, which must have its ghosts."""
    assert x.affine is None
    window = _Windows(
        x, forward_reach(into.kernel, into.stride), into.voxel, forward_groups(into.kernel), into.layout, into.kernel,
        (1, 1, 1),
    )  # fmt: skip
    _gradients(window, [Activation(gradient)], None, [], into, (0, gradient.sides[0]), ())


@dataclass(frozen=True)
class _Windows:
    """What windows of a gradient's blocks are cut from, and how: see `Reach` and `TapGroup`.

    stride  voxels of the other tensors for each result on D, H, W
    """

    source: Activation
    reach: Reach
    voxel: int
    groups: Sequence[TapGroup]
    layout: Registers
    kernel: Triple
    stride: Triple


def _gradients(
    window: _Windows, tiles: Sequence[Activation], weight: Weight | None, targets: Sequence[Target],
    into: WeightSums | None, planes: Range, ghosts: Sequence[Ghosts],
) -> None:  # fmt: skip
    reach, voxel, layout, stride = window.reach, window.voxel, window.layout, window.stride
    _, h, w = (-(-n // s) for n, s in zip(tiles[0].rows.sides, stride, strict=True))
    threads = workers.count() if into is None else len(into.sums)
    channels = sum(x.rows.channels for x in tiles)
    together, pairs = (1, layout.window_channels(1)) if into is None else (into.together, into.pairs)
    gradients = (weight is not None) + (into is not None)
    cut = plan_gradients(
        planes, h, w, reach, window.kernel, stride, voxel, channels, layout, gradients, threads
    )  # fmt: skip
    sums = [sums_by_thread(target, threads, stride[2]) for target in targets]
    common = {
        "view": view_fields(reach, window.source.rows, voxel, window_of(cut, reach, voxel, layout.columns), (h, w)),
        "groups": _groups(cut, reach, window.groups, voxel, layout.columns, together, pairs),
        "source": source_fields(window.source), "tile": _tile_fields(cut, tiles, stride, channels),
        "weight": None if weight is None else weight.packed,
    }  # fmt: skip
    library = _backward_library(layout, together, pairs, forms_of([window.source, *tiles], 3))
    room = direct_room(cut, reach, voxel, channels, stride, layout)
    for order in in_stages(reads_of(cut, reach), window.source.rows, ghosts):
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


def reads_of(cut: Cut, reach: Reach) -> tuple[Reads, Reads, Reads]:
    """What blocks read on D, H, W."""
    firsts, lengths = (cut.first_plane, 0, 0), (cut.planes, cut.lines, cut.columns)
    d, h, w = (
        Reads(
            cut.counts[axis], firsts[axis] * reach.step[axis] + reach.first[axis], lengths[axis] * reach.step[axis],
            reach.extent(axis, lengths[axis]),
        )
        for axis in range(3)
    )  # fmt: skip
    return d, h, w


def _groups(
    cut: Cut, reach: Reach, groups: Sequence[TapGroup], voxel: int, rows: int, together: int, pairs: int
) -> dict[str, object]:
    window = window_of(cut, reach, voxel, rows)
    return group_fields(groups, reach, window.lines, window.line, window.plane, voxel, together, pairs)


def axes(numbers: Triple) -> dict[str, int]:
    """The `blocks.Axes` of numbers on D, H, W."""
    return dict(zip("zyx", numbers, strict=True))


def cutting_fields(cut: Cut, order: Tensor, height: int, breadth: int) -> dict[str, int]:
    """The `blocks.Cutting` of results of height x breadth a plane."""
    return {
        "order": order.data_ptr(), "planes": cut.planes, "lines": cut.lines, "columns": cut.columns,
        "first_plane": cut.first_plane, "last_plane": cut.last_plane, "blocks_y": cut.counts[1],
        "blocks_x": cut.counts[2], "height": height, "breadth": breadth,
    }  # fmt: skip


def view_fields(
    reach: Reach, rows: Rows, voxel: int, window: Window, results: tuple[int, int]
) -> dict[str, object]:  # fmt: skip
    """The `blocks.View` of windows that are cut from `rows`.

    results  of the whole block on H, W: what none of them reads is zero in a window, since ghosts beyond that may never
             have arrived, and products read a little further than results do, with weights of zero
    """
    depth, *across = rows.valid
    height, width = (
        (max(low, reach.first[axis]), min(high, reach.first[axis] + reach.extent(axis, count)))
        for axis, (low, high), count in zip((1, 2), across, results, strict=True)
    )
    return {
        "ranges": range_fields((depth, height, width)), "voxel": voxel,
        "step": axes(reach.step), "first": axes(reach.first),
        "size": axes(reach.size), "phases": reach.phases, "lines": window.lines, "columns": window.columns,
        "line": window.line, "plane": window.plane, "floats": window.size,
    }  # fmt: skip


def _tile_fields(cut: Cut, tiles: Sequence[Activation], stride: Triple, channels: int) -> dict[str, object]:
    return {
        "a": source_fields(tiles[0]), "b": source_fields(tiles[1]) if len(tiles) > 1 else None,
        "channels": channels, "stride": axes(stride), "sides": axes(tiles[0].rows.sides),
        "floats": tile_size(cut, stride, channels),
    }  # fmt: skip


def weight_gradient_fields(sums: Tensor, totals: Tensor | None, thread: int, cut: Cut) -> dict[str, object]:
    """The `backward.WeightGradient` of a thread, for sums and totals [threads, size]."""
    flush = max(1, FLUSH_VOXELS // (cut.planes * cut.lines * cut.columns))
    total = None if totals is None else totals[thread]
    return {"gradient": sums[thread], "total": total, "flush": flush, "size": sums.shape[1]}


def sums_by_thread(target: Target, threads: int, step: int) -> Tensor | None:
    """Sums for each thread, as far apart as the channels of results that lie `step` voxels apart."""
    if target.sums is None:
        return None
    return torch.zeros(threads, 2, step * target.sums.shape[1], dtype=torch.float64)


def add_sums(targets: Sequence[Target], sums: Sequence[Tensor | None]) -> None:
    """Add the sums of all threads, from `sums_by_thread`, to those of the targets that have any."""
    for target, by_thread in zip(targets, sums, strict=True):
        if target.sums is not None and by_thread is not None:
            target.sums.add_(by_thread.sum(0)[:, : target.sums.shape[1]])
