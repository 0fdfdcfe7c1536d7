"""The machine code of the 3x3x3 convolution, forward and backward: Winograd's minimal filtering on H and W.

Two outputs of a three-tap filter take four products of transformed inputs and weights, not six (Winograd, "Arithmetic
complexity of computations", 1980; Lavin & Gray, "Fast algorithms for convolutional neural networks", CVPR 2016). On two
axes a tile of 2x2 outputs comes from 4x4 inputs by 16 products in place of 36; on D the three taps are summed as they
are. With 16 sums of 3 C terms per tile the rounding error is below that of a direct sum of 27 C.

Work is cut into blocks of tiles whose transformed window stays in the cache:

    window    [planes + 2][16][lines / 2 * columns / 2][C]  transformed, by position
    products  [16][tiles][K]   one matrix product a position, for as many outputs as registers hold at a time
    results   [tiles of 2 x 2][K]  transformed back, and handed on while they are in the cache

Tiles begin at even coordinates of the *whole* volume, so a voxel's bits follow from its place in the volume alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from volseg.nn.kernels.jit.compiler import Library
from volseg.nn.kernels.jit.language import Function, Int, Module, Pointer, Vector
from volseg.nn.kernels.parts import Parts, define_parts, move_to_total
from volseg.partition.tiling import POSITIONS, TAPS, Registers


def build_forward(layout: Registers) -> Library:
    """Compile `forward` and `transform_weight` for one layout of the registers."""
    module = Module(layout.lanes)
    parts = define_parts(module, layout, TAPS)
    _define_forward(module, layout, parts, _define_transforms(module, layout), _define_results(module, layout))
    _define_transform_weight(module, layout)
    return Library(module)


def build_backward(layout: Registers) -> Library:
    """Compile `backward`, `transform_weight` and `finish_gradient` for one layout of the registers."""
    module = Module(layout.lanes)
    parts = define_parts(module, layout, TAPS)
    _define_backward(module, layout, parts, _define_transforms(module, layout))
    _define_transform_weight(module, layout)
    _define_finish_gradient(module, layout)
    return Library(module)


@dataclass(frozen=True)
class _Transforms:
    window: Any
    tiles: Any
    back: Any


def _define_transforms(module: Module, layout: Registers) -> _Transforms:
    lanes, vectors, width = layout.lanes, layout.vectors, layout.width

    @module.define
    def window(f: Function, line: Pointer, stride: Int, out: Pointer, position: Int, tiles: Int, channels: Int) -> None:
        """B^T d B of the 4x4 windows along four lines.

        line  [4, 2 tiles + 2, channels], the lines `stride` floats apart
        out   [16 positions `position` floats apart][tiles, channels]
        """
        with f.loop(channels, step=lanes) as (c, _):

            def column(x: int | Int) -> list[Vector]:
                d = [(line + (n * stride + f.number(x) * channels + c)).load() for n in range(4)]
                return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]

            with f.loop(tiles, carried=column(0) + column(1)) as (t, state):
                first, second = state.values[:4], state.values[4:]
                third, fourth = column(t * 2 + 2), column(t * 2 + 3)
                place = out + (t * channels + c)
                for n in range(4):
                    a, b, d, e = first[n], second[n], third[n], fourth[n]
                    for m, value in enumerate((a - d, b + d, d - b, b - e)):
                        (place + position * (4 * n + m)).store(value)
                state.values = third + fourth

    @module.define
    def tiles(f: Function, line: Pointer, stride: Int, out: Pointer, position: Int, tiles: Int, channels: Int) -> None:
        """A y A^T of the 2x2 tiles along two lines: what the products' gradient is made of.

        line  [2, 2 tiles, channels], the lines `stride` floats apart
        out   [16 positions `position` floats apart][tiles, channels]
        """
        with f.loop(channels, step=lanes) as (c, _), f.loop(tiles) as (t, _):
            left, right = (
                _spread_two(*((line + (n * stride + (t * 2 + x) * channels + c)).load() for n in range(2)))
                for x in range(2)
            )
            place = out + (t * channels + c)
            for n in range(4):
                for m, value in enumerate(_spread_two(left[n], right[n])):
                    (place + position * (4 * n + m)).store(value)

    @module.define
    def back(
        f: Function, products: Pointer, position: Int, first: Int, count: Int, tiles: Int, out: Pointer, bias: Pointer
    ) -> None:
        """A^T m A: the results of `count` tiles from number `first` on.

        products  [16 positions `position` floats apart][count, width]
        tiles     in a pair of lines
        out       [pairs of lines][2, 2 tiles, width]
        bias      [width], or nothing
        """
        line = tiles * 2 * width
        with f.either(bias.is_given()) as branches:
            for branch, given in zip(branches, (True, False), strict=True):
                with branch, f.loop(count, carried=[first // tiles, first % tiles]) as (r, state):
                    pair, t = state.values
                    for n in range(vectors):
                        place = products + (r * width + n * lanes)
                        m = [[(place + position * (4 * i + j)).load() for j in range(4)] for i in range(4)]
                        upper = [m[0][j] + m[1][j] + m[2][j] for j in range(4)]
                        lower = [m[1][j] - m[2][j] - m[3][j] for j in range(4)]
                        for y, row in enumerate((upper, lower)):
                            target = out + (pair * 2 * line + y * line + t * 2 * width + n * lanes)
                            both = row[0] + row[1] + row[2], row[1] - row[2] - row[3]
                            for x, value in enumerate(both):
                                result = value + (bias + n * lanes).load() if given else value
                                (target + x * width).store(result)
                    following = t + 1
                    whole = following.equals(tiles)
                    state.values = f.choose(whole, pair + 1, pair), f.choose(whole, f.number(0), following)

    return _Transforms(window, tiles, back)


def _spread_two(a: Vector, b: Vector) -> list[Vector]:
    """A of Winograd's F(2, 3) times a column of two."""
    return [a, a + b, a - b, -b]


