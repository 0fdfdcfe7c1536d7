"""Stages of a network from what its operations do to the sides of a volume."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise

from volseg.errors import PartitionError
from volseg.geometry import Triple, format_triple, quotient
from volseg.networks.description import (
    IMAGE,
    ONES,
    AveragePool,
    Convolution,
    Interpolation,
    MaxPool,
    Network,
    Node,
    UpConvolution,
)
from volseg.networks.layered import (
    AlignedInterpolation,
    GeneralConvolution,
    GeneralPool,
    PixelShuffle,
    PixelUnshuffle,
    everywhere,
)


def network_of(
    nodes: Iterable[Node], image: Triple, in_channels: int, children: tuple[str, ...]
) -> Network:  # fmt: skip
    """A network of nodes whose stages are not known yet.

    image     the sides of the volume that the module was exported with
    children  names of the module's children, in their order

    A node's stage follows from the strides on the way to it, not from its sides: voxels that a padding adds or a
    convolution leaves out change no stage.

    Raises PartitionError where a resolution is no whole part of the finer ones or is finer than the image, where an
    operation joins two of them, and where the image's sides are no multiples of the product of the strides.
    """
    listed = list(nodes)
    factors = _factors(listed, in_channels)
    order = sorted(set(factors.values()))
    for finer, coarser in pairwise(order):
        if any(b % a for a, b in zip(finer, coarser, strict=True)):
            raise PartitionError(
                f"the network has tensors of one voxel for {format_triple(finer)} and for {format_triple(coarser)} of "
                "the image's; each resolution must be a whole part of the finer ones"
            )
    if any(n % m for n, m in zip(image, order[-1], strict=True)):
        raise PartitionError(
            f"the network makes one voxel of {format_triple(order[-1])}, of which an image of {format_triple(image)} "
            "is no whole number; give sides that are multiples of the product of the network's strides"
        )
    strides = (ONES, *(quotient(b, a) for a, b in pairwise(order)))
    staged = tuple(replace(node, stage=order.index(factors[node.name])) for node in listed)
    used = {path.split(".")[0] for node in staged for path in paths_of(node)}
    return Network(in_channels, strides, staged, (*children, *sorted(used - set(children))))


def paths_of(node: Node) -> tuple[str, ...]:
    """Of the torch layers that belong to a node."""
    return tuple(path for key in ("module", "dropping") if (path := getattr(node, key, "")))


def _factors(nodes: list[Node], in_channels: int) -> dict[str, Triple]:
    """How many voxels of the image one of each node's output stands for, on each axis."""
    apart = everywhere(Network(in_channels, (ONES,), tuple(nodes)))
    factors = {IMAGE: ONES}
    for node in nodes:
        read = [factors[name] for name in node.reads if node.name in apart or name not in apart]
        if node.name not in apart and len(set(read)) > 1:
            raise PartitionError(
                f"{node.name} joins tensors of one voxel for {' and for '.join(map(format_triple, sorted(set(read))))} "
                "of the image's; bring them to one resolution first"
            )
        times, parts = _scale(node)
        if any(n * m % p for n, m, p in zip(read[0], times, parts, strict=True)):
            raise PartitionError(f"{node.name} makes voxels that are finer than the image's, or no whole part of them")
        d, h, w = (n * m // p for n, m, p in zip(read[0], times, parts, strict=True))
        factors[node.name] = d, h, w
    return factors


def _scale(node: Node) -> tuple[Triple, Triple]:
    """How many voxels of its input become one, and into how many one is divided, on each axis."""
    match node:
        case GeneralConvolution(transposed=True):
            return ONES, node.stride
        case Convolution() | GeneralConvolution() | GeneralPool():
            return node.stride, ONES
        case MaxPool() | AveragePool():
            return node.window, ONES
        case PixelUnshuffle():
            return node.factors, ONES
        case UpConvolution() | Interpolation() | AlignedInterpolation() | PixelShuffle():
            return ONES, node.factors
    return ONES, ONES
