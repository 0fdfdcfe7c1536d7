"""Stages of a network from the sides of its tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import pairwise

from volseg.errors import PartitionError
from volseg.geometry import Triple, format_triple, quotient
from volseg.networks.description import IMAGE, ONES, Network, Node


def network_of(
    nodes: Iterable[Node], sides: Mapping[str, Triple], in_channels: int, children: tuple[str, ...]
) -> Network:  # fmt: skip
    """A network of nodes whose stages are not known yet.

    sides     of each node's output and of the image; a node without is as large as what it reads
    children  names of the module's children, in their order

    Raises PartitionError where a tensor's sides are no whole part of the image's, or two of them no part of each other.
    """
    listed = list(nodes)
    factors = {IMAGE: ONES}
    for node in listed:
        factors[node.name] = factors[node.reads[0]]
        if node.name in sides:
            factors[node.name] = _factor(node, sides[node.name], sides[IMAGE])
    order = sorted(set(factors.values()))
    for finer, coarser in pairwise(order):
        if any(b % a for a, b in zip(finer, coarser, strict=True)):
            raise PartitionError(
                f"the network has tensors of one voxel for {format_triple(finer)} and for {format_triple(coarser)} of "
                "the image's; each resolution must be a whole part of the finer ones"
            )
    strides = (ONES, *(quotient(b, a) for a, b in pairwise(order)))
    staged = tuple(replace(node, stage=order.index(factors[node.name])) for node in listed)
    used = {path.split(".")[0] for node in staged for path in paths_of(node)}
    return Network(in_channels, strides, staged, (*children, *sorted(used - set(children))))


def paths_of(node: Node) -> tuple[str, ...]:
    """Of the torch layers that belong to a node."""
    return tuple(path for key in ("module", "dropping") if (path := getattr(node, key, "")))


def _factor(node: Node, sides: Triple, image: Triple) -> Triple:
    """How many voxels of the image one of a node's output stands for, on each axis."""
    if any(n < m or n % m for n, m in zip(image, sides, strict=True)):
        raise PartitionError(
            f"{node.name} makes {format_triple(sides)} voxels of an image of {format_triple(image)}, which are no "
            "whole part of them; give sides that are multiples of the product of the network's strides"
        )
    return quotient(image, sides)