@dataclass(frozen=True)
class _Results:
    moments: Any
    pool: Any


def _define_results(module: Module, layout: Registers) -> _Results:
    """What is done with a block's results [planes * pairs of lines][2, columns, width] while they are in the cache."""
    lanes, vectors, width = layout.lanes, layout.vectors, layout.width

    @module.define
    def moments(
        f: Function, results: Pointer, columns: Int, lines: Int, planes: Int, y0: Int, y1: Int, x1: Int, out: Pointer,
        brick_d: Int, brick_h: Int, brick_w: Int, out_plane: Int, out_line: Int, out_brick: Int, channels: Int,
    ) -> None:  # fmt: skip
        """Sums of x and x * x over each brick, along D, then H, then W: as `reproducible.brick_moments` adds them.

        out  [bricks on D, on H, on W][2, channels], of which `width` channels are written
        """
        with (
            f.loop(planes // brick_d) as (bz, _),
            f.loop((y1 - y0) // brick_h) as (by, _),
            f.loop(x1 // brick_w) as (bx, _),
        ):
            for n in range(vectors):
                zero = f.constant(0)
                with f.loop(brick_w, carried=[zero, zero]) as (x, whole):
                    with f.loop(brick_h, carried=[zero, zero]) as (y, column):
                        with f.loop(brick_d, carried=[zero, zero]) as (z, depth):
                            at = ((bz * brick_d + z) * lines + y0 + by * brick_h + y) * columns + bx * brick_w + x
                            value = (results + (at * width + n * lanes)).load()
                            depth.values = _add_moments(f, z, depth.values, value, value * value)
                        column.values = _add_moments(f, y, column.values, *depth.values)
                    whole.values = _add_moments(f, x, whole.values, *column.values)
                target = out + (bz * out_plane + by * out_line + bx * out_brick + n * lanes)
                target.store(whole.values[0])
                (target + channels).store(whole.values[1])

    @module.define
    def pool(
        f: Function, results: Pointer, columns: Int, lines: Int, planes: Int, y0: Int, y1: Int, x1: Int, out: Pointer,
        plane: Int, line: Int, channels: Int, signs: Pointer,
    ) -> None:  # fmt: skip
        """The largest of each 2x2x2 voxels, or the smallest for channels of sign -1, in the order of torch's."""
        with (
            f.loop(planes // 2) as (z, _),
            f.loop((y1 - y0) // 2) as (y, _),
            f.loop(x1 // 2) as (x, _),
        ):
            for n in range(vectors):
                sign = (signs + n * lanes).load()
                best: Vector | None = None
                for dz in range(2):
                    for dy in range(2):
                        for dx in range(2):
                            at = ((z * 2 + dz) * lines + y0 + y * 2 + dy) * columns + x * 2 + dx
                            value = (results + (at * width + n * lanes)).load() * sign
                            best = value if best is None else f.largest(value, best)
                assert best is not None
                (out + (z * plane + y * line + x * channels + n * lanes)).store(best * sign)

    return _Results(moments, pool)


def _add_moments(f: Function, number: Int, sums: tuple[Vector, Vector], x: Vector, square: Vector) -> Any:
    """Sums with one more term; the first term *is* the sum, as 0 + x is but for the sign of a zero."""
    return sums[0] + x, sums[1] + square


@dataclass(frozen=True)
class _Block:
    """A block of tiles of the output: where it begins, and how far the output goes there."""

    z: Int
    planes: Int
    y: Int
    x: Int


def _block(
    f: Function, order: Pointer, number: Int, planes: Int, pairs: Int, tiles: Int, first_plane: Int, last_plane: Int,
    origin_y: Int, origin_x: Int, blocks_y: Int, blocks_x: Int,
) -> _Block:  # fmt: skip
    index = (order + number * 2).integer()  # 64 bits are two floats
    column, rest = index % blocks_x, index // blocks_x
    row, layer = rest % blocks_y, rest // blocks_y
    z = first_plane + layer * planes
    return _Block(z, f.smaller(planes, last_plane - z), origin_y + row * pairs * 2, origin_x + column * tiles * 2)


@dataclass(frozen=True)
class _Source:
    """A tensor that is read through its activation, leaky(data * scale + shift), as `Parts.fill_line` reads it."""

    data: Pointer
    plane: Int
    line: Int
    channels: Int
    scale: Pointer
    shift: Pointer
    slope: Vector


def _fill_window(
    f: Function, parts: Parts, transforms: _Transforms, sources: Sequence[_Source],
    ranges: tuple[tuple[Int, Int], tuple[Int, Int], tuple[Int, Int]], block: _Block, pairs: Int, tiles: Int,
    stride: Int, position: Int, lines: Pointer, window: Pointer,
) -> None:  # fmt: skip
    """Write down: a block's window, transformed.

    sources  one or two tensors side by side; the second may be nothing
    ranges   of the voxels there are on D, H, W; beyond them is zero
    lines    [2 pairs + 2, 2 tiles + 2, stride] for the lines of a plane
    window   [16 positions `position` floats apart][planes + 2, pairs, tiles, stride]
    """
    (low_z, high_z), (low_y, high_y), (low_x, high_x) = ranges
    columns, zero = tiles * 2 + 2, f.number(0)
    line_stride = columns * stride

    def fill(source: _Source, target: Pointer, y: Int, z: Int, begin: Int, end: Int) -> None:
        parts.fill_line(
            f, target, stride, block.x - 1, columns, begin, end, source.data + (z * source.plane + y * source.line),
            source.channels, source.scale, source.shift, source.slope,
        )  # fmt: skip

    with f.loop(block.planes + 2) as (dz, _):
        z = block.z + dz - 1
        there = (z >= low_z) & (z < high_z)
        with f.loop(pairs * 2 + 2) as (dy, _):
            y = block.y + dy - 1
            filled = there & (y >= low_y) & (y < high_y)
            begin, end = f.choose(filled, low_x, zero), f.choose(filled, high_x, zero)
            target = lines + dy * line_stride
            fill(sources[0], target, y, z, begin, end)
            for second in sources[1:]:
                with f.when(second.data.is_given()):
                    fill(second, target + sources[0].channels, y, z, begin, end)
        with f.loop(pairs) as (pair, _):
            transforms.window(
                f, lines + pair * 2 * line_stride, line_stride, window + (dz * pairs + pair) * tiles * stride, position,
                tiles, stride,
            )  # fmt: skip


def _define_forward(
    module: Module, layout: Registers, parts: Parts, transforms: _Transforms, results: _Results
) -> None:
    rows, width = layout.rows, layout.width

    @module.entry
    def forward(
        f: Function, first: Int, last: Int, scratch: Pointer, *,
        order: Pointer, planes: Int, pairs: Int, tiles: Int, first_plane: Int, last_plane: Int, origin_y: Int,
        origin_x: Int, blocks_y: Int, blocks_x: Int, chunk: Int, height: Int, breadth: Int,
        low_z: Int, high_z: Int, low_y: Int, high_y: Int, low_x: Int, high_x: Int,
        a: Pointer, a_plane: Int, a_line: Int, a_channels: Int, a_scale: Pointer, a_shift: Pointer, a_slope: Vector,
        b: Pointer, b_plane: Int, b_line: Int, b_channels: Int, b_scale: Pointer, b_shift: Pointer, b_slope: Vector,
        stride: Int, inner: Int, weight: Pointer, bias: Pointer,
        out: Pointer, out_plane: Int, out_line: Int, out_channels: Int,
        sums: Pointer, brick_d: Int, brick_h: Int, brick_w: Int, sums_plane: Int, sums_line: Int,
        pooled: Pointer, pooled_plane: Int, pooled_line: Int, signs: Pointer,
    ) -> None:  # fmt: skip
        """Blocks order[first ... last] of a convolution of one or two activated tensors side by side.

        low, high   the source voxels there are, ghosts included; beyond them is zero
        stride      channels of the window, both sources' rounded up; `inner` of them are summed over
        weight      [out_channels / width][16][3][inner][width]
        """
        line_stride, per_plane = (tiles * 2 + 2) * stride, pairs * tiles
        position = ((planes + 2) * per_plane + rows) * stride
        lines = scratch
        window = lines + (pairs * 2 + 2) * line_stride
        products = window + position * POSITIONS
        product_position = (chunk + rows) * width
        values = products + product_position * POSITIONS
        sources = [
            _Source(a, a_plane, a_line, a_channels, a_scale, a_shift, a_slope),
            _Source(b, b_plane, b_line, b_channels, b_scale, b_shift, b_slope),
        ]
        ranges = (low_z, high_z), (low_y, high_y), (low_x, high_x)
        with f.loop(last, start=first) as (number, _):
            block = _block(
                f, order, number, planes, pairs, tiles, first_plane, last_plane, origin_y, origin_x, blocks_y, blocks_x
            )
            _fill_window(f, parts, transforms, sources, ranges, block, pairs, tiles, stride, position, lines, window)
            count = block.planes * per_plane
            y0, y1 = f.larger(0 - block.y, 0), f.smaller(height - block.y, pairs * 2)
            x0, x1 = f.larger(0 - block.x, 0), f.smaller(breadth - block.x, tiles * 2)
            with f.loop(out_channels // width) as (k, _):
                weights = weight + k * POSITIONS * 3 * inner * width
                own_bias = f.choose(bias.is_given(), bias + k * width, bias)
                with f.loop((count + chunk - 1) // chunk) as (part, _):
                    r = part * chunk
                    n = f.smaller(chunk, count - r)
                    with f.loop(POSITIONS) as (p, _):
                        parts.product(
                            f, window + (p * position + r * stride), stride, per_plane, 3,
                            weights + p * 3 * inner * width, products + p * product_position, n, inner,
                        )  # fmt: skip
                    transforms.back(f, products, product_position, r, n, tiles, values, own_bias)
                place = block.z * out_plane + block.y * out_line + block.x * out_channels + k * width
                parts.store(
                    f, values, tiles * 2, pairs * 2, block.planes, y0, y1, x0, x1, out + place, out_plane, out_line,
                    out_channels,
                )  # fmt: skip
                with f.when(sums.is_given()):
                    brick = out_channels * 2
                    at = (block.z // brick_d) * sums_plane + (block.y + y0) // brick_h * sums_line
                    at = at + (block.x + x0) // brick_w * brick + k * width
                    results.moments(
                        f, values, tiles * 2, pairs * 2, block.planes, y0, y1, x1, sums + at, brick_d, brick_h, brick_w,
                        sums_plane, sums_line, brick, out_channels,
                    )  # fmt: skip
                with f.when(pooled.is_given()):
                    at = block.z // 2 * pooled_plane + (block.y + y0) // 2 * pooled_line
                    at = at + (block.x + x0) // 2 * out_channels + k * width
                    results.pool(
                        f, values, tiles * 2, pairs * 2, block.planes, y0, y1, x1, pooled + at, pooled_plane,
                        pooled_line, out_channels, signs + k * width,
                    )  # fmt: skip


def _define_backward(module: Module, layout: Registers, parts: Parts, transforms: _Transforms) -> None:
    rows, width = layout.rows, layout.width

    @module.entry
    def backward(
        f: Function, first: Int, last: Int, scratch: Pointer, *,
        order: Pointer, planes: Int, pairs: Int, tiles: Int, first_plane: Int, last_plane: Int,
        blocks_y: Int, blocks_x: Int, chunk: Int, height: Int, breadth: Int,
        low_z: Int, high_z: Int, low_y: Int, high_y: Int, low_x: Int, high_x: Int,
        window_data: Pointer, window_plane: Int, window_line: Int, window_channels: Int, stride: Int, inner: Int,
        a: Pointer, a_plane: Int, a_line: Int, a_channels: Int, a_scale: Pointer, a_shift: Pointer, a_slope: Vector,
        b: Pointer, b_plane: Int, b_line: Int, b_channels: Int, b_scale: Pointer, b_shift: Pointer, b_slope: Vector,
        tile_stride: Int, weight: Pointer,
        a_out: Pointer, a_out_plane: Int, a_out_line: Int, a_sums: Pointer,
        b_out: Pointer, b_out_plane: Int, b_out_line: Int, b_sums: Pointer,
        gradient: Pointer, total: Pointer, flush: Int,
    ) -> None:  # fmt: skip
        """Blocks order[first ... last] of a convolution's gradients, from windows of one tensor and tiles of others.

        The windows are those of the output's gradient, the tiles those of the inputs: then the product of the windows
        with `weight` is the inputs' gradient, which goes to a_out and b_out (through the activation where there are
        a_sums, b_sums), and the outer sums are the weight's gradient, its taps reversed. Without `weight` it may be
        the other way round: windows of an input, tiles of the output's gradient.

        inner     channels of the window that count, a multiple of the layout's pairs
        gradient  [16, 3, inner, tile_stride] outer sums of this thread, added to
        total     the same in float64, to which `gradient` is moved each `flush` blocks, or nothing
        """
        line_stride, tile_line = (tiles * 2 + 2) * stride, tiles * 2 * tile_stride
        per_plane = pairs * tiles
        position = ((planes + 2) * per_plane + rows) * stride
        tile_position = planes * per_plane * tile_stride
        lines = scratch
        window = lines + f.larger((pairs * 2 + 2) * line_stride, pairs * 2 * tile_line)
        tile = window + position * POSITIONS
        products = tile + tile_position * POSITIONS
        product_position = (chunk + rows) * width
        values = products + product_position * POSITIONS
        size = inner * tile_stride * 3
        none, zero = f.nothing(), f.number(0)
        windowed = [_Source(window_data, window_plane, window_line, window_channels, none, none, a_slope)]
        ranges = (low_z, high_z), (low_y, high_y), (low_x, high_x)
        with f.loop(last, start=first, carried=[f.number(0)]) as (number, since):
            block = _block(
                f, order, number, planes, pairs, tiles, first_plane, last_plane, zero, zero, blocks_y, blocks_x
            )
            _fill_window(f, parts, transforms, windowed, ranges, block, pairs, tiles, stride, position, lines, window)
            with f.loop(block.planes) as (dz, _):
                z = block.z + dz
                with f.loop(pairs * 2) as (dy, _):
                    y = block.y + dy
                    end = f.choose(y < height, breadth, zero)
                    target = scratch + dy * tile_line
                    source = a + (z * a_plane + y * a_line)
                    parts.fill_line(
                        f, target, tile_stride, block.x, tiles * 2, zero, end, source, a_channels, a_scale, a_shift,
                        a_slope,
                    )  # fmt: skip
                    with f.when(b.is_given()):
                        source = b + (z * b_plane + y * b_line)
                        parts.fill_line(
                            f, target + a_channels, tile_stride, block.x, tiles * 2, zero, end, source, b_channels,
                            b_scale, b_shift, b_slope,
                        )  # fmt: skip
                with f.loop(pairs) as (pair, _):
                    transforms.tiles(
                        f, scratch + pair * 2 * tile_line, tile_line,
                        tile + (dz * pairs + pair) * tiles * tile_stride, tile_position, tiles, tile_stride,
                    )  # fmt: skip
            count = block.planes * per_plane
            with f.loop(POSITIONS) as (p, _):
                parts.outer_sums(
                    f, window + p * position, stride, per_plane, tile + p * tile_position, tile_stride,
                    gradient + p * size, count, inner,
                )  # fmt: skip
            following = since.values[0] + 1
            full = following.equals(flush)
            with f.when(full & total.is_given()):
                move_to_total(f, gradient, total, size * POSITIONS)
            since.values = (f.choose(full, zero, following),)
            with f.when(weight.is_given()):
                y1 = f.smaller(height - block.y, pairs * 2)
                x1 = f.smaller(breadth - block.x, tiles * 2)
                with f.loop(tile_stride // width) as (k, _):
                    weights = weight + k * POSITIONS * 3 * inner * width
                    with f.loop((count + chunk - 1) // chunk) as (part, _):
                        r = part * chunk
                        n = f.smaller(chunk, count - r)
                        with f.loop(POSITIONS) as (p, _):
                            parts.product(
                                f, window + (p * position + r * stride), stride, per_plane, 3,
                                weights + p * 3 * inner * width, products + p * product_position, n, inner,
                            )  # fmt: skip
                        transforms.back(f, products, product_position, r, n, tiles, values, f.nothing())
                    channel, in_second = k * width, k * width - a_channels
                    with f.either(channel < a_channels) as (in_a, in_b):
                        for branch, data, out, sums, plane, line, data_plane, data_line, channels, offset, s in (
                            (in_a, a, a_out, a_sums, a_out_plane, a_out_line, a_plane, a_line, a_channels, channel,
                             (a_scale, a_shift, a_slope)),
                            (in_b, b, b_out, b_sums, b_out_plane, b_out_line, b_plane, b_line, b_channels,
                             in_second, (b_scale, b_shift, b_slope)),
                        ):  # fmt: skip
                            with branch:
                                at = block.z * plane + block.y * line + block.x * channels + offset
                                with f.either(sums.is_given()) as (through, plain):
                                    with plain, f.when(out.is_given()):
                                        parts.store(
                                            f, values, tiles * 2, pairs * 2, block.planes, zero, y1, zero, x1,
                                            out + at, plane, line, channels,
                                        )  # fmt: skip
                                    with through:
                                        here = block.z * data_plane + block.y * data_line + block.x * channels + offset
                                        parts.through_activation(
                                            f, values, tiles * 2, pairs * 2, block.planes, zero, y1, zero, x1,
                                            out + at, plane, line, data + here, data_plane, data_line, channels,
                                            s[0] + offset, s[1] + offset, s[2], sums + offset * 2,
                                        )  # fmt: skip
        with f.when(total.is_given()):
            move_to_total(f, gradient, total, size * POSITIONS)


def _define_transform_weight(module: Module, layout: Registers) -> None:
    lanes, width = layout.lanes, layout.width

    @module.entry
    def transform_weight(
        f: Function, first: Int, last: Int, scratch: Pointer, *,
        weight: Pointer, inner_stride: Int, outer_stride: Int, tap_stride: Int,
        out: Pointer, inner: Int,
    ) -> None:  # fmt: skip
        """G g G^T for the numbers first ... last, which count output channels by width, then inner channels.

        weight   (inner channel, output channel, tap) by strides; 27 taps on D, H, W, the last fastest
        out      [output channels / width][16][3][inner][width]
        scratch  [27, lanes]
        """
        half = f.constant(0.5)
        with f.loop(last, start=first) as (number, _), f.loop(width, step=lanes) as (lane, _):
            k, c = number // inner, number % inner
            for n in range(lanes):
                source = weight + (c * inner_stride + (k * width + lane + n) * outer_stride)
                with f.loop(27) as (tap, _):
                    (scratch + (tap * lanes + n)).copy_one(source + tap * tap_stride)
            with f.loop(3) as (tap, _):
                g = [[(scratch + (tap * 9 + 3 * y + x) * lanes).load() for x in range(3)] for y in range(3)]
                rows = _filter_side(half, *g)
                for y, row in enumerate(rows):
                    for x, value in enumerate(_filter_side(half, *([v] for v in row))):
                        at = ((k * POSITIONS + 4 * y + x) * 3 + tap) * inner + c
                        (out + (at * width + lane)).store(value[0])


def _define_finish_gradient(module: Module, layout: Registers) -> None:
    lanes = layout.lanes

    @module.entry
    def finish_gradient(
        f: Function, first: Int, last: Int, scratch: Pointer, *,
        gradient: Pointer, total: Pointer, inner: Int, channels: Int,
        out: Pointer, inner_stride: Int, outer_stride: Int, tap_stride: Int,
    ) -> None:  # fmt: skip
        """G^T u G, the gradient of a weight, for the inner channels first ... last.

        gradient, total  [16, 3, inner as stored, channels], one of them: float32 or float64
        out              by strides, as `transform_weight` takes a weight
        scratch          [27, lanes]
        """
        half, wide = f.constant(0.5), total.wide()
        size = inner * channels
        with f.loop(last, start=first) as (a, _), f.loop(channels, step=lanes) as (b, _):
            i = a * channels + b
            with f.loop(3) as (tap, _), f.either(total.is_given()) as (from_total, from_gradient):
                for branch, source in ((from_total, wide), (from_gradient, gradient)):
                    with branch:
                        u = [[(source + ((4 * y + x) * 3 + tap) * size + i).load() for x in range(4)] for y in range(4)]
                        scale = half.wide() if source is wide else half
                        rows = _gather_side(scale, *u)
                        for y, row in enumerate(rows):
                            for x, value in enumerate(_gather_side(scale, *([v] for v in row))):
                                number = value[0].narrow() if source is wide else value[0]
                                (scratch + (tap * 9 + 3 * y + x) * lanes).store(number)
            for n in range(lanes):
                target = out + (a * inner_stride + (b + n) * outer_stride)
                with f.loop(27) as (tap, _):
                    (target + tap * tap_stride).copy_one(scratch + (tap * lanes + n))


def _filter_side(half: Vector, a: list[Vector], b: list[Vector], c: list[Vector]) -> Any:
    """G times a column of three."""
    both = [(x + z) * half for x, z in zip(a, c, strict=True)]
    middle = [y * half for y in b]
    return (
        a,
        [m + n for m, n in zip(both, middle, strict=True)],
        [m - n for m, n in zip(both, middle, strict=True)],
        c,
    )


def _gather_side(half: Vector, a: list[Vector], b: list[Vector], c: list[Vector], d: list[Vector]) -> Any:
    """G^T times a column of four."""
    both = [(y + z) * half for y, z in zip(b, c, strict=True)]
    return (
        [x + m for x, m in zip(a, both, strict=True)],
        [(y - z) * half for y, z in zip(b, c, strict=True)],
        [m + w for m, w in zip(both, d, strict=True)],
    )
