"""Parts that kernels are put together from: lines of activated voxels, and products of small matrices.

A *line* is the voxels of one block along W, channels last: [w, C]. Products are `product` (a matrix of voxels times a
matrix of weights) and `outer_sums` (a sum over voxels of outer products). Both keep a tile of sums in registers, as
GEMM kernels do (Goto & van de Geijn, "Anatomy of high-performance matrix multiplication", ACM TOMS 34, 2008), and add
the terms of each sum one by one, by fused multiply-adds, in an order that does not depend on the tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from volseg.networks.description import ActivationKind
from volseg.nn.kernels.jit.language import Function, Int, Module, Pointer
from volseg.nn.kernels.operands import Source
from volseg.nn.kernels.results import define_moments, define_pool, define_store, define_through_activation
from volseg.partition.tiling import LANES, Registers


class Parts:
    """The parts, each written down in `module` where a kernel first uses it."""

    def __init__(self, module: Module, layout: Registers, taps: int = 1) -> None:
        """taps  that `outer_sums` takes at once"""
        self._module, self._layout, self._taps = module, layout, taps
        self._fill_line: dict[ActivationKind, Any] = {}
        self._through_activation: dict[ActivationKind, Any] = {}

    def fill_line(self, kind: ActivationKind) -> Any:
        """``fill_line(kind)(f, target, stride, start, count, low, high, source)``"""
        if kind not in self._fill_line:
            self._fill_line[kind] = _define_fill_line(self._module, self._layout, kind)
        return self._fill_line[kind]

    @cached_property
    def product(self) -> Any:
        """``product(f, x, stride, shift, taps, weight, out, count, channels)``"""
        return _define_product(self._module, self._layout, in_vectors=False)

    @cached_property
    def product_of_vectors(self) -> Any:
        """The same of x [channels / lanes][`stride` rows][lanes]."""
        return _define_product(self._module, self._layout, in_vectors=True)

    @cached_property
    def outer_sums(self) -> Any:
        """``outer_sums(f, x, stride, shift, y, width_y, out, count, channels)``"""
        return _define_outer_sums(self._module, self._layout, self._taps, in_vectors=False)

    @cached_property
    def outer_sums_of_vectors(self) -> Any:
        """The same of x [channels / lanes][`stride` rows][lanes]."""
        return _define_outer_sums(self._module, self._layout, self._taps, in_vectors=True)

    @cached_property
    def store(self) -> Any:
        """``store(f, results, target)``"""
        return define_store(self._module, self._layout)

    def through_activation(self, kind: ActivationKind) -> Any:
        """``through_activation(kind)(f, results, target, raw, sums)``"""
        if kind not in self._through_activation:
            self._through_activation[kind] = define_through_activation(self._module, self._layout, kind)
        return self._through_activation[kind]

    @cached_property
    def moments(self) -> Any:
        """``moments(f, results, bricks)``"""
        return define_moments(self._module, self._layout)

    @cached_property
    def pool(self) -> Any:
        """``pool(f, results, pools)``"""
        return define_pool(self._module, self._layout)


_LINES_AHEAD = 2
"""Of a tensor, that are asked for while a line is read: by itself a processor looks ahead within a page of memory,
which is about a line."""


def _define_fill_line(module: Module, layout: Registers, kind: ActivationKind) -> Any:
    lanes = layout.lanes

    @module.define
    def zero_voxels(f: Function, target: Pointer, stride: Int, begin: Int, end: Int, channels: Int) -> None:
        with f.loop(end, start=begin) as (x, _), f.loop(channels, step=lanes) as (c, _):
            (target + (x * stride + c)).store(f.constant(0))

    @module.define
    def fill_line(
        f: Function, target: Pointer, stride: Int, start: Int, count: Int, low: Int, high: Int, source: Source
    ) -> None:  # fmt: skip
        """The voxels start ... start + count of a line, activated, and zero beyond low ... high.

        target  [count, stride], of which the source's channels rounded up to `lanes` are written
        source  from the line's voxel 0 on
        """
        channels = source.channels
        begin = f.smaller(f.larger(low - start, 0), count)
        end = f.smaller(f.larger(high - start, begin), count)
        zero_voxels(f, target, stride, 0, begin, channels)
        zero_voxels(f, target, stride, end, count, channels)
        first = source.data + start * channels
        ahead = first + source.line * _LINES_AHEAD
        with f.either((channels % lanes).equals(0)) as (aligned, odd):
            with odd:  # an image: few channels, as they are
                zero_voxels(f, target, stride, begin, end, channels)
                with f.loop(end, start=begin) as (x, _), f.loop(channels) as (c, _):
                    (target + (x * stride + c)).copy_one(first + (x * channels + c))
            with aligned, f.loop(channels, step=lanes) as (c, _), f.either(source.scale.is_given()) as (scaled, bare):
                with bare, f.loop(end, start=begin) as (x, _):
                    (ahead + (x * channels + c)).prefetch(to_write=False)
                    (target + (x * stride + c)).store((first + (x * channels + c)).load())
                with scaled:
                    reading = source.reading(f, kind, c)
                    with f.loop(end, start=begin) as (x, _):
                        (ahead + (x * channels + c)).prefetch(to_write=False)
                        value = reading.activated((first + (x * channels + c)).load())
                        (target + (x * stride + c)).store(value)

    return fill_line


_CHANNELS_A_TURN = 4
"""Of the loop over those of a vector, where most voxels go through."""

_LONG_SUM = 128
"""Terms of sums whose places are brought near meanwhile; for shorter ones that costs more than it saves."""

_ROWS_OF_POINTER = 6
"""Rows that have a pointer together: their distances from it, one to five steps, fit into the registers beside it."""


def add_channels(
    f: Function, layout: Registers, first: Pointer, step: Int | int, weights: Pointer, channels: Int,
    sums: Sequence[Any], together: int = 1,
) -> list[Any]:  # fmt: skip
    """Write down: the sums of `layout.rows` rows, `step` floats apart from `first` on, with their channels added.

    step      where it is known beforehand, instructions have the rows' distances in them, and compute no address
    weights   [channels, width]
    sums      [rows][vectors]
    together  channels of a turn of the loop; they divide all
    """
    lanes, vectors, rows, width = layout.lanes, layout.vectors, layout.rows, layout.width
    apart = rows if isinstance(step, int) else _ROWS_OF_POINTER
    pointers: list[Any] = [first + step * n for n in range(0, rows, apart)]
    with f.loop(channels, step=together, carried=[*pointers, *sums]) as (c, state):
        places, totals = state.values[: len(pointers)], state.values[len(pointers) :]
        for number in range(together):
            factors = [(weights + (c * width + (number * width + n * lanes))).load() for n in range(vectors)]
            new = []
            for n in range(rows):
                value = (places[n // apart] + (step * (n % apart) + number)).splat()
                new += [f.fma(value, w, totals[n * vectors + m]) for m, w in enumerate(factors)]
            totals = new
        state.values = [*(place + together for place in places), *totals]
    return list(state.values[len(pointers) :])


def _define_product(module: Module, layout: Registers, in_vectors: bool) -> Any:
    lanes, vectors, width = layout.lanes, layout.vectors, layout.width

    @module.define
    def product(
        f: Function, x: Pointer, stride: Int, shift: Int, taps: Int, weight: Pointer, out: Pointer, count: Int,
        channels: Int,
    ) -> None:  # fmt: skip
        """Sums over taps and channels: out[r, :] = sum x[r + tap * shift, c] * weight[tap, c, :].

        x       [.., stride]  rows of voxels; `count` rounded up to `Registers.columns` are read
        weight  [taps, channels, width]
        out     [count rounded up, width]
        """
        end, start = (count + layout.columns - 1) // layout.columns * layout.columns, f.number(0)
        for rows in layout.tiles:
            tile, stop = replace(layout, rows=rows), start + (end - start) // rows * rows
            with f.loop(stop, start=start, step=rows) as (r, _):
                sums = [f.constant(0)] * (rows * vectors)
                with f.when(taps * channels >= _LONG_SUM):
                    for n in range(rows * vectors):
                        (out + (r * width + n * lanes)).prefetch()
                with f.loop(taps, carried=sums) as (tap, outer):
                    row, weights = r + tap * shift, weight + tap * channels * width
                    if in_vectors:
                        whole = channels // lanes * lanes
                        with f.loop(whole, step=lanes, carried=outer.values) as (c, inner):
                            inner.values = add_channels(
                                f, tile, x + (c * stride + row * lanes), lanes, weights + c * width, f.number(lanes),
                                inner.values, _CHANNELS_A_TURN if rows == layout.rows else 1,
                            )  # fmt: skip
                        outer.values = inner.values
                        if lanes == LANES:  # an image of fewer channels
                            outer.values = add_channels(
                                f, tile, x + (whole * stride + row * lanes), lanes, weights + whole * width,
                                channels - whole, outer.values,
                            )  # fmt: skip
                    else:
                        outer.values = add_channels(f, tile, x + row * stride, stride, weights, channels, outer.values)
                for n in range(rows * vectors):
                    (out + (r * width + n * lanes)).store(outer.values[n])
            start = stop

    return product


def _define_outer_sums(module: Module, layout: Registers, taps: int, in_vectors: bool) -> Any:
    lanes, vectors, width, pairs = layout.lanes, layout.vectors, layout.width, layout.window_channels(taps)

    @module.define
    def outer_sums(
        f: Function, x: Pointer, stride: Int, shift: Int, y: Pointer, width_y: Int, out: Pointer, count: Int,
        channels: Int,
    ) -> None:  # fmt: skip
        """Add sums over voxels: out[tap, a, b] += sum x[r + tap * shift, a] * y[r, b].

        x    [.., stride]        of which `channels` are taken, a multiple of `Registers.window_channels`
        y    [count, width_y]
        out  [taps, channels, width_y]
        """
        with f.loop(width_y, step=width) as (b, _), f.loop(channels, step=pairs) as (a, _):
            apart, column = (f.number(lanes), a // lanes * lanes * stride + a % lanes) if in_vectors else (stride, a)
            places = [x + (shift * apart * tap + column) for tap in range(taps)]
            starts = [out + ((channels * tap + a) * width_y + b) for tap in range(taps)]
            targets = [start + width_y * n for start in starts for n in range(pairs)]
            sums = [f.constant(0)] * (taps * pairs * vectors)
            for place in (target + m * lanes for target in targets for m in range(vectors)):
                place.prefetch()  # sums are short, and what they are added to lies far away
            with f.loop(count, carried=sums) as (r, state):
                factors = [(y + (r * width_y + b + m * lanes)).load() for m in range(vectors)]
                new = []
                for number, place in enumerate(places):
                    row = place + r * apart
                    for n in range(pairs):
                        value, at = (row + n).splat(), (number * pairs + n) * vectors
                        new += [f.fma(value, w, state.values[at + m]) for m, w in enumerate(factors)]
                state.values = new
            for number, target in enumerate(targets):
                for m in range(vectors):
                    place = target + m * lanes
                    place.store(place.load() + state.values[number * vectors + m])

    return outer_sums


def move_to_total(f: Function, gradient: Pointer, total: Pointer, size: Int) -> None:
    """Write down: add `size` float32 numbers to float64 ones, and begin again from zero."""
    wide = total.wide()
    with f.loop(size, step=f.lanes) as (i, _):
        (wide + i).store((wide + i).load() + (gradient + i).load().wide())
        (gradient + i).store(f.constant(0))
