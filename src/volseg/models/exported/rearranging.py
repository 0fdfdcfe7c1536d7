"""Reshaping and permuting: axes of a volume taken apart, put in another order and joined again, as nodes.

Between its first and its last such operation a tensor has other axes than a volume, and is a `Folded`. Where its axes
are again those of a volume, it is one whose channels have another order (a channel shuffle), or are spread over space
(a pixel shuffle), or come from small blocks of voxels; where one of its axes has parts of the channels alone, it can
be divided along it, or reduced (a stack).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

from volseg.geometry import Triple
from volseg.models.exported.channels import part_of
from volseg.models.exported.layers import global_mean
from volseg.models.exported.walk import Handler, Held, Other, Result, Value, Walk, node_name
from volseg.networks.description import ONES, Addition
from volseg.networks.layered import (
    ChannelOrder,
    Combination,
    JoinKind,
    PixelShuffle,
    PixelUnshuffle,
    ReductionKind,
    Scaling,
)
from volseg.nn.graph import Call


class Part(NamedTuple):
    """Indices 0, `step`, 2 * `step`, ... of an axis of the volume, so many."""

    axis: int
    step: int
    length: int


Axis = tuple[Part, ...]
"""Parts that an axis of a tensor goes through, the slowest first; none where the axis has one index."""


@dataclass(frozen=True)
class Folded(Other):
    """A tensor whose axes are parts of the axes of a volume.

    value  the volume [N, C, D, H, W]
    axes   of the tensor
    """

    value: Value
    axes: tuple[Axis, ...]

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """torch's shape of the tensor."""
        return tuple(prod(part.length for part in axis) for axis in self.axes)


def _whole(shape: Sequence[int]) -> tuple[Axis, ...]:
    """The axes of a volume itself."""
    return tuple((Part(axis, 1, n),) if n > 1 else () for axis, n in enumerate(shape))


def _folded(walk: Walk, call: Call) -> Folded:
    """What a call reads, as it lies in memory that it shares."""
    other = walk.other(call)
    if isinstance(other, Folded):
        return other
    held = walk.held(call)
    if held.value.everywhere:
        raise call.refuse("changes the axes of values of the whole volume")
    held.shared = True
    return Folded(held.value, _whole(held.value.shape))


def _reshaped(walk: Walk, call: Call) -> Result:
    if walk.other(call) is None:
        held = walk.held(call)
        if call.shape == held.value.shape:
            return held
        if held.value.everywhere:
            return _reshaped_values(call, held)
    folded = _folded(walk, call)
    axes = _regrouped([part for axis in folded.axes for part in axis], call.shape)
    if axes is None:
        raise call.refuse("gives the voxels another shape")
    return _settled(walk, call, folded.value, axes)


def _reshaped_values(call: Call, held: Held) -> Held:
    """Any shape of values of the whole volume."""
    if max(call.shape, default=1) != held.value.channels:
        raise call.refuse("gives values of the whole volume a shape in which they are no channels")
    held.shared = True
    return Held(Value(held.value.parts, call.shape, everywhere=True), shared=True)


def _regrouped(parts: list[Part], shape: Sequence[int]) -> tuple[Axis, ...] | None:
    """The same indices in the same order as axes of another shape; None where parts would have to be cut unevenly."""
    rest, axes = list(reversed(parts)), []
    for length in shape:
        axis: list[Part] = []
        while length > 1 and rest:
            part = rest.pop()
            if part.length > length and part.length % length == 0:
                inner = part.length // length
                rest.append(Part(part.axis, part.step, inner))
                part = Part(part.axis, part.step * inner, length)
            if length % part.length:
                return None
            length //= part.length
            axis.append(part)
        if length > 1:
            return None
        axes.append(_joined(axis))
    return None if rest else tuple(axes)


