"""The transforms of Winograd's minimal filtering: of windows and tiles, and back to results.

Two outputs of a three-tap filter take four products of transformed inputs and weights, not six (Winograd, "Arithmetic
complexity of computations", 1980; Lavin & Gray, "Fast algorithms for convolutional neural networks", CVPR 2016). On two
axes, here H and W, a tile of 2x2 outputs comes from 4x4 inputs by 16 products in place of 36. The matrices are theirs:
B^T d B of a window d, G g G^T of a filter g (`filters.py`), A^T m A of the products m. On D, where pairs of planes are
computed together, the matrices are the same once more.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

from volseg.nn.kernels.jit.language import Function, Int, Module, Pointer, Vector
from volseg.partition.tiling import PLANE_POSITIONS, Registers

How = Literal["sum", "difference", "negative", "itself"]
Mix = tuple[How, int, int]
"""What is made of two planes, by their numbers: their sum, their difference; of the first its negative, or itself."""


class Transforms:
    """The transforms of tensors, each written down in `module` where a kernel first uses it."""

    def __init__(self, module: Module, layout: Registers) -> None:
        self._module, self._layout = module, layout
        self._windows: dict[How, Any] = {}
        self._tiles: dict[How, Any] = {}

    def window(self, how: How) -> Any:
        """``window(how)(f, a, b, stride, out, position, rows, tiles, channels)``"""
        if how not in self._windows:
            self._windows[how] = _define_window(self._module, how)
        return self._windows[how]

    def tiles(self, how: How) -> Any:
        """``tiles(how)(f, a, b, stride, out, position, tiles, channels)``"""
        if how not in self._tiles:
            self._tiles[how] = _define_tiles(self._module, how)
        return self._tiles[how]

    def backs(self, paired: bool) -> Sequence[Any]:
        """``back(f, products, position, first, count, pairs, tiles, out, bias)`` for each 16 positions in turn."""
        return self._paired_backs if paired else [self._plane_back]

    @cached_property
    def _plane_back(self) -> Any:
        return _define_back(self._module, self._layout, 1, {0: "last"})

    @cached_property
    def _paired_backs(self) -> Sequence[Any]:
        return [_define_back(self._module, self._layout, 2, step) for step in _PAIRED_BACK]


def _mixed(how: How, a: Pointer, b: Pointer, offset: Int) -> Vector:
    """What is made of the numbers of two planes at a place."""
    first = (a + offset).load()
    if how == "itself":
        return first
    if how == "negative":
        return -first
    second = (b + offset).load()
    return first + second if how == "sum" else first - second


def _define_window(module: Module, how: How) -> Any:
    lanes = module.lanes

    @module.define
    def window(
        f: Function, a: Pointer, b: Pointer, stride: Int, out: Pointer, position: Int, rows: Int, tiles: Int,
        channels: Int,
    ) -> None:  # fmt: skip
        """B^T d B of the 4x4 windows along four lines d, which are what `how` makes of those of two planes.

        a, b  [4, 2 tiles + 2, channels], the lines `stride` floats apart
        out   [16 positions `position` floats apart][channels / lanes][`rows` of which tiles][lanes]
        """
        with f.loop(channels, step=lanes) as (c, _):

            def column(x: int | Int) -> list[Vector]:
                d = [_mixed(how, a, b, n * stride + f.number(x) * channels + c) for n in range(4)]
                return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]

            with f.loop(tiles, carried=column(0) + column(1)) as (t, state):
                first, second = state.values[:4], state.values[4:]
                third, fourth = column(t * 2 + 2), column(t * 2 + 3)
                place = out + (c * rows + t * lanes)
                _expect(place + lanes, position)
                for n in range(4):
                    d = first[n], second[n], third[n], fourth[n]
                    for m, value in enumerate((d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3])):
                        (place + position * (4 * n + m)).store(value)
                state.values = third + fourth

    return window


def _define_tiles(module: Module, how: How) -> Any:
    lanes = module.lanes

    @module.define
    def tiles(
        f: Function, a: Pointer, b: Pointer, stride: Int, out: Pointer, position: Int, tiles: Int, channels: Int
    ) -> None:
        """A y A^T of the 2x2 tiles along two lines y, which are what `how` makes of those of two planes.

        The products' gradient is made of it.

        a, b  [2, 2 tiles, channels], the lines `stride` floats apart
        out   [16 positions `position` floats apart][tiles, channels]
        """
        with f.loop(channels, step=lanes) as (c, _), f.loop(tiles) as (t, _):
            left, right = (
                _spread_two(*(_mixed(how, a, b, n * stride + (t * 2 + x) * channels + c) for n in range(2)))
                for x in range(2)
            )
            place = out + (t * channels + c)
            _expect(place + channels, position)
            for n in range(4):
                for m, value in enumerate(_spread_two(left[n], right[n])):
                    (place + position * (4 * n + m)).store(value)

    return tiles


def _expect(place: Pointer, position: Int) -> None:
    """Write down: what the next tile writes comes near. Sixteen lines that come when they are written hold it up."""
    for n in range(PLANE_POSITIONS):
        (place + position * n).prefetch()


def _spread_two(a: Vector, b: Vector) -> list[Vector]:
    """A of Winograd's F(2, 3) times a column of two."""
    return [a, a + b, a - b, -b]


