"""Max pooling of raw values by windows of 1 or 2 on each axis, and its gradient.

A norm's coefficients are not known yet where a convolution's output is pooled. An activation that never falls, such as
leaky ReLU, of an affine function rises or falls with its argument, so the largest activated voxel is the largest raw
one where the scale is positive and the smallest where it is negative: the sign of a channel says which. With others,
such as SiLU, activated voxels are compared, once the coefficients are there. Either way what is pooled is raw values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

from torch import Tensor

from volseg.geometry import Triple
from volseg.networks.description import KEEPING_ORDER, ActivationKind
from volseg.nn.kernels import lines
from volseg.nn.kernels.forms import Form, element_of, forms_of
from volseg.nn.kernels.jit import workers
from volseg.nn.kernels.jit.compiler import Library, compiled_once
from volseg.nn.kernels.jit.language import Element, Function, Int, Module, Pointer, Vector
from volseg.nn.kernels.operands import Source, source_fields
from volseg.nn.kernels.rows import Activation, Rows
from volseg.partition.tiling import LANES
from volseg.partition.window import Range


@compiled_once
def _library(window: Triple, form: Form, element: Element, through: bool) -> Library:
    """The passes over a tensor of a form, where what is pooled, and gradients, are numbers of `element`."""
    module = Module(LANES)
    if through:
        _define_unpool(module, window, form, element)
    else:
        _define_pool(module, window, form, element)
        _define_add_unpooled(module, window, form, element)
    return Library(module)


def _compared_as(x: Activation) -> Form:
    """The form of what is compared; the usual activation stands for all by whose signs raw values are compared."""
    (form,) = forms_of([x], 1)
    return Form(form.element) if form.activation in KEEPING_ORDER else form


def _offsets(window: Triple) -> list[Triple]:
    """The voxels of a window, in the order in which torch compares them."""
    d, h, w = window
    return list(product(range(d), range(h), range(w)))


def _comparison(
    f: Function, raw: Source, signs: Pointer, kind: ActivationKind, channel: Int
) -> Callable[[Vector], Vector]:
    """Write down: from raw values of a vector's channels what is compared of them."""
    if kind in KEEPING_ORDER:
        sign = (signs + channel).load()
        return lambda value: value * sign
    return raw.reading(f, kind, channel).activated


def _shares(f: Function, compared: Sequence[Vector], share: Vector) -> list[Vector]:
    """`share` for the first of the largest, zero for the others."""
    zero, best = f.constant(0), compared[0]
    shares = [share] + [zero] * (len(compared) - 1)
    for n, candidate in enumerate(compared[1:], 1):
        # A later voxel that is larger takes the share from whichever had it.
        shares[:n] = [f.take_where_above(candidate, best, zero, old) for old in shares[:n]]
        shares[n] = f.take_where_above(candidate, best, share, zero)
        best = f.largest(candidate, best)
    return shares


def _define_pool(module: Module, window: Triple, form: Form, element: Element) -> None:
    deep, high, wide = window

    @module.entry
    def pool(
        f: Function, first: Int, last: Int, scratch: Pointer, *,
        height: Int, breadth: Int, first_plane: Int, raw: Source, signs: Pointer,
        out: Pointer, out_plane: Int, out_line: Int,
    ) -> None:  # fmt: skip
        """Lines first ... last of the pooled tensor, of sides `height`, `breadth`."""
        channels = raw.channels
        with f.loop(last, start=first) as (number, _), f.loop(channels, step=LANES) as (c, _):
            z, y = first_plane + number // height, number % height
            source = raw.of(form.element).at(z * deep, y * high).data + c
            target = out.of(element) + (z * out_plane + y * out_line + c)
            compared = _comparison(f, raw, signs, form.activation, c)
            with f.loop(breadth) as (x, _):
                values = [
                    (source + (raw.plane * dz + raw.line * dy + (x * wide + dx) * channels)).load()
                    for dz, dy, dx in _offsets(window)
                ]
                chosen, best = values[0], compared(values[0])
                for value in values[1:]:
                    candidate = compared(value)
                    chosen = f.take_where_above(candidate, best, value, chosen)
                    best = f.largest(candidate, best)
                (target + x * channels).store(chosen)


