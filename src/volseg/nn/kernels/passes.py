"""Passes over rows: activation, the gradient of a normalisation, in place, and sums over all voxels.

They move a few numbers for each that they compute, so what counts is that each value is read and written once. Sums of
two tensors are in `addition.py`, pooling in `pooling.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from volseg.nn.kernels import lines
from volseg.nn.kernels.addition import add, divide
from volseg.nn.kernels.forms import Form, element_of, forms_of
from volseg.nn.kernels.jit import workers
from volseg.nn.kernels.jit.compiler import Library, compiled_once
from volseg.nn.kernels.jit.language import Element, Function, Int, Module, Pointer
from volseg.nn.kernels.operands import Source, source_fields
from volseg.nn.kernels.pooling import pool, unpool
from volseg.nn.kernels.rows import Activation, Rows
from volseg.partition.tiling import LANES
from volseg.partition.window import Range

__all__ = ["activate", "add", "channel_sums", "combine", "divide", "pool", "unpool"]


@compiled_once
def _activating_library(form: Form, element: Element) -> Library:
    module = Module(LANES)

    @module.entry
    def activate(
        f: Function, first: Int, last: Int, scratch: Pointer, *,
        height: Int, breadth: Int, first_plane: Int, raw: Source, out: Pointer, out_plane: Int, out_line: Int,
    ) -> None:  # fmt: skip
        """out = what raw is read as, for the lines first ... last counted over planes."""
        channels = raw.channels
        with f.loop(last, start=first) as (number, _), f.loop(channels, step=LANES) as (c, _):
            z, y = first_plane + number // height, number % height
            source = raw.of(form.element).at(z, y).data + c
            target = out.of(element) + (z * out_plane + y * out_line + c)
            reading = raw.reading(f, form.activation, c)
            with f.loop(breadth) as (x, _):
                (target + x * channels).store(reading.activated((source + x * channels).load()))

    return Library(module)


@compiled_once
def _library(of_raw: Element, of_gradient: Element) -> Library:
    module = Module(LANES)

    @module.entry
    def combine(
        f: Function, first: Int, last: Int, scratch: Pointer, *,
        height: Int, breadth: Int, channels: Int, first_plane: Int, raw: Pointer, raw_plane: Int, raw_line: Int,
        gradient: Pointer, gradient_plane: Int, gradient_line: Int, a: Pointer, b: Pointer, c: Pointer,
    ) -> None:  # fmt: skip
        """gradient = a * gradient + b * raw + c per channel: a normalisation's gradient in its input."""
        with f.loop(last, start=first) as (number, _), f.loop(channels, step=LANES) as (at, _):
            z, y = first_plane + number // height, number % height
            source = raw.of(of_raw) + (z * raw_plane + y * raw_line + at)
            target = gradient.of(of_gradient) + (z * gradient_plane + y * gradient_line + at)
            factor, weight, constant = ((pointer + at).load() for pointer in (a, b, c))
            with f.loop(breadth) as (x, _):
                place = target + x * channels
                value = f.fma((source + x * channels).load(), weight, constant)
                place.store(f.fma(place.load(), factor, value))

    return Library(module)


_CHAINS = 4
"""Sums of a line side by side, for an addition takes as long as four that do not wait for one another."""


@compiled_once
def _summing_library(element: Element) -> Library:
    module = Module(LANES)

    @module.entry
    def add_lines(
        f: Function, first: Int, last: Int, scratch: Pointer, *,
        height: Int, breadth: Int, channels: Int, raw: Pointer, raw_plane: Int, raw_line: Int, sums: Pointer,
    ) -> None:  # fmt: skip
        """Lines first ... last, counted over planes: add up each in float32, and all to sums [channels] float64."""
        wide, whole = sums.wide(), breadth // _CHAINS * _CHAINS
        with f.loop(last, start=first) as (number, _), f.loop(channels, step=LANES) as (c, _):
            source = raw.of(element) + (number // height * raw_plane + number % height * raw_line + c)
            with f.loop(whole, step=_CHAINS, carried=[f.constant(0)] * _CHAINS) as (x, state):
                state.values = [total + (source + (x + n) * channels).load() for n, total in enumerate(state.values)]
            a, b, *others = state.values
            with f.loop(breadth, start=whole, carried=[sum(others, a + b)]) as (x, state):
                state.values = (state.values[0] + (source + x * channels).load(),)
            (wide + c).store((wide + c).load() + state.values[0].wide())

    return Library(module)


def channel_sums(rows: Rows) -> Tensor:
    """Sums over all voxels of a block, [C] float64."""
    sums = torch.zeros(rows.channels, dtype=torch.float64)
    values = {**lines.shape(rows), **lines.place("raw", rows)}
    entry = _summing_library(element_of(rows))["add_lines"]
    lines.run_summed(entry, values, {"sums": sums}, rows.sides[0] * rows.sides[1])
    return sums


def activate(x: Activation, out: Rows, planes: Range | None = None) -> None:
    """`out` becomes what `x` stands for, over the planes given."""
    if x.affine is None:
        out.own.copy_(x.rows.own)
        return
    first, last = planes or (0, x.rows.sides[0])
    job = _activating_library(*forms_of([x], 1), element_of(out))["activate"].bind(
        **lines.sides(x.rows), first_plane=first, raw=source_fields(x), **lines.place("out", out)
    )
    workers.run(job, (last - first) * x.rows.sides[1])


def combine(gradient: Rows, raw: Rows, a: Tensor, b: Tensor, c: Tensor) -> None:
    """``gradient = a * gradient + b * raw + c`` per channel, in place; a, b, c [C]."""
    job = _library(element_of(raw), element_of(gradient))["combine"].bind(
        **lines.shape(raw), first_plane=0, **lines.place("raw", raw), **lines.place("gradient", gradient), a=a, b=b, c=c
    )
    workers.run(job, raw.sides[0] * raw.sides[1])