Step = Literal["first", "plus", "minus", "last", "last plus", "last minus"]

_PAIRED_BACK: Sequence[dict[int, Step]] = (
    {0: "first"},
    {0: "plus", 1: "first"},
    {0: "last plus", 1: "minus"},
    {1: "last minus"},
)
"""A^T of F(2, 3) on D, a row of it for each plane of the pair: what becomes of it at the four products in turn."""


def _define_back(module: Module, layout: Registers, planes: int, steps: dict[int, Step]) -> Any:
    lanes, vectors, width = layout.lanes, layout.vectors, layout.width

    @module.define
    def back(
        f: Function, products: Pointer, position: Int, first: Int, count: Int, pairs: Int, tiles: Int, out: Pointer,
        bias: Pointer,
    ) -> None:  # fmt: skip
        """A^T m A: the results of `count` tiles from number `first` on, or their part from these products.

        products  [16 positions `position` floats apart][count, width]
        pairs     of lines in a plane
        tiles     in a pair of lines
        out       [layers, planes, pairs, 2, 2 tiles, width], of which `steps` says what becomes
        bias      [width], or nothing; added last
        """
        line = tiles * 2 * width
        row = first // tiles
        layer = row // pairs
        start = [row + layer * pairs * (planes - 1), row - layer * pairs, first % tiles]
        with f.either(bias.is_given()) as branches:
            for branch, biased in zip(branches, (True, False), strict=True):
                with branch, f.loop(count, carried=start) as (r, state):
                    pair, inside, t = state.values
                    for n in range(vectors):
                        results = _two_by_two(products + (r * width + n * lanes), position)
                        for plane, step in steps.items():
                            place = out + ((pair + pairs * plane) * 2 * line + t * 2 * width + n * lanes)
                            offset = (bias + n * lanes).load() if biased and step.startswith("last") else None
                            for number, value in enumerate(results):
                                target = place + (line * (number // 2) + width * (number % 2))
                                target.store(_result(step, target, value, offset))
                    along, beside = (t + 1).equals(tiles), inside + f.choose((t + 1).equals(tiles), *_bits(f))
                    below = beside.equals(pairs)
                    state.values = (
                        pair + f.choose(along, *_bits(f)) + f.choose(below, pairs * (planes - 1), f.number(0)),
                        f.choose(below, f.number(0), beside),
                        f.choose(along, f.number(0), t + 1),
                    )

    return back


def _bits(f: Function) -> tuple[Int, Int]:
    return f.number(1), f.number(0)


def _two_by_two(place: Pointer, position: Int) -> list[Vector]:
    """A^T m A of a tile's 16 products."""
    m = [[(place + position * (4 * i + j)).load() for j in range(4)] for i in range(4)]
    upper = [m[0][j] + m[1][j] + m[2][j] for j in range(4)]
    lower = [m[1][j] - m[2][j] - m[3][j] for j in range(4)]
    return [value for row in (upper, lower) for value in (row[0] + row[1] + row[2], row[1] - row[2] - row[3])]


def _result(step: Step, place: Pointer, value: Vector, bias: Vector | None) -> Vector:
    """What a value makes of the result at a place."""
    if step.endswith("plus"):
        value = place.load() + value
    elif step.endswith("minus"):
        value = place.load() - value
    return value if bias is None else value + bias
