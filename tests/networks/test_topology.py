"""Kernels and strides by spacing and shape: the rules of nnU-Net's planner, and what is made of them."""

from __future__ import annotations

from math import ceil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from volseg.config import Config, ModelConfig, TrainingConfig
from volseg.errors import ConfigError
from volseg.networks import choice
from volseg.networks.choice import described, network_facts, network_for, with_network_for
from volseg.networks.coverage import why_not_covered
from volseg.networks.topology import topology
from volseg.networks.unet import unet
from volseg.partition.layout import padded_shape

THICK = (5.0, 0.8, 0.8)
"""mm of a CT of thick slices."""

SHAPE = (40, 320, 320)
KERNELS = ((1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3))
STRIDES = ((1, 2, 2), (1, 2, 2), (2, 2, 2))

spacings = st.tuples(*[st.floats(0.3, 12.0)] * 3)
shapes = st.tuples(*[st.integers(1, 600)] * 3)


@pytest.fixture
def covered(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were kernels for every network."""
    monkeypatch.setattr(choice, "why_not_covered", lambda network: "")


def test_thick_slices_are_halved_when_the_others_have_caught_up():
    assert topology(THICK, SHAPE, 3) == (KERNELS, STRIDES)
    assert topology((0.8, 5.0, 0.8), (320, 40, 320), 2)[1] == ((2, 1, 2), (2, 1, 2))
    # 2.4 mm are three times 0.8 mm, and less than twice the 1.6 mm after one halving.
    assert topology((2.4, 0.8, 0.8), SHAPE, 2) == (((1, 3, 3), (3, 3, 3), (3, 3, 3)), ((1, 2, 2), (2, 2, 2)))
    assert topology((1.59, 0.8, 0.8), SHAPE, 2)[1] == ((2, 2, 2), (2, 2, 2))
    assert topology((1.6, 0.8, 0.8), SHAPE, 2)[1] == ((1, 2, 2), (2, 2, 2))


def test_a_short_side_is_halved_no_further():
    kernels, strides = topology(THICK, (12, 320, 320), 6)
    assert strides == ((1, 2, 2), (1, 2, 2), (2, 2, 2), (1, 2, 2), (1, 2, 2), (1, 2, 2))
    assert kernels[-1] == (3, 3, 3)
    # One axis alone must have 12 voxels.
    assert topology((9.0, 9.0, 1.0), (30, 30, 11), 3)[1] == ()
    assert topology((9.0, 9.0, 1.0), (30, 30, 12), 3)[1] == ((1, 1, 2), (2, 2, 1), (2, 2, 1))


def test_the_kernels_can_be_wider():
    assert topology(THICK, SHAPE, 1, width=5) == (((1, 5, 5), (5, 5, 5)), ((1, 2, 2),))


@settings(max_examples=200, deadline=None)
@given(spacings, shapes, st.integers(0, 6))
def test_rules(spacing, shape, levels):
    kernels, strides = topology(spacing, shape, levels)
    assert len(kernels) == len(strides) + 1 <= levels + 1
    assert kernels[-1] == (3, 3, 3)
    sides, lengths = shape, spacing
    for kernel, following, stride in zip(kernels, kernels[1:], strides, strict=False):
        assert max(stride) == 2
        for axis in range(3):
            assert stride[axis] in (1, 2)
            assert kernel[axis] in (1, 3)
            assert kernel[axis] <= following[axis]
            if stride[axis] == 2:
                assert sides[axis] >= 8
                assert kernel[axis] == 3 or lengths[axis] >= 2 * min(lengths)
        assert 3 in kernel
        sides = tuple(ceil(side / n) for side, n in zip(sides, stride, strict=True))
        lengths = tuple(length * n for length, n in zip(lengths, stride, strict=True))
    assert all(side >= 4 or side == whole for side, whole in zip(sides, shape, strict=True))


@settings(max_examples=100, deadline=None)
@given(spacings, shapes, st.integers(1, 6))
def test_the_product_of_the_strides_divides_the_padded_shape(spacing, shape, levels):
    kernels, strides = topology(spacing, shape, levels)
    model = ModelConfig(levels=len(strides), kernels=kernels, strides=strides)
    model.check()
    padded = padded_shape(shape, model.multiple)
    for factor in model.factors:
        assert all(n % f == 0 for n, f in zip(padded, factor, strict=True))
    assert all(p - n < m for p, n, m in zip(padded, shape, model.multiple, strict=True))


@settings(max_examples=100, deadline=None)
@given(st.floats(0.3, 6.0), st.tuples(*[st.floats(1.0, 1.99)] * 3), shapes)
def test_cubes_are_halved_on_all_axes(length, ratios, shape):
    spacing = tuple(length * ratio for ratio in ratios)
    long = tuple(n + 32 for n in shape)
    assert topology(spacing, long, 3) == (((3, 3, 3),) * 4, ((2, 2, 2),) * 3)
    assert network_for(ModelConfig(), spacing, shape) == choice.Choice(ModelConfig())


def test_the_network_for_thick_slices(covered):
    made = network_for(ModelConfig(base_channels=8), THICK, SHAPE)
    assert (made.model.kernels, made.model.strides, made.model.levels) == (KERNELS, STRIDES, 3)
    assert made.model.widths == ModelConfig(base_channels=8).widths
    assert made.reason == (
        "voxels of 5x0.8x0.8 mm, 40x320x320 of them: kernels 1x3x3, 1x3x3, 3x3x3, 3x3x3 and strides 1x2x2, 1x2x2, "
        "2x2x2, for an axis is halved while its spacing is less than twice the finest (--anisotropy none: all axes "
        "alike)"
    )
    assert network_for(made.model, THICK, SHAPE) == choice.Choice(made.model)  # they are set now


def test_fewer_halvings_where_sides_would_be_too_short(covered):
    asked = ModelConfig(levels=5, features=(4, 8, 8, 16, 16, 32), encoder="residual", blocks=(1, 1, 2, 2, 2, 3))
    made = network_for(asked, THICK, (12, 40, 40))
    assert made.model.levels == len(made.model.strides) == 3
    assert (made.model.widths, made.model.block_counts) == ((4, 8, 8, 16), (1, 1, 2, 2))
    assert "in 3 halvings, as sides would be too short for 5" in made.reason
    made.model.check()


def test_halvings_that_other_settings_need_are_kept(covered):
    config = Config(ModelConfig(), TrainingConfig(deep_supervision=True))
    kept, reason = with_network_for(config, THICK, (9, 18, 21))
    assert kept == config
    assert reason.startswith("all axes are treated alike: else sides would allow 2 of 3 halvings (training.deep_super")
    assert with_network_for(config, THICK, SHAPE)[0].model.strides == STRIDES
    with pytest.raises(ConfigError, match=r"deep_supervision: with model\.levels = 2"):
        with_network_for(Config(ModelConfig(levels=2), config.training), THICK, SHAPE)


@pytest.mark.parametrize(
    "asked",
    [
        ModelConfig(anisotropy="none"), ModelConfig(kernels=((3, 3, 3),) * 4), ModelConfig(strides=((2, 2, 2),) * 3),
        ModelConfig(levels=0), ModelConfig(kernel_size=9),
    ],
)  # fmt: skip
def test_what_is_asked_for_is_kept(asked, covered):
    assert network_for(asked, THICK, SHAPE) == choice.Choice(asked)


def test_a_network_without_fast_kernels_is_not_chosen_unless_the_other_one_has_none_either():
    made = network_for(ModelConfig(), THICK, SHAPE)
    apart = ModelConfig(kernels=KERNELS, strides=STRIDES)
    if not why_not_covered(unet(apart)):
        assert made.model.strides == STRIDES
        return
    assert made.model == ModelConfig()
    assert "all axes are treated alike; kernels 1x3x3, 1x3x3" in made.reason
    assert why_not_covered(unet(apart)) in made.reason
    assert "\n" not in made.reason
    assert network_for(ModelConfig(up="trilinear"), THICK, SHAPE).model.strides == STRIDES


def test_facts_and_words():
    apart = ModelConfig(kernels=KERNELS, strides=STRIDES)
    assert described(ModelConfig()) == ""
    assert described(apart) == "kernels 1x3x3, 1x3x3, 3x3x3, 3x3x3 and strides 1x2x2, 1x2x2, 2x2x2"
    facts = network_facts(unet(apart), "")
    assert facts == {"kernels": [list(k) for k in KERNELS], "strides": [list(s) for s in STRIDES], "reason": None}


@pytest.mark.parametrize("changes", [{"strides": STRIDES}, {"kernels": KERNELS}, {"down": "stride"}])
def test_coverage_names_what_has_no_kernel(changes):
    reason = why_not_covered(unet(ModelConfig(**changes)))
    words = {
        "strides": ("pooled 0 is a pooling of 1x2x2", "up 2 is an up-convolution"),
        "kernels": ("encoder 0.1 is a convolution of 1x3x3",),
        "down": ("encoder 1.1 is a convolution of 3x3x3 with stride 2x2x2",),
    }
    assert reason == "" or reason.startswith(words[next(iter(changes))])
