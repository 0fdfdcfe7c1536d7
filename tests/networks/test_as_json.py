"""A network's description as JSON: what comes back is what was there, and what is not known is named."""

from __future__ import annotations

import copy
import json

import pytest

from volseg.config import ModelConfig
from volseg.errors import ConfigError
from volseg.networks.architectures import described
from volseg.networks.as_json import network_as_json, network_from_json
from volseg.networks.unet import unet

VARIANTS = {
    "default": ModelConfig(),
    "anisotropic, strided": ModelConfig(
        levels=2, kernels=((1, 3, 3), (3, 3, 3), (5, 3, 1)), strides=((1, 2, 2), (2, 2, 2)), features=(4, 6, 10),
        convolutions=3, down="stride", norm="none",
    ),
    "residual, group, dropout": ModelConfig(encoder="residual", norm="group", dropout=0.2, down="stride"),
    "trilinear, relu, two channels": ModelConfig(up="trilinear", activation="relu", in_channels=2, classes=5),
    "silu": ModelConfig(activation="silu", down="stride"),
    "no levels": ModelConfig(levels=0),
    "segresnet": ModelConfig(architecture="segresnet", norm="group"),
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_there_and_back(name):
    for deep in (False, VARIANTS[name].levels >= 3):
        network = described(VARIANTS[name], deep)
        text = json.dumps(network_as_json(network))
        assert network_from_json(json.loads(text), "here") == network


def _without(values, key):
    del values[key]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda v: v.update(schema=2), r"here: its network is described with schema 2; this version reads 1"),
        (lambda v: _without(v, "schema"), r"schema None"),
        (lambda v: v.update(extra=1), r"the network has extra, which this version does not know"),
        (lambda v: _without(v, "strides"), r"the network lacks strides"),
        (lambda v: v.update(nodes=3), r"nodes = 3 must be a list"),
        (lambda v: v["nodes"][0].update(op="attention"), r"an operation 'attention', which this version does not know"),
        (lambda v: v["nodes"].insert(0, "encoder"), r"an operation 'encoder'"),
        (lambda v: v["nodes"][0].update(dilation=[2, 2, 2]), r"node 'encoder 0.1' has dilation, which"),
        (lambda v: _without(v["nodes"][0], "kernel"), r"node 'encoder 0.1' lacks kernel"),
        (lambda v: v["nodes"][0].update(kernel=[3, 3]), r"node 'encoder 0.1': kernel = \[3, 3\] is not what"),
        (lambda v: v["nodes"][0].update(kernel=[3, 3, "3"]), r"kernel = '3' is not what"),
        (lambda v: v["nodes"][0].update(bias=1), r"bias = 1 is not what"),
        (lambda v: v["nodes"][1].update(norm="layer"), r"norm = 'layer' is not what"),
        (lambda v: v["nodes"][1].update(activation="swish"), r"activation = 'swish' is not what"),
        (lambda v: v["nodes"][0].update(stage=7), r"node 'encoder 0.1' has stage 7, of 4"),
        (lambda v: v["nodes"][0].update(reads=["later"]), r"reads 'later', which no node before it makes"),
        (lambda v: v["nodes"].insert(0, copy.deepcopy(v["nodes"][0])), r"two nodes of the network are called"),
        (lambda v: v["nodes"].pop(), r"one head that gives the logits"),
    ],
)
def test_what_is_not_known_is_named(damage, message):
    values = json.loads(json.dumps(network_as_json(unet(ModelConfig()))))
    damage(values)
    with pytest.raises(ConfigError, match=message):
        network_from_json(values, "here")


def test_no_table():
    with pytest.raises(ConfigError, match="the description of the network is no table"):
        network_from_json([], "here")
