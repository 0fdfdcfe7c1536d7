"""Activations of whole tensors, by torch's own functions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from volseg.networks.description import ActivationKind


def activate(x: Tensor, kind: ActivationKind, slope: float) -> Tensor:
    """The activation of a tensor of any shape.

    slope  of a leaky ReLU below zero: 0 is ReLU, 1 none, which gives `x` itself
    """
    match kind:
        case "silu":
            return functional.silu(x)
        case "gelu":
            return functional.gelu(x)
        case "gelu_tanh":
            return functional.gelu(x, approximate="tanh")
        case "sigmoid":
            return torch.sigmoid(x)
        case "leaky_relu":
            if slope == 1:
                return x
            return torch.relu(x) if slope == 0 else functional.leaky_relu(x, slope)
