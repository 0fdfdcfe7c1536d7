"""torch's Sequential with norms that do the activation behind them."""

from __future__ import annotations

from typing import Any

from torch import nn

from volseg.nn.normalization import PartitionedNorm, normalize_with_slope


class FusedSequential(nn.Sequential):
    """nn.Sequential that lets a norm do the (leaky) ReLU behind it: one pass less, one tensor less kept.

    Decided at each call, so a norm that is used elsewhere as well, or taken out by index or slice, is left as it was.
    """

    def forward(self, input: Any) -> Any:
        modules = list(self)
        skip = False
        for module, following in zip(modules, [*modules[1:], None], strict=True):
            if skip:
                skip = False
                continue
            slope = _fusable_slope(module, following)
            if slope is None:
                input = module(input)
            else:
                skip = True
                assert isinstance(module, PartitionedNorm)
                input = normalize_with_slope(module, input, slope)
        return input


def _fusable_slope(norm: nn.Module, activation: nn.Module | None) -> float | None:
    """The slope below zero with which `norm` can do `activation` as well; None where it cannot."""
    if not isinstance(norm, PartitionedNorm) or norm._forward_hooks or activation is None:
        return None
    if activation._forward_hooks or activation._forward_pre_hooks:
        return None
    if type(activation) is nn.LeakyReLU and activation.negative_slope > 0:
        return float(activation.negative_slope)
    return 0.0 if type(activation) is nn.ReLU else None
