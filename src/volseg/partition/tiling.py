"""How the convolution kernels cut a block into tiles, and what memory they work in: arithmetic alone.

A block of tiles is chosen so that its transformed window stays in the cache; it has no influence on the result's bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import lcm

from volseg.geometry import Triple
from volseg.partition.window import Range

LANES = 8
"""Channels are rounded up to vectors of so many float32."""

POSITIONS, TAPS = 16, 3
"""Of a transformed tile on H and W; taps on D, unless a kernel has 1, 5 or 7 there."""

FLUSH_TILES = 3072
"""Tiles of four voxels whose weight gradients are added in float32 before they go to float64."""

_CACHE_FLOATS = 2**16
"""Of a block's transformed window: 256 KiB, half of a small second-level cache."""

_PLANES, _FEWEST_TILES = 8, 3
"""Of a block: with eight planes the two beside it cost a quarter of the transforms, which are a tenth of the whole."""

_STRIDED_PLANES = 2
"""Of a block whose window takes two planes for each: it is to have enough tiles a plane to fill the registers."""

FILTERS_TOGETHER = 8
"""Inner channels whose filters are transformed before they are written: up to 1 KiB for each position and tap."""

_WEIGHT_FLOATS, _ROWS_PER_WEIGHT, _FEWEST_ROWS = 2**20, 64, 16
"""For each 4 MiB of transformed weights a block has 64 tiles, to multiply longer than it reads them, as long as the
cache holds its window, and at least 16 for each such piece that is begun."""

_LARGEST_WINDOW = 2**18
"""Floats of a transformed window of so many tiles: 1 MiB."""


