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
    """Whether the finest stage can be computed again for each pass over the image: a chain of 3x3x3 convolutions."""
    if network.deepest == 0 or network.strides[1] != (2, 2, 2):
        return False
    finest = [node for node in network.nodes if node.stage == 0 and isinstance(node, (Convolution, Addition))]
    entering = [node for node in network.nodes if node.stage == 1 and isinstance(node, Convolution)]
    nodes = enumerate(network.nodes)
    at, up = next((n, node) for n, node in nodes if isinstance(node, (UpConvolution, Interpolation)) and not node.stage)
    behind = [node for node in network.nodes[at:] if isinstance(node, Convolution)]
    plain = all(isinstance(node, Convolution) and node.kernel == (3, 3, 3) for node in finest)
    # As far as two convolutions read of the finest stage, the ghosts of the second one must reach.
    reached = all(n <= most for n, most in zip(up.reach((2, 2, 2)), network.halo[1], strict=True))
    return plain and reached and len(behind) <= 2 and all(node.stride == (1, 1, 1) for node in entering)


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
        case Interpolation() if not set(node.factors) <= _STRIDES:
            return f"{node.name} is an interpolation by {format_triple(node.factors)}"
        case Normalization() if node.norm != "none" and IMAGE in node.reads:
            return f"{node.name} normalises the image"
    return ""
