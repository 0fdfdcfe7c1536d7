"""Convolutions of blocks and their gradients by torch's operators, window by window.

A window is the activated input of a box of results, which the library convolves without padding; what the volume goes
on with lies in it as ghosts, and beyond the volume's faces it is zero. While ghosts travel, the box that needs none
goes first, and what lies around it last. Sums of bricks and what is pooled are taken of each box while it is warm.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import product
from math import lcm

import torch
from torch import Tensor
from torch.nn import functional

from volseg.geometry import Triple
from volseg.nn.kernels.block_convolution import BrickSums, Ghosts, Pooled, Target
from volseg.nn.kernels.reproducible import brick_moments
from volseg.nn.kernels.rows import Activation, Rows
from volseg.nn.torch_ops.convolving import convolved, input_gradient, weight_gradient
from volseg.nn.torch_ops.reading import Reading, box_of, hand_over, lines, region
from volseg.nn.torch_ops.workspace import Workspace, rounded
from volseg.partition.window import Range
from volseg.partition.windows_by_torch import Box, Reaches, around, backward_reaches, boxes, forward_reaches

_ONE: Triple = (1, 1, 1)


@dataclass(frozen=True)
class TorchWeight:
    """A weight as convolutions by torch read it.

    weight   [K, C, kd, kh, kw] float32, with values as they are stored
    sources  C cut into the inputs' channels
    """

    weight: Tensor
    sources: Sequence[int]
    stride: Triple

    @property
    def kernel(self) -> Triple:
        """On D, H, W."""
        d, h, w = self.weight.shape[2:]
        return d, h, w

    def padded(self, stored: Sequence[int], outputs: int) -> Tensor:
        """[K as stored, C as stored, kd, kh, kw], zero where channels are stored and not there."""
        parts = self.weight.split(list(self.sources), 1)
        wide = torch.cat(
            [
                functional.pad(part, [0] * 7 + [more - own])
                for part, own, more in zip(parts, self.sources, stored, strict=True)
            ],
            1,
        )
        return functional.pad(wide, [0] * 9 + [outputs - wide.shape[0]])

    def release(self) -> None:
        """The memory is the garbage collector's."""


class TorchWeightSums:
    """The gradient of a weight, added up in float64 over windows.

    weight   [K, C, kd, kh, kw]
    sources  C cut into the inputs' channels
    """

    def __init__(self, weight: Tensor, sources: Sequence[int], stride: Triple) -> None:
        self.sources, self.stride = list(sources), stride
        self.kernel: Triple = (weight.shape[2], weight.shape[3], weight.shape[4])
        self.total = torch.zeros(weight.shape, dtype=torch.float64, device=weight.device)

    def add(self, part: Tensor, stored: Sequence[int]) -> None:
        """Add what a window gives, [K as stored, C as stored, kd, kh, kw]."""
        parts = part[: self.total.shape[0]].split(list(stored), 1)
        places = self.total.split(self.sources, 1)
        for place, wide, own in zip(places, parts, self.sources, strict=True):
            place += wide[:, :own]

    def finish(self) -> Tensor:
        """As `nn.fused.backend.GradientSums`."""
        return self.total.float()


