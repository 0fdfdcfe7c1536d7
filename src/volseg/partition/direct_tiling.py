"""How the direct convolution cuts a block into blocks of its own, and what memory it works in: arithmetic alone.

A block's size has no influence on the result's bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import ceil, prod

from volseg.geometry import Triple
from volseg.partition.tiling import LANES, Registers
from volseg.partition.window import Range

FLUSH_VOXELS = 12288
"""Voxels whose weight gradients are added in float32 before they go to float64."""

_CACHE_FLOATS = 2**18
"""Of a block's window and tile: 1 MiB, half of a second-level cache."""

_DEEPEST = 8
"""Planes of a block at most."""

_FILL, _LINE, _WEIGHT, _FULL_CACHE, _BEYOND_CACHE = 0.15, 100.0, 1.0, 1.0, 1.5
"""Clock cycles to fill a float of the window, where 32 products take one; to begin a line of it; to read a float of the
weights once more; how much longer filling takes where the window fills the cache; how much slower all is beyond it."""


@dataclass(frozen=True)
class Reach:
    """Which voxels of a window results are computed from: those step * n + first + (0 ... size) for number n.

    All on D, H, W.
    """

    step: Triple
    first: Triple
    size: Triple

    @property
    def phases(self) -> int:
        """How many kinds of lines of the window there are: those whose numbers have the same rest by the step on H."""
        return min(self.step[1], self.size[1])

    def extent(self, axis: int, results: int) -> int:
        """Voxels of the window for so many results on an axis."""
        return (results - 1) * self.step[axis] + self.size[axis]


