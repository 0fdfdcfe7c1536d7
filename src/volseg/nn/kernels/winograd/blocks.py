"""Blocks of tiles, what the kernels do with one after another: where it lies, its window, and the products of that.

Work is cut into blocks of tiles whose transformed window stays in the cache:

    window    [planes + taps - 1][16][lines / 2 * columns / 2][C]  transformed, by position
    products  [16][tiles][K]   one matrix product a position, for as many outputs as registers hold at a time
    results   [tiles of 2 x 2][K]  transformed back, and handed on while they are in the cache

On D the taps are summed as they are: with 16 sums of 3 C terms a tile, the rounding error of three taps is below that
of a direct sum of 27 C. Tiles begin at even coordinates of the *whole* volume, so a voxel's bits follow from its place
in the volume alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from volseg.nn.kernels.forms import Form
from volseg.nn.kernels.jit.language import Function, Int, Module, Pointer
from volseg.nn.kernels.operands import Ranges, Results, Source
from volseg.nn.kernels.parts import Parts
from volseg.nn.kernels.winograd.transforms import Transforms
from volseg.partition.tiling import POSITIONS, Registers


@dataclass(frozen=True)
class Tiling:
    """How an output of height x breadth a plane is cut into blocks, as `partition.tiling.Blocks` says.

    order  [..] 64-bit numbers of the blocks to compute
    """

    order: Pointer
    planes: Int
    pairs: Int
    tiles: Int
    chunk: Int
    first_plane: Int
    last_plane: Int
    origin_y: Int
    origin_x: Int
    blocks_y: Int
    blocks_x: Int
    height: Int
    breadth: Int


@dataclass(frozen=True)
class Window:
    """What a block's window holds, and how it is summed over.

    ranges  of the voxels that the tensors in it have
    stride  channels as they lie in the window, rounded up; `inner` of them count
    taps    on D
    step    planes of the window for each plane of results: the stride on D
    """

    ranges: Ranges
    stride: Int
    inner: Int
    taps: Int
    step: Int


@dataclass(frozen=True)
class Block:
    """A block of tiles of the output: its first voxel, and the lines and columns of it that the output has."""

    z: Int
    planes: Int
    y: Int
    x: Int
    y0: Int
    y1: Int
    x0: Int
    x1: Int

    @classmethod
    def of(cls, f: Function, tiling: Tiling, number: Int) -> Block:
        """The block that stands in the order at a number."""
        index = (tiling.order + number * 2).integer()  # 64 bits are two floats
        column, rest = index % tiling.blocks_x, index // tiling.blocks_x
        row, layer = rest % tiling.blocks_y, rest // tiling.blocks_y
        z = tiling.first_plane + layer * tiling.planes
        y, x = tiling.origin_y + row * tiling.pairs * 2, tiling.origin_x + column * tiling.tiles * 2
        return cls(
            z, f.smaller(tiling.planes, tiling.last_plane - z), y, x,
            f.larger(0 - y, 0), f.smaller(tiling.height - y, tiling.pairs * 2),
            f.larger(0 - x, 0), f.smaller(tiling.breadth - x, tiling.tiles * 2),
        )  # fmt: skip


@dataclass(frozen=True)
class Memory:
    """A thread's scratch memory, in the order of `partition.tiling.backward_room`.

    lines     of a plane, before they are transformed
    window    [16 positions `position` floats apart][planes, pairs, tiles, stride]
    tile      the same of the tiles, `tile_position` floats apart
    products  [16 positions `product_position` floats apart][chunk, width]
    values    [planes, lines, columns, width]
    """

    lines: Pointer
    window: Pointer
    tile: Pointer
    products: Pointer
    values: Pointer
    position: Int
    tile_position: Int
    product_position: Int


class Kit:
    """What the kernels are put together from."""

    def __init__(self, module: Module, layout: Registers, taps: int = 1) -> None:
        """taps  that `Parts.outer_sums` takes at once"""
        self.layout = layout
        self.parts = Parts(module, layout, taps)
        self.transforms = Transforms(module, layout)

    def memory(self, f: Function, scratch: Pointer, tiling: Tiling, window: Window, tile_stride: int | Int) -> Memory:
        """Scratch memory divided; `tile_stride` is the channels of the tiles, 0 where there are none."""
        rows, width = self.layout.rows, self.layout.width
        columns, per_plane = tiling.tiles * 2, tiling.pairs * tiling.tiles
        lines = f.larger(
            (tiling.pairs * 2 + 2) * (columns + 2) * window.stride, tiling.pairs * 2 * columns * tile_stride
        )
        planes = (tiling.planes - 1) * window.step + window.taps
        position = (planes * per_plane + rows) * window.stride
        tile_position, product_position = tiling.planes * per_plane * tile_stride, (tiling.chunk + rows) * width
        at_window = scratch + lines
        at_tile = at_window + position * POSITIONS
        at_products = at_tile + tile_position * POSITIONS
        values = at_products + product_position * POSITIONS
        return Memory(
            scratch, at_window, at_tile, at_products, values, position, tile_position, product_position
        )  # fmt: skip

    def fill_window(
        self, f: Function, sources: Sequence[tuple[Source, Form]], block: Block, tiling: Tiling,
        window: Window, memory: Memory,
    ) -> None:  # fmt: skip
        """Write down: a block's window, transformed.

        sources  one or two tensors side by side, and how they are read; the second may be nothing
        """
        (source, kind), *others = [(x.of(form.element), form.activation) for x, form in sources]
        ranges, zero = window.ranges, f.number(0)
        columns = tiling.tiles * 2 + 2
        line_stride, pair_size = columns * window.stride, tiling.tiles * window.stride
        first = block.z * window.step - window.taps // 2
        with f.loop((block.planes - 1) * window.step + window.taps) as (dz, _):
            z = first + dz
            there = (z >= ranges.low_z) & (z < ranges.high_z)
            with f.loop(tiling.pairs * 2 + 2) as (dy, _):
                y = block.y + dy - 1
                filled = there & (y >= ranges.low_y) & (y < ranges.high_y)
                begin, end = f.choose(filled, ranges.low_x, zero), f.choose(filled, ranges.high_x, zero)
                line, extent = memory.lines + dy * line_stride, (window.stride, block.x - 1, columns, begin, end)
                self.parts.fill_line(kind)(f, line, *extent, source.at(z, y))
                for second, kind_of_second in others:
                    with f.when(second.data.is_given()):
                        self.parts.fill_line(kind_of_second)(f, line + source.channels, *extent, second.at(z, y))
            with f.loop(tiling.pairs) as (pair, _):
                self.transforms.window(
                    f, memory.lines + pair * 2 * line_stride, line_stride,
                    memory.window + (dz * tiling.pairs + pair) * pair_size, memory.position, tiling.tiles,
                    window.stride,
                )  # fmt: skip

    def runs(self, f: Function, block: Block, tiling: Tiling, window: Window) -> tuple[Int, Int]:
        """How often, and for how many tiles in turn, tiles and the windows of their first tap lie at equal distances.

        All of a block's with a step of 1, one plane after another otherwise.
        """
        per_plane, together = tiling.pairs * tiling.tiles, window.step.equals(1)
        return (
            f.choose(together, f.number(1), block.planes),
            f.choose(together, block.planes * per_plane, per_plane),
        )

    def multiply(
        self, f: Function, block: Block, tiling: Tiling, window: Window, memory: Memory, weight: Pointer, bias: Pointer
    ) -> Results:
        """Write down: the products of a block's window with a weight, transformed back.

        weight  [16][taps][inner][width]
        bias    [width], or nothing
        """
        per_plane, position_size = tiling.pairs * tiling.tiles, window.taps * window.inner * self.layout.width
        runs, length = self.runs(f, block, tiling, window)
        with f.loop(runs) as (run, _), f.loop((length + tiling.chunk - 1) // tiling.chunk) as (part, _):
            r = part * tiling.chunk
            n = f.smaller(tiling.chunk, length - r)
            first = memory.window + (run * window.step * per_plane + r) * window.stride
            with f.loop(POSITIONS) as (p, _):
                self.parts.product(
                    f, first + p * memory.position, window.stride, per_plane, window.taps, weight + p * position_size,
                    memory.products + p * memory.product_position, n, window.inner,
                )  # fmt: skip
            self.transforms.back(
                f, memory.products, memory.product_position, run * length + r, n, tiling.tiles, memory.values, bias
            )
        return Results(
            memory.values, block.planes, tiling.pairs * 2, tiling.tiles * 2, block.y0, block.y1, block.x0, block.x1
        )
