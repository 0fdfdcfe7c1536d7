"""Operations that join, divide and repeat channels, as nodes or as parts side by side."""

from __future__ import annotations

from volseg.models.exported.margins import cropped
from volseg.models.exported.walk import Handler, Held, Result, Value, Walk, node_name
from volseg.networks.layered import Channels
from volseg.nn.graph import Call


def _cat(walk: Walk, call: Call) -> Value:
    values = [held.value for held in walk.listed(call, "tensors")]
    if call.arguments["dim"] % len(values[0].shape) != 1:
        raise call.refuse("joins along an axis other than the channels")
    everywhere = values[0].everywhere
    if any(value.everywhere != everywhere for value in values):
        raise call.refuse("joins a volume with values of the whole volume")
    return Value(tuple(part for value in values for part in value.parts), call.shape, everywhere)


def _slice(walk: Walk, call: Call) -> Result:
    held = walk.held(call)
    if call.shape == held.value.shape:
        return held
    axis = call.arguments["dim"] % len(held.value.shape)
    start, stop, step = (call.arguments[key] for key in ("start", "end", "step"))
    if axis != 1:
        return cropped(walk, call, axis, start, stop, step)
    channels = held.value.channels
    first, last, _ = slice(start, stop, step).indices(channels)
    return part_of(walk, call, held, first, last, step, call.shape)


def part_of(
    walk: Walk, call: Call, held: Held, start: int, stop: int, step: int, shape: tuple[int, ...]
) -> Held:  # fmt: skip
    """Some channels of a tensor; a node's own ones, where they begin and end with nodes."""
    held.shared = True
    value, at = held.value, 0
    if step == 1:
        parts = []
        for part in value.parts:
            width = walk.channels_of(part)
            if start <= at and at + width <= stop:
                parts.append(part)
            at += width
        if sum(walk.channels_of(part) for part in parts) == stop - start:
            return Held(Value(tuple(parts), shape, value.everywhere), shared=True)
    channels = len(range(start, stop, step))
    node = Channels(node_name(call, "channels"), (walk.single(call, value),), -1, channels, start, stop, step)
    return Held(walk.add(node, shape, everywhere=value.everywhere), shared=True)


def _split(walk: Walk, call: Call) -> list[Value]:
    held = walk.held(call)
    if call.arguments["dim"] % len(held.value.shape) != 1:
        raise call.refuse("divides an axis other than the channels")
    channels = held.value.channels
    sizes = call.arguments.get("split_sizes", call.arguments.get("split_size"))
    if "chunks" in call.arguments:
        sizes = -(-channels // int(call.arguments["chunks"]))
    if isinstance(sizes, int):
        sizes = tuple(min(sizes, channels - first) for first in range(0, channels, sizes))
    start, parts = 0, []
    for size in sizes:
        shape = (held.value.shape[0], size, *held.value.shape[2:])
        parts.append(part_of(walk, call, held, start, start + size, 1, shape).value)
        start += size
    return parts


def _repeated(walk: Walk, call: Call) -> Held:
    """A tensor's channels several times over."""
    value, repeats = walk.value(call), tuple(call.arguments["repeats"])
    if value.everywhere or len(repeats) != 5 or any(n != 1 for axis, n in enumerate(repeats) if axis != 1):
        raise call.refuse("repeats an axis other than the channels")
    return Held(Value(value.parts * int(repeats[1]), call.shape), shared=True)


def _getitem(walk: Walk, call: Call) -> Held:
    number = int(call.arguments["1"])
    return walk.listed(call, "0")[number]


CHANNELS: dict[str, Handler] = {
    "cat": _cat,
    "repeat": _repeated,
    "slice": _slice,
    "split": _split,
    "split_with_sizes": _split,
    "chunk": _split,
    "getitem": _getitem,
}
"""By the name of torch's operation, what makes its node."""
