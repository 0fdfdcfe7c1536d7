"""The machine code of the convolution's gradients."""

from __future__ import annotations

from dataclasses import dataclass

from volseg.nn.kernels.forms import Form, Forms
from volseg.nn.kernels.jit.compiler import Library
from volseg.nn.kernels.jit.language import Function, Int, Module, Pointer
from volseg.nn.kernels.operands import Results, Source, Target
from volseg.nn.kernels.parts import move_to_total
from volseg.nn.kernels.winograd.blocks import TILE_PLANES, Block, Kit, Memory, Tiling, Window
from volseg.nn.kernels.winograd.transforms import How
from volseg.partition.tiling import Registers


def build_backward(layout: Registers, paired: bool, together: int, forms: Forms) -> Library:
    """Compile `backward` for one layout of the registers.

    paired    whether tiles have two planes (`partition.tiling.Taps`)
    together  taps whose outer sums are taken together; it divides those that are summed
    forms     of what windows are cut from, and of the tensors of the tiles, whose gradients are of the same numbers
    """
    module = Module(layout.lanes)
    _define_backward(module, Kit(module, layout, paired, together), together, forms)
    return Library(module)


@dataclass(frozen=True)
class Tiles:
    """One or two activated tensors side by side, whose tiles meet the windows; the second may be nothing.

    stride  channels of both
    """

    a: Source
    b: Source
    stride: Int


@dataclass(frozen=True)
class InputGradient:
    """Where the gradient of an input goes.

    sums  [2, channels] float64: then it goes through the input's activation first, and its sums are added here
    """

    target: Target
    sums: Pointer


@dataclass(frozen=True)
class WeightGradient:
    """Where this thread adds up the gradient of a weight.

    gradient  [positions, summed, inner, channels of the tiles], added to
    total     the same in float64, to which `gradient` is moved each `flush` blocks, or nothing
    """

    gradient: Pointer
    total: Pointer
    flush: Int


def _define_backward(module: Module, kit: Kit, together: int, forms: Forms) -> None:
    width, (form, of_tiles) = kit.layout.width, (forms[0], forms[1:])

    @module.entry
    def backward(
        f: Function, first: Int, last: Int, scratch: Pointer, *,
        tiling: Tiling, window: Window, source: Source, tiles: Tiles, weight: Pointer,
        a: InputGradient, b: InputGradient, into: WeightGradient,
    ) -> None:  # fmt: skip
        """Blocks order[first ... last] of a convolution's gradients, from windows of one tensor and tiles of others.

        The windows are those of the output's gradient, the tiles those of the inputs: then the product of the windows
        with `weight` is the inputs' gradient, which goes to a and b, and the outer sums are the weight's gradient, its
        taps reversed. Without `weight` it may be the other way round: windows of an input, tiles of the output's
        gradient.

        source  the tensor of the windows
        """
        memory = kit.memory(f, scratch, tiling, window, tiles.stride)
        size = window.inner * tiles.stride * window.summed * kit.positions
        with f.loop(last, start=first, carried=[f.number(0)]) as (number, since):
            block = Block.of(f, tiling, number)
            kit.fill_window(f, [(source, form)], block, tiling, window, memory)
            _fill_tiles(f, kit, tiles, of_tiles, block, tiling, memory)
            _add_outer_sums(f, kit, tiles, block, tiling, window, memory, into.gradient, together)
            following = since.values[0] + 1
            full = following.equals(into.flush)
            with f.when(full & into.total.is_given()):
                move_to_total(f, into.gradient, into.total, size)
            since.values = (f.choose(full, f.number(0), following),)
            with f.when(weight.is_given()), f.loop(tiles.stride // width) as (k, _):
                channel = k * width
                weights = weight + channel * kit.positions * window.summed * window.inner
                results = kit.multiply(f, block, tiling, window, memory, weights, f.nothing())
                with f.either(channel < tiles.a.channels) as (in_a, in_b):
                    with in_a:
                        _hand_on(f, kit, results, block, tiles.a, of_tiles[0], a, channel)
                    with in_b:
                        _hand_on(f, kit, results, block, tiles.b, of_tiles[1], b, channel - tiles.a.channels)
        with f.when(into.total.is_given()):
            move_to_total(f, into.gradient, into.total, size)


def _fill_tiles(
    f: Function, kit: Kit, tiles: Tiles, forms: Forms, block: Block, tiling: Tiling, memory: Memory
) -> None:
    """Write down: a block's tiles, transformed."""
    columns, zero = tiling.tiles * 2, f.number(0)
    line_stride, layer_size = columns * tiles.stride, tiling.pairs * tiling.tiles * tiles.stride
    a, b = tiles.a.of(forms[0].element), tiles.b.of(forms[1].element)

    def fill(lines: Pointer, number: Int) -> None:
        z = block.z + number
        with f.loop(tiling.pairs * 2) as (dy, _):
            y = block.y + dy
            end = f.choose((y < tiling.height) & (z < tiling.last_plane), tiling.breadth, zero)
            line, extent = lines + dy * line_stride, (tiles.stride, block.x, columns, zero, end)
            kit.parts.fill_line(forms[0].activation)(f, line, *extent, a.at(z, y))
            with f.when(b.data.is_given()):
                kit.parts.fill_line(forms[1].activation)(f, line + a.channels, *extent, b.at(z, y))

    def transform(how: How, first: Pointer, second: Pointer, layer: Int, first_position: int) -> None:
        place = memory.tile + (memory.tile_position * first_position + layer * layer_size)
        with f.loop(tiling.pairs) as (pair, _):
            first_line = pair * 2 * line_stride
            kit.transforms.tiles(how)(
                f, first + first_line, second + first_line, line_stride, place + pair * tiling.tiles * tiles.stride,
                memory.tile_position, tiling.tiles, tiles.stride,
            )  # fmt: skip

    layers = kit.tile_layers(block.planes)
    kit.fill_layers(f, layers, memory.lines, tiling.pairs * 2 * line_stride, TILE_PLANES, fill, transform)


def _add_outer_sums(
    f: Function, kit: Kit, tiles: Tiles, block: Block, tiling: Tiling, window: Window, memory: Memory,
    gradient: Pointer, together: int,
) -> None:  # fmt: skip
    """Write down: a block's part of the weight's gradient, so many taps together."""
    per_plane, size = tiling.pairs * tiling.tiles, window.inner * tiles.stride
    runs, length = kit.runs(f, block, tiling, window)
    with (
        f.loop(kit.positions) as (p, _),
        f.loop(window.summed, step=together) as (tap, _),
        f.loop(runs) as (run, _),
    ):
        first = (run * window.step + tap) * per_plane * kit.layout.lanes
        kit.parts.outer_sums_of_vectors(
            f, memory.window + (p * memory.position + first), memory.rows, per_plane,
            memory.tile + (p * memory.tile_position + run * per_plane * tiles.stride), tiles.stride,
            gradient + (p * window.summed + tap) * size, length, window.inner,
        )  # fmt: skip


def _hand_on(
    f: Function, kit: Kit, results: Results, block: Block, raw: Source, form: Form, into: InputGradient,
    channel: Int,
) -> None:  # fmt: skip
    """Write down: the gradient of an input from a channel on goes where it belongs."""
    target = into.target.of(form.element).at(block.z, block.y, block.x, channel)
    with f.either(into.sums.is_given()) as (through, plain):
        with plain, f.when(into.target.out.is_given()):
            kit.parts.store(f, results, target)
        with through:
            source = raw.of(form.element).from_channel(block.z, block.y, block.x, channel)
            kit.parts.through_activation(form.activation)(f, results, target, source, into.sums + channel * 2)
