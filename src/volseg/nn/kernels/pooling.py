"""Max pooling of raw values by windows of 1 or 2 on each axis, and its gradient.

A norm's coefficients are not known yet where a convolution's output is pooled. Leaky ReLU of an affine function rises
or falls with its argument, so the largest activated voxel is the largest raw one where the scale is positive and the
smallest where it is negative: the sign of a channel says which.
"""

from __future__ import annotations

from itertools import product

from torch import Tensor

from volseg.geometry import Triple
from volseg.nn.kernels import lines
from volseg.nn.kernels.jit import workers
from volseg.nn.kernels.jit.compiler import Library, compiled_once
from volseg.nn.kernels.jit.language import Function, Int, Module, Pointer, Vector
from volseg.nn.kernels.rows import Activation, Rows
from volseg.partition.tiling import LANES
from volseg.partition.window import Range


@compiled_once
def _library(window: Triple, through: bool) -> Library:
    module = Module(LANES)
    if through:
        _define_unpool(module, window)
    else:
        _define_pool(module, window)
        _define_add_unpooled(module, window)
    return Library(module)


def _offsets(window: Triple) -> list[Triple]:
    """The voxels of a window, in the order in which torch compares them."""
    d, h, w = window
    return list(product(range(d), range(h), range(w)))


def _shares(f: Function, values: list[Vector], sign: Vector, share: Vector) -> list[Vector]:
    """`share` for the first of the largest of ``values * sign``, zero for the others."""
    zero, best = f.constant(0), values[0] * sign
    shares = [share] + [zero] * (len(values) - 1)
    for n in range(1, len(values)):
        candidate = values[n] * sign
        # A later voxel that is larger takes the share from whichever had it.
        shares[:n] = [f.take_where_above(candidate, best, zero, old) for old in shares[:n]]
        shares[n] = f.take_where_above(candidate, best, share, zero)
        best = f.largest(candidate, best)
    return shares


def _define_pool(module: Module, window: Triple) -> None:
    deep, high, wide = window

    @module.entry
    def pool(
        f: Function, first: Int, last: Int, scratch: Pointer, *,
        height: Int, breadth: Int, channels: Int, first_plane: Int, raw: Pointer, raw_plane: Int, raw_line: Int,
        signs: Pointer, out: Pointer, out_plane: Int, out_line: Int,
    ) -> None:  # fmt: skip
        """Lines first ... last of the pooled tensor, of sides `height`, `breadth`."""
        with f.loop(last, start=first) as (number, _), f.loop(channels, step=LANES) as (c, _):
            z, y = first_plane + number // height, number % height
            source = raw + (z * deep * raw_plane + y * high * raw_line + c)
            target, sign = out + (z * out_plane + y * out_line + c), (signs + c).load()
            with f.loop(breadth) as (x, _):
                best: Vector | None = None
                for dz, dy, dx in _offsets(window):
                    place = source + (raw_plane * dz + raw_line * dy + (x * wide + dx) * channels)
                    value = place.load() * sign
                    best = value if best is None else f.largest(value, best)
                assert best is not None
                (target + x * channels).store(best * sign)


def _define_add_unpooled(module: Module, window: Triple) -> None:
    deep, high, wide = window

    @module.entry
    def add_unpooled(
        f: Function, first: Int, last: Int, scratch: Pointer, *,
        height: Int, breadth: Int, channels: Int, raw: Pointer, raw_plane: Int, raw_line: Int, signs: Pointer,
        pooled: Pointer, pooled_plane: Int, pooled_line: Int,
        gradient: Pointer, gradient_plane: Int, gradient_line: Int,
    ) -> None:  # fmt: skip
        """Add the pooled tensor's gradient where the largest voxels are, for its lines first ... last."""
        with f.loop(last, start=first) as (number, _), f.loop(channels, step=LANES) as (c, _):
            z, y = number // height, number % height
            source = raw + (z * deep * raw_plane + y * high * raw_line + c)
            target = gradient + (z * deep * gradient_plane + y * high * gradient_line + c)
            small, sign = pooled + (z * pooled_plane + y * pooled_line + c), (signs + c).load()
            with f.loop(breadth) as (x, _):
                values, places = [], []
                for dz, dy, dx in _offsets(window):
                    column = (x * wide + dx) * channels
                    values.append((source + (raw_plane * dz + raw_line * dy + column)).load())
                    places.append(target + (gradient_plane * dz + gradient_line * dy + column))
                shares = _shares(f, values, sign, (small + x * channels).load())
                for place, part in zip(places, shares, strict=True):
                    place.store(place.load() + part)


