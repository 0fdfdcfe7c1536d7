"""Which networks the program's kernels cover."""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise

from volseg.geometry import format_triple
from volseg.networks.description import (
    IMAGE,
    Addition,
    AveragePool,
    Convolution,
    Interpolation,
    MaxPool,
    Network,
    Node,
    Normalization,
    UpConvolution,
)
from volseg.networks.layered import LayeredNode, described_as

_KERNELS, _STRIDES = {1, 3, 5, 7}, {1, 2}
_LIFTS = (UpConvolution, Interpolation)


@lru_cache(maxsize=64)
def why_not_covered(network: Network) -> str:
    """The first node that has no kernel, in words; empty where all have one."""
    return next((reason for node in network.nodes if (reason := _reason(network, node))), "")


@lru_cache(maxsize=64)
def can_recompute(network: Network) -> bool:
    """Whether the finest stage can be computed again for each pass over the image: a chain of convolutions.

    Each reads the one before, the first of the decoder what comes up beside it; what enters the second stage is pooled
    or made by a single convolution.
    """
    made = [node for node in network.nodes if isinstance(node, (Convolution, Addition, AveragePool, *_LIFTS))]
    finest = [node for node in made if node.stage == 0 and not isinstance(node, _LIFTS)]
    lifted = [n for n, node in enumerate(finest) if _lifted(network, node)]
    pooling = [node for node in network.nodes if isinstance(node, MaxPool) and node.stage == 1]
    striding = [node for node in made if node.stage == 1 and any(network.stage_of(name) == 0 for name in node.reads)]
    if len(lifted) != 1 or lifted[0] == 0 or len(pooling) + len(striding) != 1:
        return False
    last = finest[lifted[0] - 1].name
    enters = all(
        isinstance(node, (MaxPool, Convolution)) and _follows(network, node, last) for node in pooling + striding
    )
    follow = all(_follows(network, node, before.name) for before, node in pairwise(finest))
    return enters and follow and all(isinstance(node, Convolution) and max(node.stride) == 1 for node in finest)


def _follows(network: Network, node: Node, before: str) -> bool:
    """Whether a node reads, through its norm and activation, what another made, and nothing else that is whole."""
    through = [other for name in node.reads if not isinstance(other := network.by_name.get(name), _LIFTS)]
    return len(through) == 1 and isinstance(through[0], Normalization) and through[0].reads == (before,)


def _lifted(network: Network, node: Node) -> int:
    """How many up-sampled tensors a node reads."""
    return sum(isinstance(network.by_name.get(name), _LIFTS) for name in node.reads)


def _reason(network: Network, node: Node) -> str:
    first = network.by_name.get(node.reads[0])
    match node:
        case LayeredNode():
            return f"{node.name} is {described_as(node)}"
        case Normalization() if isinstance(first, Normalization):
            return f"{node.name} reads what is normalised or activated already"
        case Normalization() if node.norm != "none" and isinstance(first, (MaxPool, *_LIFTS)):
            return f"{node.name} normalises what is pooled or up-sampled"
        case MaxPool() if not isinstance(first, Normalization):
            return f"{node.name} pools the image"
        case UpConvolution() | Interpolation() if network.stage_of(node.reads[0]) != node.stage + 1:
            return f"{node.name} passes over a stage"
        case Convolution() | MaxPool() | AveragePool() if node.stage - network.stage_of(node.reads[0]) > 1:
            return f"{node.name} passes over a stage"
        case Convolution() if not set(node.kernel) <= _KERNELS or not set(node.stride) <= _STRIDES:
            stride = f" with stride {format_triple(node.stride)}" if max(node.stride) > 1 else ""
            return f"{node.name} is a convolution of {format_triple(node.kernel)}{stride}"
        case Convolution() if len(node.reads) > 2:
            return f"{node.name} reads {len(node.reads)} tensors side by side"
        case Convolution() if _lifted(network, node) > 1:
            return f"{node.name} reads two up-sampled tensors side by side"
        case Convolution() if _lifted(network, node) and max(node.stride) > 1:
            return f"{node.name} takes every second voxel of what is up-sampled"
        case MaxPool() | AveragePool() if not set(node.window) <= _STRIDES:
            return f"{node.name} is a pooling of {format_triple(node.window)}"
        case AveragePool() if node.reads == (IMAGE,) or _lifted(network, node):
            return f"{node.name} averages the image or what is up-sampled"
        case UpConvolution() if not set(node.factors) <= _STRIDES:
            return f"{node.name} is an up-convolution of {format_triple(node.factors)}"
        case Addition() if IMAGE in node.reads:
            return f"{node.name} adds the image itself"
        case Interpolation() if not set(node.factors) <= _STRIDES:
            return f"{node.name} is an interpolation by {format_triple(node.factors)}"
        case Normalization() if IMAGE in node.reads:
            return f"{node.name} normalises or activates the image"
    return ""
