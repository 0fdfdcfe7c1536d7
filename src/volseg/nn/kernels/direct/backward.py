"""The machine code of the direct convolution's gradients."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from volseg.nn.kernels.direct.blocks import Axes, Block, Cutting, Group, Groups, Kit, View
from volseg.nn.kernels.forms import Form, Forms
from volseg.nn.kernels.jit.compiler import Library
from volseg.nn.kernels.jit.language import Function, Int, Module, Pointer
from volseg.nn.kernels.operands import Results, Source, Target
from volseg.nn.kernels.parts import move_to_total
from volseg.partition.tiling import Registers


@dataclass(frozen=True)
class Tile:
    """One or two activated tensors side by side, `stride` of whose voxels belong to each result on each axis.

    channels  of both
    sides     of the tensors' block
    floats    of the tile in memory
    """

    a: Source
    b: Source
    channels: Int
    stride: Axes
    sides: Axes
    floats: Int


@dataclass(frozen=True)
class InputGradient:
    """Where the gradient of an input goes.

    sums  [2, stride on W * channels] float64, of which the first channels count: then it goes through the input's
          activation first, and its sums are added here
    """

    target: Target
    sums: Pointer


@dataclass(frozen=True)
class WeightGradient:
    """Where this thread adds up the gradient of a weight.

    gradient  [size], for each group and tap [columns of the window, rounded up, channels of the tile], added to; or
              nothing, where nobody wants it
    total     the same in float64, to which `gradient` is moved each `flush` blocks, or nothing
    """

    gradient: Pointer
    total: Pointer
    flush: Int
    size: Int


def build_backward(layout: Registers, together: int, pairs: int, forms: Forms) -> Library:
    """Compile `backward` for one layout of the registers.

    together, pairs  taps on D and H, and columns of the window, whose outer sums with the tile are taken at once
    forms            of what windows are cut from, and of the tensors of the tile, whose gradients are of the same
                     numbers
    """
    module, of_tile = Module(layout.lanes), forms[1:]
    kit = Kit(module, layout)
    outer_sums = _define_outer_sums(module, layout, together, pairs)
    width = layout.width

    @module.entry
    def backward(
        f: Function, first: Int, last: Int, scratch: Pointer, *,
        cutting: Cutting, view: View, groups: Groups, source: Source, tile: Tile, weight: Pointer,
        a: InputGradient, b: InputGradient, into: WeightGradient,
    ) -> None:  # fmt: skip
        """Blocks order[first ... last] of a convolution's gradients, from windows of one tensor and tiles of others.

        The windows are those of the output's gradient, the tiles those of the inputs: then the product of the windows
        with `weight` is the inputs' gradient, which goes to a and b, and the outer sums are the weight's gradient.
        Without `weight` it may be the other way round: windows of an input, tiles of the output's gradient.

        source  the tensor of the windows
        weight  [channels of the tile / width][terms][width], or nothing
        """
        tiles = scratch + view.floats
        values = tiles + tile.floats
        with f.loop(last, start=first, carried=[f.number(0)]) as (number, since):
            block = Block.of(f, cutting, number)
            kit.fill_window(f, [(source, forms[0])], block, view, scratch)
            with f.when(into.gradient.is_given()):
                _fill_tile(f, kit, tile, of_tile, block, cutting, tiles)
                with f.loop(groups.count) as (n, _):
                    outer_sums(f, block, view, Group.of(groups, n), scratch, tile, cutting, tiles, into.gradient)
            following = since.values[0] + 1
            full = following.equals(into.flush)
            with f.when(full & into.total.is_given()):
                move_to_total(f, into.gradient, into.total, into.size)
            since.values = (f.choose(full, f.number(0), following),)
            with f.when(weight.is_given()), f.loop(tile.channels // width) as (k, _), f.loop(groups.count) as (n, _):
                channel, group = k * width, Group.of(groups, n)
                weights = weight + (channel * groups.terms + group.term * width)
                results = kit.multiply(
                    f, block, view, group, scratch, weights, f.nothing(), values
                )  # fmt: skip
                hand_on(f, kit, results, block, group, tile, of_tile, a, b, channel)
        with f.when(into.total.is_given()):
            move_to_total(f, into.gradient, into.total, into.size)

    return Library(module)


def _fill_tile(f: Function, kit: Kit, tile: Tile, forms: Forms, block: Block, cutting: Cutting, tiles: Pointer) -> None:
    """Write down: a block's tile [planes, lines, columns, channels], each `stride` times the results."""
    stride, zero = tile.stride, f.number(0)
    columns, a, b = cutting.columns * stride.x, tile.a.of(forms[0].element), tile.b.of(forms[1].element)
    with f.loop(block.planes * stride.z) as (dz, _), f.loop(block.lines * stride.y) as (dy, _):
        z, y = block.z * stride.z + dz, block.y * stride.y + dy
        end = f.choose((z < tile.sides.z) & (y < tile.sides.y), tile.sides.x, zero)
        line = tiles + (dz * cutting.lines * stride.y + dy) * columns * tile.channels
        extent = tile.channels, block.x * stride.x, columns, zero, end
        kit.parts.fill_line(forms[0].activation)(f, line, *extent, a.at(z, y))
        with f.when(b.data.is_given()):
            kit.parts.fill_line(forms[1].activation)(f, line + a.channels, *extent, b.at(z, y))


