"""Convolutions that need no neighbours: 1x1x1, and transposed ones whose kernel is their stride, 1 or 2 on each axis.

Each output is a sum over the channels one by one, then the bias: the same bits wherever a voxel lies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from volseg.geometry import Triple
from volseg.nn.kernels.forms import Form, Forms, element_of, forms_of
from volseg.nn.kernels.jit import workers
from volseg.nn.kernels.jit.compiler import Library, compiled_once, widest_vector
from volseg.nn.kernels.jit.language import Element, Function, Int, Module, Pointer
from volseg.nn.kernels.operands import Results, Source, Target, source_fields, target_fields
from volseg.nn.kernels.parts import Parts, move_to_total
from volseg.nn.kernels.rows import Activation, Rows
from volseg.partition.tiling import Registers, padded_channels, registers_for
from volseg.partition.window import Range


@compiled_once
def _library(layout: Registers, form: Form, element: Element) -> Library:
    """`lines` from tensors of a form to numbers of `element`."""
    module = Module(layout.lanes)
    _define_lines(module, layout, Parts(module, layout), form, element)
    return Library(module)


@compiled_once
def _gradient_library(layout: Registers, forms: Forms, element: Element) -> Library:
    """`gradients` of `lines` whose input and whose output's gradient have such forms, to numbers of `element`."""
    module = Module(layout.lanes)
    _define_gradients(module, layout, Parts(module, layout), forms, element)
    return Library(module)


