"""The moving average of the weights: torch's own, in use without copies, and exact over a break."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from tiny import SERIAL, losses, tiny_config, tiny_dataset
from volseg.errors import CheckpointError
from volseg.models.stored import AVERAGED, CHECKPOINT, load_model, load_tensors
from volseg.training.averaging import AveragedWeights
from volseg.training.job import TrainingJob
from volseg.training.loop import train


def changed(model: nn.Module, step: int) -> None:
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, dtype=p.dtype, generator=torch.Generator().manual_seed(step)))


def test_it_is_torch_s_average_with_a_decay_that_rises():
    model = nn.Linear(3, 2).double()
    averaged, expected = AveragedWeights(model, 0.6), AveragedModel(model, avg_fn=_by_torch)
    expected.update_parameters(model)  # the first only copies
    for step in range(30):
        changed(model, step)
        averaged.update(step)
        expected.update_parameters(model)
    for name, p in expected.module.named_parameters():
        assert torch.allclose(averaged.state()[name], p, rtol=1e-12)


def _by_torch(average, new, updates):
    step = int(updates) - 1
    decay = min(0.6, (1 + step) / (10 + step))
    return decay * average + (1 - decay) * new


def test_the_average_by_hand():
    model = nn.Linear(1, 1, bias=False)
    averaged = AveragedWeights(model, 0.5)
    with torch.no_grad():
        model.weight.fill_(0.0)
    averaged.begin()
    expected = 0.0
    for step, value in enumerate((1.0, 4.0, -2.0, 8.0, 8.0, 8.0, 8.0, 8.0, 8.0, 8.0)):
        with torch.no_grad():
            model.weight.fill_(value)
        averaged.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
        assert float(averaged.state()["weight"]) == pytest.approx(expected, rel=1e-6)
    assert float(model.weight.detach()) == 8.0


def test_in_use_swaps_and_swaps_back():
    model = nn.Linear(3, 2)
    averaged = AveragedWeights(model, 0.9)
    before = model.weight.detach().clone()
    changed(model, 1)
    own = model.weight.detach().clone()
    parameter = model.weight
    with averaged.in_use():
        assert model.weight is parameter
        assert torch.equal(model.weight.detach(), before)
    assert torch.equal(model.weight.detach(), own)
    assert torch.equal(averaged.state()["weight"], before)


def test_without_a_decay_there_is_no_average():
    model = nn.Linear(3, 2)
    averaged = AveragedWeights(model, 0.0)
    averaged.update(0)
    assert averaged.state() == {}
    with averaged.in_use():
        assert model.weight.requires_grad


def test_a_run_keeps_the_average_and_goes_on_exactly(tmp_path):
    tiny_dataset(tmp_path / "data")
    config = tiny_config(epochs=6, ema=0.8, validation=1)
    whole = TrainingJob(tmp_path / "data", tmp_path / "whole", config)
    report = train(whole, SERIAL)
    tensors, _ = load_tensors(tmp_path / "whole" / CHECKPOINT)
    model, _ = load_model(tmp_path / "whole")
    for name, p in model.named_parameters():
        assert torch.equal(p.detach(), tensors[AVERAGED + name])
        assert not torch.equal(p.detach(), tensors["model." + name]), name
    from_checkpoint, _ = load_model(tmp_path / "whole" / CHECKPOINT)
    assert all(map(torch.equal, from_checkpoint.state_dict().values(), model.state_dict().values()))

    # Broken off, and gone on: the same average. The learning rate falls to the same end, whatever the epochs.
    constant = replace(config, training=replace(config.training, schedule="constant"))
    train(TrainingJob(tmp_path / "data", tmp_path / "one", constant), SERIAL)
    short = replace(constant, training=replace(constant.training, epochs=3))
    train(TrainingJob(tmp_path / "data", tmp_path / "two", short), SERIAL)
    train(TrainingJob(tmp_path / "data", tmp_path / "two", constant, proceed=True), SERIAL)
    np.testing.assert_array_equal(losses(tmp_path / "one"), losses(tmp_path / "two"))
    one, two = (load_tensors(tmp_path / run / CHECKPOINT)[0] for run in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert report.validation_dice == json.loads((tmp_path / "whole" / "report.json").read_text())["validation_dice"]


def test_a_run_without_an_average_goes_on_with_one_from_its_weights(tmp_path):
    tiny_dataset(tmp_path / "data")
    config = tiny_config(epochs=1, validation=0)
    train(TrainingJob(tmp_path / "data", tmp_path / "run", config), SERIAL)
    more = replace(config, training=replace(config.training, epochs=2, ema=0.999))
    train(TrainingJob(tmp_path / "data", tmp_path / "run", more, proceed=True), SERIAL)
    tensors, _ = load_tensors(tmp_path / "run" / CHECKPOINT)
    assert any(name.startswith(AVERAGED) for name in tensors)


def test_a_run_goes_on_with_the_heads_that_it_began_with(tmp_path):
    tiny_dataset(tmp_path / "data", shape=(16, 16, 24))
    config = tiny_config(epochs=1, validation=0, deep_supervision=True)
    config = replace(config, model=replace(config.model, levels=3))
    train(TrainingJob(tmp_path / "data", tmp_path / "run", config), SERIAL)
    plain = replace(config, training=replace(config.training, deep_supervision=False, epochs=2))
    with pytest.raises(CheckpointError, match="was trained with deep supervision; continue with --deep-supervision"):
        train(TrainingJob(tmp_path / "data", tmp_path / "run", plain, proceed=True), SERIAL)
    more = replace(config, training=replace(config.training, epochs=2))
    train(TrainingJob(tmp_path / "data", tmp_path / "run", more, proceed=True), SERIAL)
    model, _ = load_model(tmp_path / "run")
    other, _ = load_model(tmp_path / "run" / CHECKPOINT)
    assert not model.deep_heads
    assert all(map(torch.equal, other.state_dict().values(), model.state_dict().values()))
