"""What is done with results while they are in the cache: stored, taken through an activation, summed, pooled."""

from __future__ import annotations

from typing import Any

from volseg.networks.description import ActivationKind
from volseg.nn.kernels.jit.language import Function, Module, Pointer, Vector
from volseg.nn.kernels.operands import Bricks, Pools, Results, Source, Target
from volseg.partition.tiling import Registers


def define_store(module: Module, layout: Registers) -> Any:
    """Write down `store`."""
    lanes, vectors, width = layout.lanes, layout.vectors, layout.width

    @module.define
    def store(f: Function, results: Results, target: Target) -> None:
        """Copy results to a target, or add them to it; its first voxel is that of column and line 0 of plane 0."""
        line_size = results.columns * width
        with f.either(target.add.equals(0)) as branches:
            for branch, adds in zip(branches, (False, True), strict=True):
                with (
                    branch,
                    f.loop(results.planes) as (z, _),
                    f.loop(results.y1, start=results.y0) as (y, _),
                ):
                    source = results.values + (z * results.lines + y) * line_size
                    line = target.out + (z * target.plane + y * target.line)
                    with f.loop(results.x1, start=results.x0) as (x, _):
                        for n in range(vectors):
                            place, value = line + (x * target.channels + n * lanes), source + (x * width + n * lanes)
                            (place + target.line).prefetch()
                            place.store(place.load() + value.load() if adds else value.load())

    return store


def define_through_activation(module: Module, layout: Registers, kind: ActivationKind) -> Any:
    """Write down `through_activation` for an activation of that kind."""
    lanes, vectors, width = layout.lanes, layout.vectors, layout.width

    def gradient_of_vector(
        f: Function, lane: int, adds: bool, results: Results, target: Target, raw: Source, sums: Pointer
    ) -> None:
        wide, channels, zero = sums.wide(), target.channels, f.constant(0)
        reading = raw.reading(f, kind, lane)
        with f.loop(results.planes) as (z, _), f.loop(results.y1, start=results.y0) as (y, _):
            source = results.values + ((z * results.lines + y) * results.columns * width + lane)
            before = raw.data + (z * raw.plane + y * raw.line + lane)
            line = target.out + (z * target.plane + y * target.line + lane)
            with f.loop(results.x1, start=results.x0, carried=[zero, zero]) as (x, state):
                value, place = (before + x * channels).load(), line + x * channels
                gradient = reading.gradient_before((source + x * width).load(), value)
                place.store(place.load() + gradient if adds else gradient)
                state.values = state.values[0] + gradient, state.values[1] + gradient * value
            for at, total in ((f.number(lane), state.values[0]), (channels + lane, state.values[1])):
                (wide + at).store((wide + at).load() + total.wide())

    @module.define
    def through_activation(f: Function, results: Results, target: Target, raw: Source, sums: Pointer) -> None:
        """Results are the gradient of what raw is read as: the target gets that before the activation.

        It is stored, or added to what stands there; either way what this call computed is added up.

        raw   has as many channels as the target
        sums  [2, channels] float64: of the gradient, and of its product with raw
        """
        with f.either(target.add.equals(0)) as branches:
            for branch, adds in zip(branches, (False, True), strict=True):
                with branch:
                    for n in range(vectors):
                        gradient_of_vector(f, n * lanes, adds, results, target, raw, sums)

    return through_activation


def define_moments(module: Module, layout: Registers) -> Any:
    """Write down `moments`."""
    lanes, vectors, width = layout.lanes, layout.vectors, layout.width

    @module.define
    def moments(f: Function, results: Results, bricks: Bricks) -> None:
        """Sums of x and x * x over each brick, along D, then H, then W: as `reproducible.brick_moments` adds them.

        `bricks` begins with the brick of the first result; `width` of its channels are written.
        """
        with (
            f.loop(results.planes // bricks.depth) as (bz, _),
            f.loop((results.y1 - results.y0) // bricks.height) as (by, _),
            f.loop((results.x1 - results.x0) // bricks.width) as (bx, _),
        ):
            first_line, first_column = results.y0 + by * bricks.height, results.x0 + bx * bricks.width
            for n in range(vectors):
                nothing = [f.constant(0)] * 2
                with f.loop(bricks.width, carried=nothing) as (x, whole):
                    with f.loop(bricks.height, carried=nothing) as (y, column):
                        with f.loop(bricks.depth, carried=nothing) as (z, depth):
                            line = (bz * bricks.depth + z) * results.lines + first_line + y
                            at = line * results.columns + first_column + x
                            value = (results.values + (at * width + n * lanes)).load()
                            depth.values = depth.values[0] + value, depth.values[1] + value * value
                        column.values = _plus(column.values, depth.values)
                    whole.values = _plus(whole.values, column.values)
                place = bz * bricks.plane + by * bricks.line + bx * bricks.channels * 2
                target = bricks.sums + (place + n * lanes)
                target.store(whole.values[0])
                (target + bricks.channels).store(whole.values[1])

    return moments


def _plus(a: tuple[Vector, Vector], b: tuple[Vector, Vector]) -> tuple[Vector, Vector]:
    return a[0] + b[0], a[1] + b[1]


def define_pool(module: Module, layout: Registers) -> Any:
    """Write down `pool`."""
    lanes, vectors, width = layout.lanes, layout.vectors, layout.width

    @module.define
    def pool(f: Function, results: Results, pools: Pools) -> None:
        """The largest value of each window, or the smallest for channels of sign -1, compared in the order of torch's.

        `pools` begins with the window of the first result.
        """
        target, zero = pools.target, f.number(0)
        # Where a window has one voxel on an axis, the second is the first again: the maximum of both is the same.
        steps = [(zero, side - 1) for side in (pools.depth, pools.height, pools.width)]
        with (
            f.loop(results.planes // pools.depth) as (z, _),
            f.loop((results.y1 - results.y0) // pools.height) as (y, _),
            f.loop((results.x1 - results.x0) // pools.width) as (x, _),
        ):
            line, column = results.y0 + y * pools.height, results.x0 + x * pools.width
            at = [
                (((z * pools.depth + dz) * results.lines + line + dy) * results.columns + column + dx) * width
                for dz in steps[0] for dy in steps[1] for dx in steps[2]
            ]  # fmt: skip
            for n in range(vectors):
                sign = (pools.signs + n * lanes).load()
                values = [(results.values + (place + n * lanes)).load() * sign for place in at]
                best = values[0]
                for value in values[1:]:
                    best = f.largest(value, best)
                place = z * target.plane + y * target.line + x * target.channels
                (target.out + (place + n * lanes)).store(best * sign)

    return pool
