"""Specks removed in parts are those of the whole mask."""

from __future__ import annotations

import numpy as np
import pytest

from mask_blocks import flooded, hard_masks, random_tiling, speckles
from volseg.distributed.communicator import Communicator, SerialCommunicator
from volseg.errors import ConfigError
from volseg.geometry import Box
from volseg.segmentation.postprocessing import Cleaning, LabelCleaning, clean

VOXEL_ML = 0.0007  # 0.7 mm³, which binary fractions do not hold exactly


def cleaned(mask: np.ndarray, cleaning: Cleaning) -> tuple[np.ndarray, tuple[LabelCleaning, ...]]:
    """The rules written down plainly, component after component of the whole mask."""
    names = flooded(mask, cleaning.connectivity)
    out, rows = mask.copy(), []
    for label in np.unique(mask[mask > 0]).tolist():
        firsts, sizes = np.unique(names[mask == label], return_counts=True)
        largest = firsts[np.argmax(sizes)]  # the first of several
        gone = [
            (first, size)
            for first, size in zip(firsts, sizes.tolist(), strict=True)
            if round(size * 0.7, 6) < cleaning.min_volume or (cleaning.keep_largest and first != largest)
        ]
        out[np.isin(names, [first for first, _ in gone])] = 0
        rows.append(LabelCleaning(label, len(firsts), len(gone), sum(size for _, size in gone)))
    return out, tuple(rows)


@pytest.mark.parallel([1, 2, 3, 4, 8])
def test_parts_are_cleaned_as_the_whole(communicator: Communicator) -> None:
    random = np.random.default_rng(11)
    shape = (8, 9, 11)
    rules = [Cleaning(True), Cleaning(False, 2.1, 6), Cleaning(True, 1000.0, 18), Cleaning(False, 5.0, 26)]
    for mask in hard_masks(random, shape).values():
        for rule in rules:
            boxes = random_tiling(random, shape, communicator.size)
            block = mask[boxes[communicator.rank].slices].copy()
            rows = clean(block, boxes, VOXEL_ML, rule, communicator)
            right, right_rows = cleaned(mask, rule)
            well = np.array_equal(block, right[boxes[communicator.rank].slices]) and rows == right_rows
            assert all(communicator.gather_all(well)), (rule, rows, right_rows, [str(box) for box in boxes])


@pytest.mark.parallel([1, 2])
def test_of_equals_the_first_in_the_volume_stays(communicator: Communicator) -> None:
    """Whichever rank holds it."""
    mask = np.zeros((8, 4, 4), dtype=np.uint8)
    mask[1:3, 1, 1] = mask[6:8, 2, 2] = mask[3:5, 3, 3] = 2
    halves = [Box((0, 0, 0), (4, 4, 4)), Box((4, 0, 0), (8, 4, 4))]
    for boxes in (halves, halves[::-1]) if communicator.size == 2 else ([Box.whole(mask.shape)],):
        block = mask[boxes[communicator.rank].slices].copy()
        rows = clean(block, boxes, VOXEL_ML, Cleaning(keep_largest=True), communicator)
        expected = np.zeros_like(mask)
        expected[1:3, 1, 1] = 2
        assert all(communicator.gather_all(np.array_equal(block, expected[boxes[communicator.rank].slices])))
        assert rows == (LabelCleaning(label=2, components=3, removed=2, voxels_removed=4),)


def test_a_component_of_exactly_the_volume_stays() -> None:
    """0.7 mm³ three times is 2.0999999999999996 in float64."""
    mask = np.zeros((1, 1, 9), dtype=np.uint8)
    mask[0, 0, :3] = mask[0, 0, 5:7] = 1
    rows = clean(mask, [Box.whole(mask.shape)], VOXEL_ML, Cleaning(min_volume=2.1), SerialCommunicator())
    assert mask.ravel().tolist() == [1, 1, 1, 0, 0, 0, 0, 0, 0]
    assert rows == (LabelCleaning(1, 2, 1, 2),)


def test_a_view_is_cleaned_in_place() -> None:
    whole = speckles(np.random.default_rng(3), (6, 12, 10), 2, 0.3)
    right, _ = cleaned(whole[:, ::2, ::-1], Cleaning(True))
    others = whole[:, 1::2].copy()
    view = whole[:, ::2, ::-1]
    clean(view, [Box.whole(view.shape)], VOXEL_ML, Cleaning(True), SerialCommunicator())
    np.testing.assert_array_equal(whole[:, ::2, ::-1], right)
    np.testing.assert_array_equal(whole[:, 1::2], others)


def test_without_a_rule_nothing_happens() -> None:
    mask = speckles(np.random.default_rng(4), (5, 5, 5), 2, 0.4)
    before = mask.copy()
    assert clean(mask, [Box.whole(mask.shape)], VOXEL_ML, Cleaning(), SerialCommunicator()) == ()
    np.testing.assert_array_equal(mask, before)


@pytest.mark.parametrize("volume", [-1.0, float("nan"), float("inf")])
def test_a_volume_that_is_none_is_refused(volume: float) -> None:
    with pytest.raises(ConfigError, match="smallest volume"):
        Cleaning(min_volume=volume)


def test_another_connectivity_is_refused_before_work_begins() -> None:
    with pytest.raises(ConfigError, match="connectivity 4"):
        Cleaning(connectivity=4)
