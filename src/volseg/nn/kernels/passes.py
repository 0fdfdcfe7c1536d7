"""Passes over rows: activation, and the gradients of normalisation, activation and pooling, all in place.

They move a few floats for each that they compute, so what counts is that each value is read and written once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from volseg.nn.kernels.jit import workers
from volseg.nn.kernels.jit.compiler import Library, compiled_once
from volseg.nn.kernels.jit.language import Function, Int, Module, Pointer, Vector
from volseg.nn.kernels.rows import Activation, Affine, Rows
from volseg.partition.tiling import LANES
from volseg.partition.window import Range


@compiled_once
def _library() -> Library:
    module = Module(LANES)
    _define_activate(module)
    _define_gradients(module)
    _define_unpool(module)
    return Library(module)


def _define_activate(module: Module) -> None:
    @module.entry
    def activate(
        f: Function, first: Int, last: Int, scratch: Pointer, *,
        height: Int, breadth: Int, channels: Int, first_plane: Int, raw: Pointer, raw_plane: Int, raw_line: Int,
        scale: Pointer, shift: Pointer, slope: Vector, out: Pointer, out_plane: Int, out_line: Int,
    ) -> None:  # fmt: skip
        """out = leaky(raw * scale + shift), for the lines first ... last counted over planes."""
        with f.loop(last, start=first) as (number, _), f.loop(channels, step=LANES) as (c, _):
            z, y = first_plane + number // height, number % height
            source, target = raw + (z * raw_plane + y * raw_line + c), out + (z * out_plane + y * out_line + c)
            a, b = (scale + c).load(), (shift + c).load()
            with f.loop(breadth) as (x, _):
                value = (source + x * channels).load() * a + b
                (target + x * channels).store(f.leaky(value, slope))


def _define_gradients(module: Module) -> None:
    @module.entry
    def combine(
        f: Function, first: Int, last: Int, scratch: Pointer, *,
        height: Int, breadth: Int, channels: Int, first_plane: Int, raw: Pointer, raw_plane: Int, raw_line: Int,
        gradient: Pointer, plane: Int, line: Int, a: Pointer, b: Pointer, c: Pointer,
    ) -> None:  # fmt: skip
        """gradient = a * gradient + b * raw + c per channel: a normalisation's gradient in its input."""
        with f.loop(last, start=first) as (number, _), f.loop(channels, step=LANES) as (at, _):
            z, y = first_plane + number // height, number % height
            source, target = raw + (z * raw_plane + y * raw_line + at), gradient + (z * plane + y * line + at)
            factor, weight, constant = ((pointer + at).load() for pointer in (a, b, c))
            with f.loop(breadth) as (x, _):
                place = target + x * channels
                value = f.fma((source + x * channels).load(), weight, constant)
                place.store(f.fma(place.load(), factor, value))