def forward_reach(kernel: Triple, stride: Triple) -> Reach:
    """What an output is computed from: "same" padding of half a kernel."""
    d, h, w = (-(k // 2) for k in kernel)
    return Reach(stride, (d, h, w), kernel)


def backward_reach(kernel: Triple, stride: Triple) -> Reach:
    """What the gradients of `stride` inputs on each axis are computed from together: outputs."""
    spans = [axis_span(k, s) for k, s in zip(kernel, stride, strict=True)]
    first, size = zip(*((low, high - low + 1) for low, high in spans), strict=True)
    return Reach((1, 1, 1), first, size)


def axis_taps(kernel: int, stride: int, phase: int) -> list[tuple[int, int]]:
    """Which taps reach the inputs stride * j + phase, from which outputs counted from j: (output, tap), ascending."""
    pairs = [(*divmod(phase + kernel // 2 - tap, stride), tap) for tap in range(kernel)]
    return sorted((output, tap) for output, rest, tap in pairs if rest == 0)


def axis_span(kernel: int, stride: int) -> Range:
    """The first and last output that any of the inputs stride * j ... stride * j + stride - 1 reaches, from j."""
    outputs = [output for phase in range(stride) for output, _ in axis_taps(kernel, stride, phase)]
    return min(0, *outputs), max(0, *outputs)


@dataclass(frozen=True)
class Cut:
    """Blocks of results.

    planes, lines, columns  of a block
    counts                  blocks on D, H, W
    """

    first_plane: int
    last_plane: int
    planes: int
    lines: int
    columns: int
    counts: Triple


@lru_cache(maxsize=1024)
def plan_cut(
    planes: Range, height: int, breadth: int, reach: Reach, window: int, tile: int, terms: int, together: int,
    multiple: Triple, threads: int,
) -> Cut:  # fmt: skip
    """The blocks that are expected to take the shortest time.

    planes         the range of planes to compute
    window, tile   floats of a window's voxel; of the other tensor for each result
    terms          products for each result, all its channels together, which is as many as there are weights
    together       neighbouring results that are computed at a time
    multiple       blocks begin on multiples of it on D, H, W
    threads        there should be a block for each
    """
    depth = planes[1] - planes[0]

    def seconds(sides: Triple) -> float:
        d, h, w = sides
        results = d * h * w
        computed = d * h * _whole(w, together)
        planes_read, lines_read, columns_read = (reach.extent(axis, n) for axis, n in enumerate(sides))
        floats = window * planes_read * lines_read * columns_read + tile * results
        filled = floats * _FILL * (1 + _FULL_CACHE * floats / _CACHE_FLOATS) + planes_read * lines_read * _LINE
        taken = (computed * terms / 32 + filled + terms * _WEIGHT) / results
        blocks = prod(-(-n // side) for n, side in zip((depth, height, breadth), sides, strict=True))
        uneven = -(-blocks // threads) * threads / blocks
        return taken * uneven * (_BEYOND_CACHE if floats > _CACHE_FLOATS else 1.0)

    lengths = [even_lengths(n, m, most) for n, m, most in zip((depth, height, breadth), multiple, (_DEEPEST, 64, 256),
                                                          strict=True)]  # fmt: skip
    sides = min(((d, h, w) for d in lengths[0] for h in lengths[1] for w in lengths[2]), key=seconds)
    d, h, w = (-(-n // side) for n, side in zip((depth, height, breadth), sides, strict=True))
    return Cut(*planes, *sides, (d, h, w))


def plan_forward(
    planes: Range, height: int, breadth: int, kernel: Triple, stride: Triple, voxel: int, channels: int,
    layout: Registers, multiple: Triple, threads: int,
) -> Cut:  # fmt: skip
    """The blocks of a convolution forward, whose output has these planes, height and breadth.

    voxel, channels  of the inputs together and of the output, as stored
    """
    terms = prod(kernel) * voxel * channels
    reach = forward_reach(kernel, stride)
    results = layout.width if voxel < LANES else 0  # an image's take more room than it
    return plan_cut(planes, height, breadth, reach, voxel, results, terms, layout.columns, multiple, threads)


def plan_gradients(
    planes: Range, height: int, breadth: int, reach: Reach, kernel: Triple, stride: Triple, voxel: int, tile: int,
    layout: Registers, gradients: int, threads: int,
) -> Cut:  # fmt: skip
    """The blocks of a convolution's gradients, whose output has these planes, height and breadth.

    reach      `backward_reach`; for an image, whose weight alone has a gradient, `forward_reach`
    stride     voxels of the tile for each result: the convolution's; 1 for an image
    voxel      channels of the windows: the output's; for an image, its own
    tile       channels of the inputs together; for an image, the output's
    gradients  2 for those of the inputs and of the weight, 1 for either alone
    """
    terms = prod(kernel) * voxel * tile * gradients
    return plan_cut(
        planes, height, breadth, reach, voxel, tile * prod(stride), terms, layout.columns, (1, 1, 1), threads
    )  # fmt: skip


def even_lengths(length: int, unit: int, most: int) -> list[int]:
    """Pieces that `length` may be cut into, as even as can be, of at most `most` or one unit; multiples of the unit."""
    units, fewest = ceil(length / unit), ceil(length / max(most, unit))
    parts = range(fewest, min(units, fewest + 15) + 1)
    return sorted({ceil(units / n) * unit for n in parts}, reverse=True)


@dataclass(frozen=True)
class Window:
    """How a block's window lies in memory, [planes, phases, lines, columns, voxel].

    lines              of a phase
    line, plane, size  floats
    """

    lines: int
    columns: int
    line: int
    plane: int
    size: int


def window_of(cut: Cut, reach: Reach, voxel: int, together: int) -> Window:
    """The window of blocks; `together` results of a line are computed at a time, at its end more than there are."""
    columns = reach.extent(2, cut.columns)
    lines = cut.lines - 1 + ceil(reach.size[1] / reach.step[1])
    line = columns * voxel
    plane = reach.phases * lines * line
    slack = together * reach.step[2] * voxel + 64
    return Window(lines, columns, line, plane, reach.extent(0, cut.planes) * plane + slack)


def _whole(columns: int, together: int) -> int:
    """Results of a line that are computed."""
    return ceil(columns / together) * together


def results_size(cut: Cut, layout: Registers) -> int:
    """Floats of a block's results for as many channels as registers hold."""
    return cut.planes * cut.lines * _whole(cut.columns, layout.columns) * layout.width


def tile_size(cut: Cut, stride: Triple, channels: int) -> int:
    """Floats of the inputs that the results of a block stand for in backward."""
    return cut.planes * cut.lines * cut.columns * prod(stride) * channels


def direct_room(cut: Cut, reach: Reach, voxel: int, tile: int, stride: Triple, layout: Registers) -> int:
    """Floats of scratch memory that the direct convolution needs.

    voxel  channels of the window
    tile   channels of the inputs that `stride` results meet in backward; 0 forward
    """
    window = window_of(cut, reach, voxel, layout.columns)
    return window.size + tile_size(cut, stride, tile) + results_size(cut, layout)
