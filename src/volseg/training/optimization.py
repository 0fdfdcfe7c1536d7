"""Optimizer, learning rate, and which cases a step is made with."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from volseg.config import TrainingConfig
from volseg.planning.multigrid import steps_per_epoch
from volseg.volumes.dataset import Case


def make_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """The optimizer that `config` names."""
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            model.parameters(), config.learning_rate, momentum=config.momentum, nesterov=config.momentum > 0,
            weight_decay=config.weight_decay,
        )  # fmt: skip
    # Adam divides each gradient by its own size. At torch's eps of 1e-8 that turns rounding noise, which depends on the
    # grid, into full steps; at 1e-3 small gradients make small steps, and the loss falls as fast (docs/decisions.md).
    return torch.optim.AdamW(model.parameters(), config.learning_rate, eps=1e-3, weight_decay=config.weight_decay)


def learning_rate(config: TrainingConfig, step: int, steps: int) -> float:
    """Of a step, counted from 0, of so many: linear warm-up over the first ones, times the schedule.

    poly is nnU-Net's (Isensee et al. 2021); cosine that of Loshchilov & Hutter, SGDR (ICLR 2017), without restarts.
    """
    warm = min(1.0, (step + 1) / max(1, config.warmup))
    if config.schedule == "poly":
        fall = (1 - step / steps) ** 0.9
    elif config.schedule == "cosine":
        fall = (1 + math.cos(math.pi * step / steps)) / 2
    else:
        fall = 1.0
    return float(config.learning_rate * warm * fall)


def set_learning_rate(optimizer: torch.optim.Optimizer, config: TrainingConfig, step: int, steps: int) -> float:
    """Give the optimizer the learning rate of a step, and return it."""
    rate = learning_rate(config, step, steps)
    for group in optimizer.param_groups:
        group["lr"] = rate
    return rate


def case_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order of the cases in an epoch: a permutation that follows from seed and epoch alone."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def batch_of(cases: Sequence[Case], step: int, batch: int, seed: int) -> list[Case]:
    """The cases of a step, counted from 0: the next `batch` of its epoch's order, or what is left of that."""
    epoch, number = divmod(step, steps_per_epoch(len(cases), batch))
    order = case_order(seed, epoch, len(cases))
    return [cases[n] for n in order[number * batch : (number + 1) * batch]]
