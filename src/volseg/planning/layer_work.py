"""What the busiest rank computes of a network that no program covers: its convolutions and up-samplings, one by one."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from volseg.networks.description import Convolution, Interpolation, Network, UpConvolution
from volseg.partition.layout import Layout
from volseg.planning.operations import Family, Operation, Work
from volseg.program.kinds import Kind

_TAPS = 27
"""Of the 3x3x3 kernels that machines are measured by."""


def layer_work(network: Network, layouts: Sequence[Layout], *, training: bool) -> Work:
    """The products alone, without messages. Times made from them set machines in order, and are not shown.

    layouts   of each stage, finest first
    training  whether backward follows
    """
    convolving = (Family.FORWARD, Family.BACKWARD) if training else (Family.SEGMENT_FORWARD,)
    lifting = (Family.UP, Family.UP_BACKWARD) if training else (Family.SEGMENT_UP,)
    work = Work()
    for node in network.nodes:
        inputs, voxels = sum(network.inputs_of(node)), prod(layouts[node.stage].largest_block)
        match node:
            case Convolution():
                kind, families, times = Kind.CONVOLUTION, convolving, prod(node.kernel) / _TAPS
            case UpConvolution() | Interpolation():
                kind, families, times = Kind.UP, lifting, 1.0
            case _:
                continue
        work.operations += [
            Operation(node.name, kind, family, node.stage, inputs, node.channels, voxels, times) for family in families
        ]
    return work