def padded_channels(channels: int) -> int:
    """`channels` rounded up to whole vectors."""
    return -(-channels // LANES) * LANES


@dataclass(frozen=True)
class Registers:
    """How sums are laid out in registers.

    lanes    floats of a vector
    vectors  vectors side by side: `width` = lanes * vectors outputs are computed together
    rows     voxels computed together
    """

    lanes: int
    vectors: int
    rows: int

    def window_channels(self, taps: int) -> int:
        """Channels that `outer_sums` takes together, each with so many taps."""
        return 1 << ((self.rows // taps).bit_length() - 1)

    @property
    def width(self) -> int:
        """Outputs computed together."""
        return self.lanes * self.vectors

    @property
    def columns(self) -> int:
        """The fewest voxels of a line that are computed together."""
        return 2 if self.rows % 4 else 4

    @property
    def tiles(self) -> list[int]:
        """How many voxels of a line are computed together, and how many where fewer are left.

        Eight or more sums keep multipliers busy, which wait for each sum before they add to it again.
        """
        return sorted({self.rows, *(n for n in (8, self.columns) if n < self.rows)}, reverse=True)


def registers_for(results: Sequence[int], read: Sequence[int], widest: int) -> Registers:
    """The layout for kernels that compute and read tensors of these channels, on vectors of at most `widest` floats.

    16 registers of 8 floats (AVX2) hold 12 sums, two vectors of weights and one number in all lanes; 32 of 16 floats
    (AVX-512) hold 24 sums.

    results  channels of the outputs, multiples of 8: a layout that fits each of them
    read     channels of the inputs: multiples of it, or fewer, which may be stored as they are
    """
    if any(c % widest for c in read):
        widest = LANES
    return min((_registers_for_one(c, widest) for c in results), key=lambda layout: layout.width)


def _registers_for_one(channels: int, widest: int) -> Registers:
    if widest == 16 and channels % 32 == 0:
        return Registers(16, 2, 12)
    if widest == 16 and channels % 16 == 0:
        return Registers(16, 1, 24)
    if channels % 16 == 0:
        return Registers(8, 2, 6)
    return Registers(8, 1, 12)


@dataclass(frozen=True)
class Blocks:
    """How the output of a convolution is cut into blocks.

    planes, pairs, tiles  of a block: planes, pairs of lines, tiles along a line
    counts                blocks on D, H, W
    origin                where the first tiles begin on H and W: 0, or -1 where the block begins at an odd coordinate
    chunk                 tiles that are multiplied together
    """

    first_plane: int
    last_plane: int
    planes: int
    pairs: int
    tiles: int
    counts: Triple
    origin: tuple[int, int]
    chunk: int


@lru_cache(maxsize=1024)
def plan_blocks(
    planes: Range, height: int, breadth: int, window: int, results: int, rows: int, multiple: Triple,
    threads: int, origin: tuple[int, int] = (0, 0), taps: int = TAPS, step: int = 1,
) -> Blocks:  # fmt: skip
    """Blocks whose transformed window is about as large as the cache, and enough of them for all threads.

    planes           the range of planes to compute
    window, results  channels on both sides: where their weights are large, blocks are too, so that they are read less
                     often
    multiple         blocks begin on multiples of it on D, H, W
    threads          there should be a block for each
    taps, step       of the kernel on D: its size and its stride
    """
    count = planes[1] - planes[0]
    pairs_there, tiles_there = (-(-(n - o) // 2) for n, o in zip((height, breadth), origin, strict=True))
    room = _CACHE_FLOATS // (POSITIONS * padded_channels(window))  # tiles of the window
    deep, high, long = multiple[0], lcm(multiple[1], 2) // 2, lcm(multiple[2], 2) // 2
    depth = _even(count, _PLANES if step == 1 else _STRIDED_PLANES, deep)
    tiles = _even(tiles_there, max(_FEWEST_TILES, room // _window_planes(depth, taps, step)), long)
    wanted = _tiles_for_weights(POSITIONS * taps * window * results, POSITIONS * padded_channels(window))
    fewest = 1 if step == 1 else rows  # of a plane, whose tiles are then multiplied apart
    pairs = _even(pairs_there, max(-(-wanted // (depth * tiles)), -(-fewest // tiles)), high)
    while depth > deep and -(-count // depth) * -(-pairs_there // pairs) * -(-tiles_there // tiles) < threads:
        depth = _even(count, depth // 2, deep)
    counts = (-(-count // depth), -(-pairs_there // pairs), -(-tiles_there // tiles))
    whole = depth * pairs * tiles if step == 1 else pairs * tiles
    chunk = min(range(rows, 8 * rows + 1, rows), key=lambda c: _waste(whole, c, rows))
    return Blocks(planes[0], planes[1], depth, pairs, tiles, counts, origin, chunk)


def _tiles_for_weights(weights: int, tile: int) -> int:
    """Tiles of a block that reads so many floats of weights; a tile of its window takes `tile` floats."""
    as_long = min(weights * _ROWS_PER_WEIGHT // _WEIGHT_FLOATS, _LARGEST_WINDOW // tile)
    return max(as_long, -(-weights // _WEIGHT_FLOATS) * _FEWEST_ROWS)


def _waste(whole: int, chunk: int, rows: int) -> tuple[int, int]:
    done = sum(-(-min(chunk, whole - r) // rows) * rows for r in range(0, whole, chunk))
    return done, abs(chunk - 4 * rows)


def _even(length: int, most: int, unit: int) -> int:
    """Pieces of at most `most`, or one unit, as even as can be; a multiple of `unit`."""
    units = -(-length // unit)
    parts = -(-units // max(1, most // unit))
    return -(-units // parts) * unit


def _window_planes(planes: int, taps: int, step: int) -> int:
    return (planes - 1) * step + taps


def forward_room(blocks: Blocks, stride: int, layout: Registers, taps: int = TAPS, step: int = 1) -> int:
    """Floats of scratch memory that `forward` needs."""
    return backward_room(blocks, stride, 0, layout, taps, step)


def weight_room(taps: int, layout: Registers) -> int:
    """Floats of scratch memory to transform a weight, or its gradient back, with so many taps on D."""
    return 2 * 9 * taps * layout.lanes + POSITIONS * taps * FILTERS_TOGETHER * layout.width


def backward_room(
    blocks: Blocks, stride: int, tile_stride: int, layout: Registers, taps: int = TAPS, step: int = 1
) -> int:
    """Floats of scratch memory that `backward` needs.

    stride, tile_stride  channels of the windows and of the tiles
    """
    columns, per_plane = 2 * blocks.tiles, blocks.pairs * blocks.tiles
    lines = max((2 * blocks.pairs + 2) * (columns + 2) * stride, 2 * blocks.pairs * columns * tile_stride)
    window = (_window_planes(blocks.planes, taps, step) * per_plane + layout.rows) * stride
    tile = blocks.planes * per_plane * tile_stride
    products = (blocks.chunk + layout.rows) * layout.width
    results = (blocks.planes * per_plane + blocks.chunk) * 4 * layout.width
    return lines + POSITIONS * (window + tile + products) + results


def taps_together(taps: int, layout: Registers) -> int:
    """How many taps on D `outer_sums` takes at once: as many as the registers hold, a divisor of them all."""
    return max(n for n in range(1, taps + 1) if taps % n == 0 and n <= layout.rows)
