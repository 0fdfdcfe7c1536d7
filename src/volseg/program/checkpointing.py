"""Outputs that are given back after the forward pass and made again in backward, to hold less."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from math import prod

from volseg.networks.description import IMAGE, Addition, Convolution, Network, Normalization
from volseg.program.step import Convolve, Exchange, Step

_FEW_CHANNELS = 4

_LITTLE = 1 / 8
"""Values of a tensor for each voxel of the image: a thousandth of what a residual network holds."""


def made_again(network: Network, checkpoint_stages: Collection[int]) -> set[str]:
    """The convolutions whose outputs backward makes again.

    Those of the stages asked for that one other node of the stage alone reads. That of an image of few channels
    always: it costs a hundredth of a step, and its output is a fifth of what there is. In residual networks those of
    all stages but the coarsest, where an output takes less memory than the weights that make it: a block has two
    outputs and their sum, of which the sum and the second one are enough.
    """
    residual = any(isinstance(node, Addition) for node in network.nodes)
    names = set()
    for node in network.nodes:
        if isinstance(node, Convolution) and _read_by_one(network, node):
            cheap = node.reads == (IMAGE,) and network.in_channels <= _FEW_CHANNELS
            large = node.channels > _LITTLE * prod(network.factors[node.stage])
            if cheap or (residual and large) or node.stage in checkpoint_stages:
                names.add(node.name)
    return names


def _read_by_one(network: Network, node: Convolution) -> bool:
    """Whether one convolution alone reads a convolution's output, or, of a projection of one voxel, one sum."""
    reading = [r for norm in network.readers[node.name] for r in network.readers[norm.name]]
    inner = all(isinstance(norm, Normalization) for norm in network.readers[node.name])
    if not inner or len(reading) != 1 or reading[0].stage != node.stage:
        return False
    projected = isinstance(reading[0], Addition) and max(node.kernel) == 1
    return isinstance(reading[0], Convolution) or projected


def made_again_in(forward: Sequence[Step], backward: Sequence[Step], names: Collection[str]) -> list[Step]:
    """The backward steps, with the convolutions of these names before the first step that reads their outputs."""
    steps = list(backward)
    for step in reversed(forward):
        op = step.op
        if isinstance(op, Convolve) and op.node.name in names:
            again = replace(op, statistics=None, pooled=None, pooling=None, again=True)
            first = next(n for n, later in enumerate(steps) if op.output in later.reads)
            label = f"{step.label}, again"
            reader = steps[first].op
            if isinstance(reader, Convolve) and max(reader.node.kernel) > 1:
                steps.insert(first, Step(Exchange(op.output), label))
            steps.insert(first, Step(again, label))
    return steps
