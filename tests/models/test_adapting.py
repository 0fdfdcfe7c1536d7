"""Weights in a network with other classes and channels: what has the same name computes what it computed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from volseg.config import ModelConfig
from volseg.errors import CheckpointError, ConfigError
from volseg.models.adapting import take_weights
from volseg.models.unet import UNet
from volseg.networks.adapting import for_data
from volseg.networks.architectures import described
from volseg.networks.deep_supervision import with_training_heads
from volseg.networks.description import IMAGE, Network, Normalization

VARIANTS = {
    "plain": ModelConfig(3, 4, base_channels=4, levels=3),
    "residual": ModelConfig(3, 4, base_channels=4, levels=3, encoder="residual", down="stride"),
    "segresnet": ModelConfig(3, 4, base_channels=8, levels=3, architecture="segresnet", blocks=(1, 1, 1, 1)),
    "batch": ModelConfig(3, 4, base_channels=4, levels=2, norm="batch"),
}


def make(settings: ModelConfig, network: Network, seed: int) -> UNet:
    torch.manual_seed(seed)
    module = UNet(settings, described=network)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module.eval()


@pytest.mark.parametrize("name", VARIANTS)
def test_classes_and_channels_that_stay_give_the_same_logits(name: str) -> None:
    settings, channels, classes = VARIANTS[name], [2, None, 0, 1], [0, 3, None, None, 1]
    old = make(settings, described(settings), 0)
    network = for_data(old.network, len(channels), len(classes))
    assert (network.in_channels, network.classes) == (4, 5)
    new = make(replace(settings, in_channels=4, classes=5), network, 1)
    before = {name: tensor.clone() for name, tensor in new.state_dict().items()}
    take_weights(new, old.state_dict(), old.network, channels=channels, classes=classes, where="run")

    image = torch.randn(1, 4, 16, 16, 16)
    image[:, 1] = 0  # of the channel that is new, which has weights of its own
    seen = image[:, [channels.index(n) for n in range(3)]]
    with torch.no_grad():
        found, expected = new(image), old(seen)
    for place, number in enumerate(classes):
        if number is not None:
            torch.testing.assert_close(found[:, place], expected[:, number], rtol=1e-4, atol=1e-4)
    head = f"{network.head.module}.weight"
    for place in (2, 3):
        assert torch.equal(new.state_dict()[head][place], before[head][place])


def test_heads_for_training_are_filled_where_the_old_network_has_them() -> None:
    settings = VARIANTS["plain"]
    deep = with_training_heads(described(settings))
    old, new = make(settings, deep, 0), make(settings, deep, 1)
    same = [range(3), range(4)]
    take_weights(new, old.state_dict(), old.network, channels=same[0], classes=same[1], where="run")
    assert all(torch.equal(new.state_dict()[name], tensor) for name, tensor in old.state_dict().items())

    plain, new = make(settings, described(settings), 2), make(settings, deep, 1)
    drawn = new.state_dict()["deep_heads.1.weight"].clone()
    take_weights(new, plain.state_dict(), plain.network, channels=same[0], classes=same[1], where="run")
    assert torch.equal(new.state_dict()["deep_heads.1.weight"], drawn)
    assert torch.equal(new.state_dict()["head.weight"], plain.state_dict()["head.weight"])


def test_weights_that_are_missing_or_of_another_shape_are_named() -> None:
    settings = VARIANTS["plain"]
    old, new = make(settings, described(settings), 0), make(settings, described(settings), 1)
    tensors = dict(old.state_dict())
    del tensors["encoder.0.0.weight"]
    with pytest.raises(CheckpointError, match=r"run: its weight encoder\.0\.0\.weight is missing"):
        take_weights(new, tensors, old.network, channels=range(3), classes=range(4), where="run")
    tensors["encoder.0.0.weight"] = torch.zeros(4, 3, 1, 1, 1)
    with pytest.raises(CheckpointError, match=r"is \(4, 3, 1, 1, 1\), its network needs \(4, 3, 3, 3, 3\)"):
        take_weights(new, tensors, old.network, channels=range(3), classes=range(4), where="run")


def test_channels_that_something_else_than_a_convolution_reads_cannot_be_others() -> None:
    network = described(VARIANTS["plain"])
    reading = Normalization("image, normal", (IMAGE,), 0, 3, "instance", 1.0, module="norm")
    other = replace(network, nodes=(reading, *network.nodes))
    assert for_data(other, 3, 2).classes == 2
    with pytest.raises(ConfigError, match="image, normal, which is no convolution, reads them: it cannot take 2"):
        for_data(other, 2, 4)
