"""Interpolation by factors of 1 or 2 on each axis: linear or nearest, as ``torch.nn.Upsample``, and its gradient.

Linear means ``mode="trilinear", align_corners=False``: of the two new voxels that a voxel becomes on an axis, the first
is a quarter of the voxel before it and three quarters of itself, the second three quarters of itself and a quarter of
the voxel after it. At the volume's faces the edge is repeated: a block has no ghosts there, so what its neighbours
would have is read from its own last voxel. Each result is the same sum in the same order wherever its voxel lies: along
D, then H, then W, each product rounded, as `nn.upsampling.PartitionedUpsample` has it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from volseg.geometry import Triple
from volseg.nn.kernels import lines
from volseg.nn.kernels.forms import Form, element_of, forms_of
from volseg.nn.kernels.jit import workers
from volseg.nn.kernels.jit.compiler import Library, compiled_once
from volseg.nn.kernels.jit.language import Element, Function, Int, Module, Pointer, Vector
from volseg.nn.kernels.operands import Source, Target, source_fields, target_fields
from volseg.nn.kernels.rows import Activation, Rows
from volseg.partition.tiling import LANES
from volseg.partition.window import Range

_NEAR, _FAR = 0.75, 0.25

Column = Callable[[Int], list[Vector]]
Elements = tuple[Element, Element]


@compiled_once
def _library(factors: Triple, linear: bool, form: Form, element: Element) -> Library:
    """The pass from a tensor of a form to numbers of `element`."""
    module = Module(LANES)
    _define_interpolate(module, factors, linear, form, element)
    return Library(module)


@compiled_once
def _gradient_library(factors: Triple, linear: bool, through: Form | None, elements: Elements) -> Library:
    """The pass back.

    through   the form of the input, where the gradient goes through its activation
    elements  the numbers of the output's gradient and of the input's
    """
    module = Module(LANES)
    _define_gather(module, factors, linear, through, elements)
    return Library(module)


def _mixed(f: Function, near: Vector, far: Vector) -> Vector:
    return near * f.constant(_NEAR) + far * f.constant(_FAR)


def _beside(f: Function, at: Int, count: Int, steps: Sequence[int]) -> list[Int]:
    """The places `at` + step that there are, the first or last one in place of those beyond 0 ... count."""
    return [f.smaller(f.larger(at + step, 0), count - 1) if step else at for step in steps]


def _steps(factor: int, linear: bool) -> tuple[int, ...]:
    """The voxels of an axis, counted from a voxel, that its new voxels are made from."""
    return (-1, 0, 1) if linear and factor == 2 else (0,)


def _children(f: Function, values: Sequence[Vector], factor: int) -> list[Vector]:
    """The new voxels of an axis from the values at `_steps`."""
    if len(values) == 1:
        return [values[0]] * factor
    before, here, after = values
    return [_mixed(f, here, before), _mixed(f, here, after)]


def _define_interpolate(module: Module, factors: Triple, linear: bool, form: Form, element: Element) -> None:
    deep, high, wide = factors
    steps = [_steps(factor, linear) for factor in factors]

    @module.entry
    def interpolate(
        f: Function, first: Int, last: Int, scratch: Pointer, *,
        height: Int, first_plane: Int, first_line: Int, first_column: Int, last_column: Int,
        planes: Int, lines: Int, columns: Int, raw: Source, out: Pointer, out_plane: Int, out_line: Int,
    ) -> None:  # fmt: skip
        """Lines first ... last of the input, counted from `first_line` of `first_plane` on, `height` a plane.

        raw  [planes, lines, columns, channels] with its ghosts, from which everything is counted
        """
        channels, raw, out = raw.channels, raw.of(form.element), out.of(element)
        with f.loop(last, start=first) as (number, _), f.loop(channels, step=LANES) as (c, _):
            z, y = first_plane + number // height, first_line + number % height
            reading = raw.reading(f, form.activation, c)
            sources = [
                [raw.at(near_z, near_y).data + c for near_z in _beside(f, z, planes, steps[0])]
                for near_y in _beside(f, y, lines, steps[1])
            ]

            def column(x: Int) -> list[Vector]:
                """The new values of a column on D and H."""
                at = x * channels
                on_d = [
                    _children(f, [reading.activated((line + at).load()) for line in beside], deep) for beside in sources
                ]
                return [value for p in range(deep) for value in _children(f, [line[p] for line in on_d], high)]

            targets = [
                out + ((z * deep + p) * out_plane + (y * high + q) * out_line + c)
                for p in range(deep)
                for q in range(high)
            ]
            _spread_columns(f, column, targets, first_column, last_column, columns, channels, (wide, steps[2]))


def _spread_columns(
    f: Function, column: Column, targets: Sequence[Pointer], first: Int, last: Int, columns: Int, channels: Int,
    way: tuple[int, tuple[int, ...]],
) -> None:  # fmt: skip
    """Write down: the columns first ... last of some lines, each as the new ones that it becomes on W."""
    wide, steps = way

    def store(x: Int, children: Sequence[list[Vector]]) -> None:
        for target, values in zip(targets, children, strict=True):
            for r, value in enumerate(values):
                (target + (x * wide + r) * channels).store(value)

    if len(steps) == 1:
        with f.loop(last, start=first) as (x, _):
            store(x, [[value] * wide for value in column(x)])
        return
    count = len(targets)
    (before,) = _beside(f, first, columns, (-1,))
    with f.loop(last, start=first, carried=[*column(before), *column(first)]) as (x, state):
        left, here = state.values[:count], state.values[count:]
        (after,) = _beside(f, x, columns, (1,))
        right = column(after)
        store(x, [_children(f, three, wide) for three in zip(left, here, right, strict=True)])
        state.values = (*here, *right)


def _sum_of_children(f: Function, values: Sequence[Vector]) -> Vector:
    """What a voxel gets from the new voxels of an axis that were made from it, at `_child_steps`."""
    if len(values) == 4:
        before, first, second, after = values
        return _mixed(f, first + second, before + after)
    return values[0] if len(values) == 1 else values[0] + values[1]


def _child_steps(factor: int, linear: bool) -> tuple[int, ...]:
    """The new voxels of an axis that are made from a voxel, counted from the first that it becomes."""
    if factor == 1:
        return (0,)
    return (-1, 0, 1, 2) if linear else (0, 1)


def _define_gather(module: Module, factors: Triple, linear: bool, through: Form | None, elements: Elements) -> None:
    deep, high, wide = factors
    steps = [_child_steps(factor, linear) for factor in factors]

    @module.entry
    def gather(
        f: Function, first: Int, last: Int, scratch: Pointer, *,
        height: Int, breadth: Int, channels: Int, fine: Pointer, fine_plane: Int, fine_line: Int,
        low_z: Int, low_y: Int, low_x: Int, planes: Int, lines: Int, columns: Int,
        raw: Source, target: Target, sums: Pointer,
    ) -> None:  # fmt: skip
        """Lines first ... last of the input, `height` a plane: the gradient of its voxels to `target`.

        fine  [planes, lines, columns, channels] the output's gradient with its ghosts, of which low_z, low_y, low_x
               lie before the block
        raw    the input, where the gradient goes through its activation, with its sums
        """
        fine, target = fine.of(elements[0]), target.of(elements[1])
        raw = raw.of(through.element) if through else raw
        with f.loop(last, start=first) as (number, _), f.loop(channels, step=LANES) as (c, _):
            z, y = number // height, number % height
            sources = [
                [fine + (child_z * fine_plane + child_y * fine_line + c) for child_y in at_y]
                for at_y in [_beside(f, y * high + low_y, lines, steps[1])]
                for child_z in _beside(f, z * deep + low_z, planes, steps[0])
            ]

            def column(x: Int) -> Vector:
                """What all new voxels of a column on W give on D and H."""
                at = x * channels
                return _sum_of_children(
                    f, [_sum_of_children(f, [(line + at).load() for line in plane]) for plane in sources]
                )

            own, place = raw.at(z, y).data + c, target.at(z, y, f.number(0), c)
            reading = raw.reading(f, through.activation, c) if through else None
            old = [column(x) for x in _beside(f, low_x, columns, steps[2][:2])] if len(steps[2]) == 4 else []
            zero = f.constant(0)
            with f.loop(breadth, carried=[*old, zero, zero]) as (x, state):
                *kept, total, product = state.values
                new = [column(n) for n in _beside(f, x * wide + low_x, columns, steps[2][len(kept) :])]
                value, at = _sum_of_children(f, [*kept, *new]), x * channels
                if reading is not None:
                    there = (own + at).load()
                    value = reading.gradient_before(value, there)
                    total, product = total + value, product + value * there
                with f.either(target.add.equals(1)) as (adding, fresh):
                    with adding:
                        (place.out + at).store((place.out + at).load() + value)
                    with fresh:
                        (place.out + at).store(value)
                state.values = (*(new if kept else ()), total, product)
            if through:
                wide_sums = sums.wide()
                for channel, part in ((c, state.values[-2]), (channels + c, state.values[-1])):
                    (wide_sums + channel).store((wide_sums + channel).load() + part.wide())


def interpolate(
    x: Activation, factors: Triple, mode: str, out: Rows, planes: Range | None = None, *, beside: bool = False
) -> None:
    """Fill `out` from planes of `x`.

    factors  of the sides, 1 or 2 on D, H, W
    mode     "trilinear" (needs a ghost of `x` on each side where the volume goes on) or "nearest"
    out      `factors` times as long; counted from the voxel that the own first voxel of `x` becomes
    planes   of `x`, which may begin in its ghosts; its own by default
    beside   whether what the ghosts on H and W become is wanted, too: all that is made from ghosts that are there is
             right but for the outermost voxels, which would need one more
    """
    rows, whole = x.rows, x.rows.buffer
    first, last = planes or (0, rows.sides[0])
    low = (rows.low[0], 0, 0) if beside else rows.low
    total = whole.shape
    tall, broad = (int(n) for n in total[1:3]) if beside else rows.sides[1:]
    spread = [before * factor for before, factor in zip(rows.low, factors, strict=True)]
    begin = out.address - out.buffer.element_size() * (
        spread[0] * out.plane + spread[1] * out.line + spread[2] * out.channels
    )
    source = Activation(Rows.of(whole), lines.affine_of(x))
    job = _library(factors, mode == "trilinear", *forms_of([source], 1), element_of(out))["interpolate"].bind(
        height=tall, first_plane=first + rows.low[0], first_line=low[1], first_column=low[2],
        last_column=low[2] + broad, planes=total[0], lines=total[1], columns=total[2], raw=source_fields(source),
        out=begin, out_plane=out.plane, out_line=out.line,
    )  # fmt: skip
    workers.run(job, (last - first) * tall)


def gradient(
    fine: Rows, x: Activation | None, factors: Triple, mode: str, target: Rows, sums: Tensor | None, *,
    add: bool = False,
) -> None:  # fmt: skip
    """The gradient of the input of `interpolate`, to `target`.

    fine  that of its output; for "trilinear" with a ghost on each side where the volume goes on
    x      the input, where the gradient before its activation is wanted
    sums   [2, C] float64: then `target` gets the gradient before the activation of `x`, and its sums, and those of its
           product with the raw values, are added here
    add    to what stands in `target`, in place of overwriting it; the sums are of what was added
    """
    total, low, raw = fine.buffer.shape, fine.low, lines.scaled(x or Activation(target))
    through = None if sums is None else forms_of([raw], 1)[0]
    elements = element_of(fine), element_of(target)
    entry = _gradient_library(factors, mode == "trilinear", through, elements)["gather"]
    values = {
        **lines.shape(target), "fine": fine.buffer, "fine_plane": fine.plane, "fine_line": fine.line,
        "low_z": low[0], "low_y": low[1], "low_x": low[2], "planes": total[0], "lines": total[1], "columns": total[2],
        "raw": source_fields(raw), "target": target_fields(target, add),
    }  # fmt: skip
    lines.run_summed(entry, values, {"sums": sums}, target.sides[0] * target.sides[1])