def _define_lines(module: Module, layout: Registers, parts: Parts, form: Form, element: Element) -> None:
    rows, width, lanes = layout.rows, layout.width, layout.lanes

    @module.entry
    def lines(
        f: Function, first: Int, last: Int, scratch: Pointer, *,
        height: Int, breadth: Int, stride: Int, inner: Int, deep: Int, high: Int, first_plane: Int,
        a: Source, weight: Pointer, bias: Pointer, out: Pointer, out_plane: Int, out_line: Int, out_channels: Int,
    ) -> None:  # fmt: skip
        """Lines first ... last of the input, counted over planes from `first_plane` on.

        Input line (z, y) gives the output lines (deep * z + p, high * y + q), p < deep, q < high, of breadth times
        out_channels numbers each.

        weight  [deep, high][out_channels / width][inner][width]
        bias    [out_channels], or nothing
        """
        products, out = scratch + (breadth + rows) * stride, out.of(element)
        with f.loop(last, start=first) as (number, _):
            z, y = first_plane + number // height, number % height
            parts.fill_line(form.activation)(f, scratch, stride, 0, breadth, 0, breadth, a.of(form.element).at(z, y))
            with f.loop(deep) as (p, _), f.loop(high) as (q, _), f.loop(out_channels // width) as (k, _):
                weights = weight + (((p * high + q) * out_channels) + k * width) * inner
                parts.product(f, scratch, stride, 0, 1, weights, products, breadth, inner)
                target = out + ((z * deep + p) * out_plane + (y * high + q) * out_line + k * width)
                for n in range(layout.vectors):
                    with f.either(bias.is_given()) as (with_bias, without):
                        for branch in (with_bias, without):
                            with branch:
                                offset = (bias + (k * width + n * lanes)).load() if branch is with_bias else None
                                with f.loop(breadth) as (x, _):
                                    value = (products + (x * width + n * lanes)).load()
                                    value = value if offset is None else value + offset
                                    (target + (x * out_channels + n * lanes)).store(value)


def _define_gradients(module: Module, layout: Registers, parts: Parts, forms: Forms, element: Element) -> None:
    rows, width, (form, of_gradient) = layout.rows, layout.width, forms

    @module.entry
    def gradients(
        f: Function, first: Int, last: Int, scratch: Pointer, *,
        height: Int, breadth: Int, deep: Int, high: Int, first_plane: Int,
        given: Source, given_channels: Int, a: Source, weight: Pointer, target: Target, sums: Pointer,
        gradient: Pointer, total: Pointer, flush: Int,
    ) -> None:  # fmt: skip
        """The gradients of `lines`, from the gradient of its output, for the input lines first ... last.

        given     gradient of the output: given_channels numbers for each input voxel of a line
        weight    [channels of a / width][deep, high][given_channels][width]
        target    gradient of the input, through its activation where there are sums (`parts.through_activation`)
        gradient  [deep, high][given_channels, channels of a] of this thread, added to, and moved to `total` each
                  `flush` lines
        """
        corners, channels, a, given = deep * high, a.channels, a.of(form.element), given.of(of_gradient.element)
        line = (breadth + rows) * given_channels
        values, products = scratch + corners * line, scratch + (corners * line + breadth * channels)
        size = corners * given_channels * channels
        with f.loop(last, start=first, carried=[f.number(0)]) as (number, since):
            z, y = first_plane + number // height, number % height
            with f.loop(deep) as (p, _), f.loop(high) as (q, _):
                source = replace(given.at(z * deep + p, y * high + q), channels=given_channels)
                place = scratch + (p * high + q) * line
                parts.fill_line(form.activation)(f, place, given_channels, 0, breadth, 0, breadth, source)
            parts.fill_line(form.activation)(f, values, channels, 0, breadth, 0, breadth, a.at(z, y))
            with f.loop(corners) as (corner, _):
                parts.outer_sums(
                    f, scratch + corner * line, given_channels, 0, values, channels,
                    gradient + corner * given_channels * channels, breadth, given_channels,
                )  # fmt: skip
            following = since.values[0] + 1
            full = following.equals(flush)
            with f.when(full):
                move_to_total(f, gradient, total, size)
            since.values = (f.choose(full, f.number(0), following),)
            zero, single = f.number(0), f.number(1)
            with f.loop(channels // width) as (k, _):
                weights, channel = weight + k * corners * given_channels * width, k * width
                parts.product(
                    f, scratch, given_channels, breadth + rows, corners, weights, products, breadth, given_channels
                )
                results = Results(products, single, single, breadth, zero, single, zero, breadth)
                there = target.of(element).at(z, y, zero, channel)
                with f.either(sums.is_given()) as (through, plain):
                    with plain:
                        parts.store(f, results, there)
                    with through:
                        raw = a.from_channel(z, y, zero, channel)
                        parts.through_activation(form.activation)(f, results, there, raw, sums + channel * 2)
        move_to_total(f, gradient, total, size)


@dataclass(frozen=True)
class PointWeight:
    """A weight made ready for `apply` or `gradients`.

    packed    [deep * high][channels / width][inner][width], where `spread` is (deep, high, wide)
    bias      [channels], or None
    channels  of the outputs that an input voxel has on a line: `wide` times those of a voxel
    spread    outputs of an input voxel on D, H, W
    """

    packed: Tensor
    bias: Tensor | None
    layout: Registers
    inner: int
    channels: int
    spread: Triple


def pack_point(weight: Tensor, bias: Tensor | None) -> PointWeight:
    """The weight of a 1x1x1 convolution, [K, C, 1, 1, 1]; outputs are rounded up to vectors."""
    return _pack(weight.detach()[:, :, 0, 0, 0].t().unsqueeze(0), bias, (1, 1, 1))


def pack_up(weight: Tensor, bias: Tensor | None) -> PointWeight:
    """The weight of a transposed convolution whose stride is its kernel, [C, K, sd, sh, sw], for `apply`.

    K is rounded up to vectors. Both voxels along W come from one product: their channels lie side by side.
    """
    taps = _up_taps(weight)
    c, k, deep, high, wide = taps.shape
    if bias is not None:
        bias = torch.nn.functional.pad(bias.detach(), [0, k - bias.shape[0]]).repeat(wide)
    return _pack(taps.permute(2, 3, 0, 4, 1).reshape(deep * high, c, wide * k), bias, (deep, high, wide))


def _up_taps(weight: Tensor) -> Tensor:
    """[C, K as stored, sd, sh, sw] of an up-convolution's weight, which must have kernels of 1 or 2."""
    if not set(weight.shape[2:]) <= {1, 2}:
        raise AssertionError(f"up-convolution by {tuple(weight.shape[2:])}: factors are 1 or 2 on each axis")
    missing = padded_channels(weight.shape[1]) - weight.shape[1]
    return torch.nn.functional.pad(weight.detach(), [0, 0, 0, 0, 0, 0, 0, missing])


def _pack(taps: Tensor, bias: Tensor | None, spread: Triple) -> PointWeight:
    """The weight of `apply` from taps [deep * high, C, N]."""
    missing = padded_channels(taps.shape[2]) - taps.shape[2]
    taps = torch.nn.functional.pad(taps, [0, missing])
    if bias is not None:
        bias = torch.nn.functional.pad(bias.detach(), [0, taps.shape[2] - bias.shape[0]]).contiguous()
    inner = padded_channels(taps.shape[1]) if taps.shape[1] > 8 else taps.shape[1]
    taps = torch.nn.functional.pad(taps, [0, 0, 0, inner - taps.shape[1]])
    layout = registers_for([taps.shape[2]], [inner], widest_vector())
    packed = taps.unflatten(2, (-1, layout.width)).permute(0, 2, 1, 3).contiguous()
    return PointWeight(packed, bias, layout, inner, taps.shape[2], spread)


def apply(x: Activation, weight: PointWeight, out: Rows, planes: Range | None = None) -> None:
    """Fill `out` from the planes given (all by default) of `x`.

    out  `weight.spread` times as long on D, H, W
    """
    rows, spread = x.rows, weight.spread
    first, last = planes or (0, rows.sides[0])
    stride = padded_channels(rows.channels)
    job = _library(weight.layout, *forms_of([x], 1), element_of(out))["lines"].bind(
        height=rows.sides[1], breadth=rows.sides[2], stride=stride, inner=weight.inner,
        deep=spread[0], high=spread[1], first_plane=first, a=source_fields(x), weight=weight.packed, bias=weight.bias,
        out=out.address, out_plane=out.plane, out_line=out.line, out_channels=weight.channels,
    )  # fmt: skip
    room = (rows.sides[2] + weight.layout.rows) * (stride + weight.layout.width)
    workers.run(job, (last - first) * rows.sides[1], room)


def pack_turned_point(weight: Tensor, stored: int) -> PointWeight:
    """The weight of `gradients` for a 1x1x1 convolution, [K, C, 1, 1, 1], whose output has `stored` channels."""
    taps = torch.nn.functional.pad(weight.detach()[:, :, 0, 0, 0], [0, 0, 0, stored - weight.shape[0]])
    return _pack_turned(taps.unsqueeze(0), (1, 1, 1))


def pack_turned_up(weight: Tensor) -> PointWeight:
    """The weight of `gradients` for a transposed convolution whose stride is its kernel, [C, K, sd, sh, sw]."""
    taps = _up_taps(weight)
    c, k, deep, high, wide = taps.shape
    return _pack_turned(taps.permute(2, 3, 4, 1, 0).reshape(deep * high, wide * k, c), (deep, high, wide))


def _pack_turned(taps: Tensor, spread: Triple) -> PointWeight:
    """The weight of `gradients` from taps [deep * high, N, C]."""
    taps = torch.nn.functional.pad(taps, [0, padded_channels(taps.shape[2]) - taps.shape[2]])
    layout = registers_for([taps.shape[2]], [taps.shape[1]], widest_vector())
    packed = taps.unflatten(2, (-1, layout.width)).permute(2, 0, 1, 3).contiguous()
    return PointWeight(packed, None, layout, taps.shape[1], taps.shape[2], spread)


_FLUSH = 64
"""Lines whose weight gradients are added in float32 before they go to float64."""


def gradients(
    x: Activation, given: Rows, weight: PointWeight, target: Rows, sums: Tensor | None, planes: Range | None = None,
    *, add: bool = False,
) -> Tensor:  # fmt: skip
    """Gradients of `apply`: of its input to `target`, of its weight as the result.

    given   gradient of the output
    weight  from `pack_turned_point` or `pack_turned_up`
    sums    [2, C] float64: then `target` gets the gradient before the activation of `x`, and its sums are added here
    planes  of `x`; all by default
    add     to what stands in `target`, in place of overwriting it; the sums are of what was added
    out     [deep * high, N, C] float64, N = weight.inner: this block's part (`up_weight_gradient` puts it in order)
    """
    rows, layout, (deep, high, _) = x.rows, weight.layout, weight.spread
    first, last = planes or (0, rows.sides[0])
    lines = (last - first) * rows.sides[1]
    threads = len(workers.shares(lines))
    gradient = torch.zeros(threads, deep * high, weight.inner, rows.channels)
    total = torch.zeros(gradient.shape, dtype=torch.float64)
    by_thread = None if sums is None else torch.zeros(threads, *sums.shape, dtype=torch.float64)
    forms = forms_of([x, Activation(given)], 2)
    jobs = [
        _gradient_library(layout, forms, element_of(target))["gradients"].bind(
            height=rows.sides[1], breadth=rows.sides[2], deep=deep, high=high, first_plane=first,
            given=source_fields(Activation(given)), given_channels=weight.inner, a=source_fields(x),
            weight=weight.packed, target=target_fields(target, add),
            sums=None if by_thread is None else by_thread[n], gradient=gradient[n], total=total[n], flush=_FLUSH,
        )
        for n in range(threads)
    ]  # fmt: skip
    room = (rows.sides[2] + layout.rows) * (deep * high * weight.inner + layout.width + rows.channels)
    workers.run(jobs, lines, room)
    if sums is not None and by_thread is not None:
        sums += by_thread.sum(0)
    return total.sum(0)


def up_weight_gradient(total: Tensor, shape: Sequence[int]) -> Tensor:
    """The gradient of an up-convolution's weight from the sum of what `gradients` returned.

    total  [sd * sh, sw * K as stored, C as stored] float64
    shape  (C, K, sd, sh, sw) of the weight
    out    [C, K, sd, sh, sw] float32
    """
    c, k, deep, high, wide = shape
    taps = total.view(deep, high, wide, -1, total.shape[2])[:, :, :, :k, :c]
    return taps.permute(4, 3, 0, 1, 2).float().contiguous()
