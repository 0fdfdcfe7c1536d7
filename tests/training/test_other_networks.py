"""Runs with a network of the user's own file, and of a plan of nnU-Net; a model that was imported, trained on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_folders import LABELS, plans, result_folder
from tiny import SERIAL, losses, tiny_config, tiny_dataset
from volseg.api import import_model
from volseg.api import train as train_by_name
from volseg.config import Config
from volseg.errors import ConfigError
from volseg.models.stored import WEIGHTS, load_weights, read_card
from volseg.models.user_module import module_named
from volseg.networks.coverage import why_not_covered
from volseg.training.job import NetworkSource, TrainingJob
from volseg.training.loop import train
from volseg.training.preparing import prepare
from volseg.volumes.intensity import Normalization

SOURCE = """
import torch
from torch import nn

def layer(inputs, channels, stride=1):
    return nn.Sequential(nn.Conv3d(inputs, channels, 3, stride, 1), nn.InstanceNorm3d(channels, affine=True), nn.ReLU())

class Net(nn.Module):
    def __init__(self, in_channels, out_channels, width=4):
        super().__init__()
        self.high, self.low = layer(in_channels, width), layer(width, 2 * width, 2)
        self.up, self.last = nn.ConvTranspose3d(2 * width, width, 2, 2), layer(2 * width, width)
        self.logits = nn.Conv3d(width, out_channels, 1)

    def forward(self, x):
        high = self.high(x)
        return self.logits(self.last(torch.cat([self.up(self.low(high)), high], 1)))