@dataclass(frozen=True)
class TorchBlockConvolutions:
    """As `nn.fused.backend.BlockConvolutions`."""

    work: Workspace

    def pack_weight(
        self, weight: Tensor, sources: Sequence[int], stride: Triple = _ONE, stored: torch.dtype = torch.float32
    ) -> TorchWeight:
        """As `BlockConvolutions.pack_weight`."""
        return TorchWeight(rounded(weight.detach().to(self.work.device), stored), sources, stride)

    pack_turned_weight = pack_weight

    def weight_sums(
        self, weight: Tensor, sources: Sequence[int], voxels: int, stride: Triple = _ONE, image: bool = False,
        stored: torch.dtype = torch.float32,
    ) -> TorchWeightSums:  # fmt: skip
        """As `BlockConvolutions.weight_sums`."""
        return TorchWeightSums(weight.detach().to(self.work.device), sources, stride)

    def forward(
        self, inputs: Sequence[Activation], weight: TorchWeight, bias: Tensor | None, out: Rows, *,
        planes: Range | None = None, origin: Triple = (0, 0, 0), sums: BrickSums | None = None,
        pooled: Pooled | None = None, ghosts: Sequence[Ghosts] = (),
    ) -> None:  # fmt: skip
        """As `BlockConvolutions.forward`."""
        reaches, stored = forward_reaches(weight.kernel, weight.stride), out.buffer.dtype
        channels = [x.rows.channels for x in inputs]
        taps = weight.padded(channels, out.channels).to(self.work.computing(stored))
        taps = taps.contiguous(memory_format=torch.channels_last_3d)
        brick, pool = sums.brick if sums is not None else _ONE, pooled.window if pooled is not None else _ONE
        multiples = tuple(lcm(*sides) for sides in zip(brick, pool, strict=True))
        cut = self._boxes(box_of(out, planes), reaches, inputs[0].rows, sum(channels), multiples, ghosts)
        with self.work.exactly(stored):
            for box in cut:
                window = self._window(inputs, _read(reaches, box), stored)
                y = convolved(window, taps, bias, weight.stride).to(stored)
                region(out, box).copy_(y)
                if sums is not None:
                    _place(sums.sums, box, sums.brick).copy_(_moments(y, sums.brick))
                if pooled is not None:
                    small = _divided(box, pooled.window)
                    region(pooled.rows, small).copy_(_largest(y, pooled.signs, pooled.window))

    def backward(
        self, inputs: Sequence[Activation], gradient: Rows, weight: TorchWeight, targets: Sequence[Target],
        into: TorchWeightSums, *, planes: Range | None = None, ghosts: Sequence[Ghosts] = (),
    ) -> None:  # fmt: skip
        """As `BlockConvolutions.backward`."""
        reaches, stored = backward_reaches(weight.kernel, weight.stride), gradient.buffer.dtype
        channels = [x.rows.channels for x in inputs]
        taps = weight.padded(channels, gradient.channels).to(self.work.computing(stored))
        cut = self._boxes(box_of(gradient, planes), reaches, gradient, gradient.channels, _ONE, ghosts)
        with self.work.exactly(stored):
            for outputs in cut:
                box = _inputs_of(outputs, weight.stride, inputs[0].rows.sides)
                upstream = self._window([Activation(gradient)], _read(reaches, outputs), stored)
                if weight.stride == _ONE:
                    part, of_weight = self._plain(inputs, box, upstream, taps, stored)
                else:
                    part, of_weight = self._strided(inputs, box, upstream, taps, weight.stride, outputs, stored)
                into.add(of_weight, channels)
                for target, x, own in zip(targets, inputs, part.split(channels, 3), strict=False):
                    flat = own.float().flatten(2)
                    hand_over(flat, x.rows, x.affine, box, target.rows, target.sums, target.add, self.work)

    def add_for_image(self, x: Activation, gradient: Rows, into: TorchWeightSums) -> None:
        """As `BlockConvolutions.add_for_image`."""
        reaches, stored = forward_reaches(into.kernel, into.stride), gradient.buffer.dtype
        shape = (gradient.channels, x.rows.channels, *into.kernel)
        with self.work.exactly(stored):
            for box in self._boxes(box_of(gradient), reaches, x.rows, x.rows.channels, _ONE, ()):
                window = self._window([x], _read(reaches, box), stored)
                upstream = self._window([Activation(gradient)], box, stored, "gradient")
                into.add(weight_gradient(window, upstream, shape, into.stride), [x.rows.channels])

    def _plain(
        self, inputs: Sequence[Activation], box: Box, upstream: Tensor, taps: Tensor, stored: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Gradients of the inputs in a box and of the weight, with a stride of 1.

        The inputs' gradient is itself a convolution without padding, of the output's with the taps turned around, and
        the weight's follows from that one's.
        """
        turned = taps.transpose(0, 1).flip(2, 3, 4).contiguous(memory_format=torch.channels_last_3d)
        tile = self._window(inputs, box, stored, "tile")
        of_weight = weight_gradient(upstream, tile, tuple(turned.shape), _ONE)
        return convolved(upstream, turned, None, _ONE), of_weight.transpose(0, 1).flip(2, 3, 4)

    def _strided(
        self, inputs: Sequence[Activation], box: Box, upstream: Tensor, taps: Tensor, stride: Triple, outputs: Box,
        stored: torch.dtype,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """The same with any stride, by what the outputs that read the box read beside it, which counts for nothing."""
        kernel: Triple = (taps.shape[2], taps.shape[3], taps.shape[4])
        wide = _read(forward_reaches(kernel, stride), _read(backward_reaches(kernel, stride), outputs))
        tile = self._window(inputs, wide, stored, "tile", box)
        of_weight = weight_gradient(tile, upstream, tuple(taps.shape), stride)
        part = input_gradient(upstream, taps, stride, (tile.shape[0], tile.shape[1], tile.shape[2]))
        d, h, w = (slice(a - low, b - low) for (a, b), (low, _) in zip(box, wide, strict=True))
        return part[d, h, w], of_weight

    def _boxes(
        self, whole: Box, reaches: Reaches, window: Rows, channels: int, multiples: Sequence[int],
        ghosts: Sequence[Ghosts],
    ) -> Iterator[Box]:  # fmt: skip
        """The boxes of results, those that need no ghosts first."""
        voxel, parts = 4 * channels, [whole]
        waiting = not all(exchange.done for exchange in ghosts)
        if waiting:
            d, h, w = (
                reach.inside(axis, low, high, side, multiple)
                for reach, axis, low, high, side, multiple in zip(
                    reaches, whole, window.low, window.high, window.sides, multiples, strict=True
                )
            )
            early = list(boxes((d, h, w), reaches, voxel, self.work.limit, multiples[0]))
            for number, box in enumerate(early):
                yield box
                if number % max(1, len(early) // 3) == 0:
                    for exchange in ghosts:
                        exchange.advance()
            for exchange in ghosts:
                exchange.wait()
            parts = around(whole, (d, h, w)) if early else parts
        for part in parts:
            yield from boxes(part, reaches, voxel, self.work.limit, multiples[0])

    def _window(
        self, inputs: Sequence[Activation], wanted: Box, stored: torch.dtype, purpose: str = "window",
        only: Box | None = None,
    ) -> Tensor:  # fmt: skip
        """The activated inputs side by side, [d, h, w, C], zero where there are no voxels.

        only  a box beyond which all is zero, too
        """
        sides = tuple(b - a for a, b in wanted)
        dtype, first = self.work.computing(stored), 0
        buffer = self.work.room(purpose, (*sides, sum(x.rows.channels for x in inputs)), dtype)
        for x in inputs:
            place = buffer[..., first : first + x.rows.channels]
            first += x.rows.channels
            there = _common(wanted, only or x.rows.valid, x.rows.valid)
            for axis, ((low, high), (start, stop)) in enumerate(zip(there, wanted, strict=True)):
                if low > start:
                    place.narrow(axis, 0, low - start).zero_()
                if high < stop:
                    place.narrow(axis, high - start, stop - high).zero_()
            d, h, w = (slice(low - start, high - start) for (low, high), (start, _) in zip(there, wanted, strict=True))
            self._fill(place[d, h, w], x, there, stored)
        return buffer

    def _fill(self, place: Tensor, x: Activation, box: Box, stored: torch.dtype) -> None:
        """The activated voxels of a box, some planes at a time."""
        breadth = box[2][1] - box[2][0]
        reading, sides = Reading.of(x.affine, breadth), (place.shape[0], place.shape[1], breadth)
        for a, b in self.work.planes((0, sides[0]), sides, x.rows.channels):
            raw = lines(x.rows, ((box[0][0] + a, box[0][0] + b), *box[1:]), self.work)
            room = self.work.room("values", (b - a, sides[1], breadth * x.rows.channels))
            values = rounded(reading.activated(raw, room), stored)
            place[a:b].copy_(values.view(b - a, sides[1], breadth, x.rows.channels))


def _read(reaches: Reaches, box: Box) -> Box:
    """What the results in a box read."""
    d, h, w = (reach.range(axis) for reach, axis in zip(reaches, box, strict=True))
    return d, h, w


def _common(*parts: Box) -> Box:
    """What lies in several boxes."""
    d, h, w = ((max(a for a, _ in axis), min(b for _, b in axis)) for axis in zip(*parts, strict=True))
    return d, h, w


def _inputs_of(box: Box, stride: Triple, sides: Triple) -> Box:
    """The inputs that belong to the outputs in a box."""
    d, h, w = ((s * a, min(s * b, n)) for (a, b), s, n in zip(box, stride, sides, strict=True))
    return d, h, w


def _divided(box: Box, by: Triple) -> Box:
    d, h, w = ((a // n, b // n) for (a, b), n in zip(box, by, strict=True))
    return d, h, w


def _place(sums: Tensor, box: Box, brick: Triple) -> Tensor:
    d, h, w = (slice(a, b) for a, b in _divided(box, brick))
    return sums[d, h, w]


def _moments(y: Tensor, brick: Triple) -> Tensor:
    """Sums of y and of y * y over each brick: [d, h, w, K] to [d / bd, h / bh, w / bw, 2, K] float32."""
    counts = [n // b for n, b in zip(y.shape[:3], brick, strict=True)]
    if y.device.type == "cpu":  # many small passes, which stay in the cache
        return brick_moments(y.float(), brick).view(*counts, 2, y.shape[3])
    cut = y.float().view(counts[0], brick[0], counts[1], brick[1], counts[2], brick[2], y.shape[3])
    return torch.stack([cut.sum((1, 3, 5)), (cut * cut).sum((1, 3, 5))], 3)


def _largest(y: Tensor, signs: Tensor, window: Triple) -> Tensor:
    """Of each window of [d, h, w, K] the largest value, of channels whose sign is -1 the smallest."""
    signed = y * signs.to(y.dtype)
    parts = [
        signed[dz :: window[0], dy :: window[1], dx :: window[2]] for dz, dy, dx in product(*(range(n) for n in window))
    ]
    return reduce(torch.maximum, parts) * signs.to(y.dtype)
