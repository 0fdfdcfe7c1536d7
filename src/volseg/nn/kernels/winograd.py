"""The 3x3x3 convolution of activations, its input and weight gradients, over blocks of tiles shared among threads.

The machine code is in `winograd_code.py`. Measured on one core of an AMD EPYC 7003 (AVX2), in operations of the direct
sum: 100 to 165 GF/s, where oneDNN reaches 45 to 85 and SGEMM 60 to 85, with half the rounding error of oneDNN's
(`benchmarks/convolution.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Protocol

import torch
from torch import Tensor

from volseg.geometry import Triple
from volseg.nn.kernels import winograd_code
from volseg.nn.kernels.jit import workers
from volseg.nn.kernels.jit.compiler import Library, compiled_once, widest_vector
from volseg.nn.kernels.rows import Activation, Rows
from volseg.partition.tiling import (
    FLUSH_TILES,
    LANES,
    POSITIONS,
    TAPS,
    WEIGHT_ROOM,
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


@compiled_once
def _forward_library(layout: Registers) -> Library:
    return winograd_code.build_forward(layout)


@compiled_once
def _backward_library(layout: Registers) -> Library:
    return winograd_code.build_backward(layout)


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

    def release(self) -> None:
        """Give the memory to the next weight; this one must not be used any more."""
        workers.give("weight", self.packed)


def pack_weight(weight: Tensor, sources: Sequence[int]) -> Weight:
    """The weight of a convolution for `forward`.

    weight   [K, C, 3, 3, 3]
    sources  C cut into the inputs' channels; each input's are stored rounded up to vectors, a single one's may be
             fewer than a vector
    """
    stored = _as_stored(weight.detach(), sources)
    k, c = stored.shape[:2]
    layout = registers_for([k], _read(sources), widest_vector())
    strides = {"inner_stride": 27, "outer_stride": 27 * c, "tap_stride": 1}
    return _pack(stored, 0, strides, c, k, layout, _forward_library(layout))


def pack_turned_weight(weight: Tensor, sources: Sequence[int]) -> Weight:
    """The weight of the input gradient, for `backward`: taps reversed, inputs and outputs exchanged."""
    stored = _as_stored(weight.detach(), sources)
    k, c = stored.shape[:2]
    layout = registers_for([padded_channels(s) for s in sources], [k], widest_vector())
    if c % 8:  # an image's channels, which `forward` takes as they are
        stored, c = torch.nn.functional.pad(stored, [0] * 7 + [padded_channels(c) - c]), padded_channels(c)
    strides = {"inner_stride": 27 * c, "outer_stride": 27, "tap_stride": -1}
    return _pack(stored, 26, strides, k, c, layout, _backward_library(layout))


def _read(sources: Sequence[int]) -> list[int]:
    """The channels of inputs, for `registers_for`: rounded up, unless there is one and it may be an image."""
    return list(sources) if len(sources) == 1 and sources[0] < LANES else [padded_channels(s) for s in sources]


def _as_stored(weight: Tensor, sources: Sequence[int]) -> Tensor:
    """[K, C, 3, 3, 3] with zeros where channels are stored and not there; fewer than a vector of one input stay."""
    if len(sources) > 1 or sources[0] > 8:
        weight = _pad_sources(weight, 1, sources)
    return _pad_sources(weight, 0, [weight.shape[0]]).contiguous()


def _pad_sources(weight: Tensor, dim: int, sources: Sequence[int]) -> Tensor:
    if all(s % 8 == 0 for s in sources):
        return weight
    parts = []
    for part in weight.split(list(sources), dim):
        zeros = list(part.shape)
        zeros[dim] = padded_channels(zeros[dim]) - zeros[dim]
        parts += [part, part.new_zeros(zeros)]
    return torch.cat(parts, dim)


def _pack(
    stored: Tensor, offset: int, strides: dict[str, int], inner: int, channels: int, layout: Registers, library: Library
) -> Weight:
    """offset, strides  of the values in the stored weight (`winograd_code`)"""
    packed = workers.take("weight", channels * POSITIONS * TAPS * inner)
    place = stored.data_ptr() + 4 * offset
    job = library["transform_weight"].bind(weight=place, **strides, out=packed, inner=inner)
    workers.run(job, channels // layout.width * inner, WEIGHT_ROOM)
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
    assert origin == (0, 0) or (sums is None and pooled is None), "bricks and pools begin at even coordinates"
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


@lru_cache(maxsize=1024)
def _order(blocks: Blocks) -> Tensor:
    """All blocks."""
    return torch.arange(prod(blocks.counts))


@lru_cache(maxsize=1024)
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


class WeightSums:
    """The sums over the volume that a weight's gradient is made from, by thread.

    weight   [K, C, 3, 3, 3]
    sources  C cut into the inputs' channels
    voxels   of this rank's block: whether so many can be added in float32
    image    the windows are those of the input, not of the output's gradient (see `add_for_image`)
    """

    def __init__(self, weight: Tensor, sources: Sequence[int], voxels: int, image: bool = False) -> None:
        self._shape, self._sources, self.image = tuple(weight.shape[:2]), list(sources), image
        stored = sum(padded_channels(s) for s in sources), padded_channels(weight.shape[0])
        self.tile_channels = stored[1] if image else stored[0]
        tiles, windows = [padded_channels(s) for s in sources], [stored[1]]
        if image:
            tiles, windows = windows, _read(sources)
        self.layout = registers_for(tiles, windows, widest_vector())
        together = self.layout.window_channels(TAPS)
        window = weight.shape[1] if image else stored[1]
        self.inner = -(-window // together) * together
        size = (workers.count(), POSITIONS, TAPS, self.inner, self.tile_channels)
        self._memory = workers.take("weight gradient", prod(size))
        self.sums = self._memory[: prod(size)].view(size).zero_()
        many = voxels > 4 * FLUSH_TILES * workers.count()
        self.totals = torch.zeros(size, dtype=torch.float64) if many else None

    def finish(self) -> Tensor:
        """[K, C, 3, 3, 3]: this rank's part of the gradient. Gives the sums' memory back."""
        whole = self.sums if self.totals is None else self.totals
        added = whole[0] if len(whole) == 1 else whole.sum(0)
        given = {"gradient": None, "total": added} if self.totals is not None else {"gradient": added, "total": None}
        k, c = padded_channels(self._shape[0]), self._shape[1] if self.image else self.tile_channels
        out = torch.empty(k, c, 3, 3, 3)
        if self.image:
            place, strides = out.data_ptr(), {"inner_stride": 27, "outer_stride": 27 * c, "tap_stride": 1}
        else:
            place, strides = out.data_ptr() + 4 * 26, {"inner_stride": 27 * c, "outer_stride": 27, "tap_stride": -1}
        job = _backward_library(self.layout)["finish_gradient"].bind(
            **given, inner=self.inner, channels=self.tile_channels, out=place, **strides
        )
        workers.run(job, self._shape[1] if self.image else k, WEIGHT_ROOM)
        workers.give("weight gradient", self._memory)
        return self._without_padding(out)

    def _without_padding(self, out: Tensor) -> Tensor:
        k, c = self._shape
        if not self.image and any(s % 8 for s in self._sources):
            parts = out.split([padded_channels(s) for s in self._sources], 1)
            out = torch.cat([part[:, :s] for part, s in zip(parts, self._sources, strict=True)], 1)
        return out if out.shape[:2] == (k, c) else out[:k, :c].contiguous()


def backward(
    inputs: Sequence[Activation], gradient: Rows, weight: Weight, targets: Sequence[Target], into: WeightSums, *,
    planes: Range | None = None, ghosts: Sequence[Ghosts] = (),
) -> None:  # fmt: skip
    """Gradients of `forward`: of its inputs to `targets`, of its weight added to `into`.

    gradient  of the output, with ghosts where the volume goes on; zero beyond them
    weight    from `pack_turned_weight`
    planes    of the block; all by default
    """
    _gradients(Activation(gradient), inputs, weight, targets, into, planes or (0, gradient.sides[0]), ghosts)


def add_for_image(x: Activation, gradient: Rows, into: WeightSums) -> None:
    """The weight's gradient alone added to `into`, from windows of an image, which must have its ghosts."""
    assert x.affine is None
    _gradients(x, [Activation(gradient)], None, [], into, (0, gradient.sides[0]), ())