def hand_on(
    f: Function, kit: Kit, results: Results, block: Block, group: Group, tile: Tile, forms: Forms, a: InputGradient,
    b: InputGradient, channel: Int,
) -> None:  # fmt: skip
    """Write down: the gradient of two inputs' channels side by side, from a channel on, goes to the input it is of.

    forms  of the two
    """
    results = _within(f, results, block, group, tile)
    with f.either(channel < tile.a.channels) as (in_a, in_b):
        with in_a:
            _hand_to(f, kit, results, block, group, tile, tile.a, forms[0], a, channel)
        with in_b:
            _hand_to(f, kit, results, block, group, tile, tile.b, forms[1], b, channel - tile.a.channels)


def _within(f: Function, results: Results, block: Block, group: Group, tile: Tile) -> Results:
    """Those of a group's results that the inputs have: the last of odd sides belong to the first rest alone."""

    def there(results: Int, first: Int, stride: Int, rest: Int, side: Int) -> Int:
        return f.smaller(results, (side - rest - first * stride + stride - 1) // stride)

    stride, rest, sides = tile.stride, group.rest, tile.sides
    return replace(
        results,
        planes=there(block.planes, block.z, stride.z, rest.z, sides.z),
        y1=there(block.lines, block.y, stride.y, rest.y, sides.y),
        x1=there(block.columns, block.x, stride.x, rest.x, sides.x),
    )


def _hand_to(
    f: Function, kit: Kit, results: Results, block: Block, group: Group, tile: Tile, raw: Source,
    form: Form, into: InputGradient, channel: Int,
) -> None:  # fmt: skip
    """Write down: the gradient of an input from a channel on goes to each `stride`-th of its voxels."""
    stride, rest = tile.stride, group.rest
    place = block.z * stride.z + rest.z, block.y * stride.y + rest.y, block.x * stride.x + rest.x

    def sparse(tensor: Any) -> Any:
        return replace(
            tensor, plane=tensor.plane * stride.z, line=tensor.line * stride.y, channels=tensor.channels * stride.x
        )

    target = sparse(into.target.of(form.element).at(*place, channel))
    with f.either(into.sums.is_given()) as (through, plain):
        with plain, f.when(into.target.out.is_given()):
            kit.parts.store(f, results, target)
        with through:
            source = sparse(raw.of(form.element).from_channel(*place, channel))
            kit.parts.through_activation(form.activation)(f, results, target, source, into.sums + channel * 2)


def _define_outer_sums(module: Module, layout: Registers, together: int, pairs: int) -> Any:
    lanes, vectors, width = layout.lanes, layout.vectors, layout.width

    @module.define
    def outer_sums(
        f: Function, block: Block, view: View, group: Group, window: Pointer, tile: Tile, cutting: Cutting,
        tiles: Pointer, out: Pointer,
    ) -> None:  # fmt: skip
        """Add sums over a block's results: out[term, a, b] += sum window[result, tap, a] * tile[result, b]."""
        stride, rest, channels = tile.stride, group.rest, tile.channels
        line = cutting.columns * stride.x * channels
        plane = cutting.lines * stride.y * line
        first = tiles + (rest.z * plane + rest.y * line + rest.x * channels)
        inner = (group.inner + pairs - 1) // pairs * pairs
        x_step, y_step = view.step.x * view.voxel, stride.x * channels
        with (
            f.loop(group.taps, step=together) as (tap, _),
            f.loop(channels, step=width) as (b, _),
            f.loop(inner, step=pairs) as (a, _),
        ):
            offsets = [(group.table + (tap + n) * 2).integer() for n in range(together)]
            places = [window + (offset + group.column + a) for offset in offsets]
            sums = [f.constant(0)] * (together * pairs * vectors)
            starts = [out + ((group.term + (tap + number) * inner + a) * channels + b) for number in range(together)]
            rows_of_sums = [start + channels * n for start in starts for n in range(pairs)]
            for start in rows_of_sums:
                for m in range(vectors):
                    (start + m * lanes).prefetch()
            with f.loop(block.planes, carried=sums) as (z, deep):
                with f.loop(block.lines, carried=deep.values) as (y, high):
                    rows = [place + (z * view.step.z * view.plane + y * view.line) for place in places]
                    factors_row = first + (z * stride.z * plane + y * stride.y * line + b)
                    with f.loop(block.columns, carried=high.values) as (x, state):
                        factors = [(factors_row + (x * y_step + m * lanes)).load() for m in range(vectors)]
                        new = []
                        for number, row in enumerate(rows):
                            for n in range(pairs):
                                value, at = (row + (x * x_step + n)).splat(), (number * pairs + n) * vectors
                                new += [f.fma(value, w, state.values[at + m]) for m, w in enumerate(factors)]
                        state.values = new
                    high.values = state.values
                deep.values = high.values
            for number, start in enumerate(rows_of_sums):
                for m in range(vectors):
                    place = start + m * lanes
                    place.store(place.load() + deep.values[number * vectors + m])

    return outer_sums
