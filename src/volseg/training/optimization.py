"""Optimizer, learning rate, and the order of the cases."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from volseg.config import TrainingConfig


def make_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """The optimizer that `config` names."""
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            model.parameters(), config.learning_rate, momentum=0.99, nesterov=True, weight_decay=config.weight_decay
        )
    # Adam divides each gradient by its own size. At torch's eps of 1e-8 that turns rounding noise, which depends on the
    # grid, into full steps; at 1e-3 small gradients make small steps, and the loss falls as fast (docs/decisions.md).
    return torch.optim.AdamW(model.parameters(), config.learning_rate, eps=1e-3, weight_decay=config.weight_decay)


def set_learning_rate(optimizer: torch.optim.Optimizer, config: TrainingConfig, step: int, steps: int) -> float:
    """Linear warm-up over the first steps, times the polynomial decay of nnU-Net, (1 - step / steps)^0.9."""
    warm = min(1.0, (step + 1) / max(1, config.warmup))
    rate = float(config.learning_rate * warm * (1 - step / steps) ** 0.9)
    for group in optimizer.param_groups:
        group["lr"] = rate
    return rate


def case_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order of the cases in an epoch: a permutation that follows from seed and epoch alone."""
    return np.random.default_rng([seed, epoch]).permutation(count)
