"""The transforms of Winograd's minimal filtering: of windows and tiles, back to results, of weights and gradients.

Two outputs of a three-tap filter take four products of transformed inputs and weights, not six (Winograd, "Arithmetic
complexity of computations", 1980; Lavin & Gray, "Fast algorithms for convolutional neural networks", CVPR 2016). On two
axes, here H and W, a tile of 2x2 outputs comes from 4x4 inputs by 16 products in place of 36. The matrices are theirs:
B^T d B of a window d, G g G^T of a filter g, A^T m A of the products m.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from volseg.nn.kernels.jit.compiler import Library
from volseg.nn.kernels.jit.language import Function, Int, Module, Pointer, Vector
from volseg.partition.tiling import FILTERS_TOGETHER, POSITIONS, Registers


class Transforms:
    """The transforms of tensors, each written down in `module` where a kernel first uses it."""

    def __init__(self, module: Module, layout: Registers) -> None:
        self._module, self._layout = module, layout

    @cached_property
    def window(self) -> Any:
        """``window(f, line, stride, out, position, tiles, channels)``"""
        return _define_window(self._module)

    @cached_property
    def tiles(self) -> Any:
        """``tiles(f, line, stride, out, position, tiles, channels)``"""
        return _define_tiles(self._module)

    @cached_property
    def back(self) -> Any:
        """``back(f, products, position, first, count, tiles, out, bias)``"""
        return _define_back(self._module, self._layout)


def _define_window(module: Module) -> Any:
    lanes = module.lanes

    @module.define
    def window(f: Function, line: Pointer, stride: Int, out: Pointer, position: Int, tiles: Int, channels: Int) -> None:
        """B^T d B of the 4x4 windows along four lines.

        line  [4, 2 tiles + 2, channels], the lines `stride` floats apart
        out   [16 positions `position` floats apart][tiles, channels]
        """
        with f.loop(channels, step=lanes) as (c, _):

            def column(x: int | Int) -> list[Vector]:
                d = [(line + (n * stride + f.number(x) * channels + c)).load() for n in range(4)]
                return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]

            with f.loop(tiles, carried=column(0) + column(1)) as (t, state):
                first, second = state.values[:4], state.values[4:]
                third, fourth = column(t * 2 + 2), column(t * 2 + 3)
                place = out + (t * channels + c)
                for n in range(4):
                    a, b, d, e = first[n], second[n], third[n], fourth[n]
                    for m, value in enumerate((a - d, b + d, d - b, b - e)):
                        (place + position * (4 * n + m)).store(value)
                state.values = third + fourth

    return window


def _define_tiles(module: Module) -> Any:
    lanes = module.lanes

    @module.define
    def tiles(f: Function, line: Pointer, stride: Int, out: Pointer, position: Int, tiles: Int, channels: Int) -> None:
        """A y A^T of the 2x2 tiles along two lines: what the products' gradient is made of.

        line  [2, 2 tiles, channels], the lines `stride` floats apart
        out   [16 positions `position` floats apart][tiles, channels]
        """
        with f.loop(channels, step=lanes) as (c, _), f.loop(tiles) as (t, _):
            left, right = (
                _spread_two(*((line + (n * stride + (t * 2 + x) * channels + c)).load() for n in range(2)))
                for x in range(2)
            )
            place = out + (t * channels + c)
            for n in range(4):
                for m, value in enumerate(_spread_two(left[n], right[n])):
                    (place + position * (4 * n + m)).store(value)

    return tiles


def _spread_two(a: Vector, b: Vector) -> list[Vector]:
    """A of Winograd's F(2, 3) times a column of two."""
    return [a, a + b, a - b, -b]


