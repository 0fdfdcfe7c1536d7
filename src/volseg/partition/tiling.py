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

PLANE_POSITIONS, PAIRED_POSITIONS = 16, 64
"""Products of a tile of 2x2 results on H and W for each tap on D, and of one of 2x2x2."""

_THIN_CHANNELS = 3

PAIRED_SIDE = 4
"""Planes that two planes of results are computed from, and products of each."""

_PAIRED_CHANNELS, _PAIRED_FILTERS = 24, 256 * 128
"""The fewest channels on either side, and the most filters, for which pairs of planes are computed together: a third
fewer products save more than the transforms on D cost, and a third more weights fill neither caches nor memory."""

FLUSH_TILES = 3072
"""Tiles of four voxels whose weight gradients are added in float32 before they go to float64."""

_CACHE_FLOATS = 2**16
"""Of a block's transformed window: 256 KiB, half of a small second-level cache. Twice as many where planes are paired,
whose weights are met by half as many tiles for each voxel."""

_PAIRED_TILES = 32
"""Of a block whose planes are paired, at most, unless large weights want more: its window is written once and read
once where 32 outputs are computed together, and the smaller it is the less that costs."""

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

_LARGEST_PAIRED_WINDOW = 3 * 2**17
"""Floats of one whose planes are paired at most, whatever the weights, so that scratch memory stays small: 1.5 MiB."""


@dataclass(frozen=True)
class Taps:
    """The taps of a kernel on D, and how they are taken.

    count   of them
    step    the stride on D
    paired  by minimal filtering, as those on H and W: two planes of results together, from four products in place of
            six. For three taps with a step of 1
    """

    count: int = 3
    step: int = 1
    paired: bool = False

    @classmethod
    def of(cls, count: int, step: int, window: int, results: int) -> Taps:
        """Those of a convolution between so many channels: the layer alone decides, so that bits follow from it."""
        suitable = min(window, results) >= _PAIRED_CHANNELS and window * results <= _PAIRED_FILTERS
        return cls(count, step, suitable and (count, step) == (3, 1))

    @property
    def positions(self) -> int:
        """Products of a tile whose results no other products reach."""
        return PAIRED_POSITIONS if self.paired else PLANE_POSITIONS

    @property
    def summed(self) -> int:
        """Taps over which products of one position are summed."""
        return 1 if self.paired else self.count

    @property
    def terms(self) -> int:
        """Transformed numbers of each filter."""
        return self.positions * self.summed

    @property
    def planes(self) -> int:
        """Planes of a tile."""
        return 2 if self.paired else 1

    @property
    def lines(self) -> int:
        """Planes of lines that are in memory before they are transformed: four of a pair."""
        return PAIRED_SIDE if self.paired else 1

    def layers(self, planes: int) -> int:
        """Layers of a transformed window for so many planes of results, a multiple of a tile's."""
        return planes // 2 if self.paired else (planes - 1) * self.step + self.count


_CUBE = Taps()


def padded_channels(channels: int) -> int:
    """`channels` rounded up to whole vectors."""
    return -(-channels // LANES) * LANES


def is_thin(sources: Sequence[int]) -> bool:
    """Whether a convolution reads an image of so few channels that their transforms cost more than direct sums."""
    return len(sources) == 1 and sources[0] <= _THIN_CHANNELS


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
    origin                where the first tiles begin on D, H, W, from the first plane, line and column: 0, or -1 where
                          that has an odd coordinate
    chunk                 tiles that are multiplied together
    """

    first_plane: int
    last_plane: int
    planes: int
    pairs: int
    tiles: int
    counts: Triple
    origin: Triple
    chunk: int


@lru_cache(maxsize=1024)
def plan_blocks(
    planes: Range, height: int, breadth: int, window: int, results: int, rows: int, multiple: Triple,
    threads: int, origin: Triple = (0, 0, 0), taps: Taps = _CUBE,
) -> Blocks:  # fmt: skip
    """Blocks whose transformed window is about as large as the cache, and enough of them for all threads.

    planes           the range of planes to compute
    window, results  channels on both sides: where their weights are large, blocks are too, so that they are read less
                     often
    multiple         blocks begin on multiples of it on D, H, W
    threads          there should be a block for each
    origin           as that of `Blocks`
    """
    count, pairs_there, tiles_there = (
        -(-(n - o) // side)
        for n, o, side in zip((planes[1] - planes[0], height, breadth), origin, (1, 2, 2), strict=True)
    )
    tile = taps.positions * padded_channels(window)
    deep, high, long = lcm(multiple[0], taps.planes), lcm(multiple[1], 2) // 2, lcm(multiple[2], 2) // 2
    depth = _even(count, _PLANES if taps.step == 1 else _STRIDED_PLANES, deep)
    fitting = min(_CACHE_FLOATS * 2 // tile, _PAIRED_TILES) if taps.paired else _CACHE_FLOATS // tile
    tiles = _even(tiles_there, max(_FEWEST_TILES, fitting // taps.layers(depth)), long)
    wanted = _tiles_for_weights(taps.terms * window * results, tile)
    if taps.paired:
        wanted = min(wanted, _LARGEST_PAIRED_WINDOW // tile)
    fewest = 1 if taps.step == 1 else rows  # of a plane, whose tiles are then multiplied apart
    layers = depth // taps.planes
    pairs = _even(pairs_there, max(-(-wanted // (layers * tiles)), -(-fewest // tiles)), high)
    while depth > deep and -(-count // depth) * -(-pairs_there // pairs) * -(-tiles_there // tiles) < threads:
        depth = _even(count, depth // 2, deep)
    counts = (-(-count // depth), -(-pairs_there // pairs), -(-tiles_there // tiles))
    whole = depth // taps.planes * pairs * tiles if taps.step == 1 else pairs * tiles
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


def forward_room(blocks: Blocks, stride: int, layout: Registers, taps: Taps = _CUBE) -> int:
    """Floats of scratch memory that `forward` needs."""
    return backward_room(blocks, stride, 0, layout, taps)


def weight_room(taps: Taps, layout: Registers) -> int:
    """Floats of scratch memory to transform a weight, or its gradient back."""
    filters = 9 * layout.lanes * (2 * taps.count + (PAIRED_SIDE if taps.paired else 0))
    return filters + taps.terms * FILTERS_TOGETHER * layout.width


def backward_room(blocks: Blocks, stride: int, tile_stride: int, layout: Registers, taps: Taps = _CUBE) -> int:
    """Floats of scratch memory that `backward` needs.

    stride, tile_stride  channels of the windows and of the tiles
    """
    columns, per_plane = 2 * blocks.tiles, blocks.pairs * blocks.tiles
    lines = max((2 * blocks.pairs + 2) * (columns + 2) * stride, 2 * blocks.pairs * columns * tile_stride)
    window = (taps.layers(blocks.planes) * per_plane + layout.columns) * stride
    tile = blocks.planes // taps.planes * per_plane * tile_stride
    products = PLANE_POSITIONS * (blocks.chunk + layout.rows) * layout.width
    results = (blocks.planes * per_plane + taps.planes * blocks.chunk) * 4 * layout.width
    return lines * taps.lines + taps.positions * (window + tile) + products + results


def taps_together(taps: Taps, layout: Registers) -> int:
    """How many taps on D `outer_sums` takes at once: as many as the registers hold, a divisor of those summed."""
    return max(n for n in range(1, taps.summed + 1) if taps.summed % n == 0 and n <= layout.rows)
