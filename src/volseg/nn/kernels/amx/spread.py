"""The machine code of convolutions that need no neighbours: each voxel makes one or several of the output."""

from __future__ import annotations

from dataclasses import replace

from volseg.nn.kernels.amx.products import Kit
from volseg.nn.kernels.direct.blocks import Axes, Block, Cutting, Group, Groups, View
from volseg.nn.kernels.forms import Form
from volseg.nn.kernels.jit.compiler import Library
from volseg.nn.kernels.jit.language import Element, Function, Int, Module, Pointer
from volseg.nn.kernels.jit.tiles import Tiles
from volseg.nn.kernels.operands import Source, Target
from volseg.partition.tiling import Registers


def build_spread(layout: Registers, form: Form, element: Element) -> Library:
    """Compile `spread` for one layout of the results, an input of such a form, and an output of such numbers."""
    module = Module(layout.lanes, rounds_at_once=True)
    kit = Kit(module, layout)
    width = layout.width

    @module.entry
    def spread(
        f: Function, first: Int, last: Int, scratch: Pointer, *,
        tiles: Pointer, cutting: Cutting, view: View, groups: Groups, source: Source, weight: Pointer, bias: Pointer,
        target: Target, factors: Axes,
    ) -> None:  # fmt: skip
        """Blocks order[first ... last] of the input.

        tiles    their configuration
        weight   [target channels / width][terms / 32] of right factors
        bias     [target channels], or nothing
        target   whose channels are those of all voxels that one of the input makes on a line
        factors  planes and lines of the output for each of the input; a group makes those of its rest
        """
        window, values = scratch.bfloat16(), scratch + view.floats
        target, weights = target.of(element), weight.bfloat16()
        Tiles(f).configure(tiles)
        with f.loop(last, start=first) as (number, _):
            block = Block.of(f, cutting, number)
            kit.fill_window(f, [(source, form)], block, view, window)
            with f.loop(target.channels // width) as (k, _), f.loop(groups.count) as (n, _):
                channel, group = k * width, Group.of(groups, n)
                own = weights + (channel * groups.terms + group.term * width)
                own_bias = f.choose(bias.is_given(), bias + channel, bias)
                results = kit.multiply(f, block, view, group, window, own, own_bias, values)
                plane, line = block.z * factors.z + group.rest.z, block.y * factors.y + group.rest.y
                there = target.at(plane, line, block.x, channel)
                there = replace(there, plane=there.plane * factors.z, line=there.line * factors.y)
                kit.parts.store(f, results, there)
        Tiles(f).release()

    return Library(module)
