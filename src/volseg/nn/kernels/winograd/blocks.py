"""Blocks of tiles, what the kernels do with one after another: where it lies, its window, and the products of that.

Work is cut into blocks of tiles whose transformed window stays in the cache:

    window    [positions][layers][lines / 2 * columns / 2][C]  transformed
    products  [16][tiles][K]   one matrix product a position, for as many outputs as registers hold at a time
    results   [tiles][K]  transformed back, and handed on while they are in the cache

On D there are two ways (`partition.tiling.Taps`). Either the taps are summed as they are: a layer is a plane, there are
16 positions, tiles have 2x2 results. Or tiles have 2x2x2 results and 64 positions, four times those of a plane: a layer
is a pair of planes, computed from four, of which sums and differences are taken before all else. So there are a third
fewer products, and more to transform. Tiles begin at even coordinates of the *whole* volume, so a voxel's bits follow
from its place in the volume alone: of a tile that begins outside of a block no result is read that needs what lies
there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from volseg.nn.kernels.forms import Form
from volseg.nn.kernels.jit.language import Function, Int, Module, Pointer
from volseg.nn.kernels.operands import Ranges, Results, Source
from volseg.nn.kernels.parts import Parts
from volseg.nn.kernels.winograd.transforms import How, Mix, Transforms
from volseg.partition.tiling import PAIRED_POSITIONS, PAIRED_SIDE, PLANE_POSITIONS, Registers


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
    origin_z: Int
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
    taps    on D; products of `summed` of them are added up
    step    planes of the window for each plane of results: the stride on D
    """

    ranges: Ranges
    stride: Int
    inner: Int
    taps: Int
    summed: Int
    step: Int


@dataclass(frozen=True)
class Block:
    """A block of tiles of the output: its first voxel, and the planes, lines and columns of it that the output has."""

    z: Int
    z0: Int
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
        z = tiling.first_plane + tiling.origin_z + layer * tiling.planes
        y, x = tiling.origin_y + row * tiling.pairs * 2, tiling.origin_x + column * tiling.tiles * 2
        return cls(
            z, f.larger(tiling.first_plane - z, 0), f.smaller(tiling.planes, tiling.last_plane - z), y, x,
            f.larger(0 - y, 0), f.smaller(tiling.height - y, tiling.pairs * 2),
            f.larger(0 - x, 0), f.smaller(tiling.breadth - x, tiling.tiles * 2),
        )  # fmt: skip


@dataclass(frozen=True)
class Memory:
    """A thread's scratch memory, in the order of `partition.tiling.backward_room`.

    lines     of planes, before they are transformed
    window    [positions, `position` floats apart][stride / lanes][`rows` of which layers, pairs, tiles][lanes]: rows of
              a vector each, whose distances are known when the products are compiled
    tile      [positions, `tile_position` floats apart][layers, pairs, tiles, stride]
    products  [16 positions `product_position` floats apart][chunk, width]
    values    [planes, lines, columns, width]
    """

    lines: Pointer
    window: Pointer
    tile: Pointer
    products: Pointer
    values: Pointer
    rows: Int
    position: Int
    tile_position: Int
    product_position: Int


WINDOW_PLANES: Sequence[Mix] = (("difference", 0, 2), ("sum", 1, 2), ("difference", 2, 1), ("difference", 1, 3))
"""B^T of Winograd's F(2, 3) on D: of four planes of the window."""

TILE_PLANES: Sequence[Mix] = (("itself", 0, 0), ("sum", 0, 1), ("difference", 0, 1), ("negative", 1, 1))
"""A of the same: of two planes of the tiles."""


