"""Deep supervision: at which stages of the decoder the loss is taken besides the finest, and what each counts.

As nnU-Net (Isensee et al., Nature Methods 2021): all resolutions but the two coarsest, each with half the weight of the
one above it, the weights adding up to 1.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from volseg.networks.description import (
    IMAGE,
    ONES,
    Convolution,
    Head,
    Interpolation,
    Network,
    Node,
    UpConvolution,
)

DEEP_HEADS = "deep_heads"
"""The child of the torch module that the heads for training alone lie in, each under its stage."""


def loss_weights(deep: int) -> list[float]:
    """Of the loss at full resolution and at the `deep` levels below it."""
    whole = sum(0.5**n for n in range(deep + 1))
    return [0.5**n / whole for n in range(deep + 1)]


@lru_cache(maxsize=64)
def with_training_heads(network: Network) -> Network:
    """The network with a head at each coarser stage where the loss is taken, and no others for training.

    The head of a stage reads what is up-sampled from there to the next finer one, before a 1x1x1 convolution that only
    the up-sampling reads. Heads are at the stages from 1 to the third coarsest; there are none where none of those is
    up-sampled.
    """
    network = without_training_heads(network)
    deep = {stage: source for stage in range(1, network.deepest - 1) if (source := _up_sampled(network, stage))}
    if not deep:
        return network
    nodes: list[Node] = []
    for node in network.nodes:
        nodes.append(node)
        nodes += [
            Head(f"head {stage}", (source,), stage, network.classes, f"{DEEP_HEADS}.{stage}", training=True)
            for stage, source in deep.items()
            if source == node.name
        ]
    modules = network.modules if DEEP_HEADS in network.modules else (*network.modules, DEEP_HEADS)
    return replace(network, nodes=tuple(nodes), modules=modules)


@lru_cache(maxsize=64)
def without_training_heads(network: Network) -> Network:
    """The network as it segments; itself where no head is for training alone."""
    nodes = tuple(node for node in network.nodes if not (isinstance(node, Head) and node.training))
    return network if nodes == network.nodes else replace(network, nodes=nodes)


def _up_sampled(network: Network, stage: int) -> str:
    """The node whose output the decoder takes from a stage to the next finer one; empty where there is none."""
    source = ""
    for node in network.nodes:
        lifts = isinstance(node, (UpConvolution, Interpolation)) and network.stage_of(node.reads[0]) == stage
        if lifts and node.stage == stage - 1:
            source = node.reads[0]
    narrow = network.by_name.get(source)
    if not isinstance(narrow, Convolution) or (narrow.kernel, narrow.stride) != (ONES, ONES):
        return source
    whole = len(narrow.reads) > 1 or len(network.readers[source]) > 1 or IMAGE in narrow.reads
    return source if whole or network.stage_of(narrow.reads[0]) != stage else narrow.reads[0]
