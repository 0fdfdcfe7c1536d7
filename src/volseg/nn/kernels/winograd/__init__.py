"""Convolutions of 3x3 on H and W and 1, 3, 5 or 7 taps on D, and their gradients, over blocks of tiles.

The blocks are shared among threads; the machine code is in `forward.py` and `backward.py`; whether three taps on D are
summed or transformed too, `partition.tiling.Taps` says. Measured on one core of an AMD EPYC 7003 (AVX2) with summed
taps, in operations of the direct sum: 100 to 165 GF/s, where oneDNN reaches 45 to 85 and SGEMM 60 to 85, with half the
rounding error of oneDNN's (`benchmarks/convolution.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import lcm, prod

import torch
from torch import Tensor

from volseg.geometry import Triple
from volseg.nn.kernels.forms import Forms, element_of, forms_of
from volseg.nn.kernels.jit import workers
from volseg.nn.kernels.jit.compiler import Library, compiled_once, widest_vector
from volseg.nn.kernels.jit.language import Element
from volseg.nn.kernels.operands import brick_fields, pool_fields, range_fields, source_fields, target_fields
from volseg.nn.kernels.rows import Activation, Rows
from volseg.nn.kernels.stages import Ghosts, in_stages
from volseg.nn.kernels.winograd.backward import build_backward
from volseg.nn.kernels.winograd.filters import build_weight_transforms
from volseg.nn.kernels.winograd.forward import build_forward
from volseg.nn.kernels.winograd.stages import reads_of
from volseg.partition.tiling import (
    FILTERS_TOGETHER,
    FLUSH_TILES,
    LANES,
    Blocks,
    Registers,
    Taps,
    backward_room,
    forward_room,
    padded_channels,
    plan_blocks,
    registers_for,
    taps_together,
    weight_room,
)
from volseg.partition.window import Range


def available() -> bool:
    """Whether this processor can run the kernels."""
    return widest_vector() > 0


def applies(kernel: Triple, stride: Triple) -> bool:
    """Whether the convolution of such a kernel is one of those here, with "same" padding.

    With a stride of 2 on D there is `forward` and, from windows of its input, the weight's gradient (`add_for_image`),
    but no `backward`.
    """
    return kernel[1:] == (3, 3) and kernel[0] in (1, 3, 5, 7) and stride[1:] == (1, 1) and stride[0] in (1, 2)


@compiled_once
def _forward_library(layout: Registers, paired: bool, forms: Forms, element: Element) -> Library:
    return build_forward(layout, paired, forms, element)


@compiled_once
def _backward_library(layout: Registers, paired: bool, together: int, forms: Forms) -> Library:
    return build_backward(layout, paired, together, forms)


@compiled_once
def _weight_library(layout: Registers, paired: bool) -> Library:
    return build_weight_transforms(layout, paired)


@dataclass(frozen=True)
class Weight:
    """A weight made ready for `forward` or `backward`.

    packed    [channels / width][positions][summed][inner][width]
    inner     channels of the windows
    channels  of the results, rounded up to vectors
    """

    packed: Tensor
    layout: Registers
    inner: int
    channels: int
    taps: Taps

    def release(self) -> None:
        """Give the memory to the next weight; this one must not be used any more."""
        workers.give("weight", self.packed)


def pack_weight(weight: Tensor, sources: Sequence[int], stride: Triple = (1, 1, 1)) -> Weight:
    """The weight of a convolution for `forward`.

    weight   [K, C, kd, 3, 3]
    sources  C cut into the inputs' channels; each input's are stored rounded up to vectors, a single one's may be
             fewer than a vector
    """
    _check(weight, stride)
    stored = _as_stored(weight.detach(), sources)
    k, c = stored.shape[:2]
    layout = registers_for([k], _read(sources), widest_vector())
    return _pack(stored, False, c, k, layout, stride[0])


def pack_turned_weight(weight: Tensor, sources: Sequence[int]) -> Weight:
    """The weight of the input gradient, for `backward`: taps reversed, inputs and outputs exchanged."""
    _check(weight, (1, 1, 1))
    stored = _as_stored(weight.detach(), sources)
    k, c = stored.shape[:2]
    layout = registers_for([padded_channels(s) for s in sources], [k], widest_vector())
    if c % 8:  # an image's channels, which `forward` takes as they are
        stored, c = torch.nn.functional.pad(stored, [0] * 7 + [padded_channels(c) - c]), padded_channels(c)
    return _pack(stored, True, k, c, layout)


def _check(weight: Tensor, stride: Triple) -> None:
    kernel = (weight.shape[2], weight.shape[3], weight.shape[4])
    assert applies(kernel, stride), f"no kernel {kernel} with stride {stride} here; see applies()"


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


def _pack(stored: Tensor, turned: bool, inner: int, channels: int, layout: Registers, step: int = 1) -> Weight:
    taps = Taps.of(stored.shape[2], step, inner, channels)
    packed = workers.take("weight", channels * taps.terms * inner)
    job = _weight_library(layout, taps.paired)["transform_weight"].bind(
        weight=_filter_fields(stored, turned), out=packed, inner=inner
    )
    items = channels // layout.width * -(-inner // FILTERS_TOGETHER)
    workers.run(job, items, weight_room(taps, layout))
    return Weight(packed, layout, inner, channels, taps)


def _filter_fields(weight: Tensor, turned: bool) -> dict[str, int]:
    """A `Filter` over a contiguous weight [K, C, kd, 3, 3]: its inner channels are C, or, turned, K, taps reversed."""
    taps, places = weight.shape[2], 9 * weight.shape[2]
    across, along = places * weight.shape[1], places
    if turned:
        last = weight.data_ptr() + weight.element_size() * (places - 1)
        return {"data": last, "inner": across, "outer": along, "tap": -1, "taps": taps}
    return {"data": weight.data_ptr(), "inner": along, "outer": across, "tap": 1, "taps": taps}


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
    """Where `forward` puts the largest voxel of each window, the smallest for channels whose sign is -1.

    signs   [K] of 1 and -1
    window  1 or 2 voxels on D, H, W, which is also the step from window to window
    """

    rows: Rows
    signs: Tensor
    window: Triple = (2, 2, 2)


def forward(
    inputs: Sequence[Activation],
    weight: Weight,
    bias: Tensor | None,
    out: Rows,
    *,
    planes: Range | None = None,
    origin: Triple = (0, 0, 0),
    sums: BrickSums | None = None,
    pooled: Pooled | None = None,
    ghosts: Sequence[Ghosts] = (),
) -> None:
    """Fill `out` with the convolution of one or two inputs side by side, zero beyond their ghosts.

    Plane z of the output reads the planes from step * z - count // 2 on, of the weight's taps.

    bias    [K], as many as `out` has stored, or None
    planes  of the output to compute; all by default
    origin  (0 or -1) on D, H and W: -1 where the block begins at an odd coordinate of the volume
    ghosts  of the inputs, where they are still under way: blocks that need none are computed meanwhile
    """
    d, h, w = out.sides
    brick, pool = sums.brick if sums is not None else (1, 1, 1), pooled.window if pooled is not None else (1, 1, 1)
    deep, high, wide = (lcm(*sides) for sides in zip(brick, pool, strict=True))
    layout, taps, there = weight.layout, weight.taps, planes or (0, d)
    starts = (-((there[0] - origin[0]) % 2) if taps.paired else 0, *origin[1:])
    for first, multiple in zip(starts, (deep, high, wide), strict=True):
        assert first == 0 or multiple == 1, "bricks and pools begin at even coordinates"
    blocks = plan_blocks(
        there, h, w, weight.inner, weight.channels, layout.rows, (deep, high, wide), workers.count(), starts, taps
    )
    stride = sum(padded_channels(x.rows.channels) for x in inputs)
    values = {
        "window": _window_fields(inputs[0].rows, stride, weight.inner, taps),
        "a": source_fields(inputs[0]), "b": source_fields(inputs[1]) if len(inputs) > 1 else None,
        "weight": weight.packed, "bias": bias, "target": target_fields(out),
        "bricks": None if sums is None else brick_fields(sums.sums, sums.brick),
        "pools": None if pooled is None else pool_fields(pooled.rows, pooled.signs, pooled.window),
    }  # fmt: skip
    library = _forward_library(layout, taps.paired, forms_of(inputs, 2), element_of(out))
    room = forward_room(blocks, stride, layout, taps)
    for order in in_stages(reads_of(blocks, taps), inputs[0].rows, ghosts):
        job = library["forward"].bind(**values, tiling=_tiling_fields(blocks, order, h, w))
        workers.run(job, order.numel(), room)


def _tiling_fields(blocks: Blocks, order: Tensor, height: int, breadth: int) -> dict[str, int]:
    return {
        "order": order.data_ptr(), "planes": blocks.planes, "pairs": blocks.pairs, "tiles": blocks.tiles,
        "chunk": blocks.chunk, "first_plane": blocks.first_plane, "last_plane": blocks.last_plane,
        "origin_z": blocks.origin[0], "origin_y": blocks.origin[1], "origin_x": blocks.origin[2],
        "blocks_y": blocks.counts[1], "blocks_x": blocks.counts[2], "height": height, "breadth": breadth,
    }  # fmt: skip


def _window_fields(rows: Rows, stride: int, inner: int, taps: Taps) -> dict[str, object]:
    return {
        "ranges": range_fields(rows.valid), "stride": stride, "inner": inner, "taps": taps.count,
        "summed": taps.summed, "step": taps.step,
    }  # fmt: skip


@dataclass(frozen=True)
class Target:
    """Where `backward` puts the gradient of an input.

    rows  stored as the input's are, of the same type, without ghosts
    sums  [2, C] float64: then the gradient goes through the input's activation first, and its sums, and those of its
          product with the raw input, are added here
    add   to what stands in `rows`, in place of overwriting it; the sums are of what was added
    """

    rows: Rows
    sums: Tensor | None = None
    add: bool = False


class WeightSums:
    """The sums over the volume that a weight's gradient is made from, by thread.

    weight   [K, C, kd, 3, 3]
    sources  C cut into the inputs' channels
    voxels   of this rank's block: whether so many can be added in float32
    image    the windows are those of the input, not of the output's gradient (see `add_for_image`)
    stride   of the convolution; with one on D they must be
    """

    def __init__(
        self, weight: Tensor, sources: Sequence[int], voxels: int, image: bool = False, stride: Triple = (1, 1, 1)
    ) -> None:
        _check(weight, stride)
        assert image or stride == (1, 1, 1), "strides want windows of the input"
        self._shape, self._sources, self.image = tuple(weight.shape[:2]), list(sources), image
        stored = sum(padded_channels(s) for s in sources), padded_channels(weight.shape[0])
        self.tile_channels = stored[1] if image else stored[0]
        tiles, windows = [padded_channels(s) for s in sources], [stored[1]]
        if image:
            tiles, windows = windows, _read(sources)
        self.layout = registers_for(tiles, windows, widest_vector())
        self.taps = Taps.of(weight.shape[2], stride[0], sum(windows), self.tile_channels)
        self.together = taps_together(self.taps, self.layout)
        together = self.layout.window_channels(self.together)
        window = weight.shape[1] if image else stored[1]
        self.inner = -(-window // together) * together
        size = (workers.count(), self.taps.positions, self.taps.summed, self.inner, self.tile_channels)
        self._memory = workers.take("weight gradient", prod(size))
        self.sums = self._memory[: prod(size)].view(size).zero_()
        many = voxels > 4 * FLUSH_TILES * workers.count()
        self.totals = torch.zeros(size, dtype=torch.float64) if many else None

    def finish(self) -> Tensor:
        """[K, C, kd, 3, 3]: this rank's part of the gradient. Gives the sums' memory back."""
        whole = self.sums if self.totals is None else self.totals
        added = whole[0] if len(whole) == 1 else whole.sum(0)
        k, c = padded_channels(self._shape[0]), self._shape[1] if self.image else self.tile_channels
        out = torch.empty(k, c, self.taps.count, 3, 3)
        job = _weight_library(self.layout, self.taps.paired)["finish_gradient"].bind(
            gradient=added if self.totals is None else None, total=None if self.totals is None else added,
            inner=self.inner, channels=self.tile_channels, out=_filter_fields(out, not self.image),
        )  # fmt: skip
        workers.run(job, self._shape[1] if self.image else k, weight_room(self.taps, self.layout))
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
    """The weight's gradient alone added to `into`, from windows of the input, which must have its ghosts.

    That is for the input that needs no gradient, the image, and for strides on D.
    """
    _gradients(x, [Activation(gradient)], None, [], into, (0, gradient.sides[0]), ())


def _gradients(
    window: Activation, tiles: Sequence[Activation], weight: Weight | None, targets: Sequence[Target],
    into: WeightSums, planes: Range, ghosts: Sequence[Ghosts],
) -> None:  # fmt: skip
    _, h, w = tiles[0].rows.sides
    layout, threads, taps = into.layout, len(into.sums), into.taps
    stride = padded_channels(window.rows.channels)
    blocks = plan_blocks(
        planes, h, w, stride + into.tile_channels, into.inner, layout.rows, (1, 1, 1), threads, taps=taps
    )
    sums = [_sums_by_thread(target, threads) for target in targets]
    common = {
        "window": _window_fields(window.rows, stride, into.inner, taps), "source": source_fields(window),
        "tiles": {
            "a": source_fields(tiles[0]), "b": source_fields(tiles[1]) if len(tiles) > 1 else None,
            "stride": into.tile_channels,
        },
        "weight": None if weight is None else weight.packed,
    }  # fmt: skip
    library = _backward_library(layout, taps.paired, into.together, forms_of([window, *tiles], 3))
    room = backward_room(blocks, stride, into.tile_channels, layout, taps)
    for order in in_stages(reads_of(blocks, taps), window.rows, ghosts):
        tiling = _tiling_fields(blocks, order, h, w)
        jobs = [
            library["backward"].bind(
                **common, tiling=tiling, into=_weight_gradient_fields(into, n, blocks),
                a=input_gradient_fields(targets, sums, 0, n), b=input_gradient_fields(targets, sums, 1, n),
            )
            for n in range(threads)
        ]  # fmt: skip
        workers.run(jobs, order.numel(), room)
    for target, by_thread in zip(targets, sums, strict=True):
        if target.sums is not None and by_thread is not None:
            target.sums.add_(by_thread.sum(0))


def _weight_gradient_fields(into: WeightSums, thread: int, blocks: Blocks) -> dict[str, object]:
    total = None if into.totals is None else into.totals[thread]
    flush = max(1, FLUSH_TILES // (blocks.planes * blocks.pairs * blocks.tiles))
    return {"gradient": into.sums[thread], "total": total, "flush": flush}


def input_gradient_fields(
    targets: Sequence[Target], sums: Sequence[Tensor | None], number: int, thread: int
) -> dict[str, object] | None:
    """An `InputGradient` for the target of a number; nothing where there is none."""
    if number >= len(targets):
        return None
    target, by_thread = targets[number], sums[number]
    own = None if by_thread is None else by_thread[thread]
    return {"target": target_fields(target.rows, target.add), "sums": own}


def _sums_by_thread(target: Target, threads: int) -> Tensor | None:
    if target.sums is None:
        return None
    return torch.zeros(threads, *target.sums.shape, dtype=torch.float64)