def _gradients(
    window: Activation, tiles: Sequence[Activation], weight: Weight | None, targets: Sequence[Target],
    into: WeightSums, planes: Range, ghosts: Sequence[Ghosts],
) -> None:  # fmt: skip
    _, h, w = tiles[0].rows.sides
    layout, threads = into.layout, len(into.sums)
    stride = padded_channels(window.rows.channels)
    blocks = plan_blocks(planes, h, w, stride + into.tile_channels, into.inner, layout.rows, (1, 1, 1), threads)
    sums = [_sums_by_thread(target, threads) for target in targets]
    common = {
        **_block_values(blocks), **_ranges(window.rows.valid), "height": h, "breadth": w,
        "window_data": window.rows.address, "window_plane": window.rows.plane, "window_line": window.rows.line,
        "window_channels": window.rows.channels, "stride": stride, "inner": into.inner,
        **_sources(tiles), "tile_stride": into.tile_channels, "weight": None if weight is None else weight.packed,
        "flush": max(1, FLUSH_TILES // (blocks.planes * blocks.pairs * blocks.tiles)),
        **_target("a", targets[0] if targets else None), **_target("b", targets[1] if len(targets) > 1 else None),
    }  # fmt: skip
    entry, room = _backward_library(layout)["backward"], backward_room(blocks, stride, into.tile_channels, layout)
    for order in _in_stages(blocks, window.rows, ghosts):
        jobs = [
            entry.bind(
                **common, order=order.data_ptr(), gradient=into.sums[n],
                total=None if into.totals is None else into.totals[n],
                a_sums=_of_thread(sums, 0, n), b_sums=_of_thread(sums, 1, n),
            )
            for n in range(threads)
        ]  # fmt: skip
        workers.run(jobs, order.numel(), room)
    for target, by_thread in zip(targets, sums, strict=True):
        if target.sums is not None and by_thread is not None:
            target.sums.add_(by_thread.sum(0))


def _of_thread(sums: Sequence[Tensor | None], number: int, thread: int) -> Tensor | None:
    found = sums[number] if number < len(sums) else None
    return None if found is None else found[thread]


def _sums_by_thread(target: Target, threads: int) -> Tensor | None:
    if target.sums is None:
        return None
    return torch.zeros(threads, *target.sums.shape, dtype=torch.float64)


def _target(name: str, target: Target | None) -> dict[str, object]:
    if target is None:
        return {f"{name}_out": None, f"{name}_out_plane": 0, f"{name}_out_line": 0}
    rows = target.rows
    return {f"{name}_out": rows.address, f"{name}_out_plane": rows.plane, f"{name}_out_line": rows.line}