def _define_add_unpooled(module: Module, window: Triple, form: Form, element: Element) -> None:
    deep, high, wide = window

    @module.entry
    def add_unpooled(
        f: Function, first: Int, last: Int, scratch: Pointer, *,
        height: Int, breadth: Int, raw: Source, signs: Pointer, pooled: Pointer, pooled_plane: Int, pooled_line: Int,
        gradient: Pointer, gradient_plane: Int, gradient_line: Int,
    ) -> None:  # fmt: skip
        """Add the pooled tensor's gradient where the largest voxels are, for its lines first ... last."""
        channels = raw.channels
        with f.loop(last, start=first) as (number, _), f.loop(channels, step=LANES) as (c, _):
            z, y = number // height, number % height
            source = raw.of(form.element).at(z * deep, y * high).data + c
            target = gradient.of(element) + (z * deep * gradient_plane + y * high * gradient_line + c)
            small = pooled.of(element) + (z * pooled_plane + y * pooled_line + c)
            compared = _comparison(f, raw, signs, form.activation, c)
            with f.loop(breadth) as (x, _):
                values, places = [], []
                for dz, dy, dx in _offsets(window):
                    column = (x * wide + dx) * channels
                    values.append((source + (raw.plane * dz + raw.line * dy + column)).load())
                    places.append(target + (gradient_plane * dz + gradient_line * dy + column))
                shares = _shares(f, [compared(value) for value in values], (small + x * channels).load())
                for place, part in zip(places, shares, strict=True):
                    place.store(place.load() + part)


def _define_unpool(module: Module, window: Triple, form: Form, element: Element) -> None:
    deep, high, wide = window

    @module.entry
    def unpool(
        f: Function, first: Int, last: Int, scratch: Pointer, *,
        height: Int, breadth: Int, raw: Source, signs: Pointer, pooled: Pointer, pooled_plane: Int, pooled_line: Int,
        gradient: Pointer, gradient_plane: Int, gradient_line: Int, sums: Pointer,
    ) -> None:  # fmt: skip
        """Add the pooled tensor's gradient where the largest voxels are, then go through the activation, in place.

        Lines first ... last of the pooled tensor, of sides `height`, `breadth`.

        sums  [2, channels] float64: of the new gradient, and of its product with the raw values
        """
        wide_sums, zero, channels = sums.wide(), f.constant(0), raw.channels
        with f.loop(last, start=first) as (number, _), f.loop(channels, step=LANES) as (c, _):
            z, y = number // height, number % height
            source = raw.of(form.element).at(z * deep, y * high).data + c
            target = gradient.of(element) + (z * deep * gradient_plane + y * high * gradient_line + c)
            small = pooled.of(element) + (z * pooled_plane + y * pooled_line + c)
            reading = raw.reading(f, form.activation, c)
            compared = _comparison(f, raw, signs, form.activation, c)
            with f.loop(breadth, carried=[zero, zero]) as (x, state):
                values, places = [], []
                for dz, dy, dx in _offsets(window):
                    column = (x * wide + dx) * channels
                    values.append((source + (raw.plane * dz + raw.line * dy + column)).load())
                    places.append(target + (gradient_plane * dz + gradient_line * dy + column))
                shares = _shares(f, [compared(value) for value in values], (small + x * channels).load())
                total, product = state.values
                for value, place, part in zip(values, places, shares, strict=True):
                    new = reading.gradient_before(place.load() + part, value)
                    place.store(new)
                    total, product = total + new, product + new * value
                state.values = total, product
            for at, whole in ((c, state.values[0]), (channels + c, state.values[1])):
                (wide_sums + at).store((wide_sums + at).load() + whole.wide())


def pool(x: Activation, window: Triple, out: Rows, signs: Tensor, planes: Range | None = None) -> None:
    """`out` becomes, of each window of `x`, the raw value whose activated one is the largest.

    window  1 or 2 on D, H, W
    signs   [C] 1 or -1, as `winograd.Pooled` has them; of no account where the activation may fall
    planes  of `out`; all by default
    """
    first, last = planes or (0, out.sides[0])
    job = _library(window, _compared_as(x), element_of(out), False)["pool"].bind(
        **lines.sides(out), first_plane=first, raw=source_fields(x), signs=signs, **lines.place("out", out)
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
        **lines.sides(pooled), "raw": source_fields(lines.scaled(x)), **lines.place("gradient", gradient),
        "signs": signs, **lines.place("pooled", pooled),
    }  # fmt: skip
    d, h, _ = pooled.sides
    if sums is None:
        library = _library(window, _compared_as(x), element_of(gradient), False)
        workers.run(library["add_unpooled"].bind(**values), d * h)
        return
    library = _library(window, *forms_of([x], 1), element_of(gradient), True)
    lines.run_summed(library["unpool"], values, {"sums": sums}, d * h)
