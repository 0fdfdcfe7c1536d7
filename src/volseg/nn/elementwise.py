"""Activations of whole tensors, by torch's own functions; their bits do not depend on a value's place."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from volseg.networks.description import ActivationKind
from volseg.nn.anywhere import at_any_place


def activate(x: Tensor, kind: ActivationKind, slope: float) -> Tensor:
    """The activation of a tensor of any shape.

    slope  of a leaky ReLU below zero: 0 is ReLU, 1 none, which gives `x` itself
    """
    match kind:
        case "silu":
            return at_any_place(functional.silu, x)
        case "gelu":
            return at_any_place(functional.gelu, x)
        case "gelu_tanh":
            return at_any_place(partial(functional.gelu, approximate="tanh"), x)
        case "sigmoid":
            return at_any_place(torch.sigmoid, x)
        case "leaky_relu":
            if slope == 1:
                return x
            return torch.relu(x) if slope == 0 else functional.leaky_relu(x, slope)
