"""A network whose axes run along others."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

from volseg.errors import PartitionError
from volseg.geometry import Triple
from volseg.networks.description import Network, Node
from volseg.networks.layered import PixelShuffle, PixelUnshuffle

Value = TypeVar("Value")
_PER_AXIS = ("kernel", "stride", "factors", "window", "padding", "dilation", "extra", "before", "after")
"""Fields of nodes with a value for each axis."""


def along(values: Sequence[Value], transpose: Triple) -> tuple[Value, Value, Value]:
    """What belongs to each axis of a volume, where `values` belong to the axes of a network.

    transpose  the network's axis n runs along axis ``transpose[n]`` of the volume
    """
    d, h, w = (values[transpose.index(axis)] for axis in range(3))
    return d, h, w


def turned(network: Network, transpose: Triple) -> Network:
    """The network that computes in a volume's own axes what `network` computes where its axis n runs along axis
    ``transpose[n]``; the weights are those with their axes turned likewise.

    Raises PartitionError for a network whose channels stand for places, as those of a pixel shuffle do.
    """
    if transpose == (0, 1, 2):
        return network
    if shuffling := [node.name for node in network.nodes if isinstance(node, (PixelShuffle, PixelUnshuffle))]:
        raise PartitionError(
            f"{shuffling[0]} makes voxels of channels, or channels of voxels, in an order that is that of the axes; "
            "such a network cannot read a volume with other axes: store the volumes in its own order"
        )
    strides = tuple(along(stride, transpose) for stride in network.strides)
    nodes = tuple(_turned(node, transpose) for node in network.nodes)
    return dataclasses.replace(network, strides=strides, nodes=nodes)


def _turned(node: Node, transpose: Triple) -> Node:
    values = {field.name: getattr(node, field.name) for field in dataclasses.fields(node) if field.name in _PER_AXIS}
    turning = {name: along(value, transpose) for name, value in values.items() if isinstance(value, tuple)}
    changed: Node = dataclasses.replace(node, **turning)  # type: ignore[arg-type]
    return changed