def _define_unpool(module: Module, window: Triple) -> None:
    deep, high, wide = window

    @module.entry
    def unpool(
        f: Function, first: Int, last: Int, scratch: Pointer, *,
        height: Int, breadth: Int, channels: Int, raw: Pointer, raw_plane: Int, raw_line: Int, signs: Pointer,
        pooled: Pointer, pooled_plane: Int, pooled_line: Int,
        gradient: Pointer, gradient_plane: Int, gradient_line: Int,
        scale: Pointer, shift: Pointer, slope: Vector, sums: Pointer,
    ) -> None:  # fmt: skip
        """Add the pooled tensor's gradient where the largest voxels are, then go through the activation, in place.

        Lines first ... last of the pooled tensor, of sides `height`, `breadth`.

        sums  [2, channels] float64: of the new gradient, and of its product with the raw values
        """
        wide_sums, zero = sums.wide(), f.constant(0)
        with f.loop(last, start=first) as (number, _), f.loop(channels, step=LANES) as (c, _):
            z, y = number // height, number % height
            source = raw + (z * deep * raw_plane + y * high * raw_line + c)
            target = gradient + (z * deep * gradient_plane + y * high * gradient_line + c)
            small = pooled + (z * pooled_plane + y * pooled_line + c)
            a, b, sign = (scale + c).load(), (shift + c).load(), (signs + c).load()
            with f.loop(breadth, carried=[zero, zero]) as (x, state):
                values, places = [], []
                for dz, dy, dx in _offsets(window):
                    column = (x * wide + dx) * channels
                    values.append((source + (raw_plane * dz + raw_line * dy + column)).load())
                    places.append(target + (gradient_plane * dz + gradient_line * dy + column))
                shares = _shares(f, values, sign, (small + x * channels).load())
                total, product = state.values
                for value, place, part in zip(values, places, shares, strict=True):
                    new = f.leaky_gradient(place.load() + part, value * a + b, slope)
                    place.store(new)
                    total, product = total + new, product + new * value
                state.values = total, product
            for at, whole in ((c, state.values[0]), (channels + c, state.values[1])):
                (wide_sums + at).store((wide_sums + at).load() + whole.wide())


def pool(x: Activation, window: Triple, out: Rows, signs: Tensor, planes: Range | None = None) -> None:
    """`out` becomes the largest raw value of each window of `x`, the smallest for channels whose sign is -1.

    window  1 or 2 on D, H, W
    signs   [C] 1 or -1, as `winograd.Pooled` has them
    planes  of `out`; all by default
    """
    first, last = planes or (0, out.sides[0])
    job = _library(window, False)["pool"].bind(
        **lines.shape(out), first_plane=first, **lines.place("raw", x.rows), signs=signs, **lines.place("out", out)
    )
    workers.run(job, (last - first) * out.sides[1])


def unpool(
    gradient: Rows, x: Activation, signs: Tensor, pooled: Rows, sums: Tensor | None, window: Triple = (2, 2, 2)
) -> None:
    """Add the gradient of the pooled tensor, in place.

    x       the tensor that was pooled
    signs   [C] as `pool` has them
    pooled  gradient of the pooled values, of `window` times shorter sides
    sums    [2, C] float64: then `gradient` goes through the activation of `x` afterwards, and its sums, and those of
            its product with the raw values, are added here. None only adds: for a tensor with other readers to come
    """
    values = {
        **lines.shape(pooled), **lines.place("raw", x.rows), **lines.place("gradient", gradient), "signs": signs,
        **lines.place("pooled", pooled),
    }  # fmt: skip
    d, h, _ = pooled.sides
    if sums is None:
        workers.run(_library(window, False)["add_unpooled"].bind(**values), d * h)
        return
    values |= lines.coefficients(lines.affine_of(x))
    lines.run_summed(_library(window, True)["unpool"], values, {"sums": sums}, d * h)
