"""The preview: which planes, which way up, and a picture with the label where the label is."""

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.image import imread

from volseg.drawing.planes import SOFT_TISSUE, Plane, choose_window, pick_planes, plane_counts
from volseg.drawing.preview import SIDES, _painted, draw_preview
from volseg.errors import VolsegError
from volseg.volumes.label_table import LabelTable

SHAPE = (10, 12, 14)
LABELS = LabelTable({"background": 0, "liver": 1, "spleen": 2})


@pytest.fixture
def mask():
    mask = np.zeros(SHAPE, np.uint8)
    mask[2:5, 3:9, 1:7] = 1
    mask[4:8, 7:10, 8:12] = 2
    return mask


def test_counts_of_blocks_add_up(mask):
    whole = plane_counts(mask, 3)
    assert [c.shape for c in whole] == [(2, n) for n in SHAPE]
    low, high = plane_counts(mask[:4], 3), plane_counts(mask[4:], 3)
    np.testing.assert_array_equal(whole[0], np.concatenate([low[0], high[0]], axis=1))
    for axis in (1, 2):
        np.testing.assert_array_equal(whole[axis], low[axis] + high[axis])
    assert whole[0][1, 5] == np.count_nonzero(mask[5] == 2)


def test_the_planes_show_both_labels(mask):
    d, h, w = pick_planes(plane_counts(mask, 3))
    assert d == 4  # the only plane along D that cuts both
    assert h in (7, 8)
    assert 1 <= w < 7 or 8 <= w < 12


def test_an_empty_mask_is_shown_at_the_middle():
    assert pick_planes(plane_counts(np.zeros((9, 11, 13), np.uint8), 3)) == (4, 5, 6)
    assert pick_planes(plane_counts(np.zeros((9, 11, 13), np.uint8), 1)) == (4, 5, 6)


def test_a_small_organ_weighs_as_much_as_a_large_one():
    mask = np.zeros((20, 20, 20), np.uint8)
    mask[:10] = 1
    mask[4:6, 4:6, 4:6] = 2
    assert pick_planes(plane_counts(mask, 3))[0] in (4, 5)


def test_ct_gets_the_soft_tissue_window_and_others_percentiles():
    rng = np.random.default_rng(0)
    ct = np.where(rng.uniform(size=(50, 50)) < 0.5, -1000.0, rng.normal(50, 30, (50, 50)))
    assert choose_window([ct]) == SOFT_TISSUE
    low, high = choose_window([rng.normal(0, 1, (100, 100))])
    assert -3.5 < low < -2
    assert 2 < high < 3.5
    flat = choose_window([np.zeros((4, 4))])
    assert flat[0] < flat[1]
    assert choose_window([np.full((4, 4), np.nan)]) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("name", "sides"),
    [
        # Canonical planes start at the inferior / posterior / left voxel. On display: patient's right at the left.
        ("axial", ("R", "L", "A", "P")),
        ("coronal", ("R", "L", "S", "I")),
        ("sagittal", ("A", "P", "S", "I")),
    ],
)
def test_planes_are_the_right_way_round(name, sides):
    image = np.zeros((6, 8))
    image[0, 0] = 1.0
    shown = _painted(Plane(image, np.zeros((6, 8), np.uint8), (2.0, 1.0), 0, 1), LABELS, 0.0, 1.0, (12, 8))
    assert shown.shape == (12, 8, 3)
    assert shown[-1, -1].min() > 200  # the first voxel is drawn at the lower right
    assert shown[:6].max() == 0
    assert SIDES[name] == sides


def planes(mask, spacing=(5.0, 2.0, 2.0)):
    image = np.where(mask > 0, 60.0, -20.0)
    d, h, w = pick_planes(plane_counts(mask, 3))
    sd, sh, sw = spacing
    return {
        "axial": Plane(image[d], mask[d], (sh, sw), d, SHAPE[0]),
        "coronal": Plane(image[:, h], mask[:, h], (sd, sw), h, SHAPE[1]),
        "sagittal": Plane(image[:, :, w], mask[:, :, w], (sd, sh), w, SHAPE[2]),
    }


def has_colour(picture, label):
    return np.any(np.abs(picture[..., :3] - np.array(LABELS.colour(label)) / 255).max(axis=-1) < 0.02)


def test_the_picture_shows_the_labels_in_their_colours(mask, tmp_path):
    draw_preview(tmp_path / "p.png", planes(mask), LABELS, "scan.nii")
    picture = imread(tmp_path / "p.png")
    assert picture.shape[1] > 1000
    assert has_colour(picture, 1)
    assert has_colour(picture, 2)
    assert [p.name for p in tmp_path.iterdir()] == ["p.png"]


def test_an_empty_mask_is_drawn_without_colours(tmp_path):
    draw_preview(tmp_path / "p.png", planes(np.zeros(SHAPE, np.uint8)), LABELS, "scan.nii", window=(-50.0, 100.0))
    picture = imread(tmp_path / "p.png")
    assert not has_colour(picture, 1)
    assert not has_colour(picture, 2)


def test_a_single_slice_can_be_drawn(tmp_path):
    one = np.ones((1, 8, 8), np.uint8)
    image = one.astype(float)
    drawn = {
        "axial": Plane(image[0], one[0], (1.0, 1.0), 0, 1),
        "coronal": Plane(image[:, 4], one[:, 4], (1.0, 1.0), 4, 8),
        "sagittal": Plane(image[:, :, 4], one[:, :, 4], (1.0, 1.0), 4, 8),
    }
    draw_preview(tmp_path / "p.png", drawn, LABELS, "one")
    assert has_colour(imread(tmp_path / "p.png"), 1)


def test_an_unwritable_place_is_named(mask, tmp_path):
    with pytest.raises(VolsegError, match="cannot write"):
        draw_preview(tmp_path / "none" / "p.png", planes(mask), LABELS, "scan")


def test_the_reference_is_outlined_and_the_mask_filled(mask, tmp_path):
    """Where the mask is empty its reference is seen by its lines alone, and the other way round by what is filled."""
    compared = {
        name: replace(
            plane, mask=np.where(plane.mask == 2, 0, plane.mask), reference=np.where(plane.mask == 1, 0, plane.mask)
        )
        for name, plane in planes(mask).items()
    }
    plane = compared["axial"]
    painted = _painted(plane, LABELS, -1000.0, 1000.0, tuple(8 * n for n in plane.mask.shape))[::-1, ::-1]
    at = {label: np.argwhere(array == label) * 8 + 4 for label, array in ((1, plane.mask), (2, plane.reference))}
    # Within the lines of what was not found there is the image alone.
    assert all(len(set(painted[tuple(place)])) == 1 for place in at[2])
    assert all(len(set(painted[tuple(place)])) == 3 for place in at[1])
    assert not (painted == LABELS.colour(1)).all(axis=-1).any()
    assert (painted == LABELS.colour(2)).all(axis=-1).any()
    draw_preview(tmp_path / "p.png", compared, LABELS, "case", width=600)
    assert imread(tmp_path / "p.png").shape[1] == 600
