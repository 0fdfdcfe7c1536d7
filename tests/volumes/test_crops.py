"""Crops: where they lie, and the voxel in their middle, found by ranks that each know their block alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from volseg.distributed.grid import ProcessGrid
from volseg.geometry import Box
from volseg.volumes.crops import count_by_plane, crop_around, crop_shape, find_voxel, random_crop

SHAPE = (9, 10, 11)
sides = st.tuples(*[st.integers(1, 30)] * 3)


@settings(max_examples=50, deadline=None)
@given(sides, sides, st.integers(0, 1000))
def test_a_crop_lies_in_the_volume(volume, crop, seed):
    rng = np.random.default_rng(seed)
    voxel = tuple(int(rng.integers(n)) for n in volume)
    for box in (random_crop(rng, volume, crop), crop_around(voxel, volume, crop)):
        assert Box.whole(volume).contains(box)
        assert box.shape == crop_shape(volume, crop) == tuple(np.minimum(volume, crop))
    assert box.contains(Box(voxel, tuple(v + 1 for v in voxel)))


def test_every_place_is_as_likely():
    rng = np.random.default_rng(0)
    starts = [random_crop(rng, (6, 5, 4), (4, 5, 9)).start for _ in range(600)]
    assert {s[1:] for s in starts} == {(0, 0)}
    assert np.bincount([s[0] for s in starts]) == pytest.approx([200] * 3, abs=50)


@pytest.mark.parallel([1, 2, 4])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_nth_voxel_of_a_class_is_numpys(communicator, axis):
    labels = np.random.default_rng(3).integers(0, 3, SHAPE).astype(np.uint8)
    labels[4] = 0  # planes and rows without any
    labels[:, 2] = 0
    dims = tuple(communicator.size if n == axis else 1 for n in range(3))
    grid = ProcessGrid(communicator, dims)
    inside = grid.block(grid.layout(SHAPE))
    own = labels[inside.slices]
    counts = count_by_plane(own, inside, SHAPE[0], 3, communicator)
    np.testing.assert_array_equal(counts, [(labels == n).sum((1, 2)) for n in range(3)])
    for value in (1, 2):
        places = np.argwhere(labels == value)
        for number in (0, 1, len(places) // 2, len(places) - 1):
            found = find_voxel(
                value, number, counts[value], inside, SHAPE, lambda d: own[d - inside.start[0]], communicator
            )
            assert found == tuple(places[number])
