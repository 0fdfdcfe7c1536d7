"""A network for other channels and classes than it was made for."""

from __future__ import annotations

from dataclasses import replace

from volseg.errors import ConfigError
from volseg.networks.description import IMAGE, Convolution, Head, Network


def for_data(network: Network, in_channels: int, classes: int) -> Network:
    """The network with so many channels of the image and of the logits; all else is as it was.

    Raises ConfigError where the image has another number of channels and something else than a convolution reads it.
    """
    if in_channels != network.in_channels:
        others = [node.name for node in network.readers[IMAGE] if not isinstance(node, Convolution)]
        if others:
            raise ConfigError(
                f"the network takes {network.in_channels} channels, and {others[0]}, which is no convolution, reads "
                f"them: it cannot take {in_channels}; use a data set with {network.in_channels}"
            )
    nodes = tuple(
        replace(node, channels=classes, passes=node.passes and classes == node.channels)
        if isinstance(node, Head)
        else node
        for node in network.nodes
    )
    return replace(network, in_channels=in_channels, nodes=nodes)
