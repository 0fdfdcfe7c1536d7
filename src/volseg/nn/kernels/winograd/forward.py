"""The machine code of the convolution forward."""

from __future__ import annotations

from volseg.nn.kernels.forms import Forms
from volseg.nn.kernels.jit.compiler import Library
from volseg.nn.kernels.jit.language import Element, Function, Int, Module, Pointer
from volseg.nn.kernels.operands import Bricks, Pools, Source, Target
from volseg.nn.kernels.winograd.blocks import Block, Kit, Tiling, Window
from volseg.partition.tiling import Registers


def build_forward(layout: Registers, paired: bool, forms: Forms, element: Element) -> Library:
    """Compile `forward` for one layout of the registers, inputs of such forms, and an output of such numbers.

    paired  whether tiles have two planes (`partition.tiling.Taps`)
    """
    module = Module(layout.lanes)
    _define_forward(module, Kit(module, layout, paired), forms, element)
    return Library(module)


def _define_forward(module: Module, kit: Kit, forms: Forms, element: Element) -> None:
    width, parts = kit.layout.width, kit.parts

    @module.entry
    def forward(
        f: Function, first: Int, last: Int, scratch: Pointer, *,
        tiling: Tiling, window: Window, a: Source, b: Source, weight: Pointer, bias: Pointer,
        target: Target, bricks: Bricks, pools: Pools,
    ) -> None:  # fmt: skip
        """Blocks order[first ... last] of a convolution of one or two activated tensors side by side.

        b       nothing, or the second tensor
        weight  [target channels / width][positions][summed][inner][width]
        bias    [target channels], or nothing
        bricks, pools  nothing, or where sums and largest values of the results go as well
        """
        memory, target, pools = kit.memory(f, scratch, tiling, window, 0), target.of(element), pools.of(element)
        with f.loop(last, start=first) as (number, _):
            block = Block.of(f, tiling, number)
            kit.fill_window(f, [(a, forms[0]), (b, forms[1])], block, tiling, window, memory)
            z, y, x = block.z + block.z0, block.y + block.y0, block.x + block.x0
            with f.loop(target.channels // width) as (k, _):
                channel = k * width
                weights = weight + channel * kit.positions * window.summed * window.inner
                own_bias = f.choose(bias.is_given(), bias + channel, bias)
                results = kit.multiply(f, block, tiling, window, memory, weights, own_bias)
                parts.store(f, results, target.at(z, block.y, block.x, channel))
                with f.when(bricks.sums.is_given()):
                    parts.moments(f, results, bricks.at(z, y, x, channel))
                with f.when(pools.target.out.is_given()):
                    parts.pool(f, results, pools.at(z, y, x, channel))