class Kit:
    """What the kernels are put together from."""

    def __init__(self, module: Module, layout: Registers, paired: bool, together: int = 1) -> None:
        """
        paired    whether tiles have two planes
        together  taps that `Parts.outer_sums` takes at once
        """
        self.layout, self.paired = layout, paired
        self.positions = PAIRED_POSITIONS if paired else PLANE_POSITIONS
        self.parts = Parts(module, layout, together)
        self.transforms = Transforms(module, layout)

    def memory(self, f: Function, scratch: Pointer, tiling: Tiling, window: Window, tile_stride: int | Int) -> Memory:
        """Scratch memory divided; `tile_stride` is the channels of the tiles, 0 where there are none."""
        rows, width = self.layout.rows, self.layout.width
        columns, per_plane = tiling.tiles * 2, tiling.pairs * tiling.tiles
        lines = f.larger(
            (tiling.pairs * 2 + 2) * (columns + 2) * window.stride, tiling.pairs * 2 * columns * tile_stride
        ) * (PAIRED_SIDE if self.paired else 1)  # fmt: skip
        window_rows = self.layers(tiling.planes, window) * per_plane + self.layout.columns
        position = window_rows * window.stride
        tile_position, product_position = (
            self.tile_layers(tiling.planes) * per_plane * tile_stride, (tiling.chunk + rows) * width
        )  # fmt: skip
        at_window = scratch + lines
        at_tile = at_window + position * self.positions
        at_products = at_tile + tile_position * self.positions
        values = at_products + product_position * PLANE_POSITIONS
        return Memory(
            scratch, at_window, at_tile, at_products, values, window_rows, position, tile_position, product_position
        )  # fmt: skip

    def layers(self, planes: Int, window: Window) -> Int:
        """Layers of the window of so many planes of results."""
        return self.tile_layers(planes) if self.paired else (planes - 1) * window.step + window.taps

    def tile_layers(self, planes: Int) -> Int:
        """Layers of tiles for so many planes of results."""
        return (planes + 1) // 2 if self.paired else planes

    def fill_window(
        self, f: Function, sources: Sequence[tuple[Source, Form]], block: Block, tiling: Tiling,
        window: Window, memory: Memory,
    ) -> None:  # fmt: skip
        """Write down: a block's window, transformed, and zero behind it, where products read a little further.

        What was there before would be computed with to no end; were it denormal, slowly.

        sources  one or two tensors side by side, and how they are read; the second may be nothing
        """
        columns, layers, lanes = tiling.tiles * 2 + 2, self.layers(block.planes, window), self.layout.lanes
        line_stride, per_plane = columns * window.stride, tiling.pairs * tiling.tiles
        first = block.z * window.step - window.taps // 2

        def fill(lines: Pointer, number: Int) -> None:
            self._fill_plane(f, sources, block, tiling, window, lines, first + number)

        def transform(how: How, a: Pointer, b: Pointer, layer: Int, first_position: int) -> None:
            place = memory.window + (memory.position * first_position + layer * per_plane * lanes)
            with f.loop(tiling.pairs) as (pair, _):
                first_line = pair * 2 * line_stride
                self.transforms.window(how)(
                    f, a + first_line, b + first_line, line_stride, place + pair * tiling.tiles * lanes,
                    memory.position, memory.rows, tiling.tiles, window.stride,
                )  # fmt: skip

        self.fill_layers(f, layers, memory.lines, (tiling.pairs * 2 + 2) * line_stride, WINDOW_PLANES, fill, transform)
        with (
            f.loop(self.positions) as (p, _),
            f.loop(window.stride, step=lanes) as (c, _),
        ):
            behind = memory.window + (p * memory.position + c * memory.rows + layers * per_plane * lanes)
            for n in range(self.layout.columns):
                (behind + n * lanes).store(f.constant(0))

    def fill_layers(
        self, f: Function, layers: Int, lines: Pointer, size: Int, mixes: Sequence[Mix],
        fill: Callable[[Pointer, Int], None], transform: Callable[[How, Pointer, Pointer, Int, int], None],
    ) -> None:  # fmt: skip
        """Write down: layers made of planes, one each, or `mixes` of some each, those of neighbours overlapping.

        lines      room for planes of `size` floats
        fill       writes down: the plane of a number, counted from the first layer's first
        transform  writes down: what is made of two planes' lines, transformed to a layer, from a position on
        """
        if not self.paired:
            with f.loop(layers) as (layer, _):
                fill(lines, layer)
                transform("itself", lines, lines, layer, 0)
            return
        planes = 1 + max(plane for _, *both in mixes for plane in both)
        with f.loop(layers) as (layer, _):
            with f.loop(planes, start=f.choose(layer.equals(0), f.number(0), f.number(planes - 2))) as (n, _):
                number = layer * 2 + n
                fill(lines + number % planes * size, number)
            places = [lines + (layer * 2 + n) % planes * size for n in range(planes)]
            for product, (how, a, b) in enumerate(mixes):
                transform(how, places[a], places[b], layer, PLANE_POSITIONS * product)

    def _fill_plane(
        self, f: Function, sources: Sequence[tuple[Source, Form]], block: Block, tiling: Tiling, window: Window,
        lines: Pointer, z: Int,
    ) -> None:  # fmt: skip
        """Write down: the lines of plane z of a block's window, activated, zero where there are none."""
        (source, kind), *others = [(x.of(form.element), form.activation) for x, form in sources]
        ranges, zero, columns = window.ranges, f.number(0), tiling.tiles * 2 + 2
        there = (z >= ranges.low_z) & (z < ranges.high_z)
        with f.loop(tiling.pairs * 2 + 2) as (dy, _):
            y = block.y + dy - 1
            filled = there & (y >= ranges.low_y) & (y < ranges.high_y)
            begin, end = f.choose(filled, ranges.low_x, zero), f.choose(filled, ranges.high_x, zero)
            line, extent = lines + dy * columns * window.stride, (window.stride, block.x - 1, columns, begin, end)
            self.parts.fill_line(kind)(f, line, *extent, source.at(z, y))
            for second, kind_of_second in others:
                with f.when(second.data.is_given()):
                    self.parts.fill_line(kind_of_second)(f, line + source.channels, *extent, second.at(z, y))

    def runs(self, f: Function, block: Block, tiling: Tiling, window: Window) -> tuple[Int, Int]:
        """How often, and for how many tiles in turn, tiles and the windows of their first tap lie at equal distances.

        All of a block's with a step of 1, one plane after another otherwise.
        """
        per_plane, together = tiling.pairs * tiling.tiles, window.step.equals(1)
        return (
            f.choose(together, f.number(1), block.planes),
            f.choose(together, self.tile_layers(block.planes) * per_plane, per_plane),
        )

    def multiply(
        self, f: Function, block: Block, tiling: Tiling, window: Window, memory: Memory, weight: Pointer, bias: Pointer
    ) -> Results:
        """Write down: the products of a block's window with a weight, transformed back.

        weight  [positions][summed][inner][width]
        bias    [width], or nothing
        """
        width = self.layout.width
        per_plane, position_size = tiling.pairs * tiling.tiles, window.summed * window.inner * width
        runs, length = self.runs(f, block, tiling, window)
        with f.loop(runs) as (run, _), f.loop((length + tiling.chunk - 1) // tiling.chunk) as (part, _):
            r = part * tiling.chunk
            n = f.smaller(tiling.chunk, length - r)
            first = memory.window + (run * window.step * per_plane + r) * self.layout.lanes
            for number, back in enumerate(self.transforms.backs(self.paired)):
                with f.loop(PLANE_POSITIONS) as (p, _):
                    position = p + PLANE_POSITIONS * number
                    self.parts.product_of_vectors(
                        f, first + position * memory.position, memory.rows, per_plane, window.summed,
                        weight + position * position_size, memory.products + p * memory.product_position, n,
                        window.inner,
                    )  # fmt: skip
                back(
                    f, memory.products, memory.product_position, run * length + r, n, tiling.pairs, tiling.tiles,
                    memory.values, bias,
                )  # fmt: skip
        lines, columns = tiling.pairs * 2, tiling.tiles * 2
        return Results(
            memory.values + block.z0 * lines * columns * width, block.planes - block.z0, lines, columns,
            block.y0, block.y1, block.x0, block.x1,
        )  # fmt: skip
