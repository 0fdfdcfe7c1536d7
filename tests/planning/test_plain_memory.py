"""What plain torch holds in training: derived against measured."""

import pytest

from volseg.config import ModelConfig
from volseg.networks.unet import unet
from volseg.planning.plain_memory import plain_training_bytes

SCRIPT = """
from volseg.machine import peak_memory, prepare_for_torch
prepare_for_torch()
import torch
import torch.nn.functional as F
from volseg.config import ModelConfig
from volseg.models.unet import UNet
model = UNet(ModelConfig(in_channels=1, classes=3, base_channels={channels}, levels=3))

def step(side):
    x, labels = torch.randn(1, 1, side, side, side), torch.randint(0, 3, (1, side, side, side))
    logits = model(x)
    p, t = logits.softmax(1), F.one_hot(labels, 3).permute(0, 4, 1, 2, 3)
    dice = (2 * (p * t).sum((0, 2, 3, 4)) + 1e-5) / (p.sum((0, 2, 3, 4)) + t.sum((0, 2, 3, 4)) + 1e-5)
    (F.cross_entropy(logits, labels) + 1 - dice[1:].mean()).backward()

step(16)
before = peak_memory()
step({side})
step({side})
print(peak_memory() - before)
"""


@pytest.mark.parametrize(("channels", "side"), [(8, 80), (16, 64)])
def test_a_plain_step_holds_what_the_model_says(python, channels, side):
    ended = python(["-c", SCRIPT.format(channels=channels, side=side)])
    assert ended.returncode == 0, ended.stderr
    measured = int(ended.stdout)
    model = ModelConfig(in_channels=1, classes=3, base_channels=channels, levels=3)
    planned = plain_training_bytes(unet(model), (side,) * 3, weight_copies=0)
    assert 0.7 < planned / measured < 1.25  # what torch's convolutions work in is not in the model


def test_it_grows_with_the_volume_and_with_the_channels():
    def bytes_of(channels, side):
        return plain_training_bytes(unet(ModelConfig(1, 3, channels, 4)), (side,) * 3, weight_copies=0)

    assert bytes_of(16, 256) == pytest.approx(8 * bytes_of(16, 128))
    assert 1.7 < bytes_of(32, 128) / bytes_of(16, 128) < 2.0
