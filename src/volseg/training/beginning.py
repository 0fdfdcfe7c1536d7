"""What a run begins with: the network of its configuration, or another one with what belongs to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from volseg.config import Config
from volseg.errors import ConfigError
from volseg.models.origin import Origin
from volseg.models.unet import UNet
from volseg.networks.deep_supervision import with_training_heads
from volseg.networks.description import Network
from volseg.volumes.imported_scan import Manner
from volseg.volumes.intensity import ChannelScheme
from volseg.volumes.resampling import Spacing


def spacing_text(spacing: Spacing) -> str:
    """As [data] spacing names it, every digit of it."""
    return "x".join(map(repr, spacing))


@dataclass(frozen=True, kw_only=True)
class Beginning:
    """A network with what belongs to it.

    config   the run's, with that network's [model], and the spacing that it learned at unless another was asked for
    network  without heads for training; None: that of the configuration
    fill     puts its weights into the module; None: they are drawn
    schemes  normalisation by channel, where the network has learned with one
    origin   of a network that another tool trained
    path     checkpoint that a run goes on from; None where it begins
    """

    config: Config
    network: Network | None = None
    fill: Callable[[UNet], None] | None = None
    schemes: tuple[ChannelScheme | None, ...] = ()
    origin: Origin | None = None
    path: Path | None = None

    @property
    def manner(self) -> Manner | None:
        """How the tool that trained the network reads scans, and the run with it; None where that is our reading."""
        return None if self.origin is None else self.origin.manner

    def module(self) -> UNet:
        """The plain torch module, with its first weights; with heads for training where the configuration asks for
        deep supervision.

        Raises ConfigError where it asks for that and the network has no stage for it.
        """
        deep = self.config.training.deep_supervision
        network = self.network if self.network is None or not deep else with_training_heads(self.network)
        if deep and network is not None and network == self.network:
            raise ConfigError(
                "training.deep_supervision: no coarser resolution of this network but its two coarsest is up-sampled, "
                "so there is none to take the loss at; leave it out"
            )
        module = UNet(self.config.model, deep, network)
        if self.fill is not None:
            self.fill(module)
        return module

    def schemes_or(self, own: Sequence[ChannelScheme]) -> tuple[ChannelScheme, ...]:
        """The schemes, by channel; `own` is the data set's, for channels that have none."""
        kept = self.schemes or (None,) * len(own)
        return tuple(scheme or other for scheme, other in zip(kept, own, strict=True))
