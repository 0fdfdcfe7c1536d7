"""Which networks the program's kernels cover."""

from __future__ import annotations

from functools import lru_cache

from volseg.geometry import format_triple
from volseg.networks.description import (
    IMAGE,
    Addition,
    Convolution,
    Interpolation,
    MaxPool,
    Network,
    Node,
    Normalization,
    UpConvolution,
)

_KERNELS, _STRIDES = {1, 3, 5, 7}, {1, 2}


@lru_cache(maxsize=64)
def why_not_covered(network: Network) -> str:
    """The first node that has no kernel, in words; empty where all have one."""
    return next((reason for node in network.nodes if (reason := _reason(network, node))), "")


@lru_cache(maxsize=64)
def can_recompute(network: Network) -> bool:
    """Whether the finest stage can be computed again for each pass over the image: a chain of 3x3x3 convolutions.

    What is pooled of them must be so before the activation, which the pass that finds its coefficients does not know.
    """
    if network.deepest == 0 or network.strides[1] != (2, 2, 2):
        return False
    finest = [node for node in network.nodes if node.stage == 0 and isinstance(node, (Convolution, Addition))]
    entering = [node for node in network.nodes if node.stage == 1 and isinstance(node, Convolution)]
    lifted = next(n for n, node in enumerate(network.nodes) if isinstance(node, UpConvolution) and node.stage == 0)
    behind = [node for node in network.nodes[lifted:] if isinstance(node, Convolution)]
    plain = all(isinstance(node, Convolution) and node.kernel == (3, 3, 3) for node in finest)
    pooled = [node for node in network.nodes if isinstance(node, MaxPool) and node.stage == 1]
    plain = plain and all(_keeps_order(network, pooling) for pooling in pooled)
    # The ghosts of the second stage reach two voxels of the finest, as far as two convolutions read.
    return plain and len(behind) <= 2 and all(node.stride == (1, 1, 1) for node in entering)


def _keeps_order(network: Network, pooling: MaxPool) -> bool:
    """Whether the raw values can be pooled, without the coefficients of the norm and activation behind them."""
    read = network.by_name[pooling.reads[0]]
    return isinstance(read, Normalization) and read.keeps_order


def _reason(network: Network, node: Node) -> str:
    match node:
        case Convolution() if not set(node.kernel) <= _KERNELS or not set(node.stride) <= _STRIDES:
            stride = f" with stride {format_triple(node.stride)}" if max(node.stride) > 1 else ""
            return f"{node.name} is a convolution of {format_triple(node.kernel)}{stride}"
        case Convolution() if len(node.reads) > 2:
            return f"{node.name} reads {len(node.reads)} tensors side by side"
        case MaxPool() if not set(node.window) <= _STRIDES:
            return f"{node.name} is a pooling of {format_triple(node.window)}"
        case UpConvolution() if not set(node.factors) <= _STRIDES:
            return f"{node.name} is an up-convolution of {format_triple(node.factors)}"
        case Addition() if IMAGE in node.reads:
            return f"{node.name} adds the image itself"
        case Interpolation():
            return f"{node.name} is an interpolation"
        case Normalization() if IMAGE in node.reads:
            return f"{node.name} normalises or activates the image"
    return ""
