"""Outputs that are given back after the forward pass and made again in backward, to hold less."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from math import prod

from volseg.networks.description import IMAGE, Addition, Convolution, Network, Node, Normalization
from volseg.program.ops import Add, Convolve, Exchange, Op
from volseg.program.step import Step
from volseg.program.tensors import Tensor

_FEW_CHANNELS = 4

_LARGE = 1 / 8
"""A tensor of a residual network is large from this part of the widest one of the finest stage on."""


def made_again(network: Network, checkpoint_stages: Collection[int]) -> set[str]:
    """The nodes whose outputs backward makes again.

    Those of the convolutions of the stages asked for that one other node of the stage alone reads. That of an image of
    few channels always: it costs a hundredth of a step, and its output is a fifth of what there is. A residual block
    has the outputs of its two convolutions, perhaps of a projection, and their sum. The second convolution's is enough:
    the first one's is made again where it is large, a projection always, and every other sum, for adding costs next to
    nothing.
    """
    names: set[str] = set()
    for node in network.nodes:
        if isinstance(node, Convolution) and _read_by_one(network, node):
            cheap = node.reads == (IMAGE,) and network.in_channels <= _FEW_CHANNELS
            first = _is_first_of_block(network, node) and _share(network, node) >= _LARGE
            if cheap or first or _is_projection(network, node) or node.stage in checkpoint_stages:
                names.add(node.name)
        elif isinstance(node, Addition) and _adds_what_is_kept(network, node, names):
            names.add(node.name)
    return names


def made_again_in(forward: Sequence[Step], backward: Sequence[Step], names: Collection[str]) -> list[Step]:
    """The backward steps, with the nodes of these names before the first step that reads their outputs.

    Where that is a sum that is made again, long before the next one reads them, they are made twice.
    """
    steps = list(backward)
    for step in reversed(forward):
        again = _again(step.op, names)
        if again is None:
            continue
        output, op = again
        readers = [number for number, later in enumerate(steps) if output in later.reads]
        count = 2 if isinstance(steps[readers[0]].op, Add) else 1
        label = f"{step.label}, again"
        for number in reversed(readers[:count]):
            if any(_reads_ghosts(later.op, output) for later in steps[number:]):
                steps.insert(number, Step(Exchange(output), label))
            steps.insert(number, Step(op, label))
    return steps


def _again(op: Op, names: Collection[str]) -> tuple[Tensor, Op] | None:
    """What makes an output again, where it is one of these nodes."""
    match op:
        case Convolve() if op.node.name in names:
            return op.output, replace(op, statistics=None, pooled=None, pooling=None, again=True)
        case Add() if op.node.name in names:
            return op.output, op
    return None


def _reads_ghosts(op: Op, tensor: Tensor) -> bool:
    """Whether a step reads a tensor with the voxels around the block; of backward, only what makes an output again."""
    if not isinstance(op, Convolve) or max(op.node.kernel) == 1:
        return False
    return any(source.tensor == tensor for source in op.sources)


def _read_by_one(network: Network, node: Convolution) -> bool:
    """Whether one convolution alone reads a convolution's output, or, of a projection, one sum."""
    reading = _reading(network, node)
    inner = all(isinstance(norm, Normalization) for norm in network.readers[node.name])
    if not inner or len(reading) != 1 or reading[0].stage != node.stage:
        return False
    return isinstance(reading[0], Convolution) or _is_projection(network, node)


def _is_first_of_block(network: Network, node: Convolution) -> bool:
    """Whether a convolution is the first of a residual block's two: the one that reads it is a term of a sum."""
    return any(
        isinstance(second, Convolution) and any(isinstance(last, Addition) for last in _reading(network, second))
        for second in _reading(network, node)
    )


def _reading(network: Network, node: Node) -> list[Node]:
    """The nodes that read a node's output, as it is or through a norm and an activation."""
    reading: list[Node] = []
    for reader in network.readers[node.name]:
        reading += network.readers[reader.name] if isinstance(reader, Normalization) else [reader]
    return reading


def _is_projection(network: Network, node: Node) -> bool:
    """Whether a node is a convolution of single voxels of which a sum is made (He et al., CVPR 2016)."""
    if not isinstance(node, Convolution) or max(node.kernel) > 1:
        return False
    return all(
        isinstance(reader, Addition)
        for norm in network.readers[node.name]
        for reader in network.readers[norm.name]
    )  # fmt: skip


def _adds_what_is_kept(network: Network, node: Addition, names: Collection[str]) -> bool:
    """Whether the terms of a sum are there in backward without it: what a norm reads, projections, and other sums."""
    for name in node.reads:
        read, term = network.by_name[name], network.by_name[network.made_from(name)]
        normed = isinstance(read, Normalization) and read.norm != "none"
        kept = term.name not in names or _is_projection(network, term)
        if term.stage != node.stage or not kept or not (normed or isinstance(term, Addition)):
            return False
    return True


def _share(network: Network, node: Node) -> float:
    """A node's output as a part of the widest tensor of the finest stage."""
    return node.channels / prod(network.factors[node.stage]) / network.widths[0]