def _define_unpool(module: Module) -> None:
    @module.entry
    def unpool(
        f: Function, first: Int, last: Int, scratch: Pointer, *,
        height: Int, breadth: Int, channels: Int, raw: Pointer, raw_plane: Int, raw_line: Int, signs: Pointer,
        pooled: Pointer, pooled_plane: Int, pooled_line: Int, gradient: Pointer, plane: Int, line: Int,
        scale: Pointer, shift: Pointer, slope: Vector, sums: Pointer,
    ) -> None:  # fmt: skip
        """Add the pooled tensor's gradient where the largest voxels were, then go through the activation, in place.

        Lines first ... last of the pooled tensor. Which voxel was the largest is found again, as `pool` found it.

        height, breadth  of the pooled tensor
        """
        wide, zero = sums.wide(), f.constant(0)
        with f.loop(last, start=first) as (number, _), f.loop(channels, step=LANES) as (c, _):
            z, y = number // height, number % height
            source, target = (
                raw + (z * 2 * raw_plane + y * 2 * raw_line + c),
                gradient + (z * 2 * plane + y * 2 * line + c),
            )
            small = pooled + (z * pooled_plane + y * pooled_line + c)
            a, b, sign = (scale + c).load(), (shift + c).load(), (signs + c).load()
            with f.loop(breadth, carried=[zero, zero]) as (x, state):
                values, places = [], []
                for dz in range(2):
                    for dy in range(2):
                        for dx in range(2):
                            column = (x * 2 + dx) * channels
                            values.append((source + (raw_plane * dz + raw_line * dy + column)).load())
                            places.append(target + (plane * dz + line * dy + column))
                share = (small + x * channels).load()
                best = values[0] * sign
                shares = [share] + [zero] * 7
                for n in range(1, 8):
                    candidate = values[n] * sign
                    # A later voxel that is larger takes the share from whichever had it.
                    shares[:n] = [f.take_where_above(candidate, best, zero, old) for old in shares[:n]]
                    shares[n] = f.take_where_above(candidate, best, share, zero)
                    best = f.largest(candidate, best)
                total, product = state.values
                for value, place, part in zip(values, places, shares, strict=True):
                    new = f.leaky_gradient(place.load() + part, value * a + b, slope)
                    place.store(new)
                    total, product = total + new, product + new * value
                state.values = total, product
            for at, whole in ((c, state.values[0]), (channels + c, state.values[1])):
                (wide + at).store((wide + at).load() + whole.wide())


def activate(x: Activation, out: Rows, planes: Range | None = None) -> None:
    """`out` becomes what `x` stands for, over the planes given."""
    affine = x.affine
    if affine is None:
        out.own.copy_(x.rows.own)
        return
    first, last = planes or (0, x.rows.sides[0])
    job = _library()["activate"].bind(
        **_shape(x.rows), first_plane=first, **_raw(x.rows), **_coefficients(affine), out=out.address,
        out_plane=out.plane, out_line=out.line,
    )  # fmt: skip
    workers.run(job, (last - first) * x.rows.sides[1])


def combine(gradient: Rows, raw: Rows, a: Tensor, b: Tensor, c: Tensor) -> None:
    """``gradient = a * gradient + b * raw + c`` per channel, in place; a, b, c [C]."""
    job = _library()["combine"].bind(**_shape(raw), first_plane=0, **_raw(raw), **_gradient(gradient), a=a, b=b, c=c)
    workers.run(job, raw.sides[0] * raw.sides[1])


def unpool(gradient: Rows, x: Activation, signs: Tensor, pooled: Rows, sums: Tensor) -> None:
    """Add the gradient of the pooled tensor, then go through the activation, in place.

    signs   [C] as `winograd.Pooled` has them
    pooled  gradient of the pooled values, half as long on each axis
    """
    assert x.affine is not None
    d, h, w = pooled.sides
    values = {
        "height": h, "breadth": w, "channels": x.rows.channels, **_raw(x.rows), **_gradient(gradient), "signs": signs,
        "pooled": pooled.address, "pooled_plane": pooled.plane, "pooled_line": pooled.line, **_coefficients(x.affine),
    }  # fmt: skip
    _summed("unpool", values, sums, d * h)


def _summed(name: str, values: dict[str, object], sums: Tensor, lines: int) -> None:
    """Run with sums for each thread, and add them in order."""
    parts = workers.shares(lines)
    by_thread = torch.zeros(len(parts), *sums.shape, dtype=torch.float64)
    entry = _library()[name]
    workers.run([entry.bind(**values, sums=own) for own in by_thread], lines)
    sums += by_thread.sum(0)


def _shape(rows: Rows) -> dict[str, object]:
    return {"height": rows.sides[1], "breadth": rows.sides[2], "channels": rows.channels}


def _raw(rows: Rows) -> dict[str, object]:
    return {"raw": rows.address, "raw_plane": rows.plane, "raw_line": rows.line}


def _gradient(rows: Rows) -> dict[str, object]:
    return {"gradient": rows.address, "plane": rows.plane, "line": rows.line}


def _coefficients(affine: Affine) -> dict[str, object]:
    return {"scale": affine.scale, "shift": affine.shift, "slope": affine.slope}
