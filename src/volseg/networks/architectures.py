"""The networks that a configuration can name: by `[model] architecture`, what describes them."""

from __future__ import annotations

from collections.abc import Callable

from volseg.config import ModelConfig
from volseg.errors import ConfigError
from volseg.networks.deep_supervision import with_training_heads
from volseg.networks.description import Network
from volseg.networks.segresnet import segresnet
from volseg.networks.unet import unet


def _imported(config: ModelConfig) -> Network:
    raise ConfigError(
        "model.architecture = 'imported': such a network comes with a run folder; name that, with --from (train) or "
        "--model (plan-partition), or set another architecture"
    )


_BUILDERS: dict[str, Callable[[ModelConfig], Network]] = {
    "unet": unet,
    "segresnet": segresnet,
    "imported": _imported,
}

NAMES = {"unet": "U-Net", "segresnet": "SegResNet", "imported": "imported network"}
"""As messages call them."""


def described(config: ModelConfig, deep_supervision: bool = False) -> Network:
    """The description of the network of a configuration.

    deep_supervision  with a head at each coarser stage where the loss is taken
    """
    network = _BUILDERS[config.architecture](config)
    return with_training_heads(network) if deep_supervision else network
