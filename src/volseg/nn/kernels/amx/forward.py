"""The machine code of the convolution forward on AMX tiles."""

from __future__ import annotations

from volseg.nn.kernels.amx.products import Kit
from volseg.nn.kernels.direct.blocks import Block, Cutting, Group, Groups, View
from volseg.nn.kernels.forms import Forms
from volseg.nn.kernels.jit.compiler import Library
from volseg.nn.kernels.jit.language import Element, Function, Int, Module, Pointer
from volseg.nn.kernels.jit.tiles import Tiles
from volseg.nn.kernels.operands import Bricks, Pools, Source, Target
from volseg.partition.tiling import Registers


def build_forward(layout: Registers, forms: Forms, element: Element) -> Library:
    """Compile `forward` for one layout of the results, inputs of such forms, and an output of such numbers."""
    module = Module(layout.lanes, rounds_at_once=True)
    kit = Kit(module, layout)
    width, parts = layout.width, kit.parts

    @module.entry
    def forward(
        f: Function, first: Int, last: Int, scratch: Pointer, *,
        tiles: Pointer, cutting: Cutting, view: View, groups: Groups, a: Source, b: Source, weight: Pointer,
        bias: Pointer, target: Target, bricks: Bricks, pools: Pools,
    ) -> None:  # fmt: skip
        """Blocks order[first ... last] of a convolution of one or two activated tensors side by side.

        tiles   their configuration
        b       nothing, or the second tensor
        weight  [target channels / width][terms / 32] of right factors
        bias    [target channels], or nothing
        bricks, pools  nothing, or where sums and largest values of the results go as well
        """
        window, values = scratch.bfloat16(), scratch + view.floats
        target, pools, weights = target.of(element), pools.of(element), weight.bfloat16()
        group = Group.of(groups, f.number(0))
        Tiles(f).configure(tiles)
        with f.loop(last, start=first) as (number, _):
            block = Block.of(f, cutting, number)
            kit.fill_window(f, [(a, forms[0]), (b, forms[1])], block, view, window)
            with f.loop(target.channels // width) as (k, _):
                channel = k * width
                own_bias = f.choose(bias.is_given(), bias + channel, bias)
                own = weights + channel * groups.terms
                results = kit.multiply(f, block, view, group, window, own, own_bias, values)
                parts.store(f, results, target.at(block.z, block.y, block.x, channel))
                with f.when(bricks.sums.is_given()):
                    parts.moments(f, results, bricks.at(block.z, block.y, block.x, channel))
                with f.when(pools.target.out.is_given()):
                    parts.pool(f, results, pools.at(block.z, block.y, block.x, channel))
        Tiles(f).release()

    return Library(module)
