"""Parts that kernels are put together from: lines of activated voxels, and products of small matrices.

A *line* is the voxels of one block along W, channels last: [w, C]. Products are `product` (a matrix of voxels times a
matrix of weights) and `outer_sums` (a sum over voxels of outer products). Both keep a tile of sums in registers, as
GEMM kernels do (Goto & van de Geijn, "Anatomy of high-performance matrix multiplication", ACM TOMS 34, 2008), and add
the terms of each sum one by one, by fused multiply-adds, in an order that does not depend on the tile.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from volseg.nn.kernels.jit.language import Function, Int, Module, Pointer, Vector
from volseg.partition.tiling import Registers


@dataclass(frozen=True)
class Parts:
    """The parts, written down in one module."""

    fill_line: Any
    product: Any
    outer_sums: Any
    store: Any
    through_activation: Any


def define_parts(module: Module, layout: Registers, taps: int) -> Parts:
    """Write the parts down in `module`; `outer_sums` takes `taps` at once."""
    lanes, vectors, rows, width = layout.lanes, layout.vectors, layout.rows, layout.width

    @module.define
    def zero_voxels(f: Function, target: Pointer, stride: Int, begin: Int, end: Int, channels: Int) -> None:
        with f.loop(end, start=begin) as (x, _), f.loop(channels, step=lanes) as (c, _):
            (target + (x * stride + c)).store(f.constant(0))

    @module.define
    def fill_line(
        f: Function, target: Pointer, stride: Int, start: Int, count: Int, low: Int, high: Int, source: Pointer,
        channels: Int, scale: Pointer, shift: Pointer, slope: Vector,
    ) -> None:  # fmt: skip
        """The voxels start ... start + count of a line, activated, and zero beyond low ... high.

        Activated: leaky(source * scale + shift).

        target    [count, stride], of which the channels rounded up to `lanes` are written
        source    the line's voxel 0; `channels` numbers a voxel
        scale     [channels], or nothing: the source is taken as it is
        """
        begin = f.smaller(f.larger(low - start, 0), count)
        end = f.smaller(f.larger(high - start, begin), count)
        zero_voxels(f, target, stride, 0, begin, channels)
        zero_voxels(f, target, stride, end, count, channels)
        first = source + start * channels
        with f.either((channels % lanes).equals(0)) as (aligned, odd):
            with odd:  # an image: few channels, as they are
                zero_voxels(f, target, stride, begin, end, channels)
                with f.loop(end, start=begin) as (x, _), f.loop(channels) as (c, _):
                    (target + (x * stride + c)).copy_one(first + (x * channels + c))
            with aligned, f.loop(channels, step=lanes) as (c, _), f.either(scale.is_given()) as (given, bare):
                with bare, f.loop(end, start=begin) as (x, _):
                    (target + (x * stride + c)).store((first + (x * channels + c)).load())
                with given:
                    a, b = (scale + c).load(), (shift + c).load()
                    with f.loop(end, start=begin) as (x, _):
                        value = (first + (x * channels + c)).load() * a + b
                        (target + (x * stride + c)).store(f.leaky(value, slope))

    @module.define
    def product(
        f: Function, x: Pointer, stride: Int, shift: Int, taps: Int, weight: Pointer, out: Pointer, count: Int,
        channels: Int,
    ) -> None:  # fmt: skip
        """Sums over taps and channels: out[r, :] = sum x[r + tap * shift, c] * weight[tap, c, :].

        x       [.., stride]  rows of voxels; `count` rounded up to `rows` are read
        weight  [taps, channels, width]
        out     [count rounded up, width]
        """
        with f.loop(count, step=rows) as (r, _):
            sums = [f.constant(0)] * (rows * vectors)
            with f.loop(taps, carried=sums) as (tap, outer):
                places = [x + (r + n + tap * shift) * stride for n in range(rows)]
                weights = weight + tap * channels * width
                with f.loop(channels, carried=outer.values) as (c, inner):
                    factors = [(weights + (c * width + n * lanes)).load() for n in range(vectors)]
                    new = []
                    for n, place in enumerate(places):
                        value = (place + c).splat()
                        new += [f.fma(value, w, inner.values[n * vectors + m]) for m, w in enumerate(factors)]
                    inner.values = new
                outer.values = inner.values
            for n in range(rows * vectors):
                (out + (r * width + n * lanes)).store(outer.values[n])

    return Parts(fill_line, product, _outer_sums(module, layout, taps), *_define_results(module, layout))


def _outer_sums(module: Module, layout: Registers, taps: int) -> Any:
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
            places = [x + (shift * stride * tap + a) for tap in range(taps)]
            starts = [out + ((channels * tap + a) * width_y + b) for tap in range(taps)]
            targets = [start + width_y * n for start in starts for n in range(pairs)]
            sums = [f.constant(0)] * (taps * pairs * vectors)
            with f.loop(count, carried=sums) as (r, state):
                factors = [(y + (r * width_y + b + m * lanes)).load() for m in range(vectors)]
                new = []
                for number, place in enumerate(places):
                    row = place + r * stride
                    for n in range(pairs):
                        value, at = (row + n).splat(), (number * pairs + n) * vectors
                        new += [f.fma(value, w, state.values[at + m]) for m, w in enumerate(factors)]
                state.values = new
            for number, target in enumerate(targets):
                for m in range(vectors):
                    place = target + m * lanes
                    place.store(place.load() + state.values[number * vectors + m])

    return outer_sums


def _define_results(module: Module, layout: Registers) -> tuple[Any, Any]:
    """What is done with results [planes, lines, columns, width] while they are in the cache."""
    lanes, vectors, width = layout.lanes, layout.vectors, layout.width

    @module.define
    def store(
        f: Function, results: Pointer, columns: Int, lines: Int, planes: Int, y0: Int, y1: Int, x0: Int, x1: Int,
        out: Pointer, plane: Int, line: Int, channels: Int,
    ) -> None:  # fmt: skip
        """Copy the lines y0 ... y1 and columns x0 ... x1 of the results to out, [.., .., channels] there."""
        with f.loop(planes) as (z, _), f.loop(y1, start=y0) as (y, _):
            source = results + (z * lines + y) * columns * width
            target = out + (z * plane + y * line)
            with f.loop(x1, start=x0) as (x, _):
                for n in range(vectors):
                    (target + (x * channels + n * lanes)).store((source + (x * width + n * lanes)).load())

    @module.define
    def through_activation(
        f: Function, results: Pointer, columns: Int, lines: Int, planes: Int, y0: Int, y1: Int, x0: Int, x1: Int,
        out: Pointer, plane: Int, line: Int, raw: Pointer, raw_plane: Int, raw_line: Int, channels: Int,
        scale: Pointer, shift: Pointer, slope: Vector, sums: Pointer,
    ) -> None:  # fmt: skip
        """Results are the gradient of leaky(raw * scale + shift): store that before the activation, and add it up.

        out, raw  [.., .., channels]
        sums      [2, channels] float64: of the gradient stored, and of its product with raw
        """
        wide = sums.wide()
        for n in range(vectors):
            a, b, zero = (scale + n * lanes).load(), (shift + n * lanes).load(), f.constant(0)
            with f.loop(planes) as (z, _), f.loop(y1, start=y0) as (y, _):
                source = results + ((z * lines + y) * columns * width + n * lanes)
                before = raw + (z * raw_plane + y * raw_line + n * lanes)
                target = out + (z * plane + y * line + n * lanes)
                with f.loop(x1, start=x0, carried=[zero, zero]) as (x, state):
                    value = (before + x * channels).load()
                    gradient = f.leaky_gradient((source + x * width).load(), value * a + b, slope)
                    (target + x * channels).store(gradient)
                    state.values = state.values[0] + gradient, state.values[1] + gradient * value
                for at, total in ((n * lanes, state.values[0]), (channels + n * lanes, state.values[1])):
                    (wide + at).store((wide + at).load() + total.wide())

    return store, through_activation


def move_to_total(f: Function, gradient: Pointer, total: Pointer, size: Int) -> None:
    """Write down: add `size` float32 numbers to float64 ones, and begin again from zero."""
    wide = total.wide()
    with f.loop(size, step=f.lanes) as (i, _):
        (wide + i).store((wide + i).load() + (gradient + i).load().wide())
        (gradient + i).store(f.constant(0))