def _joined(axis: Sequence[Part]) -> Axis:
    """The same axis with as few parts as can be."""
    joined: list[Part] = []
    for part in axis:
        last = joined[-1] if joined else None
        if last is not None and last.axis == part.axis and last.step == part.step * part.length:
            joined[-1] = Part(part.axis, part.step, last.length * part.length)
        else:
            joined.append(part)
    return tuple(joined)


def _permuted(walk: Walk, call: Call) -> Result:
    folded = _folded(walk, call)
    count = len(folded.axes)
    if "dims" in call.arguments:
        order = [int(dim) % count for dim in call.arguments["dims"]]
    else:
        order = list(range(count))
        a, b = (int(call.arguments[key]) % count for key in ("dim0", "dim1"))
        order[a], order[b] = order[b], order[a]
    return _settled(walk, call, folded.value, tuple(folded.axes[n] for n in order))


def _settled(walk: Walk, call: Call, value: Value, axes: tuple[Axis, ...]) -> Result:
    """A volume where the axes are again those of one, else a tensor that is folded."""
    if axes == _whole(value.shape):
        return Held(value, shared=True)
    spread, gathered = _factors(value, axes)
    if spread is None or gathered is None or (spread != ONES and gathered != ONES):
        return Folded(value, axes)
    if gathered != ONES:
        count = value.channels * prod(gathered)
        node = PixelUnshuffle(node_name(call, "unshuffled"), (walk.single(call, value),), -1, count, gathered)
        sides = [n // f for n, f in zip(value.sides, gathered, strict=True)]
        value = walk.add(node, (value.shape[0], count, *sides))
    # The channels of the result, slowest first, and behind them those that are spread over space.
    parts = [*axes[1], *(part for axis in axes[2:] for part in axis if part.axis == 1)]
    value = _in_order(walk, call, value, parts)
    if spread == ONES:
        return value
    name, count = node_name(call, "shuffled"), value.channels // prod(spread)
    return walk.add(PixelShuffle(name, (walk.single(call, value),), -1, count, spread), call.shape)


def _factors(value: Value, axes: tuple[Axis, ...]) -> tuple[Triple | None, Triple | None]:
    """By how much channels are spread over each axis of space, and its voxels gathered in channels; None for others."""
    if len(axes) != 5 or axes[0] != _whole(value.shape)[0]:
        return None, None
    spread, gathered = [], []
    for axis, n in zip((2, 3, 4), value.sides, strict=True):
        first, *others = axes[axis] or (Part(axis, 1, 1),)
        channels = [part for part in others if part.axis == 1]
        if first.axis != axis or first.step * first.length != n or len(others) > 1 or channels != others:
            return None, None
        spread.append(prod(part.length for part in channels))
        gathered.append(first.step)
    if any(part.axis in (0,) for part in axes[1]):
        return None, None
    return (spread[0], spread[1], spread[2]), (gathered[0], gathered[1], gathered[2])


def _in_order(walk: Walk, call: Call, value: Value, parts: Sequence[Part]) -> Value:
    """The channels in the order of `parts`, of which the volume's have them in that of axes, then of steps."""
    before = sorted(parts, key=lambda part: (part.axis, -part.step))
    order = tuple(before.index(part) for part in parts)
    if order == tuple(range(len(parts))):
        return value
    split = tuple(part.length for part in before)
    node = ChannelOrder(node_name(call, "in order"), (walk.single(call, value),), -1, value.channels, split, order)
    return walk.add(node, value.shape)


def _stacked(walk: Walk, call: Call) -> Result:
    values = [held.value for held in walk.listed(call, "tensors")]
    first = values[0]
    if any(value.everywhere for value in values):
        raise call.refuse("stacks values of the whole volume")
    n, count, *sides = first.shape
    joined = Value(tuple(part for value in values for part in value.parts), (n, count * len(values), *sides))
    axes = list(_whole(first.shape))
    axes.insert(call.arguments["dim"] % 6, (Part(1, count, len(values)),) if len(values) > 1 else ())
    return _settled(walk, call, joined, tuple(axes))


def _along(walk: Walk, call: Call, folded: Folded, dim: int, *, kept: bool = False) -> Iterator[Result]:
    """The tensor at each index of an axis that has parts of the channels, the slowest of them, alone."""
    channels, axis = folded.value.channels, folded.axes[dim]
    count = prod(part.length for part in axis)
    if axis and axis != (Part(1, channels // count, count),):
        raise call.refuse("divides or reduces an axis other than the channels or those of a stack")
    rest = (*folded.axes[:dim], *[()] * kept, *folded.axes[dim + 1 :])
    width, held = channels // count, Held(folded.value, shared=True)
    for n in range(count):
        shape = (folded.value.shape[0], width, *folded.value.shape[2:])
        part = part_of(walk, call, held, n * width, (n + 1) * width, 1, shape)
        yield _settled(walk, call, part.value, rest)


def _selected(walk: Walk, call: Call) -> Result:
    folded = _folded(walk, call)
    dim = call.arguments["dim"] % len(folded.axes)
    index: int = call.arguments["index"]
    return list(_along(walk, call, folded, dim))[index]


def _unbound(walk: Walk, call: Call) -> list[Value]:
    folded = _folded(walk, call)
    return list(_volumes(call, _along(walk, call, folded, call.arguments["dim"] % len(folded.axes))))


def _volumes(call: Call, results: Iterator[Result]) -> Iterator[Value]:
    for result in results:
        if isinstance(result, Held):
            result = result.value
        if not isinstance(result, Value):
            raise call.refuse("leaves a tensor whose axes are not those of a volume [N, C, D, H, W]")
        yield result


def reduced(reduction: ReductionKind, walk: Walk, call: Call, folded: Folded) -> Value:
    """A reduction along one axis of a folded tensor: of a stack, or of all voxels of each channel."""
    dims = call.arguments.get("dim")
    if not isinstance(dims, (tuple, int)) or (isinstance(dims, tuple) and len(dims) != 1):
        raise call.refuse("is over several axes of a tensor whose axes are not those of a volume")
    dim = (dims[0] if isinstance(dims, tuple) else dims) % len(folded.axes)
    whole = _whole(folded.value.shape)
    if reduction == "mean" and sorted(folded.axes[dim]) == [part for axis in whole[2:] for part in axis]:
        if folded.axes[:dim] != whole[:2] or any(folded.axes[dim + 1 :]):
            raise call.refuse("leaves values of the whole volume that are no channels")
        return global_mean(walk, call, folded.value)
    values = list(_volumes(call, _along(walk, call, folded, dim, kept=bool(call.arguments["keepdim"]))))
    joins: dict[ReductionKind, JoinKind] = {"mean": "add", "sum": "add", "max": "maximum", "min": "minimum"}
    total = values[0]
    for value in values[1:]:
        total = _together(walk, call, joins[reduction], total, value)
    if reduction == "mean" and len(values) > 1:
        name, read = node_name(call, "mean"), (walk.single(call, total),)
        node = Scaling(name, read, -1, total.channels, "divide", (float(len(values)),))
        return walk.add(node, total.shape)
    return total


def _together(walk: Walk, call: Call, function: JoinKind, a: Value, b: Value) -> Value:
    reads = (walk.single(call, a), walk.single(call, b))
    if function == "add":
        return walk.add(Addition(node_name(call, "sum"), reads, -1, a.channels), a.shape)
    return walk.add(Combination(node_name(call, function), reads, -1, a.channels, function), a.shape)


_RESHAPES = ("view", "reshape", "_unsafe_view", "squeeze", "unsqueeze", "flatten", "unflatten", "expand")

REARRANGING: dict[str, Handler] = {
    **dict.fromkeys(_RESHAPES, _reshaped),
    **dict.fromkeys(("permute", "transpose", "swapaxes"), _permuted),
    "stack": _stacked,
    "select": _selected,
    "unbind": _unbound,
}
"""By the name of torch's operation, what makes its node."""
