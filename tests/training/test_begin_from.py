"""A run that begins with the network and weights of an earlier one: other classes and channels, going on, any ranks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tiny import LABELS, MODEL, SERIAL, losses, newest, tiny_config, tiny_dataset, untrained_run
from volseg.api import train as train_by_name
from volseg.config import Config, DataConfig, read_config
from volseg.config.toml import config_tables
from volseg.errors import ConfigError
from volseg.events import Message
from volseg.files import write_text
from volseg.models.origin import Origin
from volseg.models.stored import WEIGHTS, ModelCard, load_model, load_tensors, read_card, save_tensors
from volseg.models.unet import UNet
from volseg.networks.architectures import described
from volseg.networks.description import Head
from volseg.segmentation.job import SegmentationJob
from volseg.segmentation.segment import segment
from volseg.training.job import NetworkSource, TrainingJob
from volseg.training.loop import train
from volseg.training.preparing import prepare
from volseg.volumes.intensity import ChannelScheme, Normalization

SHAPE = (27, 22, 30)


@pytest.fixture
def folder(tmp_path: Path, communicator) -> Path:
    """One folder for all ranks, with a data set and an earlier run of three classes that saw CT at 1.5 mm."""
    folder = Path(communicator.broadcast(str(tmp_path)))
    with communicator.together():
        if communicator.is_root:
            describe(tiny_dataset(folder / "data", shape=SHAPE), channel_names={"0": "CT"})
            untrained_run(folder / "earlier")
    return folder


def describe(folder: Path, **changes: object) -> None:
    """Other values in a data set's dataset.json."""
    description = folder / "dataset.json"
    description.write_text(json.dumps(json.loads(description.read_text()) | changes))


def job(folder: Path, run: str = "run", begins: str = "earlier", **training: object) -> TrainingJob:
    config = replace(tiny_config(**training), model=Config().model)
    return TrainingJob(folder / "data", folder / run, config, begins=NetworkSource(run=folder / begins))


def messages(heard: list[object]) -> str:
    return "\n".join(event.text for event in heard if isinstance(event, Message))


def test_the_first_weights_schemes_and_spacing_are_those_of_the_earlier_run(folder):
    heard: list[object] = []
    setup = prepare(job(folder), SERIAL, heard.append)
    model, card = load_model(folder / "earlier")
    for name, tensor in model.state_dict().items():
        assert torch.equal(setup.model.state_dict()[name], tensor), name
    assert setup.card.schemes == card.schemes  # not those that the data set would have
    assert (setup.config.model, setup.card.step, setup.card.spacing) == (MODEL.for_data(1, 3), 0, card.spacing)
    assert setup.config.data.spacing == "1.0x1.0x1.0"
    assert f"begins with the network and the weights of {folder / 'earlier'}, after 0 steps" in messages(heard)
    assert "kept" not in messages(heard)

    asked = job(folder)
    asked = replace(asked, config=replace(asked.config, data=DataConfig(spacing="2x2x2")))
    assert prepare(asked, SERIAL, heard.append).card.spacing == (2.0, 2.0, 2.0)


def test_weights_of_classes_of_the_same_name_are_kept(folder):
    describe(folder / "data", labels={"background": 0, "class_2": 1, "tumour": 2})
    heard: list[object] = []
    setup = prepare(job(folder, deep_supervision=False), SERIAL, heard.append)
    before, now = load_model(folder / "earlier")[0].head.weight, setup.model.head.weight
    assert torch.equal(now[0], before[0])
    assert torch.equal(now[1], before[2])
    assert not torch.isclose(now[2], before[1]).any()
    assert "kept the weights of 2 of its 3 classes (background, class_2), new: tumour, left out: class_1" in messages(
        heard
    )


def test_channels_are_matched_by_name_and_others_refused(folder):
    untrained_run(folder / "two", channels=("T1", "CT"))
    setup = prepare(job(folder, begins="two"), SERIAL, lambda event: None)
    before = load_model(folder / "two")[0].state_dict()["encoder.0.0.weight"]
    assert torch.equal(setup.model.state_dict()["encoder.0.0.weight"], before[:, 1:])
    assert [scheme.name for scheme in setup.card.schemes] == ["CT"]
    assert setup.card.schemes[0].fixed is not None

    untrained_run(folder / "other", channels=("T1", "T2"))
    with pytest.raises(ConfigError, match=r"its network sees T1, T2, and .* has CT: none of them"):
        train(job(folder, "refused", "other"), SERIAL)
    assert not (folder / "refused").exists()


