"""The memory of making a sample: nothing where nothing is made, bounded whatever is rotated, and part of the plan."""

from __future__ import annotations

from volseg.config import PRESETS, AugmentationConfig, ModelConfig, TrainingConfig
from volseg.networks.unet import unet
from volseg.partition.layout import Layout
from volseg.planning.memory import training_memory, validation_memory
from volseg.planning.sample_memory import SOURCE_BYTES, sample_bytes, with_sample

NETWORK = unet(ModelConfig(in_channels=1, classes=3, base_channels=8, levels=2))


def layout(side, ranks=1):
    return Layout.even((side, side, side), (ranks, 1, 1), 4)


def test_samples_that_are_volumes_as_they_are_take_nothing_more():
    assert sample_bytes(AugmentationConfig(), layout(64), (64, 64, 64), 1, 2, cropped=False) == 0
    plan = training_memory(NETWORK, TrainingConfig(), layout(64))
    assert with_sample(plan, 0) == plan


def test_on_many_ranks_only_the_piece_under_way_is_left():
    large = (512, 512, 512)
    few, many = (sample_bytes(PRESETS["full"], layout(512, n), large, 1, 1, cropped=False) for n in (2, 64))
    assert few > 8 * 512**3 / 2
    assert many < few / 8
    assert sample_bytes(PRESETS["light"], layout(512, 64), large, 1, 1, cropped=False) < many
    assert many < 20 * 8 * 512 * 512 * 3 + 5 * SOURCE_BYTES + 2**24


def test_a_sample_that_needs_more_than_a_step_is_in_the_plan():
    plan = training_memory(NETWORK, TrainingConfig(), layout(64))
    image = plan.parts["image and labels"]
    assert with_sample(plan, image + plan.work) == plan
    more = with_sample(plan, image + plan.work + 10_000)
    assert more.peak == plan.peak + 10_000
    assert more.peak_at == "augmentation"
    assert sum(more.parts.values()) == more.peak == sum(plan.parts.values()) + 10_000
    assert sum(more.by_level) == more.activations


def test_validating_whole_volumes_takes_less_than_training_on_them_and_more_than_on_small_crops():
    whole = validation_memory(NETWORK, TrainingConfig(), layout(96))
    assert whole.peak < training_memory(NETWORK, TrainingConfig(), layout(96)).peak
    assert whole.peak > training_memory(NETWORK, TrainingConfig(), layout(32)).peak
    assert whole.peak_at.startswith("validation")
    assert sum(whole.parts.values()) == whole.peak
