"""Products of a block's window with weights, in tiles.

The window is that of `direct.blocks`, of bfloat16 numbers: [planes][phases][lines][columns, voxel]. What the taps on W
of a result meet lies side by side in it, so that each tap on D and H is a matrix product of the rows of a plane's
results with `inner` columns: sixteen results and 32 of those numbers are a tile. All lines of a plane are the rows of
one matrix, with the columns between a line's last result and the next one's first computed for nothing; so a plane of
few columns fills its tiles as well.

A result is the bias, or zero, to which the products are added for taps on D, on H, then for 32 numbers after 32 of what
the taps on W meet, each tap's channels in turn, in ascending order of the voxels; `jit.tiles` says in which order a
product of tiles adds. So its bits follow from what it reads.
"""

from __future__ import annotations

from typing import Any

from volseg.nn.kernels.direct import blocks as direct
from volseg.nn.kernels.direct.blocks import Block, Group, View
from volseg.nn.kernels.jit.language import Function, Int, Module, Pointer
from volseg.nn.kernels.jit.tiles import INNER, ROWS, Tiles
from volseg.nn.kernels.operands import Results
from volseg.partition.tiling import Registers

_NEAR_TILES, _FEW_ROWS = 24, 128
"""Tiles of weights that stay in the first cache, half of one. Rows that make up for reading them."""

_KEPT_TILES = 512
"""Tiles of weights that stay in the second cache: all rows of a block meet each piece of more before the next."""


class Kit(direct.Kit):
    """What the kernels are put together from, with products in tiles."""

    def __init__(self, module: Module, layout: Registers) -> None:
        super().__init__(module, layout)
        self._add_rows = _define_add_rows(module, layout)

    def multiply(
        self, f: Function, block: Block, view: View, group: Group, window: Pointer, weight: Pointer, bias: Pointer,
        values: Pointer,
    ) -> Results:  # fmt: skip
        """Write down: the results of a group of products, for `width` channels.

        window  bfloat16
        weight  [taps on D and H][inner / 32] of right factors of the group, bfloat16
        bias    [width] float32, or nothing
        values  room for them
        """
        width, count = self.layout.width, right_factors(self.layout)
        size = INNER * width  # numbers of the weight for INNER numbers of the window
        pitch, step = view.columns // view.step.x, view.step.x * view.voxel
        rows = ((block.lines - 1) * pitch + block.columns + (ROWS - 1)) // ROWS * ROWS
        lines = (rows + pitch - 1) // pitch
        plane = lines * pitch
        inner = f.larger((group.inner + (INNER - 1)) // INNER, 1)
        columns = f.smaller(inner, _NEAR_TILES // count)
        taps = f.choose(columns < inner, f.number(1), f.larger(f.number(_NEAR_TILES) // (inner * count), 1))
        kept = group.taps * inner * count < _KEPT_TILES
        together = f.choose(kept, f.larger(f.number(_FEW_ROWS) // plane, 1), block.planes)
        with (
            f.loop((block.planes + together - 1) // together) as (part, _),
            # at least one piece: results without taps are the bias
            f.loop(f.larger((group.taps + taps - 1) // taps, 1)) as (t, _),
            f.loop((inner + columns - 1) // columns) as (c, _),
        ):
            tap, column = t * taps, c * columns
            fresh = f.choose((t + c).equals(0), f.number(1), f.number(0))
            with f.loop(f.smaller((part + 1) * together, block.planes), start=part * together) as (z, _):
                x = window + (z * view.step.z * view.plane + group.column + column * INNER)
                begin, end = self._there(f, block, view, group, z)
                begin, end = f.larger(begin, tap), f.smaller(end, tap + taps)
                self._add_rows(
                    f, x, step, group.table + begin * 2, end - begin, weight + (begin * inner + column) * size,
                    inner * size, f.smaller(columns, inner - column), fresh, bias, values + z * plane * width, rows,
                )  # fmt: skip
        zero = f.number(0)
        return Results(values, block.planes, lines, pitch, zero, block.lines, zero, block.columns)


def right_factors(layout: Registers) -> int:
    """Tiles side by side that make the results' `width` channels."""
    return max(1, layout.width // ROWS)


def _define_add_rows(module: Module, layout: Registers) -> Any:
    width, count = layout.width, right_factors(layout)
    heights = (4, 2, 1) if count == 1 else (2, 1)

    @module.define
    def add_rows(
        f: Function, x: Pointer, step: Int, table: Pointer, taps: Int, weight: Pointer, tap_size: Int, inner: Int,
        fresh: Int, bias: Pointer, out: Pointer, rows: Int,
    ) -> None:  # fmt: skip
        """out[r, :] += sum over taps and n of x[r * step + table[tap] + n] * weight[tap, n, :].

        x       bfloat16
        table   [taps] 64-bit integers
        weight  [taps][inner][count] right factors, the taps `tap_size` numbers apart
        fresh   1: `out` begins as the bias, or as zero where there is none
        out     [rows, width] float32; the rows are whole tiles
        """
        start = f.number(0)
        for height in heights:
            stop = start + (rows - start) // (height * ROWS) * (height * ROWS)
            with f.loop(stop, start=start, step=height * ROWS) as (r, _):
                _begin_sums(f, layout, height, fresh, bias, out + r * width)
                with f.loop(taps) as (tap, _), f.loop(inner) as (n, _):
                    left = x + (r * step + (table + tap * 2).integer() + n * INNER)
                    right = weight + (tap * tap_size + n * (INNER * width))
                    _add_products(f, layout, height, left, step, right)
                for tile in range(height * count):
                    place = out + ((r + tile // count * ROWS) * width + tile % count * ROWS)
                    Tiles(f).store(tile, place, 4 * width)
            start = stop

    return add_rows


def _begin_sums(f: Function, layout: Registers, height: int, fresh: Int, bias: Pointer, out: Pointer) -> None:
    """Write down: tiles of sums as they stand in `out`, or, where they are `fresh`, as the bias or zero."""
    tiles, width, count = Tiles(f), layout.width, right_factors(layout)
    places = [(m, n) for m in range(height) for n in range(count)]
    with f.either(fresh.equals(0)) as (standing, new):
        with standing:
            for m, n in places:
                tiles.load(m * count + n, out + (m * ROWS * width + n * ROWS), 4 * width)
        with new, f.either(bias.is_given()) as (biased, bare):
            with biased:
                for m, n in places:
                    tiles.load(m * count + n, bias + n * ROWS, 0)  # the same row sixteen times
            with bare:
                for m, n in places:
                    tiles.zero(m * count + n)


def _add_products(f: Function, layout: Registers, height: int, left: Pointer, step: Int, right: Pointer) -> None:
    """Write down: `height` times sixteen rows, `step` numbers apart from `left` on, meet the right factors."""
    tiles, count, width = Tiles(f), right_factors(layout), min(layout.width, ROWS)
    for n in range(count):
        tiles.load(6 + n, right + n * INNER * width, 4 * width)
    for m in range(height):
        tiles.load(4 + m % 2, left + step * (m * ROWS), step * 2)
        for n in range(count):
            tiles.add_product(m * count + n, 4 + m % 2, 6 + n)
