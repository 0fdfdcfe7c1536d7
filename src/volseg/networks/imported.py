"""What the settings can say of a network that is described beside its weights."""

from __future__ import annotations

from volseg.config import ModelConfig
from volseg.errors import ConfigError
from volseg.networks.description import Network


def imported_model(network: Network) -> ModelConfig:
    """The [model] of a run with such a network: channels, classes and halvings, and where they are within the ranges of
    the settings, widths, kernels and strides, for whoever reads it.
    """
    model = ModelConfig(
        architecture="imported", in_channels=network.in_channels, classes=network.classes, levels=network.deepest
    )
    full = ModelConfig(
        architecture="imported", in_channels=network.in_channels, classes=network.classes, levels=network.deepest,
        features=network.widths, kernels=network.kernels, strides=network.strides[1:],
    )  # fmt: skip
    try:
        full.check()
    except ConfigError:
        return model
    return full
