"""Average pooling of activated values by windows of 1 or 2 on each axis, and its gradient.

nnU-Net's residual encoders halve their skip connections so (Isensee et al., "nnU-Net Revisited", MICCAI 2024).
"""

from __future__ import annotations

from itertools import product
from math import prod

from torch import Tensor

from volseg.geometry import Triple
from volseg.nn.kernels import lines
from volseg.nn.kernels.forms import Form, element_of, forms_of
from volseg.nn.kernels.jit import workers
from volseg.nn.kernels.jit.compiler import Library, compiled_once
from volseg.nn.kernels.jit.language import Element, Function, Int, Module, Pointer
from volseg.nn.kernels.operands import Source, source_fields
from volseg.nn.kernels.rows import Activation, Rows
from volseg.partition.tiling import LANES


@compiled_once
def _library(window: Triple, form: Form, element: Element) -> Library:
    deep, high, wide = window
    module = Module(LANES)

    @module.entry
    def average(
        f: Function, first: Int, last: Int, scratch: Pointer, *,
        height: Int, breadth: Int, raw: Source, out: Pointer, out_plane: Int, out_line: Int,
    ) -> None:  # fmt: skip
        """Lines first ... last of the pooled tensor, of sides `height`, `breadth`."""
        channels, share = raw.channels, f.constant(1 / prod(window))
        with f.loop(last, start=first) as (number, _), f.loop(channels, step=LANES) as (c, _):
            z, y = number // height, number % height
            source = raw.of(form.element).at(z * deep, y * high).data + c
            reading = raw.reading(f, form.activation, c)
            target = out.of(element) + (z * out_plane + y * out_line + c)
            with f.loop(breadth) as (x, _):
                total = f.constant(0)
                for dz, dy, dx in product(range(deep), range(high), range(wide)):
                    place = source + (raw.plane * dz + raw.line * dy + (x * wide + dx) * channels)
                    total = total + reading.activated(place.load())
                (target + x * channels).store(total * share)

    return Library(module)


@compiled_once
def _gradient_library(window: Triple, forms: tuple[Form, Element, Element], through: bool, adding: bool) -> Library:
    """The pass that spreads a gradient.

    forms    of what was pooled, and the numbers of the result's gradient and of its own
    through  whether the gradient goes through the activation, with sums
    adding   to what is there
    """
    form, of_pooled, of_gradient = forms
    deep, high, wide = window
    module = Module(LANES)

    @module.entry
    def spread(
        f: Function, first: Int, last: Int, scratch: Pointer, *,
        height: Int, breadth: Int, channels: Int, raw: Source, pooled: Pointer, pooled_plane: Int, pooled_line: Int,
        gradient: Pointer, gradient_plane: Int, gradient_line: Int, sums: Pointer,
    ) -> None:  # fmt: skip
        """Lines first ... last of the pooled tensor, of sides `height`, `breadth`.

        sums  [2, channels] float64: of this part of the gradient, and of its product with the raw values
        """
        zero, share = f.constant(0), f.constant(1 / prod(window))
        with f.loop(last, start=first) as (number, _), f.loop(channels, step=LANES) as (c, _):
            z, y = number // height, number % height
            target = gradient.of(of_gradient) + (z * deep * gradient_plane + y * high * gradient_line + c)
            small = pooled.of(of_pooled) + (z * pooled_plane + y * pooled_line + c)
            source = raw.of(form.element).at(z * deep, y * high).data + c if through else None
            reading = raw.reading(f, form.activation, c) if through else None
            with f.loop(breadth, carried=[zero, zero] if through else []) as (x, state):
                part = (small + x * channels).load() * share
                for dz, dy, dx in product(range(deep), range(high), range(wide)):
                    column, own = (x * wide + dx) * channels, part
                    place = target + (gradient_plane * dz + gradient_line * dy + column)
                    if source is not None and reading is not None:
                        value = (source + (raw.plane * dz + raw.line * dy + column)).load()
                        own = reading.gradient_before(part, value)
                        total, products = state.values
                        state.values = total + own, products + own * value
                    place.store(place.load() + own if adding else own)
            if through:
                wide_sums = sums.wide()
                for at, whole in ((c, state.values[0]), (channels + c, state.values[1])):
                    (wide_sums + at).store((wide_sums + at).load() + whole.wide())

    return Library(module)


def average(x: Activation, window: Triple, out: Rows) -> None:
    """`out` becomes the mean of each window of the activated `x`.

    window  1 or 2 on D, H, W
    """
    read = lines.scaled(x)
    job = _library(window, *forms_of([read], 1), element_of(out))["average"].bind(
        **lines.sides(out), raw=source_fields(read), **lines.place("out", out)
    )
    workers.run(job, out.sides[0] * out.sides[1])


def gradient(
    pooled: Rows, x: Activation | None, window: Triple, out: Rows, sums: Tensor | None, *, add: bool = False
) -> None:
    """The gradient of what was pooled, from that of the result.

    pooled  gradient of the result, of `window` times shorter sides
    x       as `average` had it; None where the gradient does not go through an activation
    out     where it goes
    sums    [2, C] float64, with `x`: those of this part, and of its product with the raw values, are added here
    add     whether it is added to what stands in `out`
    """
    read = None if x is None else lines.scaled(x)
    (form,) = forms_of([Activation(out) if read is None else read], 1)
    values = {
        **lines.shape(pooled), "raw": source_fields(read), **lines.place("pooled", pooled),
        **lines.place("gradient", out),
    }  # fmt: skip
    forms = form, element_of(pooled), element_of(out)
    entry = _gradient_library(window, forms, read is not None, add)["spread"]
    d, h, _ = pooled.sides
    lines.run_summed(entry, values, {"sums": sums if read is not None else None}, d * h)
