"""Sums of two activations, as residual blocks have them (He et al., "Deep residual learning", CVPR 2016).

The sum is held, since later layers read it again and again; its two terms are held raw, as all tensors are.
"""

from __future__ import annotations

from torch import Tensor

from volseg.nn.kernels import lines
from volseg.nn.kernels.forms import Forms, element_of, forms_of
from volseg.nn.kernels.jit import workers
from volseg.nn.kernels.jit.compiler import Library, compiled_once
from volseg.nn.kernels.jit.language import Element, Function, Int, Module, Pointer, Vector
from volseg.nn.kernels.operands import Source, source_fields
from volseg.nn.kernels.rows import Activation, Rows
from volseg.partition.tiling import LANES
from volseg.partition.window import Range


@compiled_once
def _sum_library(forms: Forms, element: Element) -> Library:
    module = Module(LANES)

    @module.entry
    def add(
        f: Function, first: Int, last: Int, scratch: Pointer, *,
        height: Int, breadth: Int, first_plane: Int, a: Source, b: Source, slope: Vector,
        out: Pointer, out_plane: Int, out_line: Int,
    ) -> None:  # fmt: skip
        """out = leaky(a + b), each activated first, for the lines first ... last counted over planes."""
        channels = a.channels
        with f.loop(last, start=first) as (number, _), f.loop(channels, step=LANES) as (c, _):
            z, y = first_plane + number // height, number % height
            left, right = (x.of(form.element).at(z, y).data + c for x, form in zip((a, b), forms, strict=True))
            target = out.of(element) + (z * out_plane + y * out_line + c)
            a_reading, b_reading = (x.reading(f, form.activation, c) for x, form in zip((a, b), forms, strict=True))
            with f.loop(breadth) as (x, _):
                at = x * channels
                first_term = a_reading.activated((left + at).load())
                second_term = b_reading.activated((right + at).load())
                (target + at).store(f.leaky(first_term + second_term, slope))

    return Library(module)


@compiled_once
def _gradient_library(
    forms: Forms, element: Element, through_a: bool, through_b: bool, second: bool, adding: bool
) -> Library:
    """The pass that divides a sum's gradient.

    forms                 of a and b
    element               the numbers of all other tensors
    through_a, through_b  whether the term's gradient goes through its activation, with sums
    second                whether the gradient of b is written
    adding                whether it is added to what is there
    """
    module = Module(LANES)

    @module.entry
    def divide(
        f: Function, first: Int, last: Int, scratch: Pointer, *,
        height: Int, breadth: Int, channels: Int, slope: Vector,
        gradient: Pointer, gradient_plane: Int, gradient_line: Int, out: Pointer, out_plane: Int, out_line: Int,
        a: Source, a_sums: Pointer, b: Source, b_sums: Pointer, other: Pointer, other_plane: Int, other_line: Int,
    ) -> None:  # fmt: skip
        """Lines first ... last: the gradient of `out` becomes that of a, and `other` gets that of b."""
        zero = f.constant(0)
        with f.loop(last, start=first) as (number, _), f.loop(channels, step=LANES) as (c, _):
            z, y = number // height, number % height
            target, result, rest = (
                pointer.of(element) + (z * plane + y * line + c)
                for pointer, plane, line in (
                    (gradient, gradient_plane, gradient_line),
                    (out, out_plane, out_line),
                    (other, other_plane, other_line),
                )
            )
            terms = []
            for there, form, term, sums in ((through_a, forms[0], a, a_sums), (through_b, forms[1], b, b_sums)):
                if there:
                    raw, reading = term.of(form.element).at(z, y).data + c, term.reading(f, form.activation, c)
                    terms.append((raw, reading, sums))
            with f.loop(breadth, carried=[zero] * (2 * len(terms))) as (x, state):
                at = x * channels
                common = f.leaky_gradient((target + at).load(), (result + at).load(), slope)
                new, parts = [], []
                for n, (raw, reading, _) in enumerate(terms):
                    value = (raw + at).load()
                    part = reading.gradient_before(common, value)
                    parts.append(part)
                    new += [state.values[2 * n] + part, state.values[2 * n + 1] + part * value]
                (target + at).store(parts[0] if through_a else common)
                if second:
                    part = parts[-1] if through_b else common
                    (rest + at).store((rest + at).load() + part if adding else part)
                state.values = new
            for n, (_, _, sums) in enumerate(terms):
                wide = sums.wide()
                for channel, total in ((c, state.values[2 * n]), (channels + c, state.values[2 * n + 1])):
                    (wide + channel).store((wide + channel).load() + total.wide())

    return Library(module)


def add(x: Activation, other: Activation, out: Rows, slope: float, planes: Range | None = None) -> None:
    """``out = leaky_relu(x + other, slope)``; slope 1 is no activation.

    out     may be the rows of `x` or of `other`
    planes  to compute; all by default
    """
    first, last = planes or (0, x.rows.sides[0])
    a, b = lines.scaled(x), lines.scaled(other)
    job = _sum_library(forms_of([a, b], 2), element_of(out))["add"].bind(
        **lines.sides(x.rows), first_plane=first, slope=slope, **lines.place("out", out), a=source_fields(a),
        b=source_fields(b),
    )  # fmt: skip
    workers.run(job, (last - first) * x.rows.sides[1])


def divide(
    gradient: Rows, out: Rows, slope: float, x: Activation, other: Activation, *, x_sums: Tensor | None = None,
    other_sums: Tensor | None = None, copy: Rows | None = None, adding: bool = False,
) -> None:  # fmt: skip
    """The gradient of `add`: in place, the gradient of its result becomes that of `x`; `copy` gets that of `other`.

    gradient  of the same type as `out` and `copy`
    out       what `add` wrote: where it is not above zero the gradient is multiplied by `slope`
    x, other  as `add` had them
    x_sums    [2, C] float64: then the gradient goes through the activation of `x`, and its sums, and those of its
              product with the raw values, are added here; else it is that of the activated `x`
    other_sums  the same of `other`, for `copy`; without a copy both have the same gradient: neither has an activation
    adding    whether the gradient of `other` is added to what stands in `copy`

    Raises AssertionError where `other` has a gradient of its own and no `copy` to put it in.
    """
    a, b = lines.scaled(x), lines.scaled(other)
    through = [lines.affine_of(term).activates for term, sums in ((a, x_sums), (b, other_sums)) if sums is not None]
    if copy is None and any(through):
        raise AssertionError("the terms of a sum have different gradients: give `copy` rows of its own")
    library = _gradient_library(
        forms_of([a, b], 2), element_of(gradient), x_sums is not None, other_sums is not None, copy is not None, adding
    )  # fmt: skip
    values = {
        **lines.shape(gradient), "slope": slope, **lines.place("gradient", gradient), **lines.place("out", out),
        "a": source_fields(a), "b": source_fields(b), **lines.place("other", copy),
    }  # fmt: skip
    d, h, _ = gradient.sides
    lines.run_summed(library["divide"], values, {"a_sums": x_sums, "b_sums": other_sums}, d * h)