def test_a_network_that_is_asked_for_besides_is_refused(folder):
    for options, said in (
        ({"levels": 3}, "--levels 3: the network of .* is what it is"),
        ({"proceed": True}, "--continue goes on with the run's own network"),
    ):
        with pytest.raises(ConfigError, match=said):
            train_by_name(folder / "data", folder / "r", begin_from=folder / "earlier", communicator=SERIAL, **options)
    heard: list[object] = []
    asked = job(folder)
    prepare(replace(asked, config=replace(asked.config, model=MODEL)), SERIAL, heard.append)
    assert "what the settings say of [model] is not used" in messages(heard)
    imported_run(folder / "imported", levels=2)
    with pytest.raises(ConfigError, match="deep_supervision: no coarser resolution"):
        train(job(folder, "refused", "imported", deep_supervision=True), SERIAL)
    assert not (folder / "refused").exists()


def imported_run(run: Path, levels: int = 3) -> Path:
    """A run folder as an import leaves it: a description under other layers' names, with heads for training."""
    model = replace(MODEL.for_data(1, 3), levels=levels)
    network = described(model, deep_supervision=True)
    nodes = tuple(
        replace(node, module=f"heads.{node.stage}") if isinstance(node, Head) else node for node in network.nodes
    )
    modules = tuple(name for name in network.modules if name not in ("head", "deep_heads"))
    network = replace(network, nodes=nodes, modules=(*modules, "heads"))
    torch.manual_seed(5)
    settings = replace(model, architecture="imported")
    origin = Origin(tool="monai", source="a network", window=(16, 16, 16), folds=(0,))
    schemes = (ChannelScheme("CT", Normalization(-200.0, 300.0, 20.0, 150.0)),)
    config = Config(settings, data=DataConfig(spacing="1.0x1.0x1.0"))
    card = ModelCard(config, LABELS, schemes, (1.0, 1.0, 1.0), 0, network=network, origin=origin)
    run.mkdir()
    save_tensors(run / WEIGHTS, UNet(settings, described=network).state_dict(), card)
    import tomli_w

    write_text(run / "config.toml", tomli_w.dumps(config_tables(config)))
    return run


@pytest.mark.parametrize("deep", [False, True])
def test_an_imported_network_is_trained_gone_on_with_and_segments(folder, volseg, deep):
    imported_run(folder / "imported")
    options = {"epochs": 1, "schedule": "constant", "learning_rate": 1e-3, "deep_supervision": deep}
    train(job(folder, begins="imported", **options), SERIAL)
    card = read_card(folder / "run" / WEIGHTS)
    assert card.origin == Origin(tool="monai", source="a network")
    assert card.config.model.architecture == "imported"
    assert [head.module for head in card.described.heads] == ["heads.0"]
    assert any("deep_heads.1" in name for name in load_tensors(newest(folder / "run"))[0]) == deep
    if deep:  # the head that the import brought was taken for the stage's
        setup = prepare(job(folder, "other", "imported", **options), SERIAL, lambda event: None)
        stored = load_tensors(folder / "imported" / WEIGHTS)[0]["heads.1.weight"]
        assert torch.equal(setup.model.state_dict()["deep_heads.1.weight"], stored)

    train_by_name(None, folder / "run", proceed=True, epochs=2, communicator=SERIAL)
    train(job(folder, "whole", "imported", **options | {"epochs": 2}), SERIAL)
    assert np.array_equal(losses(folder / "run"), losses(folder / "whole"))
    for path in (folder / "run" / WEIGHTS, folder / "whole" / WEIGHTS):
        assert load_model(path)[0].network == card.described
    assert read_config(folder / "run" / "config.toml").data.spacing == "1.0x1.0x1.0"

    scan = next((folder / "data" / "imagesTr").glob("*.nii.gz"))
    segment(SegmentationJob(scan, folder / "run", folder / "mask.nii"), SERIAL)
    assert (folder / "mask.nii").is_file()
    assert "imported" in volseg("info", folder / "run")
    plan = json.loads(volseg("plan-partition", "--shape=48x48x48", "--model", folder / "run", "--json"))
    assert plan["network"]["strides"] == [[2, 2, 2]] * 3
    assert f"--from {folder / 'run'}" in plan["tasks"]["train"]["command"]


@pytest.mark.parallel([2, 4])
def test_the_curve_is_that_of_one_rank(folder, communicator):
    asked = job(folder, "many", epochs=5, learning_rate=3e-4, ema=0.9)
    with communicator.together():
        if communicator.is_root:
            describe(folder / "data", labels={"background": 0, "class_2": 1, "tumour": 2})
            train(replace(asked, run=folder / "alone"), SERIAL)
    alone = communicator.on_root(lambda: losses(folder / "alone"))
    train(asked, communicator)
    np.testing.assert_allclose(losses(folder / "many"), alone, rtol=1e-5)
