"""Blocks of the direct convolution: their windows of activated voxels, and the products of those with weights.

A block's window is a piece of the source with what its results reach, activated once and kept in the cache:

    window   [planes][phases][lines][columns, voxel]

Lines whose numbers have the same rest by the stride on H, a *phase*, lie together. So the voxels that a tap meets in
the results of a plane are rows of one matrix product for each tap on D and H, at equal distances along a line and from
line to line; the taps on W are more columns of it. Rows of a line are computed some at a time, fewer at its end, so
that few are computed beyond it.

A result is summed over taps on D, on H, on W, then channels, each in ascending order of the voxels, and then the bias
is added: its bits follow from what it reads, and are those of `pointwise` for a kernel of one voxel.

The gradient of a strided convolution's input is several such convolutions of the output's gradient with stride 1: one
for each rest of the input's coordinates by the stride, with the taps that reach it. Each is a `Group` of products.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from volseg.nn.kernels.forms import Form
from volseg.nn.kernels.jit.language import Function, Int, Module, Pointer
from volseg.nn.kernels.operands import Ranges, Results, Source
from volseg.nn.kernels.parts import Parts, add_channels
from volseg.partition.tiling import Registers


@dataclass(frozen=True)
class Axes:
    """A number for each axis."""

    z: Int
    y: Int
    x: Int


@dataclass(frozen=True)
class Cutting:
    """How results of height x breadth a plane are cut into blocks, as `partition.direct_tiling.Cut` says.

    order  [..] 64-bit numbers of the blocks to compute
    """

    order: Pointer
    planes: Int
    lines: Int
    columns: Int
    first_plane: Int
    last_plane: Int
    blocks_y: Int
    blocks_x: Int
    height: Int
    breadth: Int


@dataclass(frozen=True)
class View:
    """What a block's window holds, as `partition.direct_tiling.Reach` and `Window` say.

    ranges             of the voxels that the source has
    voxel              floats of a voxel
    step, first, size  of the reach
    phases, lines, columns, line, plane, floats  of the window
    """

    ranges: Ranges
    voxel: Int
    step: Axes
    first: Axes
    size: Axes
    phases: Int
    lines: Int
    columns: Int
    line: Int
    plane: Int
    floats: Int


@dataclass(frozen=True)
class Groups:
    """The products of each group, one after another; all numbers are 64 bits.

    table    [taps on D and H of all groups] floats from a result's first voxel to the tap's
    numbers  [count, 10]  of a group: its taps on D and on H; the first plane they meet; the first one's number in the
             table; floats to its first column; floats of its columns; its first term in the weight; its rests on axes
    terms    of the weight, all groups together
    """

    table: Pointer
    numbers: Pointer
    count: Int
    terms: Int


@dataclass(frozen=True)
class Group:
    """Products that make one kind of results."""

    table: Pointer
    deep: Int
    high: Int
    plane: Int
    column: Int
    inner: Int
    term: Int
    rest: Axes

    @property
    def taps(self) -> Int:
        """On D and H."""
        return self.deep * self.high

    @classmethod
    def of(cls, groups: Groups, number: Int) -> Group:
        """The group of a number."""
        deep, high, plane, first, column, inner, term, z, y, x = (
            (groups.numbers + (number * 10 + n) * 2).integer() for n in range(10)
        )  # 64 bits are two floats
        return cls(groups.table + first * 2, deep, high, plane, column, inner, term, Axes(z, y, x))


@dataclass(frozen=True)
class Block:
    """A block of results: its first one, and how many there are on each axis."""

    z: Int
    y: Int
    x: Int
    planes: Int
    lines: Int
    columns: Int

    @classmethod
    def of(cls, f: Function, cutting: Cutting, number: Int) -> Block:
        """The block that stands in the order at a number."""
        index = (cutting.order + number * 2).integer()
        column, rest = index % cutting.blocks_x, index // cutting.blocks_x
        row, layer = rest % cutting.blocks_y, rest // cutting.blocks_y
        z, y, x = cutting.first_plane + layer * cutting.planes, row * cutting.lines, column * cutting.columns
        return cls(
            z, y, x, f.smaller(cutting.planes, cutting.last_plane - z), f.smaller(cutting.lines, cutting.height - y),
            f.smaller(cutting.columns, cutting.breadth - x),
        )  # fmt: skip


class Kit:
    """What the kernels are put together from."""

    def __init__(self, module: Module, layout: Registers) -> None:
        self.layout, self.parts = layout, Parts(module, layout)
        self._begin, self._product = _define_begin(module, layout), _define_product(module, layout)
        self._add_bias = _define_add_bias(module, layout)

    def fill_window(
        self, f: Function, sources: Sequence[tuple[Source, Form]], block: Block, view: View, window: Pointer
    ) -> None:  # fmt: skip
        """Write down: a block's window.

        sources  one or two tensors side by side, and how they are read; the second may be nothing
        """
        (source, kind), *others = [(x.of(form.element), form.activation) for x, form in sources]
        ranges, zero, step, size = view.ranges, f.number(0), view.step, view.size
        first_z, first_y, first_x = (
            at * by + before
            for at, by, before in (
                (block.z, step.z, view.first.z), (block.y, step.y, view.first.y), (block.x, step.x, view.first.x),
            )
        )  # fmt: skip
        with f.loop((block.planes - 1) * step.z + size.z) as (dz, _), f.when(dz % step.z < size.z):
            z = first_z + dz
            there = (z >= ranges.low_z) & (z < ranges.high_z)
            # In the order of memory: a line of few channels is filled a little beyond its end.
            with f.loop(view.phases) as (phase, _), f.loop(block.lines - 1 + (size.y + step.y - 1) // step.y) as (n, _):
                y = first_y + n * step.y + phase
                filled = there & (y >= ranges.low_y) & (y < ranges.high_y)
                begin, end = f.choose(filled, ranges.low_x, zero), f.choose(filled, ranges.high_x, zero)
                line = window + (dz * view.plane + (phase * view.lines + n) * view.line)
                extent = view.voxel, first_x, view.columns, begin, end
                self.parts.fill_line(kind)(f, line, *extent, source.at(z, y))
                for second, kind_of_second in others:
                    with f.when(second.data.is_given()):
                        self.parts.fill_line(kind_of_second)(f, line + source.channels, *extent, second.at(z, y))

    def multiply(
        self, f: Function, block: Block, view: View, group: Group, window: Pointer, weight: Pointer, bias: Pointer,
        values: Pointer,
    ) -> Results:  # fmt: skip
        """Write down: the results of a group of products, for as many channels as registers hold.

        weight  [terms, width] of the group
        bias    [width], or nothing
        values  room for them
        """
        layout, width = self.layout, self.layout.width
        step, breadth = (
            view.step.x * view.voxel,
            (block.columns + layout.columns - 1) // layout.columns * layout.columns,
        )
        plane = block.lines * breadth
        # A piece of the weights stays in the first cache while all rows of a plane, or of a few small ones, meet it.
        inner = f.larger(group.inner, 1)
        columns = f.smaller(inner, _NEAR_FLOATS // width)
        taps = f.choose(columns < inner, f.number(1), f.larger(f.number(_NEAR_FLOATS) // (inner * width), 1))
        kept = group.taps * inner * width < _KEPT_FLOATS
        together = f.choose(kept, f.larger(f.number(_FEW_ROWS) // plane, 1), block.planes)
        with f.loop((block.planes + together - 1) // together) as (part, _):
            first, last = part * together, f.smaller((part + 1) * together, block.planes)
            self._begin(f, values + first * plane * width, (last - first) * plane)
            with f.loop((group.taps + taps - 1) // taps) as (t, _), f.loop((inner + columns - 1) // columns) as (c, _):
                tap, column = t * taps, c * columns
                with f.loop(last, start=first) as (z, _):
                    x = window + (z * view.step.z * view.plane + group.column + column)
                    begin, end = self._there(f, block, view, group, z)
                    begin, end = f.larger(begin, tap), f.smaller(end, tap + taps)
                    self._product(
                        f, x, view.line, block.lines, breadth, step, group.table + begin * 2, end - begin,
                        weight + (begin * inner + column) * width, inner * width, values + z * plane * width,
                        f.smaller(columns, inner - column),
                    )  # fmt: skip
            with f.when(bias.is_given()):
                self._add_bias(f, bias, values + first * plane * width, (last - first) * plane)
        zero = f.number(0)
        return Results(values, block.planes, block.lines, breadth, zero, block.lines, zero, block.columns)

    @staticmethod
    def _there(f: Function, block: Block, view: View, group: Group, z: Int) -> tuple[Int, Int]:
        """The first and last of a group's taps that meet planes which the source has, for plane z of a block.

        Beyond the source's planes is zero, which adds nothing.
        """
        first = (block.z + z) * view.step.z + view.first.z + group.plane
        begin = f.smaller(f.larger(view.ranges.low_z - first, 0), group.deep)
        end = f.smaller(f.larger(view.ranges.high_z - first, begin), group.deep)
        return begin * group.high, end * group.high


_NEAR_FLOATS, _FEW_ROWS = 6144, 96
"""Of a piece of weights that stays in the first cache: 24 KiB, half of one. Rows that make up for reading it."""

_KEPT_FLOATS = 2**17
"""Of weights that stay in the second cache: all rows of a block meet each piece of larger ones before the next."""


def _define_begin(module: Module, layout: Registers) -> Any:
    @module.define
    def begin_with_zero(f: Function, out: Pointer, count: Int) -> None:
        """out[r, :] = 0, for `count` rows."""
        with f.loop(count * layout.vectors) as (n, _):
            (out + n * layout.lanes).store(f.constant(0))

    return begin_with_zero


def _define_add_bias(module: Module, layout: Registers) -> Any:
    lanes, vectors, width = layout.lanes, layout.vectors, layout.width

    @module.define
    def add_bias(f: Function, bias: Pointer, out: Pointer, count: Int) -> None:
        """out[r, :] += bias, for `count` rows."""
        offsets = [(bias + n * lanes).load() for n in range(vectors)]
        with f.loop(count) as (r, _):
            for n, offset in enumerate(offsets):
                place = out + (r * width + n * lanes)
                place.store(place.load() + offset)

    return add_bias


def _define_product(module: Module, layout: Registers) -> Any:
    lanes, vectors, width = layout.lanes, layout.vectors, layout.width

    @module.define
    def add_product_of_taps(
        f: Function, x: Pointer, line: Int, lines: Int, count: Int, step: Int, table: Pointer, taps: Int,
        weight: Pointer, tap_size: Int, out: Pointer, inner: Int,
    ) -> None:  # fmt: skip
        """Add sums over taps and what each meets: out[y, r, :] += sum x[y, r, table[tap] + c] * weight[tap, c, :].

        x       `lines` of `count` rows, a multiple of `Registers.columns`; `line` and `step` floats apart
        table   [taps] 64-bit integers
        weight  [taps][inner, width], the taps `tap_size` floats apart
        out     [lines, count, width]
        """
        with f.loop(lines) as (y, _):
            start = f.number(0)
            for rows in layout.tiles:
                tile, stop = replace(layout, rows=rows), start + (count - start) // rows * rows
                with f.loop(stop, start=start, step=rows) as (r, _):
                    at = out + (y * count + r) * width
                    places = [at + (n * width + m * lanes) for n in range(rows) for m in range(vectors)]
                    with f.loop(taps, carried=[place.load() for place in places]) as (tap, outer):
                        first = x + (y * line + r * step + (table + tap * 2).integer())
                        weights = weight + tap * tap_size
                        outer.values = add_channels(f, tile, first, step, weights, inner, outer.values)
                    for place, total in zip(places, outer.values, strict=True):
                        place.store(total)
                start = stop

    return add_product_of_taps
