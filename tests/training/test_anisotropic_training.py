"""A run on scans of thick slices: the network that is chosen, what is said of it, and that it goes on and segments."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tiny import LABELS, SERIAL, losses, tiny_config, tiny_dataset
from volseg.config import override, read_config
from volseg.config.stored_run import read_run_config
from volseg.events import Message
from volseg.models.stored import WEIGHTS, ModelCard, load_model
from volseg.networks import choice
from volseg.segmentation.job import SegmentationJob
from volseg.segmentation.segment import segment
from volseg.training.job import TrainingJob
from volseg.training.loop import train
from volseg.volumes.generation import Recipe, generate_dataset

KERNELS, STRIDES = ((1, 3, 3), (1, 3, 3), (3, 3, 3)), ((1, 2, 2), (1, 2, 2))


@pytest.fixture(scope="module")
def thick(tmp_path_factory: pytest.TempPathFactory):
    """Two cases of 9 slices of 4 mm, 18 x 21 voxels of 0.8 mm."""
    folder = tmp_path_factory.mktemp("thick") / "set"
    generate_dataset(folder, Recipe(shape=(9, 18, 21), cases=2, seed=3, spacing=(4.0, 0.8, 0.8)), SERIAL)
    return folder


@pytest.fixture
def covered(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were kernels for every network, so that the choice is made."""
    monkeypatch.setattr(choice, "why_not_covered", lambda network: "")


def test_thick_slices_get_a_network_of_their_own(thick, tmp_path, covered):
    run, heard = tmp_path / "run", []
    train(TrainingJob(thick, run, tiny_config(epochs=1)), SERIAL, heard.append)
    said = [event.text for event in heard if isinstance(event, Message)]
    shown = "kernels 1x3x3, 1x3x3, 3x3x3 and strides 1x2x2, 1x2x2"
    assert said[0].startswith(f"voxels of 4x0.8x0.8 mm, 9x18x21 of them: {shown}, for")
    assert f"U-Net of 4x8x16 channels, {shown}; 9x20x24 voxels on 1 rank" in said[1]

    model = read_config(run / "config.toml").model
    assert (model.kernels, model.strides, model.multiple) == (KERNELS, STRIDES, (1, 4, 4))
    report = json.loads((run / "report.json").read_text())
    assert report["network"]["strides"] == [list(stride) for stride in STRIDES]
    assert report["network"]["reason"] == said[0]
    assert "1x3x3, 1x3x3, 3x3x3" in (run / "report.html").read_text()
    network, card = load_model(run)
    assert card.network == network.network
    assert network.network.factors == ((1, 1, 1), (1, 2, 2), (1, 4, 4))

    going_on = override(read_run_config(run), training={"epochs": 2})
    heard.clear()
    report = train(TrainingJob(thick, run, going_on, proceed=True), SERIAL, heard.append)
    assert report.steps == 4
    assert not any("voxels of" in event.text for event in heard if isinstance(event, Message))

    scan = next((thick / "imagesTr").glob("*.nii.gz"))
    segment(SegmentationJob(scan, run, tmp_path / "mask.nii.gz"), SERIAL)
    mask = nib.load(tmp_path / "mask.nii.gz")
    assert mask.shape == nib.load(scan).shape
    assert set(np.unique(mask.get_fdata())) <= set(LABELS.values())


def test_all_axes_alike_where_that_is_asked_for_or_the_voxels_are_cubes(thick, tmp_path, covered):
    for name, data, anisotropy in (("asked", thick, "none"), ("cubes", tiny_dataset(tmp_path / "set"), "auto")):
        heard: list = []
        config = override(tiny_config(epochs=1), model={"anisotropy": anisotropy})
        train(TrainingJob(data, tmp_path / name, config), SERIAL, heard.append)
        assert not any("kernels" in event.text for event in heard if isinstance(event, Message))
        assert read_config(tmp_path / name / "config.toml").model.kernels == ()
        assert json.loads((tmp_path / name / "report.json").read_text())["network"]["reason"] is None


def test_a_model_of_a_version_without_descriptions_is_read(thick, tmp_path):
    config = override(tiny_config(), model={"kernels": KERNELS, "strides": STRIDES, "in_channels": 1, "classes": 3})
    card = ModelCard(config, LABELS, (), (1.0, 1.0, 1.0), 0)
    values = json.loads(card.as_json())
    assert values["network"]["strides"] == [[1, 1, 1], [1, 2, 2], [1, 2, 2]]
    del values["network"]
    for key in ("anisotropy", "kernels", "strides", "features", "convolutions", "down"):
        del values["config"]["model"][key]
    values["channels"] = [{"name": "CT", "fixed": None}]
    model = ModelCard.from_json(json.dumps(values), tmp_path / WEIGHTS)
    assert model.network is None
    assert model.config.model.multiple == (4, 4, 4)


@pytest.mark.parallel([2, 4])
def test_the_loss_of_each_step_is_that_of_one_rank(tmp_path, communicator):
    folder = Path(communicator.broadcast(str(tmp_path)))
    config = override(tiny_config(epochs=3, optimizer="sgd", learning_rate=1e-3), model={"strides": ((1, 2, 2),) * 2})
    alone = None
    with communicator.together():
        if communicator.is_root:
            recipe = Recipe(shape=(11, 34, 37), cases=2, seed=3, spacing=(4.0, 0.8, 0.8))
            generate_dataset(folder / "set", recipe, SERIAL)
            train(TrainingJob(folder / "set", folder / "alone", config), SERIAL)
            alone = losses(folder / "alone")
    alone = communicator.broadcast(alone)
    train(TrainingJob(folder / "set", folder / "many", config), communicator)
    np.testing.assert_allclose(losses(folder / "many"), alone, rtol=1e-5)
