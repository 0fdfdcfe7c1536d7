"""Recipes from the command line: files that are written are trained with; a residual U-Net from end to end."""

from __future__ import annotations

import json

import pytest

from tiny import losses
from volseg.config import read_config
from volseg.models.stored import load_model

SMALL = ["--base-channels=4", "--epochs=1", "--validation=0", "-q"]


@pytest.fixture
def volseg(volseg):
    """The same, in a folder with a data set."""
    volseg("generate", "data", "--shape=16x20x18", "--cases=2", "-q")
    return volseg


def test_a_recipe_a_file_and_options_in_this_order(volseg, tmp_path):
    volseg("init-config", "-o", "run.toml", "--recipe", "nnunet")
    (tmp_path / "own.toml").write_text("[training]\nclip = 3.0\nmomentum = 0.5\n")
    options = ["--momentum=0.9", "--levels=3", "--warmup=2", "--schedule=cosine", "--weight-decay=0.01", "--ema=0.5"]
    volseg("train", "data", "-o", "run", "--recipe=nnunet", "--config=own.toml", *options, *SMALL)
    found = read_config(tmp_path / "run" / "config.toml").training
    assert (found.optimizer, found.clip, found.momentum, found.deep_supervision) == ("sgd", 3.0, 0.9, True)
    assert (found.warmup, found.schedule, found.weight_decay, found.ema) == (2, "cosine", 0.01, 0.5)
    volseg("train", "data", "-o", "other", "--config=run.toml", "--levels=3", *SMALL)
    assert read_config(tmp_path / "other" / "config.toml").training.clip == 12.0
    assert len(losses(tmp_path / "other")) == 2
    model, _ = load_model(tmp_path / "other")
    assert not model.deep_heads
    volseg("segment", "data/imagesTr/ellipsoids_000_0000.nii.gz", "--model=other", "-o", "mask.nii.gz", "-q")
    assert "bit-identical" in volseg(
        "verify-partition", "data/imagesTr/ellipsoids_000_0000.nii.gz", "--model=other"
    )  # fmt: skip


def test_a_residual_encoder_from_end_to_end(volseg, tmp_path):
    volseg("train", "data", "-o", "run", "--recipe=residual", "--levels=2", "--no-deep-supervision", *SMALL)
    scan = "data/imagesTr/ellipsoids_000_0000.nii.gz"
    volseg("segment", scan, "--model=run", "-o", "mask.nii.gz", "-q")
    assert (tmp_path / "mask.nii.gz").is_file()
    assert "bit-identical" in volseg("verify-partition", scan, "--model=run")
    plan = json.loads(volseg("plan-partition", scan, "--model=run", "--json"))
    plain = json.loads(volseg("plan-partition", scan, "--base-channels=4", "--levels=2", "--json"))
    assert str(plan) != str(plain)


def test_a_plan_has_stages_with_deep_supervision(volseg, tmp_path):
    (tmp_path / "deep.toml").write_text("[training]\ndeep_supervision = true\n")
    wanted = ["plan-partition", "--shape=64x64x64", "--ranks=2", "--config=deep.toml", "--for=train"]
    assert "--agglomerate 1:1x1x1" in volseg(*wanted, "--agglomerate=1:1x1x1")
    assert "--agglomerate none" in volseg(*wanted)
