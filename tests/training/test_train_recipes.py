"""Runs with everything that a recipe can ask for: the loss of one rank on any number, and going on exactly."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tiny import SERIAL, losses, tiny_config, tiny_dataset
from training.test_train_ranks import curve_of_one_rank
from volseg.config import Config
from volseg.errors import ConfigError
from volseg.models.stored import CHECKPOINT, load_tensors
from volseg.training.job import TrainingJob
from volseg.training.loop import train


@pytest.fixture
def shared(tmp_path, communicator):
    """One folder for all ranks."""
    folder = Path(communicator.broadcast(str(tmp_path)))
    communicator.barrier()
    return folder


def everything(**training) -> Config:
    config = tiny_config(
        **{
            "epochs": 3, "learning_rate": 3e-4, "schedule": "cosine", "warmup": 2, "clip": 1.0, "ema": 0.9,
            "class_weights": (0.5, 1.0, 2.0), "deep_supervision": True, "validation": 1,
        } | training
    )  # fmt: skip
    return replace(config, model=replace(config.model, levels=3))


@pytest.mark.parallel([2, 4])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_the_loss_of_each_step_is_that_of_one_rank(shared, communicator, optimizer):
    with communicator.together():
        if communicator.is_root:
            tiny_dataset(shared / "data", cases=3, shape=(45, 38, 50))
    config = everything(optimizer=optimizer, momentum=0.9)
    alone = curve_of_one_rank(shared, config, communicator)
    train(TrainingJob(shared / "data", shared / "many", config), communicator)
    np.testing.assert_allclose(losses(shared / "many"), alone, rtol=1e-5)
    averages = [
        {name: t for name, t in load_tensors(shared / run / CHECKPOINT)[0].items() if name.startswith("averaged.")}
        for run in ("alone", "many")
    ]
    assert any("deep_heads" in name for name in averages[0])
    for name, tensor in averages[0].items():
        assert torch.allclose(averages[1][name], tensor, atol=1e-5), name


@pytest.mark.parallel(2)
def test_a_residual_encoder_has_the_loss_of_one_rank(shared, communicator):
    with communicator.together():
        if communicator.is_root:
            tiny_dataset(shared / "data", shape=(27, 22, 30))
    config = tiny_config(epochs=2, learning_rate=3e-4, ema=0.9)
    config = replace(config, model=replace(config.model, encoder="residual", blocks=(1, 2, 1)))
    alone = curve_of_one_rank(shared, config, communicator)
    train(TrainingJob(shared / "data", shared / "many", config), communicator)
    np.testing.assert_allclose(losses(shared / "many"), alone, rtol=1e-5)


def test_class_weights_must_fit_the_labels(tmp_path):
    tiny_dataset(tmp_path / "data")
    job = TrainingJob(tmp_path / "data", tmp_path / "run", tiny_config(class_weights=(1.0, 2.0)))
    with pytest.raises(ConfigError, match="2 weights for 3 classes; give one for each, the background first"):
        train(job, SERIAL)
    assert not (tmp_path / "run").exists()
