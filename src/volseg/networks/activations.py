"""What the names of activations in a configuration stand for in a description."""

from __future__ import annotations

from typing import NamedTuple, cast

from volseg.networks.description import ActivationKind

_LEAKY = 0.01


class Activation(NamedTuple):
    """Two fields of a `Normalization`: the activation, and the slope below zero that a leaky ReLU has."""

    kind: ActivationKind
    slope: float


LINEAR = Activation("leaky_relu", 1.0)
"""None."""


def activation_named(name: str) -> Activation:
    """The activation of a `[model] activation`."""
    if name in ("leaky_relu", "relu"):
        return Activation("leaky_relu", _LEAKY if name == "leaky_relu" else 0.0)
    return Activation(cast(ActivationKind, name), 0.0)