"""


@pytest.fixture
def folder(tmp_path: Path, communicator) -> Path:
    """One folder for all ranks, with a data set and a file that has a network."""
    folder = Path(communicator.broadcast(str(tmp_path)))
    with communicator.together():
        if communicator.is_root:
            tiny_dataset(folder / "data", shape=(27, 22, 30))
            describe(folder, channel_names={"0": "CT"})
            (folder / "network.py").write_text(SOURCE)
    return folder


def describe(folder: Path, **changes: object) -> None:
    description = folder / "data" / "dataset.json"
    description.write_text(json.dumps(json.loads(description.read_text()) | changes))


def job(folder: Path, run: str = "run", *, training: dict[str, object] | None = None, **source: object) -> TrainingJob:
    config = replace(tiny_config(**{"schedule": "constant"} | (training or {})), model=Config().model)
    return TrainingJob(folder / "data", folder / run, config, begins=NetworkSource(**source))


def test_a_module_of_a_file_begins_with_its_own_weights_and_goes_on(folder):
    source = f"{folder / 'network.py'}:Net"
    setup = prepare(job(folder, module=source), SERIAL, lambda event: None)
    torch.manual_seed(setup.config.training.seed)
    own = module_named(source, None, 1, 3)
    state = setup.model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in own.state_dict().items())
    assert not why_not_covered(setup.model.network)

    train(job(folder, module=source, training={"epochs": 1}), SERIAL)
    (folder / "network.py").unlink()  # the description lies beside the weights
    train_by_name(None, folder / "run", proceed=True, epochs=2, communicator=SERIAL)
    (folder / "network.py").write_text(SOURCE)
    train(job(folder, "whole", module=source, training={"epochs": 2}), SERIAL)
    assert np.array_equal(losses(folder / "run"), losses(folder / "whole"))
    card = read_card(folder / "run" / WEIGHTS)
    assert (card.config.model.architecture, card.origin) == ("imported", None)
    begun = json.loads((folder / "run" / "report.json").read_text())["begun_from"]
    assert begun == {"network": source, "network_args": None}
    trained, _ = load_weights(folder / "run")
    own.load_state_dict({name: tensor for name, tensor in trained.items() if name in own.state_dict()})


def test_a_module_of_other_classes_or_operations_is_refused_before_anything_is_written(folder):
    (folder / "network.py").write_text(
        SOURCE + "\ndef seven(in_channels): return Net(in_channels, 7)\n"
        "class Odd(Net):\n    def forward(self, x): return torch.fft.fftn(super().forward(x)).real\n"
    )
    for name, said in (("seven", "gives 7 channels, but .* has 3 classes"), ("Odd", r"network\.py:Odd: ")):
        with pytest.raises(ConfigError, match=said):
            train(job(folder, module=f"{folder / 'network.py'}:{name}"), SERIAL)
    assert not (folder / "run").exists()


def test_sources_that_do_not_go_together_are_refused(folder):
    for options, said in (
        ({"network": "a.py:b", "plans": "plans.json"}, "--network and --plans: both say which network"),
        ({"network_args": "a = 1"}, "--network-args a = 1: goes with --network"),
        ({"configuration": "3d_lowres"}, "--configuration 3d_lowres: goes with --plans"),
        ({"plans": "plans.json", "base_channels": 8}, "--base-channels 8: the network of --plans plans.json"),
    ):
        with pytest.raises(ConfigError, match=said):
            train_by_name(folder / "data", folder / "run", communicator=SERIAL, **options)


@pytest.mark.parametrize("transpose", [[0, 1, 2], [1, 0, 2]])
def test_a_plan_gives_network_spacing_and_normalisation(folder, transpose):
    (folder / "plans.json").write_text(json.dumps(plans() | {"transpose_forward": transpose}))
    setup = prepare(job(folder, plans=folder / "plans.json"), SERIAL, lambda event: None)
    turned = transpose != [0, 1, 2]
    assert setup.card.spacing == ((1.0, 3.0, 0.9) if turned else (3.0, 1.0, 0.9))
    assert setup.model.network.strides[1:] == (((2, 1, 2) if turned else (1, 2, 2)), (2, 2, 2))
    assert setup.config.model.kernels[0] == ((3, 1, 3) if turned else (1, 3, 3))
    assert setup.card.schemes[0].fixed == Normalization(-200.0, 300.0, 20.0, 150.0)
    lower = prepare(job(folder, plans=folder / "plans.json", configuration="3d_lowres"), SERIAL, lambda event: None)
    assert lower.card.spacing == ((2.0, 4.0, 2.0) if turned else (4.0, 2.0, 2.0))


def test_a_plan_that_is_none_is_refused(folder):
    (folder / "plans.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"plans\.json: is no plans\.json of nnU-Net"):
        train(job(folder, plans=folder / "plans.json"), SERIAL)
    with pytest.raises(ConfigError, match="cannot be read"):
        train(job(folder, plans=folder / "none.json"), SERIAL)
    (folder / "plans.json").write_text(json.dumps(plans()))
    with pytest.raises(ConfigError, match="3d_full"):
        train(job(folder, plans=folder / "plans.json", configuration="3d_full"), SERIAL)


def test_an_imported_model_is_trained_on_whole_volumes_for_other_classes(folder):
    import_model(result_folder(folder, plans() | {"transpose_forward": [1, 0, 2]}), folder / "imported")
    describe(folder, labels={"background": 0, "tumour": 1, "vessel": 2})
    heard: list[object] = []
    asked = job(folder, run="run", training={"epochs": 1, "learning_rate": 1e-3})
    asked = replace(asked, begins=NetworkSource(run=folder / "imported"))
    setup = prepare(asked, SERIAL, heard.append)
    before, _ = load_weights(folder / "imported")
    now = setup.model.state_dict()
    name = "encoder.stages.0.0.convs.0.conv.weight"
    assert torch.equal(now[name], before[name])
    assert torch.equal(now["decoder.seg_layers.1.weight"][1], before["decoder.seg_layers.1.weight"][LABELS["tumour"]])
    assert setup.card.spacing == (3.0, 1.0, 0.9)  # along the network's axes
    said = "\n".join(getattr(event, "text", "") for event in heard)
    assert "kept the weights of 2 of its 3 classes (background, tumour), new: vessel, left out: liver" in said
    assert "scans are read as nnunet reads them" in said
    train(asked, SERIAL)
    card = read_card(folder / "run" / WEIGHTS)
    assert card.origin is not None
    assert (card.origin.window, card.origin.is_our_reading, card.origin.tool) == (None, False, "nnunet")


@pytest.mark.parallel([2, 4])
def test_a_module_has_the_curve_of_one_rank(folder, communicator):
    asked = job(folder, "many", module=f"{folder / 'network.py'}:Net", training={"epochs": 4, "learning_rate": 3e-4})
    with communicator.together():
        if communicator.is_root:
            train(replace(asked, run=folder / "alone"), SERIAL)
    alone = communicator.on_root(lambda: losses(folder / "alone"))
    train(asked, communicator)
    np.testing.assert_allclose(losses(folder / "many"), alone, rtol=1e-5)
