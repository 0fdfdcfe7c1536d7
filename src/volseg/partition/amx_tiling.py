"""How the convolution on AMX tiles cuts a block into blocks of its own, and what memory it works in: arithmetic alone.

A block's size has no influence on the result's bits. Sizes of windows are in numbers, which are bfloat16.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import gcd, lcm, prod

from volseg.geometry import Triple
from volseg.partition.direct_tiling import Cut, Reach, Window, even_lengths
from volseg.partition.window import Range

ROWS, INNER = 16, 32
"""Of a tile: its rows, and the numbers of one of them that a product adds up."""

_CACHE_BYTES = 2**20
"""Of a block's window and results, and what is made of them for the weight's gradient: half of a second-level cache."""

_PRODUCT, _FILL, _LINE, _WEIGHT, _BEYOND_CACHE = 17.0, 0.4, 60.0, 24.0, 1.5
"""Clock cycles of a product of tiles; to fill a number of the window; to begin a line of it; to read a tile of weights
once more; how much slower all is beyond the cache."""


def window_of(cut: Cut, reach: Reach, voxel: int, columns: int, more: tuple[int, int] = (0, 0)) -> Window:
    """The window of blocks, whose lines and planes are so many bfloat16 numbers, and its size floats.

    It has as many columns as the last tap's products read, a multiple of the reach's step; lines begin at 64 bytes.

    columns  whose numbers taps meet on a line, for each kind of results: products read them rounded up to INNER
    more     lines and columns at least, which something else reads
    """
    step, size = reach.step[2], reach.size[2]
    read = (reach.extent(2, cut.columns) - size) * voxel + -(-columns * voxel // INNER) * INNER
    needed = max(reach.extent(2, cut.columns), -(-read // voxel), more[1])
    unit = lcm(step, INNER // gcd(INNER, voxel))
    pitch = -(-needed // unit) * unit
    lines = max(cut.lines - 1 + -(-reach.size[1] // reach.step[1]), more[0])
    line = pitch * voxel
    plane = reach.phases * lines * line
    beyond = ROWS * step * voxel  # rows of the last tile that nobody wants
    return Window(lines, pitch, line, plane, _whole(reach.extent(0, cut.planes) * plane + beyond, 2 * ROWS) // 2)


def results_floats(cut: Cut, window: Window, step: int, width: int) -> int:
    """Floats of a block's results of `width` channels; they lie as far apart as the window's columns, by the step."""
    pitch = window.columns // step
    rows = _whole((cut.lines - 1) * pitch + cut.columns, ROWS)
    return cut.planes * -(-rows // pitch) * pitch * width + ROWS * width


def _whole(number: int, unit: int) -> int:
    return -(-number // unit) * unit


@lru_cache(maxsize=1024)
def plan_tiles(
    planes: Range, height: int, breadth: int, reach: Reach, voxel: int, tile: int, products: int, multiple: Triple,
    threads: int,
) -> Cut:  # fmt: skip
    """The blocks that are expected to take the shortest time.

    planes    the range of planes to compute
    voxel     numbers of a window's voxel
    tile      bytes for each result beside the window
    products  of tiles for ROWS results, all their channels together, which is as many as there are tiles of weights
    multiple  blocks begin on multiples of it on D, H, W
    threads   there should be a block for each
    """
    depth = planes[1] - planes[0]

    def seconds(sides: Triple) -> float:
        d, h, w = sides
        planes_read, lines_read, columns_read = (reach.extent(axis, n) for axis, n in enumerate(sides))
        pitch = -(-columns_read // reach.step[2])
        tiles = d * -(-((h - 1) * pitch + w) // ROWS)
        numbers = voxel * planes_read * lines_read * columns_read
        filled = numbers * _FILL + planes_read * lines_read * _LINE
        taken = (tiles * products * _PRODUCT + filled + products * _WEIGHT) / (d * h * w)
        blocks = prod(-(-n // side) for n, side in zip((depth, height, breadth), sides, strict=True))
        uneven = -(-blocks // threads) * threads / blocks
        size = 2 * numbers + tile * d * h * w
        return taken * uneven * (_BEYOND_CACHE if size > _CACHE_BYTES else 1.0)

    lengths = [even_lengths(n, m, most) for n, m, most in zip((depth, height, breadth), multiple, (16, 64, 256),
                                                              strict=True)]  # fmt: skip
    sides = min(((d, h, w) for d in lengths[0] for h in lengths[1] for w in lengths[2]), key=seconds)
    d, h, w = (-(-n // side) for n, side in zip((depth, height, breadth), sides, strict=True))
    return Cut(*planes, *sides, (d, h, w))


def tile_products(counts: Sequence[Triple], voxel: int, channels: int) -> int:
    """Products of tiles for ROWS results of so many channels.

    counts  taps on D, H, W of each kind of results
    """
    return sum(d * h * -(-w * voxel // INNER) for d, h, w in counts) * -(-channels // ROWS)


def plan_tile_gradients(
    planes: Range, height: int, breadth: int, reach: Reach, stride: Triple, counts: Sequence[Triple], voxel: int,
    channels: int, width: int, kernel: Triple | None, threads: int,
) -> Cut:  # fmt: skip
    """The blocks of a convolution's gradients, whose output has these planes, height and breadth.

    A product of tiles adds up over 32 channels for the inputs' gradients, over 32 voxels for the weight's.

    reach     of the windows, which are cut from the output's gradient
    stride    voxels of the inputs for each result
    counts    taps on D, H, W of each kind of results
    voxel     numbers of a window's voxel
    channels  of the inputs together
    width     results computed together
    kernel    of the weight; None where it gets no gradient
    """
    products, beside = tile_products(counts, voxel, channels), 4 * width
    if kernel is not None:
        products += prod(kernel) * -(-voxel // ROWS) * -(-channels // ROWS) // 2
        beside += 2 * channels * (prod(stride) + 1) + 3 * voxel * prod(reach.step)
    return plan_tiles(planes, height, breadth, reach, voxel, beside, products, (1, 1, 1), threads)


@dataclass(frozen=True)
class Pairing:
    """How a block's voxels make pairs for the weight's gradient: voxels of a line, `steps` apart; see `amx.outer`.

    pairs       of a line, in a factor of ROWS pairs
    together    lines of a factor
    steps       voxels of a line that begin a factor of the inputs, or of the output's gradient moved by nothing
    shifts      voxels of a line that begin a factor of the output's gradient
    lines       of the output's gradient, of a phase
    tile_lines  of the results, up to whole factors
    """

    pairs: int
    together: int
    steps: int
    shifts: int
    lines: int
    tile_lines: int

    @property
    def columns(self) -> int:
        """Results of a line, up to whole factors."""
        return 2 * self.pairs * self.steps

    def line_numbers(self, stride: int, channels: int) -> int:
        """Numbers of a line of a block's inputs, of which a result has `stride` voxels on a line."""
        return self.columns * stride * channels

    def tile_floats(self, planes: int, stride: Triple, channels: int) -> int:
        """Floats of a block's inputs, in bfloat16, up to whole factors; the last channels are read beyond their end."""
        plane = self.tile_lines * stride[1] * self.line_numbers(stride[2], channels)
        return (planes * stride[0] * plane // 2 + 2 * ROWS) // ROWS * ROWS

    def left_floats(self, planes: int, channels: int) -> int:
        """Floats of the inputs' factors, of which a pair is as large as a float."""
        return planes * self.tile_lines * self.columns // 2 * _whole(channels, ROWS)

    def right_floats(self, planes: int, voxel: int) -> int:
        """Floats of the factors of a window of so many planes, those of each phase counted."""
        return _whole(planes * self.shifts * self.lines * self.pairs * voxel, ROWS)


@lru_cache(maxsize=1024)
def pairing_of(cut: Cut, reach: Reach) -> Pairing:
    """The pairing of blocks that fills the fewest factors; on a line the window must have the results' steps."""
    taps_beyond = -(-reach.size[1] // reach.step[1]) - 1

    def pairing(pairs: int) -> Pairing:
        together = ROWS // pairs
        steps, lines = -(-cut.columns // (2 * pairs)), _whole(cut.lines, together)
        return Pairing(pairs, together, steps, steps + reach.size[2] - 1, lines + taps_beyond, lines)

    def cost(pairing: Pairing) -> int:
        taps = prod(reach.size)
        return taps * pairing.columns * pairing.tile_lines + 8 * pairing.shifts * 2 * pairing.pairs * pairing.lines

    return min((pairing(pairs) for pairs in (16, 8, 4, 2, 1)), key=cost)


@dataclass(frozen=True)
class GradientRoom:
    """The scratch memory of a block's gradients, in floats; the weight's are 0 where it gets none.

    window, results  of the block
    tile             its inputs, in bfloat16
    left, right      the factors of the weight's gradient
    """

    window: Window
    results: int
    tile: int = 0
    left: int = 0
    right: int = 0

    @property
    def floats(self) -> int:
        """Everything."""
        return self.window.size + self.results + self.tile + self.left + self.right


def gradient_room(
    cut: Cut, reach: Reach, stride: Triple, voxel: int, columns: int, channels: int, width: int, *, weight: bool
) -> GradientRoom:
    """What `plan_tile_gradients`'s blocks work in.

    columns  as those of `window_of`
    weight   whether the weight gets a gradient
    """
    pairing = pairing_of(cut, reach)
    more = (pairing.lines, pairing.columns + pairing.shifts - pairing.steps) if weight else (0, 0)
    window = window_of(cut, reach, voxel, columns, more)
    results = results_floats(cut, window, 1, width)
    if not weight:
        return GradientRoom(window, results)
    planes_read = reach.extent(0, cut.planes) * reach.phases
    return GradientRoom(
        window, results, pairing.tile_floats(cut.planes, stride, channels),
        pairing.left_floats(cut.planes, channels), pairing.right_floats(planes_read, voxel),
    )  # fmt: skip