def _define_back(module: Module, layout: Registers) -> Any:
    lanes, vectors, width = layout.lanes, layout.vectors, layout.width

    @module.define
    def back(
        f: Function, products: Pointer, position: Int, first: Int, count: Int, tiles: Int, out: Pointer, bias: Pointer
    ) -> None:
        """A^T m A: the results of `count` tiles from number `first` on.

        products  [16 positions `position` floats apart][count, width]
        tiles     in a pair of lines
        out       [pairs of lines][2, 2 tiles, width]
        bias      [width], or nothing
        """
        line = tiles * 2 * width
        with f.either(bias.is_given()) as branches:
            for branch, biased in zip(branches, (True, False), strict=True):
                with branch, f.loop(count, carried=[first // tiles, first % tiles]) as (r, state):
                    pair, t = state.values
                    for n in range(vectors):
                        place = products + (r * width + n * lanes)
                        m = [[(place + position * (4 * i + j)).load() for j in range(4)] for i in range(4)]
                        upper = [m[0][j] + m[1][j] + m[2][j] for j in range(4)]
                        lower = [m[1][j] - m[2][j] - m[3][j] for j in range(4)]
                        for y, row in enumerate((upper, lower)):
                            target = out + (pair * 2 * line + y * line + t * 2 * width + n * lanes)
                            both = row[0] + row[1] + row[2], row[1] - row[2] - row[3]
                            for x, value in enumerate(both):
                                result = value + (bias + n * lanes).load() if biased else value
                                (target + x * width).store(result)
                    following = t + 1
                    whole = following.equals(tiles)
                    state.values = f.choose(whole, pair + 1, pair), f.choose(whole, f.number(0), following)

    return back


@dataclass(frozen=True)
class Filter:
    """A weight, or its gradient, addressed by strides.

    data               the first tap of inner channel 0 and output channel 0
    inner, outer, tap  floats from an inner channel, an output channel, a tap to the next
    taps               on D; each has 3 x 3 on H and W, the last fastest
    """

    data: Pointer
    inner: Int
    outer: Int
    tap: Int
    taps: Int


def build_weight_transforms(layout: Registers) -> Library:
    """Compile `transform_weight` and `finish_gradient` for one layout of the registers."""
    module = Module(layout.lanes)
    _define_transform_weight(module, layout)
    _define_finish_gradient(module)
    return Library(module)


def _define_transform_weight(module: Module, layout: Registers) -> None:
    """Write down `transform_weight`."""
    lanes, width = layout.lanes, layout.width

    @module.entry
    def transform_weight(
        f: Function, first: Int, last: Int, scratch: Pointer, *, weight: Filter, out: Pointer, inner: Int
    ) -> None:
        """G g G^T for the numbers first ... last, which count output channels by width, then inner ones by a few.

        out      [output channels / width][16][taps on D][inner][width]
        scratch  [16, taps on D, FILTERS_TOGETHER, width], [9 taps on D, lanes], [lanes, 9 taps on D]
        """
        rows, run = weight.taps * POSITIONS, FILTERS_TOGETHER * width
        several = (inner + FILTERS_TOGETHER - 1) // FILTERS_TOGETHER
        with f.loop(last, start=first) as (number, _):
            k, start = number // several, number % several * FILTERS_TOGETHER
            together = f.smaller(inner - start, FILTERS_TOGETHER)
            with f.loop(together) as (c, _), f.loop(width, step=lanes) as (lane, _):
                source = weight.data + ((start + c) * weight.inner + (k * width + lane) * weight.outer)
                _transform_filters(
                    f, replace(weight, data=source), scratch + (c * width + lane), run, scratch + rows * run
                )
            # In runs, not number by number: there are as many places to write to as pages that a processor has at hand.
            with f.loop(rows) as (row, _), f.loop(together * width, step=lanes) as (n, _):
                (out + (((k * rows + row) * inner + start) * width + n)).store((scratch + (row * run + n)).load())


def _transform_filters(f: Function, weight: Filter, out: Pointer, run: int, scratch: Pointer) -> None:
    """Write down: G g G^T of `lanes` output channels, to [16, taps on D] places `run` floats apart."""
    lanes, half, size = f.lanes, f.constant(0.5), weight.taps * 9
    filters, lowest = scratch + size * lanes, f.smaller((size - 1) * weight.tap, 0)
    for n in range(lanes):  # many filters are on their way from memory at a time
        _copy(f, filters + size * n, weight.data + (weight.outer * n + lowest), size)
    for n in range(lanes):
        source = filters + (size * n - lowest)
        with f.loop(size) as (tap, _):
            (scratch + (tap * lanes + n)).copy_one(source + tap * weight.tap)
    with f.loop(weight.taps) as (tap, _):
        g = [[(scratch + (tap * 9 + 3 * y + x) * lanes).load() for x in range(3)] for y in range(3)]
        for y, row in enumerate(_filter_side(half, *g)):
            for x, value in enumerate(_filter_side(half, *([v] for v in row))):
                (out + ((weight.taps * (4 * y + x) + tap) * run)).store(value[0])


def _copy(f: Function, target: Pointer, source: Pointer, count: Int) -> None:
    """Write down: copy `count` numbers, by whole vectors of which the last may overlap the one before it."""
    with f.either(count < f.lanes) as (few, enough):
        with few, f.loop(count) as (n, _):
            (target + n).copy_one(source + n)
        with enough, f.loop(count, step=f.lanes) as (n, _):
            at = f.smaller(n, count - f.lanes)
            (target + at).store((source + at).load())


def _define_finish_gradient(module: Module) -> None:
    """Write down `finish_gradient`."""
    lanes = module.lanes

    @module.entry
    def finish_gradient(
        f: Function, first: Int, last: Int, scratch: Pointer, *,
        gradient: Pointer, total: Pointer, inner: Int, channels: Int, out: Filter,
    ) -> None:  # fmt: skip
        """G^T u G, the gradient of a weight, for the inner channels first ... last.

        gradient, total  [16, taps on D, inner as stored, channels], one of them: float32 or float64
        scratch          [9 taps on D, lanes]
        """
        half, wide = f.constant(0.5), total.wide()
        size = inner * channels
        with f.loop(last, start=first) as (a, _), f.loop(channels, step=lanes) as (b, _):
            i = a * channels + b
            with f.loop(out.taps) as (tap, _), f.either(total.is_given()) as (from_total, from_gradient):
                for branch, source in ((from_total, wide), (from_gradient, gradient)):
                    with branch:
                        u = [
                            [(source + ((out.taps * (4 * y + x) + tap) * size + i)).load() for x in range(4)]
                            for y in range(4)
                        ]
                        scale = half.wide() if source is wide else half
                        rows = _gather_side(scale, *u)
                        for y, row in enumerate(rows):
                            for x, value in enumerate(_gather_side(scale, *([v] for v in row))):
                                number = value[0].narrow() if source is wide else value[0]
                                (scratch + (tap * 9 + 3 * y + x) * lanes).store(number)
            for n in range(lanes):
                target = out.data + (a * out.inner + (b + n) * out.outer)
                with f.loop(out.taps * 9) as (tap, _):
                    (target + tap * out.tap).copy_one(scratch + (tap * lanes + n))


def _filter_side(half: Vector, a: list[Vector], b: list[Vector], c: list[Vector]) -> Any:
    """G times a column of three."""
    both = [(x + z) * half for x, z in zip(a, c, strict=True)]
    middle = [y * half for y in b]
    return (
        a,
        [m + n for m, n in zip(both, middle, strict=True)],
        [m - n for m, n in zip(both, middle, strict=True)],
        c,
    )


def _gather_side(half: Vector, a: list[Vector], b: list[Vector], c: list[Vector], d: list[Vector]) -> Any:
    """G^T times a column of four."""
    both = [(y + z) * half for y, z in zip(b, c, strict=True)]
    return (
        [x + m for x, m in zip(a, both, strict=True)],
        [(y - z) * half for y, z in zip(b, c, strict=True)],
        [m + w for m, w in zip(both, d, strict=True)],
    )
