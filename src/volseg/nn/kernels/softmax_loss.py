"""The sums over voxels that Dice and cross-entropy are made of, and their gradient in the logits.

Logits are read where they lie, once for the sums and once for the gradient. Some voxels at a time, a *portion*, are
brought into an order in which the numbers of a vector are those of several voxels for the same class:

    [vectors][classes][lanes]

Voxels beyond the last one are as those that do not count. Sums are float32 in a portion and float64 beyond it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from volseg.nn.kernels import lines
from volseg.nn.kernels.activations import exponential, logarithm
from volseg.nn.kernels.forms import ELEMENTS
from volseg.nn.kernels.jit import workers
from volseg.nn.kernels.jit.compiler import Library, compiled_once
from volseg.nn.kernels.jit.language import Element, Function, Int, Module, Pointer, Vector
from volseg.partition.tiling import LANES

_PORTION = 128
"""Voxels in the cache together, a multiple of the lanes; few enough for exact sums of them in float32."""

SUMS = 4
"""Of each class, behind those of the entropy and of what voxels count in it: its probability, its voxels, its
probability in those, and the voxels where no other class has a larger one."""


@dataclass(frozen=True)
class Logits:
    """Where logits are, and what they are compared with.

    data             of the first voxel: `voxel` numbers from one to the next, `channel` from a class to the next
    labels           bytes, one after another
    weights          [classes] how much a voxel of each counts in the entropy
    joined           [classes] 1 for those that a voxel of class 0 may be of, else 0
    ignored          the label of voxels that do not count
    otherwise        how much a voxel counts whose label is none of the classes
    """

    data: Pointer
    labels: Pointer
    weights: Pointer
    joined: Pointer
    voxel: Int
    channel: Int
    voxels: Int
    classes: Int
    ignored: Vector
    otherwise: Vector


class _Portion:
    """A portion in a thread's memory, while a kernel is written down.

    values, powers          [vectors][classes][lanes]: logits, and room for their exponentials
    labels, rests, largest  [vectors][lanes]: labels, and room for two numbers of each voxel
    """

    def __init__(self, f: Function, logits: Logits, element: Element, number: Int, scratch: Pointer) -> None:
        self._f, self._logits, self._element, self._first = f, logits, element, number * _PORTION
        self.classes, whole = logits.classes, logits.classes * _PORTION
        self.values, self.powers = scratch, scratch + whole
        self.labels, self.rests, self.largest = (scratch + (whole * 2 + n * _PORTION) for n in range(3))
        self.count = f.smaller(logits.voxels - self._first, _PORTION)

    @staticmethod
    def floats(classes: int) -> int:
        """Of a thread's memory."""
        return (2 * classes + 3) * _PORTION

    def fill(self) -> None:
        """Write down: read the logits and labels."""
        f, logits = self._f, self._logits
        with f.loop(_PORTION, step=LANES) as (i, _):
            (self.labels + i).store(logits.ignored)
            places = [self._place(f.smaller(i + n, self.count - 1)) for n in range(LANES)]
            target = self.values + i * self.classes
            with f.loop(self.classes) as (c, _):
                for n, place in enumerate(places):
                    (target + (c * LANES + n)).copy_one(place + c * logits.channel)
        labels = logits.labels.of(Element.BYTE) + self._first
        with f.loop(self.count) as (i, _):
            (self.labels + i).copy_one(labels + i)

    def write(self, out: Pointer, voxel: Int, channel: Int) -> None:
        """Write down: values to memory of such strides, which may be that of the logits."""
        f, target = self._f, out.of(self._element)
        with f.loop(self.count) as (i, _):
            source = self.values + (i // LANES * self.classes * LANES + i % LANES)
            place = target + (self._first + i) * voxel
            with f.loop(self.classes) as (c, _):
                (place + c * channel).copy_one(source + c * LANES)

    def _place(self, voxel: Int) -> Pointer:
        return self._logits.data.of(self._element) + (self._first + voxel) * self._logits.voxel


class _Voxels:
    """The voxels of a vector, while a kernel is written down.

    label    theirs
    largest  their largest logits
    """

    def __init__(self, f: Function, logits: Logits, portion: _Portion, first: Int, marginal: bool) -> None:
        self._f, self._logits, self._classes, self._marginal = f, logits, portion.classes, marginal
        self.values, self.powers = portion.values + first * portion.classes, portion.powers + first * portion.classes
        self.label = (portion.labels + first).load()
        with f.loop(portion.classes, start=1, carried=[self.values.load()]) as (c, state):
            state.values = (f.largest((self.values + c * LANES).load(), state.values[0]),)
        self.largest: Vector = state.values[0]

    def counted(self, value: Vector) -> Vector:
        """Write down: `value` of voxels that count, zero of the others."""
        return self._f.take_where_equal(self.label, self._logits.ignored, self._f.constant(0), value)

    def raised(self, slopes: Sequence[Pointer] = ()) -> _Raised:
        """Write down: the logits less the largest become powers of e.

        slopes  none, or two numbers of each class: to take of voxels of it, and of all
        """
        f, zero = self._f, self._f.constant(0)
        begin = [zero, zero, zero, self.counted(self._logits.otherwise), zero, zero]
        with f.loop(self._classes, carried=begin) as (c, state):
            number, total, own, counts, sloped, joined = state.values
            less = (self.values + c * LANES).load() - self.largest
            power = exponential(f, less)
            (self.powers + c * LANES).store(power)
            own = f.take_where_equal(self.label, number, less, own)
            counts = f.take_where_equal(self.label, number, (self._logits.weights + c).splat(), counts)
            if slopes:
                sloped = f.fma(power, self.slope(number, slopes, c), sloped)
            if self._marginal:
                joined = f.fma(power, (self._logits.joined + c).splat(), joined)
            state.values = number + f.constant(1), total + power, own, counts, sloped, joined
        _, total, own, counts, sloped, joined = state.values
        if self._marginal:
            own = f.take_where_equal(self.label, zero, logarithm(f, joined), own)
        return _Raised(total, own, counts, sloped, joined)

    def own_share(self, raised: _Raised, number: Vector, c: Int) -> Vector:
        """Write down: a class's share of what the voxels count: 1 of their own, of joined ones by their powers."""
        f, zero, unit = self._f, self._f.constant(0), self._f.constant(1)
        own = f.take_where_equal(self.label, number, unit, zero)
        if self._marginal:
            part = (self.powers + c * LANES).load() * (self._logits.joined + c).splat() / raised.joined
            own = f.take_where_equal(self.label, zero, part, own)
        return own

    def slope(self, number: Vector, slopes: Sequence[Pointer], c: Int) -> Vector:
        """Write down: the slopes of a class, added up."""
        everywhere = (slopes[1] + c).splat()
        return self._f.take_where_equal(self.label, number, (slopes[0] + c).splat() + everywhere, everywhere)


@dataclass(frozen=True)
class _Raised:
    """Sums over the classes of the voxels of a vector.

    total   of the powers
    own     logarithm of the power of their class, or of the sum of those that are joined
    counts  what the voxels count
    sloped  of the powers times the slopes
    joined  of the powers of the joined classes
    """

    total: Vector
    own: Vector
    counts: Vector
    sloped: Vector
    joined: Vector


@compiled_once
def _library(element: Element, marginal: bool) -> Library:
    """marginal  a voxel of class 0 may be of others, too"""
    module = Module(LANES)
    _define_add(module, element, marginal)
    _define_gradient(module, element, marginal)
    return Library(module)


def _define_add(module: Module, element: Element, marginal: bool) -> None:
    @module.entry
    def add(f: Function, first: Int, last: Int, scratch: Pointer, *, logits: Logits, sums: Pointer) -> None:
        """Portions first ... last: add to sums [2 + SUMS * classes, lanes] float64."""
        zero, unit, classes = f.constant(0), f.constant(1), logits.classes
        with f.loop(last, start=first) as (number, _):
            portion = _Portion(f, logits, element, number, scratch)
            portion.fill()
            with f.loop(_PORTION, step=LANES, carried=[zero, zero]) as (i, state):
                voxels = _Voxels(f, logits, portion, i, marginal)
                raised = voxels.raised()
                (portion.rests + i).store(unit / raised.total)
                (portion.largest + i).store(voxels.largest)
                entropy = voxels.counted(raised.counts * (logarithm(f, raised.total) - raised.own))
                state.values = state.values[0] + entropy, state.values[1] + raised.counts
            for row, total in enumerate(state.values):
                _put(sums, f.number(row), total)
            with f.loop(classes, carried=[zero]) as (c, names):
                for n, total in enumerate(_sums_of_class(f, logits, portion, c, names.values[0])):
                    _put(sums, c + (classes * n + 2), total)
                names.values = (names.values[0] + unit,)


def _put(sums: Pointer, row: Int, value: Vector) -> None:
    """Write down: add to a row of float64 numbers."""
    place = sums.wide() + row * LANES
    place.store(place.load() + value.wide())


def _sums_of_class(f: Function, logits: Logits, portion: _Portion, c: Int, number: Vector) -> Sequence[Vector]:
    """Write down: the SUMS of a class over a portion, lane by lane.

    number  of the class, as labels are
    """
    zero, unit, apart = f.constant(0), f.constant(1), c * LANES
    with f.loop(_PORTION, step=LANES, carried=[zero] * SUMS) as (i, state):
        label, at = (portion.labels + i).load(), i * portion.classes + apart
        share = (portion.powers + at).load() * (portion.rests + i).load()
        share = f.take_where_equal(label, logits.ignored, zero, share)
        first = f.take_where_equal((portion.values + at).load(), (portion.largest + i).load(), unit, zero)
        new = (
            share,
            f.take_where_equal(label, number, unit, zero),
            f.take_where_equal(label, number, share, zero),
            f.take_where_equal(label, logits.ignored, zero, first),
        )
        state.values = [total + value for total, value in zip(state.values, new, strict=True)]
    totals: Sequence[Vector] = state.values
    return totals


def _define_gradient(module: Module, element: Element, marginal: bool) -> None:
    @module.entry
    def gradient(
        f: Function, first: Int, last: Int, scratch: Pointer, *,
        logits: Logits, inside: Pointer, everywhere: Pointer, out: Pointer, voxel: Int, channel: Int,
    ) -> None:  # fmt: skip
        """Portions first ... last: the gradient, to `out`, of such strides, which may be the logits themselves.

        The weights of the logits are the factors of the entropy's gradient.

        inside, everywhere  [classes] gradient of the Dice in a class's probability in voxels of it besides, and in all
        """
        zero, unit, slopes = f.constant(0), f.constant(1), (inside, everywhere)
        with f.loop(last, start=first) as (number, _):
            portion = _Portion(f, logits, element, number, scratch)
            portion.fill()
            with f.loop(_PORTION, step=LANES) as (i, _):
                voxels = _Voxels(f, logits, portion, i, marginal)
                raised = voxels.raised(slopes)
                inverse = unit / raised.total
                rest = raised.counts - raised.sloped * inverse
                with f.loop(logits.classes, carried=[zero]) as (c, state):
                    number_of_class = state.values[0]
                    share = (voxels.powers + c * LANES).load() * inverse
                    pull = raised.counts * voxels.own_share(raised, number_of_class, c)
                    slope = share * (voxels.slope(number_of_class, slopes, c) + rest) - pull
                    (voxels.values + c * LANES).store(voxels.counted(slope))
                    state.values = (number_of_class + unit,)
            portion.write(out, voxel, channel)


@dataclass(frozen=True)
class Classes:
    """What the entropy makes of the classes.

    weights  [K] how much a voxel of each counts, float64; None: all 1
    joined   classes that a voxel of class 0 may be of, besides
    ignored  the label of voxels that do not count
    """

    weights: Tensor | None
    joined: Sequence[int]
    ignored: int


def add(logits: Tensor, labels: Tensor, classes: Classes) -> Tensor:
    """The sums over some voxels: the entropy, what voxels count in it, and SUMS numbers of all classes each.

    logits  [n, K] float32 or bfloat16, of any strides
    labels  [n] uint8
    out     [2 + SUMS * K] float64
    """
    voxels, count = logits.shape
    sums = torch.zeros(2 + SUMS * count, LANES, dtype=torch.float64)
    values: dict[str, object] = {"logits": _fields(logits, labels, classes, 1.0)}
    entry = _library(ELEMENTS[logits.dtype], bool(classes.joined))["add"]
    lines.run_summed(entry, values, {"sums": sums}, -(-voxels // _PORTION), _Portion.floats(count))
    return sums.sum(1)


def gradient(
    logits: Tensor, labels: Tensor, classes: Classes, share: float, slopes: tuple[Sequence[float], Sequence[float]],
    out: Tensor,
) -> None:  # fmt: skip
    """The loss's gradient in the logits of some voxels, to `out` [n, K], which may be the logits themselves.

    share   the gradient of the loss in the sum of the entropies
    slopes  [K] and [K]: the gradient of the loss in a class's probability in voxels of it besides, and in all voxels
    """
    fields = _fields(logits, labels, classes, share)
    inside, everywhere = (torch.tensor(values, dtype=torch.float32) for values in slopes)
    job = _library(ELEMENTS[logits.dtype], bool(classes.joined))["gradient"].bind(
        logits=fields, inside=inside, everywhere=everywhere, out=out, voxel=out.stride(0), channel=out.stride(1)
    )
    workers.run(job, -(-logits.shape[0] // _PORTION), _Portion.floats(logits.shape[1]))


def _fields(logits: Tensor, labels: Tensor, classes: Classes, factor: float) -> dict[str, object]:
    """The `Logits` of a kernel, whose weights are `factor` times those of the classes."""
    (voxels, count), weights, joined = logits.shape, classes.weights, torch.zeros(logits.shape[1])
    joined[[0, *classes.joined]] = 1
    return {
        "data": logits, "labels": labels.data_ptr(),
        "weights": torch.full((count,), factor) if weights is None else (weights * factor).float(), "joined": joined,
        "voxel": logits.stride(0), "channel": logits.stride(1), "voxels": voxels, "classes": count,
        "ignored": float(classes.ignored), "otherwise": factor if weights is None else 0.0,
    }  # fmt: skip
