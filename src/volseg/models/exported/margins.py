"""Padding and cropping as nodes: of channels, and of voxels on any side of the volume."""

from __future__ import annotations

from collections.abc import Sequence

from volseg.geometry import Triple
from volseg.models.exported.walk import Handler, Held, Value, Walk, node_name
from volseg.networks.description import ONES
from volseg.networks.layered import ChannelPad, GeneralPool, VoxelPad
from volseg.nn.graph import Call

_NOTHING: Triple = (0, 0, 0)


def _pad(walk: Walk, call: Call) -> Held | Value:
    pads, held = call.arguments["pad"], walk.held(call)
    if not any(pads):
        return held
    if call.arguments.get("mode", "constant") != "constant":
        raise call.refuse(f"pads with mode {call.arguments['mode']!r}; only constant values can be")
    x = walk.volume(call, "self")
    pairs = [(int(pads[n]), int(pads[n + 1])) for n in range(0, len(pads), 2)]  # of the last axis first
    pairs += [(0, 0)] * (5 - len(pairs))
    (w, h, d, channels, samples), value = pairs, float(call.arguments.get("value") or 0.0)
    if any(samples) or min(channels) < 0:
        raise call.refuse("pads samples, or cuts channels off by a negative number")
    if any(channels):
        count = x.channels + sum(channels)
        node = ChannelPad(node_name(call, "channels padded"), (walk.single(call, x),), -1, count, *channels, value)
        x = walk.add(node, (x.shape[0], count, *x.shape[2:]))
    return _padded(walk, call, x, (d[0], h[0], w[0]), (d[1], h[1], w[1]), value)


def _padded(walk: Walk, call: Call, x: Value, before: Triple, after: Triple, value: float = 0.0) -> Value:
    """The volume with so many voxels more on each side."""
    if before == after == _NOTHING:
        return x
    sides = (n + a + b for n, a, b in zip(x.sides, before, after, strict=True))
    node = VoxelPad(node_name(call, "padded"), (walk.single(call, x),), -1, x.channels, before, after, value)
    return walk.add(node, (*x.shape[:2], *sides))


def cropped(walk: Walk, call: Call, axis: int, start: int | None, stop: int | None, step: int) -> Value:
    """Voxels `start`, `start` + `step`, ... before `stop` along one axis of the volume, 2 to 4."""
    x = walk.volume(call, "self")
    if axis < 2:
        raise call.refuse("takes some of the samples")
    n = x.shape[axis]
    first, last, _ = slice(start, stop, step).indices(n)
    if last <= first:
        raise call.refuse("takes no voxels")
    y = _padded(walk, call, x, _along(axis, -first, 0), _along(axis, last - n, 0))
    if step == 1:
        return y
    every = _along(axis, step, 1)
    node = GeneralPool(
        node_name(call, "every so many"), (walk.single(call, y),), -1, y.channels, "max", ONES, every, _NOTHING
    )
    return walk.add(node, call.shape)


def _along(axis: int, value: int, others: int) -> Triple:
    values: Sequence[int] = [value if axis == 2 + n else others for n in range(3)]
    d, h, w = values
    return d, h, w


MARGINS: dict[str, Handler] = {"constant_pad_nd": _pad, "pad": _pad}
"""By the name of torch's operation, what makes its node."""
