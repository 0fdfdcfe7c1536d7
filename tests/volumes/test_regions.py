"""Labels from logits: the largest class, or the last region that a voxel lies in."""

import numpy as np
import pytest

from volseg.volumes.regions import Decision, Region, labels_of, mask_type, sigmoid

REGIONS = (Region("whole", (1, 2, 3), 1), Region("core", (2, 3), 2), Region("enhancing", (3,), 3))


def logits_of(classes, shape=(3, 4, 5), seed=0):
    return np.random.default_rng(seed).normal(size=(classes, *shape)).astype(np.float32)


@pytest.mark.parametrize("classes", [2, 5, 300])
def test_without_regions_the_largest_logit_wins_and_of_equals_the_first(classes):
    logits = logits_of(classes)
    logits[:, 0] = 1.0
    mask = np.full(logits.shape[1:], 7, mask_type(classes))
    labels_of(logits, (), mask)
    assert np.array_equal(mask, logits.argmax(0))


def test_a_voxel_has_what_the_last_region_with_a_logit_above_zero_holds():
    logits = logits_of(3)
    logits[:, 0, 0] = 0.0  # a probability of one half is not above it
    regions = (REGIONS[2], REGIONS[0], REGIONS[1])  # not in the order of what they hold
    mask = np.full(logits.shape[1:], 9, np.uint8)
    labels_of(logits, regions, mask)
    expected = np.zeros(mask.shape, np.uint8)
    for region, values in zip(regions, logits, strict=True):
        expected[values > 0] = region.written
    assert np.array_equal(mask, expected)
    assert not mask[0, 0].any()
    assert set(np.unique(mask)) == {0, 1, 2, 3}


@pytest.mark.parametrize("regions", [(), REGIONS])
def test_parts_of_a_mask_are_parts_of_the_whole(regions):
    logits = logits_of(3)
    whole, parts = np.empty((2, *logits.shape[1:]), np.uint8)
    labels_of(logits, regions, whole)
    decision = Decision(regions, parts.dtype)
    bar, winner = decision.begin(parts.shape)
    for number, values in enumerate(logits):
        for column in range(values.shape[2]):
            decision.take(number, values[..., column], bar[..., column], winner[..., column])
    parts[...] = decision.labels(winner)
    assert np.array_equal(whole, parts)


def test_a_mask_is_as_wide_as_what_it_holds():
    assert mask_type(2, (Region("far", (255,), 255),)) == np.uint8
    assert mask_type(2, (Region("further", (256,), 256),)) == np.uint16
    assert mask_type(256) == np.uint8
    assert mask_type(257) == np.uint16


def test_sigmoids_are_right_and_finite_however_large_the_logits():
    logits = np.array([-200, -3, 0, 3, 200], np.float32)
    assert sigmoid(logits) == pytest.approx(1 / (1 + np.exp(-logits.astype(np.float64))), abs=1e-7)
    assert sigmoid(logits).dtype == np.float32
