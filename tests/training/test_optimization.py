"""Learning rates and optimizers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from volseg.config import TrainingConfig
from volseg.training.optimization import learning_rate, make_optimizer, set_learning_rate


def rates(steps: int = 100, **changes) -> list[float]:
    return [learning_rate(TrainingConfig(learning_rate=1.0, **changes), step, steps) for step in range(steps)]


def test_poly_is_torch_s_and_the_default():
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], 1.0)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, 100, power=0.9)
    expected = []
    for _ in range(100):
        expected.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates(schedule="poly") == pytest.approx(expected)
    assert rates() == rates(schedule="poly")


def test_cosine_falls_by_half_a_wave_and_constant_does_not():
    found = rates(schedule="cosine")
    assert found[0] == 1.0
    assert found[50] == pytest.approx(0.5)
    assert found[-1] == pytest.approx((1 - math.cos(math.pi / 100)) / 2)
    assert rates(schedule="constant") == [1.0] * 100


@pytest.mark.parametrize("schedule", ["poly", "cosine", "constant"])
def test_warm_up_rises_linearly(schedule):
    plain, warm = rates(schedule=schedule), rates(schedule=schedule, warmup=10)
    assert warm[10:] == plain[10:]
    assert [w / p for w, p in zip(warm[:10], plain, strict=False)] == pytest.approx([n / 10 for n in range(1, 11)])


def test_the_optimizer_gets_the_rate_and_its_momentum():
    model = nn.Linear(2, 2)
    config = TrainingConfig(optimizer="sgd", momentum=0.9, weight_decay=0.1, schedule="cosine")
    optimizer = make_optimizer(model, config)
    (group,) = optimizer.param_groups
    assert (group["momentum"], group["nesterov"], group["weight_decay"]) == (0.9, True, 0.1)
    assert set_learning_rate(optimizer, config, 3, 10) == group["lr"] == learning_rate(config, 3, 10)
    assert not make_optimizer(model, TrainingConfig(optimizer="sgd", momentum=0.0)).param_groups[0]["nesterov"]
