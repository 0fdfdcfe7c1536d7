"""The network of a configuration as a torch module, the same code on one rank or many."""

from __future__ import annotations

from volseg.config import ModelConfig
from volseg.models.described import DescribedModule
from volseg.networks import architectures
from volseg.networks.description import Network

DEEP_HEADS = "deep_heads."
"""What the names of parameters begin with that are for training alone."""


def training_heads(network: Network) -> tuple[str, ...]:
    """What the names of parameters begin with that are for training alone, in a module of the network.

    Those of heads that volseg adds are among them, whether the network has any or not.
    """
    return DEEP_HEADS, *(f"{head.module}." for head in network.heads if head.training)


class UNet(DescribedModule):
    """A 3D U-Net of `config.levels` halvings, or the other architecture that `config` names.

    deep_supervision  with a head at each coarser level where the loss is taken (`networks.deep_supervision`); the
                      other parameters and the logits are what they are without
    described         the network as it was stored with its weights, in place of the one that `config` gives now
    """

    def __init__(
        self, config: ModelConfig, deep_supervision: bool = False, described: Network | None = None
    ) -> None:  # fmt: skip
        super().__init__(described or architectures.described(config, deep_supervision))
        self.config = config
