"""Which networks the program's kernels cover."""

from __future__ import annotations

from functools import lru_cache

from volseg.geometry import Triple, format_triple
from volseg.networks.description import Addition, Convolution, Interpolation, MaxPool, Network, Node, UpConvolution

_SIDES: Triple = (3, 3, 3)
_ONES: Triple = (1, 1, 1)
_TWOS: Triple = (2, 2, 2)


@lru_cache(maxsize=64)
def why_not_covered(network: Network) -> str:
    """The first node that has no kernel, in words; empty where all have one."""
    return next((reason for node in network.nodes if (reason := _reason(node))), "")


def _reason(node: Node) -> str:
    match node:
        case Convolution() if node.kernel != _SIDES or node.stride != _ONES:
            stride = "" if node.stride == _ONES else f" with stride {format_triple(node.stride)}"
            return f"{node.name} is a convolution of {format_triple(node.kernel)}{stride}"
        case MaxPool() if node.window != _TWOS:
            return f"{node.name} is a pooling of {format_triple(node.window)}"
        case UpConvolution() if node.factors != _TWOS:
            return f"{node.name} is an up-convolution of {format_triple(node.factors)}"
        case Interpolation():
            return f"{node.name} is an interpolation"
        case Addition():
            return f"{node.name} is an addition"
    return ""
