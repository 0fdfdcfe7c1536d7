"""The machine code of the direct convolution forward."""

from __future__ import annotations

from volseg.nn.kernels.direct.blocks import Block, Cutting, Group, Groups, Kit, View
from volseg.nn.kernels.forms import Forms
from volseg.nn.kernels.jit.compiler import Library
from volseg.nn.kernels.jit.language import Element, Function, Int, Module, Pointer
from volseg.nn.kernels.operands import Bricks, Pools, Source, Target
from volseg.partition.tiling import Registers


def build_forward(layout: Registers, forms: Forms, element: Element) -> Library:
    """Compile `forward` for one layout of the registers, inputs of such forms, and an output of such numbers."""
    module = Module(layout.lanes)
    kit = Kit(module, layout)
    width, parts = layout.width, kit.parts

    @module.entry
    def forward(
        f: Function, first: Int, last: Int, scratch: Pointer, *,
        cutting: Cutting, view: View, groups: Groups, a: Source, b: Source, weight: Pointer, bias: Pointer,
        target: Target, bricks: Bricks, pools: Pools,
    ) -> None:  # fmt: skip
        """Blocks order[first ... last] of a convolution of one or two activated tensors side by side.

        b       nothing, or the second tensor
        weight  [target channels / width][terms][width]
        bias    [target channels], or nothing
        bricks, pools  nothing, or where sums and largest values of the results go as well
        """
        values, target, pools = scratch + view.floats, target.of(element), pools.of(element)
        group = Group.of(groups, f.number(0))
        with f.loop(last, start=first) as (number, _):
            block = Block.of(f, cutting, number)
            kit.fill_window(f, [(a, forms[0]), (b, forms[1])], block, view, scratch)
            with f.loop(target.channels // width) as (k, _):
                channel = k * width
                own_bias = f.choose(bias.is_given(), bias + channel, bias)
                results = kit.multiply(
                    f, block, view, group, scratch, weight + channel * groups.terms, own_bias, values,
                )  # fmt: skip
                parts.store(f, results, target.at(block.z, block.y, block.x, channel))
                with f.when(bricks.sums.is_given()):
                    parts.moments(f, results, bricks.at(block.z, block.y, block.x, channel))
                with f.when(pools.target.out.is_given()):
                    parts.pool(f, results, pools.at(block.z, block.y, block.x, channel))

    return Library(module)
