"""The transforms of filters, G g G^T, and of their gradients back from sums over the volume, G^T u G.

The matrices are those of Winograd's minimal filtering (`transforms.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from volseg.nn.kernels.jit.compiler import Library
from volseg.nn.kernels.jit.language import Function, Int, Module, Pointer, Vector
from volseg.partition.tiling import FILTERS_TOGETHER, PAIRED_POSITIONS, PAIRED_SIDE, PLANE_POSITIONS, Registers


@dataclass(frozen=True)
class Filter:
    """A weight, or its gradient, addressed by strides.

    data               the first tap of inner channel 0 and output channel 0
    inner, outer, tap  floats from an inner channel, an output channel, a tap to the next
    taps               on D; each has 3 x 3 on H and W, the last fastest
    """

    data: Pointer
    inner: Int
    outer: Int
    tap: Int
    taps: Int


def build_weight_transforms(layout: Registers, paired: bool) -> Library:
    """Compile `transform_weight` and `finish_gradient` for one layout of the registers.

    paired  whether the three taps on D are transformed as well (`partition.tiling.Taps`)
    """
    module = Module(layout.lanes)
    _define_transform_weight(module, layout, paired)
    _define_finish_gradient(module, paired)
    return Library(module)


def _define_transform_weight(module: Module, layout: Registers, paired: bool) -> None:
    """Write down `transform_weight`."""
    lanes, width = layout.lanes, layout.width

    @module.entry
    def transform_weight(
        f: Function, first: Int, last: Int, scratch: Pointer, *, weight: Filter, out: Pointer, inner: Int
    ) -> None:
        """G g G^T for the numbers first ... last, which count output channels by width, then inner ones by a few.

        out      [output channels / width][positions][summed][inner][width]
        scratch  [positions, summed, FILTERS_TOGETHER, width], [9 taps on D, lanes], [lanes, 9 taps on D], and, of
                 pairs of planes, [9 * 4, lanes]
        """
        rows, run = f.number(PAIRED_POSITIONS) if paired else weight.taps * PLANE_POSITIONS, FILTERS_TOGETHER * width
        several = (inner + FILTERS_TOGETHER - 1) // FILTERS_TOGETHER
        with f.loop(last, start=first) as (number, _):
            k, start = number // several, number % several * FILTERS_TOGETHER
            together = f.smaller(inner - start, FILTERS_TOGETHER)
            with f.loop(together) as (c, _), f.loop(width, step=lanes) as (lane, _):
                source = weight.data + ((start + c) * weight.inner + (k * width + lane) * weight.outer)
                _transform_filters(
                    f, replace(weight, data=source), scratch + (c * width + lane), run, scratch + rows * run, paired
                )
            # In runs, not number by number: there are as many places to write to as pages that a processor has at hand.
            with f.loop(rows) as (row, _), f.loop(together * width, step=lanes) as (n, _):
                (out + (((k * rows + row) * inner + start) * width + n)).store((scratch + (row * run + n)).load())


def _transform_filters(
    f: Function, weight: Filter, out: Pointer, run: int, scratch: Pointer, paired: bool
) -> None:  # fmt: skip
    """Write down: G g G^T of `lanes` output channels, to [positions, summed] places `run` floats apart."""
    lanes, half, size = f.lanes, f.constant(0.5), weight.taps * 9
    filters, lowest = scratch + size * lanes, f.smaller((size - 1) * weight.tap, 0)
    for n in range(lanes):  # many filters are on their way from memory at a time
        _copy(f, filters + size * n, weight.data + (weight.outer * n + lowest), size)
    for n in range(lanes):
        source = filters + (size * n - lowest)
        with f.loop(size) as (tap, _):
            (scratch + (tap * lanes + n)).copy_one(source + tap * weight.tap)
    taps, mixed = weight.taps, scratch
    if paired:
        taps, mixed = f.number(PAIRED_SIDE), filters + size * lanes
        with f.loop(9) as (place, _):
            column = ([(scratch + (tap * 9 + place) * lanes).load()] for tap in range(3))
            for number, value in enumerate(_filter_side(half, *column)):
                (mixed + (number * 9 + place) * lanes).store(value[0])
    with f.loop(taps) as (tap, _):
        g = [[(mixed + (tap * 9 + 3 * y + x) * lanes).load() for x in range(3)] for y in range(3)]
        for y, row in enumerate(_filter_side(half, *g)):
            for x, value in enumerate(_filter_side(half, *([v] for v in row))):
                at = tap * PLANE_POSITIONS + (4 * y + x) if paired else taps * (4 * y + x) + tap
                (out + at * run).store(value[0])


def _copy(f: Function, target: Pointer, source: Pointer, count: Int) -> None:
    """Write down: copy `count` numbers, by whole vectors of which the last may overlap the one before it."""
    with f.either(count < f.lanes) as (few, enough):
        with few, f.loop(count) as (n, _):
            (target + n).copy_one(source + n)
        with enough, f.loop(count, step=f.lanes) as (n, _):
            at = f.smaller(n, count - f.lanes)
            (target + at).store((source + at).load())


def _define_finish_gradient(module: Module, paired: bool) -> None:
    """Write down `finish_gradient`."""
    lanes = module.lanes

    @module.entry
    def finish_gradient(
        f: Function, first: Int, last: Int, scratch: Pointer, *,
        gradient: Pointer, total: Pointer, inner: Int, channels: Int, out: Filter,
    ) -> None:  # fmt: skip
        """G^T u G, the gradient of a weight, for the inner channels first ... last.

        gradient, total  [positions, summed, inner as stored, channels], one of them: float32 or float64
        scratch          [9 taps on D, lanes]
        """
        half, wide = f.constant(0.5), total.wide()
        size = inner * channels

        def gather(source: Pointer, is_wide: bool, tap: Any) -> None:
            """Write down: a tap's part, the tap being known beforehand where planes are paired."""
            scale = half.wide() if is_wide else half

            def transformed(position: int) -> Vector:
                if not paired:
                    single: Vector = (source + (out.taps * position + tap) * size).load()
                    return single
                four = ([(source + (PLANE_POSITIONS * n + position) * size).load()] for n in range(PAIRED_SIDE))
                gathered: Vector = _gather_side(scale, *four)[tap][0]
                return gathered

            rows = _gather_side(scale, *([transformed(4 * y + x) for x in range(4)] for y in range(4)))
            for y, row in enumerate(rows):
                for x, value in enumerate(_gather_side(scale, *([v] for v in row))):
                    number = value[0].narrow() if is_wide else value[0]
                    (scratch + (f.number(tap) * 9 + (3 * y + x)) * lanes).store(number)

        with f.loop(last, start=first) as (a, _), f.loop(channels, step=lanes) as (b, _):
            i = a * channels + b
            with f.either(total.is_given()) as (from_total, from_gradient):
                for branch, source in ((from_total, wide), (from_gradient, gradient)):
                    with branch:
                        if paired:
                            for number in range(3):
                                gather(source + i, source is wide, number)
                        else:
                            with f.loop(out.taps) as (tap, _):
                                gather(source + i, source is wide, tap)
            for n in range(lanes):
                target = out.data + (a * out.inner + (b + n) * out.outer)
                with f.loop(out.taps * 9) as (tap, _):
                    (target + tap * out.tap).copy_one(scratch + (tap * lanes + n))


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
