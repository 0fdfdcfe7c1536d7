"""Sums over voxels of outer products in tiles: the weight's gradient.

A product of tiles adds up over 32 voxels, which are 16 pairs: a left factor has 16 channels of the inputs as rows, a
right factor 16 pairs of voxels as rows, and in them the two voxels' channels of the output's gradient side by side. So
both are made anew from a block's tile and window. For a tap, the right factor has to be moved by a voxel, but a row
begins at a pair. Therefore voxels of a line `steps` apart make a pair: j and j + steps, j + 2 * steps and j + 3 *
steps, and so on. Beside those of the first `steps` voxels j there are right factors for some more, as many as taps
reach: they are the first ones' moved by half a pair.

    left    [planes][steps][groups of lines][channels / 16][16 channels][16 pairs]
    right   [planes][phases][shifts][lines][pairs][channels] of pairs; planes and phases are those of the window

`together` neighbouring lines, of 16 / together pairs each, are a factor, wherever the first one lies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from volseg.nn.kernels.direct.backward import Tile
from volseg.nn.kernels.direct.blocks import Block, View
from volseg.nn.kernels.forms import Forms
from volseg.nn.kernels.jit.language import Function, Int, Module, Pointer
from volseg.nn.kernels.jit.tiles import ROWS, Tiles, pairs, store_pairs, transposed
from volseg.nn.kernels.parts import Parts
from volseg.partition.tiling import Registers

LEFT = ROWS * ROWS
"""Pairs of a left factor, each as large as a float32."""


@dataclass(frozen=True)
class Pairing:
    """How voxels make factors, as `partition.amx_tiling.Pairing` says.

    offsets  [16 pairs, 2] 64-bit integers: numbers from a factor's first voxel in the tile to those of its pairs
    plane, line, floats  of the tile of inputs: numbers from a plane, from a line to the next; floats of the whole
    left, right          floats of all the factors
    """

    pairs: Int
    together: Int
    steps: Int
    shifts: Int
    lines: Int
    tile_lines: Int
    columns: Int
    blocks: Int
    offsets: Pointer
    plane: Int
    line: Int
    floats: Int
    left: Int
    right: Int


@dataclass(frozen=True)
class Terms:
    """What is summed; all numbers are 64 bits.

    table    [terms of all groups] pairs from a result's right factor to the tap's, and to the channels'
    numbers  [count, 5]  of a group: its terms, the first one's number in the table, its rests on axes
    """

    table: Pointer
    numbers: Pointer
    count: Int


class Outer:
    """The parts of the sums."""

    def __init__(self, module: Module, layout: Registers, columns: int) -> None:
        """columns  of a right factor: 16, or 8 where channels are no multiple of that"""
        self._parts = Parts(module, layout)
        self._fill_right = _define_fill_right(module)
        self._fill_left = _define_fill_left(module)
        self._sums = _define_sums(module, columns)
        self._columns = columns

    def fill_tile(
        self, f: Function, tile: Tile, forms: Forms, block: Block, pairing: Pairing, target: Pointer
    ) -> None:  # fmt: skip
        """Write down: a block's tile of bfloat16 inputs [planes, lines, columns, channels], each `stride` times.

        Zero lies beyond the block, up to whole factors.
        """
        stride, zero = tile.stride, f.number(0)
        a, b = tile.a.of(forms[0].element), tile.b.of(forms[1].element)
        last_line = f.smaller(tile.sides.y, (block.y + block.lines) * stride.y)
        last = f.smaller(tile.sides.x, (block.x + block.columns) * stride.x)
        with f.loop(block.planes * stride.z) as (dz, _), f.loop(pairing.tile_lines * stride.y) as (dy, _):
            z, y = block.z * stride.z + dz, block.y * stride.y + dy
            end = f.choose((z < tile.sides.z) & (y < last_line), last, zero)
            line = target + (dz * pairing.plane + dy * pairing.line)
            extent = tile.channels, block.x * stride.x, pairing.columns * stride.x, zero, end
            self._parts.fill_line(forms[0].activation)(f, line, *extent, a.at(z, y))
            with f.when(b.data.is_given()):
                self._parts.fill_line(forms[1].activation)(f, line + a.channels, *extent, b.at(z, y))

    def fill_right(
        self, f: Function, block: Block, view: View, pairing: Pairing, window: Pointer, right: Pointer
    ) -> None:
        """Write down: the right factors of a block's window."""
        self._fill_right(f, block, view, pairing, window, right)

    def add(
        self, f: Function, block: Block, view: View, tile: Tile, pairing: Pairing, terms: Terms, tiles: Pointer,
        left: Pointer, right: Pointer, out: Pointer,
    ) -> None:  # fmt: skip
        """Write down: add the sums of all groups of a block to `out`, [blocks][terms][16][columns] for each group."""
        done = [f.number(0)]
        with f.loop(terms.count, carried=done) as (n, state):
            count, first, z, y, x = ((terms.numbers + (n * 5 + place) * 2).integer() for place in range(5))
            source = tiles + (z * pairing.plane + y * pairing.line + x * tile.channels)
            strides = tile.stride.z * pairing.plane, tile.stride.y * pairing.line, tile.stride.x * tile.channels
            self._fill_left(f, block, pairing, source, *strides, left)
            place = out + state.values[0]
            self._sums(f, block, view, pairing, terms.table + first * 2, count, left, right, place)
            state.values = (state.values[0] + pairing.blocks * count * (ROWS * self._columns),)


