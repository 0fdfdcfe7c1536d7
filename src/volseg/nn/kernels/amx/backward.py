"""The machine code of the convolution's gradients on AMX tiles."""

from __future__ import annotations

from volseg.nn.kernels.amx.outer import Outer, Pairing, Terms
from volseg.nn.kernels.amx.products import Kit
from volseg.nn.kernels.direct.backward import InputGradient, Tile, WeightGradient, hand_on
from volseg.nn.kernels.direct.blocks import Block, Cutting, Group, Groups, View
from volseg.nn.kernels.forms import Forms
from volseg.nn.kernels.jit.compiler import Library
from volseg.nn.kernels.jit.language import Function, Int, Module, Pointer
from volseg.nn.kernels.jit.tiles import Tiles
from volseg.nn.kernels.operands import Source
from volseg.nn.kernels.parts import move_to_total
from volseg.partition.tiling import Registers


def build_backward(layout: Registers, columns: int, forms: Forms) -> Library:
    """Compile `backward` for one layout of the inputs' gradients.

    columns  of a right factor of the weight's gradient
    forms    of what windows are cut from, and of the inputs, whose gradients are of the same numbers
    """
    module, of_tile = Module(layout.lanes, rounds_at_once=True), forms[1:]
    kit, outer = Kit(module, layout), Outer(module, layout, columns)
    width = layout.width

    @module.entry
    def backward(
        f: Function, first: Int, last: Int, scratch: Pointer, *,
        tiles: Pointer, sum_tiles: Pointer, cutting: Cutting, view: View, groups: Groups, source: Source, tile: Tile,
        weight: Pointer, a: InputGradient, b: InputGradient, pairing: Pairing, terms: Terms, into: WeightGradient,
    ) -> None:  # fmt: skip
        """Blocks order[first ... last] of a convolution's gradients, from windows of its output's gradient.

        tiles, sum_tiles  their configuration for products with the weight, and for the weight's gradient
        source            the output's gradient
        tile              the inputs
        weight            [channels of the tile / width][terms / 32] of right factors, or nothing
        """
        window, weights = scratch.bfloat16(), weight.bfloat16()
        inputs = (scratch + view.floats).bfloat16()
        left = scratch + (view.floats + pairing.floats)
        right, values = left + pairing.left, left + (pairing.left + pairing.right)
        with f.loop(last, start=first, carried=[f.number(0)]) as (number, since):
            block = Block.of(f, cutting, number)
            kit.fill_window(f, [(source, forms[0])], block, view, window)
            with f.when(into.gradient.is_given()):
                Tiles(f).configure(sum_tiles)
                outer.fill_tile(f, tile, of_tile, block, pairing, inputs)
                outer.fill_right(f, block, view, pairing, window, right)
                outer.add(f, block, view, tile, pairing, terms, inputs, left, right, into.gradient)
            following = since.values[0] + 1
            full = following.equals(into.flush)
            with f.when(full & into.total.is_given()):
                move_to_total(f, into.gradient, into.total, into.size)
            since.values = (f.choose(full, f.number(0), following),)
            Tiles(f).configure(tiles)
            with f.when(weight.is_given()), f.loop(tile.channels // width) as (k, _), f.loop(groups.count) as (n, _):
                channel, group = k * width, Group.of(groups, n)
                own = weights + (channel * groups.terms + group.term * width)
                results = kit.multiply(f, block, view, group, window, own, f.nothing(), values)
                hand_on(f, kit, results, block, group, tile, of_tile, a, b, channel)
        Tiles(f).release()
        with f.when(into.total.is_given()):
            move_to_total(f, into.gradient, into.total, into.size)

    return Library(module)
