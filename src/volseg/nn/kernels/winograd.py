"""The 3x3x3 convolution of activations, its input and weight gradients, over blocks of tiles shared among threads.

The machine code is in `winograd_code.py`. Measured on one core of an AMD EPYC 7003 (AVX2), in operations of the direct
sum: 100 to 165 GF/s, where oneDNN reaches 45 to 85 and SGEMM 60 to 85, with half the rounding error of oneDNN's
(`benchmarks/convolution.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Protocol

import torch
from torch import Tensor

from volseg.geometry import Triple
from volseg.nn.kernels import winograd_code
from volseg.nn.kernels.jit import workers
from volseg.nn.kernels.jit.compiler import Library, widest_vector
from volseg.nn.kernels.rows import Activation, Rows
from volseg.partition.tiling import (
    FLUSH,
    POSITIONS,
    TAPS,
    Blocks,
    Registers,
    backward_room,
    forward_room,
    padded_channels,
    plan_blocks,
    registers_for,
)
from volseg.partition.window import Range


class Ghosts(Protocol):
    """An exchange of ghosts that is under way (`distributed.halo.GhostExchange`)."""

    @property
    def done(self) -> bool:
        """Whether all ghosts are there."""

    def advance(self) -> None:
        """Finish an axis and start the next."""

    def wait(self) -> None:
        """Finish all axes."""


def available() -> bool:
    """Whether this processor can run the kernels."""
    return widest_vector() > 0


@cache
def _forward_library(layout: Registers) -> Library:
    return winograd_code.build_forward(layout)


@cache
def _backward_library(layout: Registers) -> Library:
    return winograd_code.build_backward(layout)


def _layout(*channels: int) -> Registers:
    """The layout that fits several numbers of channels at once."""
    layouts = [registers_for(c, widest_vector()) for c in channels]
    return min(layouts, key=lambda layout: layout.width)


@dataclass(frozen=True)
class Weight:
    """A weight made ready for `forward` or `backward`.

    packed    [channels / width][16][3][inner][width]
    inner     channels of the windows
    channels  of the results, rounded up to vectors
    """

    packed: Tensor
    layout: Registers
    inner: int
    channels: int


def pack_weight(weight: Tensor, sources: Sequence[int]) -> Weight:
    """The weight of a convolution for `forward`.

    weight   [K, C, 3, 3, 3]
    sources  C cut into the inputs' channels; each input's are stored rounded up to vectors, a single one's may be
             fewer than a vector
    """
    taps = weight.detach().permute(2, 3, 4, 1, 0)
    if len(sources) > 1 or sources[0] > 8:
        taps = _pad_sources(taps, 3, sources)
    layout = _layout(padded_channels(weight.shape[0]))
    return _pack(taps, layout, _forward_library(layout))


def pack_turned_weight(weight: Tensor, sources: Sequence[int]) -> Weight:
    """The weight of the input gradient, for `backward`: taps reversed, inputs and outputs exchanged."""
    taps = weight.detach().flip(2, 3, 4).permute(2, 3, 4, 0, 1)
    taps = _pad_sources(_pad_sources(taps, 4, sources), 3, [weight.shape[0]])
    layout = _layout(*(padded_channels(s) for s in sources))
    return _pack(taps, layout, _backward_library(layout))


def _pad_sources(taps: Tensor, dim: int, sources: Sequence[int]) -> Tensor:
    if all(s % 8 == 0 for s in sources):
        return taps
    parts = []
    for part in taps.split(list(sources), dim):
        missing = padded_channels(part.shape[dim]) - part.shape[dim]
        zeros = list(part.shape)
        zeros[dim] = missing
        parts += [part, part.new_zeros(zeros)]
    return torch.cat(parts, dim)


def _pack(taps: Tensor, layout: Registers, library: Library) -> Weight:
    """taps [3, 3, 3, inner, K]"""
    taps = _pad_sources(taps, 4, [taps.shape[4]]).contiguous()
    inner, channels = taps.shape[3], taps.shape[4]
    packed = torch.empty(channels * POSITIONS * 3 * inner)
    job = library["transform_weight"].bind(weight=taps, out=packed, inner=inner, channels=channels)
    workers.run(job, inner)
    return Weight(packed, layout, inner, channels)


@dataclass(frozen=True)
class BrickSums:
    """Where `forward` puts the sums of x and x * x over bricks, which no rank's block cuts.

    sums   [D / bd, H / bh, W / bw, 2, K], K as stored
    brick  (bd, bh, bw)
    """

    sums: Tensor
    brick: Triple


@dataclass(frozen=True)
class Pooled:
    """Where `forward` puts the largest of each 2x2x2 voxels, the smallest for channels whose sign is -1. signs [K]."""

    rows: Rows
    signs: Tensor


def forward(
    inputs: Sequence[Activation],
    weight: Weight,
    bias: Tensor | None,
    out: Rows,
    *,
    planes: Range | None = None,
    origin: tuple[int, int] = (0, 0),
    sums: BrickSums | None = None,
    pooled: Pooled | None = None,
    ghosts: Sequence[Ghosts] = (),
) -> None:
    """Fill `out` with the convolution of one or two inputs side by side, zero beyond their ghosts.

    bias    [K], as many as `out` has stored, or None
    planes  of the output to compute; all by default
    origin  (0 or -1) on H and W: -1 where the block begins at an odd coordinate of the volume
    ghosts  of the inputs, where they are still under way: blocks that need none are computed meanwhile
    """
    d, h, w = out.sides
    brick = sums.brick if sums is not None else (1, 1, 1)
    deep, high, wide = (max(b, 2) if pooled is not None else b for b in brick)
    layout = weight.layout
    blocks = plan_blocks(
        planes or (0, d), h, w, weight.inner, weight.channels, layout.rows, (deep, high, wide), workers.count(), origin
    )
    stride = sum(padded_channels(x.rows.channels) for x in inputs)
    values = {
        **_block_values(blocks), "origin_y": origin[0], "origin_x": origin[1], "height": h, "breadth": w,
        **_ranges(inputs[0].rows.valid), **_sources(inputs), "stride": stride, "inner": weight.inner,
        "weight": weight.packed, "bias": bias,
        "out": out.address, "out_plane": out.plane, "out_line": out.line, "out_channels": out.channels,
        **_brick_values(sums), **_pooled_values(pooled),
    }  # fmt: skip
    entry, room = _forward_library(layout)["forward"], forward_room(blocks, stride, layout)
    for order in _in_stages(blocks, inputs[0].rows, ghosts):
        workers.run(entry.bind(**values, order=order.data_ptr()), order.numel(), room)


def _in_stages(blocks: Blocks, window: Rows, ghosts: Sequence[Ghosts]) -> Iterator[Tensor]:
    """The blocks, those that need ghosts last; an axis of the exchange is finished after each third of the others."""
    if all(exchange.done for exchange in ghosts):
        yield _order(blocks)
        return
    d, h, w = (valid[1] - high for valid, high in zip(window.valid, window.high, strict=True))
    early, late = _split(blocks, window.low, window.high, (d, h, w))
    for part in early.chunk(3) if early.numel() else ():
        yield part
        for exchange in ghosts:
            exchange.advance()
    for exchange in ghosts:
        exchange.wait()
    if late.numel():
        yield late


def _order(blocks: Blocks) -> Tensor:
    """All blocks."""
    return torch.arange(prod(blocks.counts))


def _split(blocks: Blocks, low: Triple, high: Triple, sides: Triple) -> tuple[Tensor, Tensor]:
    """The blocks whose window holds no ghosts, and the others.

    low, high  ghosts before and after the rank's block of `sides`
    """
    inside = torch.ones(blocks.counts, dtype=torch.bool)
    starts, lengths = (blocks.first_plane, *blocks.origin), (blocks.planes, 2 * blocks.pairs, 2 * blocks.tiles)
    for axis, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        first = start + length * torch.arange(blocks.counts[axis])
        clear = ((first > 0) | (low[axis] == 0)) & ((first + length < sides[axis]) | (high[axis] == 0))
        inside &= clear.view([-1 if a == axis else 1 for a in range(3)])
    numbers = _order(blocks)
    return numbers[inside.view(-1)], numbers[~inside.view(-1)]


def _block_values(blocks: Blocks) -> dict[str, int]:
    return {
        "planes": blocks.planes, "pairs": blocks.pairs, "tiles": blocks.tiles, "chunk": blocks.chunk,
        "first_plane": blocks.first_plane, "last_plane": blocks.last_plane,
        "blocks_y": blocks.counts[1], "blocks_x": blocks.counts[2],
    }  # fmt: skip


def _ranges(valid: tuple[Range, Range, Range]) -> dict[str, int]:
    (z0, z1), (y0, y1), (x0, x1) = valid
    return {"low_z": z0, "high_z": z1, "low_y": y0, "high_y": y1, "low_x": x0, "high_x": x1}


def _sources(inputs: Sequence[Activation]) -> dict[str, object]:
    return _source("a", inputs[0]) | _source("b", inputs[1] if len(inputs) > 1 else None)


def _source(name: str, x: Activation | None) -> dict[str, object]:
    if x is None:
        values: dict[str, object] = {"": None, "_plane": 0, "_line": 0, "_channels": 0}
        return {name + key: value for key, value in values.items()} | _affine(name, None)
    rows = x.rows
    values = {"": rows.address, "_plane": rows.plane, "_line": rows.line, "_channels": rows.channels}
    return {name + key: value for key, value in values.items()} | _affine(name, x)


def _affine(name: str, x: Activation | None) -> dict[str, object]:
    affine = None if x is None else x.affine
    if affine is None:
        return {f"{name}_scale": None, f"{name}_shift": None, f"{name}_slope": 1.0}
    return {f"{name}_scale": affine.scale, f"{name}_shift": affine.shift, f"{name}_slope": affine.slope}


def _brick_values(sums: BrickSums | None) -> dict[str, object]:
    if sums is None:
        return {"sums": None, "brick_d": 1, "brick_h": 1, "brick_w": 1, "sums_plane": 0, "sums_line": 0}
    d, h, w = sums.brick
    plane, line = sums.sums.stride(0), sums.sums.stride(1)
    return {"sums": sums.sums, "brick_d": d, "brick_h": h, "brick_w": w, "sums_plane": plane, "sums_line": line}


def _pooled_values(pooled: Pooled | None) -> dict[str, object]:
    if pooled is None:
        return {"pooled": None, "pooled_plane": 0, "pooled_line": 0, "signs": None}
    rows = pooled.rows
    return {"pooled": rows.address, "pooled_plane": rows.plane, "pooled_line": rows.line, "signs": pooled.signs}


@dataclass(frozen=True)
class Target:
    """Where `backward` puts the gradient of an input.

    rows  stored as the input's are, without ghosts
    sums  [2, C] float64: then the gradient goes through the input's activation first, and its sums, and those of its
          product with the raw input, are added here
    """

    rows: Rows
    sums: Tensor | None = None


def backward(
    inputs: Sequence[Activation],
    gradient: Rows,
    weight: Weight,
    targets: Sequence[Target | None],
    *,
    planes: Range | None = None,
    ghosts: Sequence[Ghosts] = (),
) -> Tensor:
    """Gradients of `forward`: of its inputs to `targets`, of its weight as the result.

    gradient  of the output, with ghosts where the volume goes on; zero beyond them
    weight    from `pack_turned_weight`
    planes    of the block; all by default: then the weight's gradient is theirs alone
    out       [3, 3, 3, K, C], taps reversed, K and C as stored: this block's part of the sum over the volume
    """
    return _gradients(Activation(gradient), inputs, weight, targets, planes or (0, gradient.sides[0]), ghosts)


def weight_gradient(x: Activation, gradient: Rows, *, planes: Range | None = None) -> Tensor:
    """The weight's gradient alone, from windows of the input, which must have its ghosts: for an image.

    out  [3, 3, 3, C, K], K as stored: this block's part
    """
    assert x.affine is None
    found = _gradients(x, [Activation(gradient)], None, [None], planes or (0, gradient.sides[0]), ())
    return found[:, :, :, : x.rows.channels]


def _gradients(
    window: Activation, tiles: Sequence[Activation], weight: Weight | None, targets: Sequence[Target | None],
    planes: Range, ghosts: Sequence[Ghosts],
) -> Tensor:  # fmt: skip
    _, h, w = tiles[0].rows.sides
    tile_stride = sum(x.rows.channels for x in tiles)
    layout = weight.layout if weight is not None else _layout(tile_stride)
    channels = window.rows.channels
    stride = padded_channels(channels)
    together = layout.window_channels(TAPS)
    inner = -(-channels // together) * together
    blocks = plan_blocks(planes, h, w, stride + tile_stride, inner, layout.rows, (1, 1, 1), workers.count())
    count = prod(blocks.counts)
    threads = len(workers.shares(count))
    size = (POSITIONS, 3, inner, tile_stride)
    gradients = torch.zeros(threads, *size)
    flushing = -(-count // threads) > FLUSH
    totals = torch.zeros(threads, *size, dtype=torch.float64) if flushing else None
    sums = [_sums_by_thread(target, threads) for target in targets]
    common = {
        **_block_values(blocks), **_ranges(window.rows.valid), "height": h, "breadth": w,
        "window_data": window.rows.address, "window_plane": window.rows.plane, "window_line": window.rows.line,
        "window_channels": channels, "stride": stride, "inner": inner,
        **_sources(tiles), "tile_stride": tile_stride,
        "weight": None if weight is None else weight.packed, "flush": FLUSH,
        **_target("a", targets[0]), **_target("b", targets[1] if len(targets) > 1 else None),
    }  # fmt: skip
    entry, room = _backward_library(layout)["backward"], backward_room(blocks, stride, tile_stride, layout)
    for order in _in_stages(blocks, window.rows, ghosts):
        jobs = [
            entry.bind(
                **common, order=order.data_ptr(), gradient=gradients[n], total=None if totals is None else totals[n],
                a_sums=None if sums[0] is None else sums[0][n],
                b_sums=None if len(sums) < 2 or sums[1] is None else sums[1][n],
            )
            for n in range(threads)
        ]  # fmt: skip
        workers.run(jobs, order.numel(), room)
    for target, by_thread in zip(targets, sums, strict=True):
        if target is not None and target.sums is not None and by_thread is not None:
            target.sums.add_(by_thread.sum(0))
    return _finish(layout, gradients, totals)


def _finish(layout: Registers, gradients: Tensor, totals: Tensor | None) -> Tensor:
    """[threads, 16, 3, A, B] outer sums to [3, 3, 3, A, B] gradients of the taps."""
    whole = gradients if totals is None else totals
    added = whole[0] if len(whole) == 1 else whole.sum(0)
    out = torch.empty(3, 3, 3, *added.shape[2:])
    size = out[0, 0, 0].numel()
    job = _backward_library(layout)["finish_gradient"].bind(
        gradient=added if totals is None else None, total=added if totals is not None else None, out=out, size=size
    )
    workers.run(job, size // layout.lanes)
    return out


def _sums_by_thread(target: Target | None, threads: int) -> Tensor | None:
    if target is None or target.sums is None:
        return None
    return torch.zeros(threads, *target.sums.shape, dtype=torch.float64)


def _target(name: str, target: Target | None) -> dict[str, object]:
    if target is None:
        return {f"{name}_out": None, f"{name}_out_plane": 0, f"{name}_out_line": 0}
    rows = target.rows
    return {f"{name}_out": rows.address, f"{name}_out_plane": rows.plane, f"{name}_out_line": rows.line}