def _define_fill_right(module: Module) -> Any:
    lanes = module.lanes

    @module.define
    def fill_right(f: Function, block: Block, view: View, pairing: Pairing, window: Pointer, right: Pointer) -> None:
        voxel, step = view.voxel, pairing.steps * view.voxel
        planes = (block.planes - 1) * view.step.z + view.size.z
        filled = block.lines - 1 + (view.size.y + view.step.y - 1) // view.step.y
        with f.loop(planes) as (z, _), f.loop(view.phases) as (phase, _), f.loop(pairing.shifts) as (j, _):
            target = right + ((z * view.phases + phase) * pairing.shifts + j) * pairing.lines * pairing.pairs * voxel
            with f.loop(filled) as (y, _):
                line = window + (z * view.plane + (phase * view.lines + y) * view.line + j * voxel)
                row = target + y * pairing.pairs * voxel
                with f.loop(voxel, step=lanes) as (c, _), f.loop(pairing.pairs) as (q, _):
                    place = line + (step * (q * 2) + c)
                    store_pairs(f, pairs(f, place, place + step, lanes), row + (q * voxel + c))
            # What meets zeros of the left factor must be a number.
            rest = (pairing.lines - filled) * pairing.pairs * voxel
            beyond = target + filled * pairing.pairs * voxel
            with f.loop(rest, step=lanes) as (n, _):
                (beyond + n).store(f.constant(0))

    return fill_right


def _define_fill_left(module: Module) -> Any:
    @module.define
    def fill_left(
        f: Function, block: Block, pairing: Pairing, tile: Pointer, plane: Int, line: Int, voxel: Int, left: Pointer
    ) -> None:
        """Turn a tile, whose results lie plane, line, voxel apart on the axes; channels are rounded up to 16."""
        groups = (block.lines + pairing.together - 1) // pairing.together
        with (
            f.loop(block.planes) as (z, _), f.loop(pairing.steps) as (j, _), f.loop(groups) as (g, _),
            f.loop(pairing.blocks) as (m, _),
        ):  # fmt: skip
            first = tile + (z * plane + g * pairing.together * line + j * voxel + m * ROWS)
            rows = []
            for pair in range(ROWS):
                near, far = (first + (pairing.offsets + (pair * 2 + n) * 2).integer() for n in range(2))
                rows.append(pairs(f, near, far))
            target = left + (((z * pairing.steps + j) * groups + g) * pairing.blocks + m) * LEFT
            for number, row in enumerate(transposed(f, rows)):
                store_pairs(f, row, target + number * ROWS)

    return fill_left


def _define_sums(module: Module, columns: int) -> Any:
    size = ROWS * columns

    def of_blocks(
        f: Function, block: Block, view: View, pairing: Pairing, table: Pointer, count: Int, left: Pointer,
        right: Pointer, out: Pointer, m: Int, high: int, wide: int,
    ) -> None:  # fmt: skip
        """Write down: `wide` terms after `wide` others of `high` blocks of channels from m on."""
        tiles, voxel = Tiles(f), view.voxel
        groups = (block.lines + pairing.together - 1) // pairing.together
        step = pairing.together * pairing.pairs * voxel
        with f.loop(count, step=wide) as (t, _):
            places = [out + ((m + a) * count + (t + b)) * size for a in range(high) for b in range(wide)]
            for tile, place in enumerate(places):
                tiles.load(tile, place, 4 * columns)
            offsets = [(table + (t + b) * 2).integer() for b in range(wide)]
            with f.loop(block.planes) as (z, _), f.loop(pairing.steps) as (j, _), f.loop(groups) as (g, _):
                factors = left + (((z * pairing.steps + j) * groups + g) * pairing.blocks + m) * LEFT
                plane = z * view.step.z * view.phases * pairing.shifts + j
                row = right + (plane * pairing.lines * pairing.pairs * voxel + g * step)
                for a in range(high):
                    tiles.load(4 + a, factors + a * LEFT, 4 * ROWS)
                for b, offset in enumerate(offsets):
                    tiles.load(6 + b % 2, row + offset, voxel * 4)
                    for a in range(high):
                        tiles.add_product(a * wide + b, 4 + a, 6 + b % 2)
            for tile, place in enumerate(places):
                tiles.store(tile, place, 4 * columns)

    @module.define
    def outer_sums(
        f: Function, block: Block, view: View, pairing: Pairing, table: Pointer, count: Int, left: Pointer,
        right: Pointer, out: Pointer,
    ) -> None:  # fmt: skip
        """Add sums over a block: out[m, term] += sum left factor[m] * right factor[term]; terms are a multiple of 4."""
        even = pairing.blocks // 2 * 2
        with f.loop(even, step=2) as (m, _):
            of_blocks(f, block, view, pairing, table, count, left, right, out, m, 2, 2)
        with f.when(even < pairing.blocks):
            of_blocks(f, block, view, pairing, table, count, left, right, out, even, 1, 4)

    return outer_sums
