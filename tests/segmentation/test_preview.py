"""The preview: which planes, which way up, and a picture with the label where the label is."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread

from volseg.errors import VolsegError
from volseg.segmentation.preview import (
    SOFT_TISSUE,
    PreviewPlane,
    _draw_plane,
    choose_window,
    draw_preview,
    label_colour,
    pick_planes,
    plane_counts,
)

SHAPE = (10, 12, 14)
NAMES = {"background": 0, "liver": 1, "spleen": 2}


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
    axes = Figure().add_subplot()
    _draw_plane(axes, name, PreviewPlane(image, np.zeros((6, 8), np.uint8), (2.0, 1.0), 0, 1), 0.0, 1.0)
    shown = np.asarray(axes.images[0].get_array())
    assert shown[-1, -1] == 1.0  # the first voxel is drawn at the lower right
    assert axes.images[0].get_extent() == [0.0, 8.0, 12.0, 0.0]
    assert axes.get_aspect() == 1.0
    left, right, above, below = axes.texts
    assert tuple(t.get_text() for t in (left, right, above, below)) == sides
    assert left.get_position()[0] < right.get_position()[0]
    assert above.get_position()[1] > below.get_position()[1]


def planes(mask, spacing=(5.0, 2.0, 2.0)):
    image = np.where(mask > 0, 60.0, -20.0)
    d, h, w = pick_planes(plane_counts(mask, 3))
    sd, sh, sw = spacing
    return {
        "axial": PreviewPlane(image[d], mask[d], (sh, sw), d, SHAPE[0]),
        "coronal": PreviewPlane(image[:, h], mask[:, h], (sd, sw), h, SHAPE[1]),
        "sagittal": PreviewPlane(image[:, :, w], mask[:, :, w], (sd, sh), w, SHAPE[2]),
    }


def has_colour(picture, label):
    return np.any(np.abs(picture[..., :3] - to_rgb(label_colour(label))).max(axis=-1) < 0.02)


def test_the_picture_shows_the_labels_in_their_colours(mask, tmp_path):
    draw_preview(tmp_path / "p.png", planes(mask), NAMES, "scan.nii")
    picture = imread(tmp_path / "p.png")
    assert picture.shape[1] > 1000
    assert has_colour(picture, 1)
    assert has_colour(picture, 2)
    assert [p.name for p in tmp_path.iterdir()] == ["p.png"]


def test_an_empty_mask_is_drawn_without_colours(tmp_path):
    draw_preview(tmp_path / "p.png", planes(np.zeros(SHAPE, np.uint8)), NAMES, "scan.nii", window=(-50.0, 100.0))
    picture = imread(tmp_path / "p.png")
    assert not has_colour(picture, 1)
    assert not has_colour(picture, 2)


def test_a_single_slice_can_be_drawn(tmp_path):
    one = np.ones((1, 8, 8), np.uint8)
    image = one.astype(float)
    drawn = {
        "axial": PreviewPlane(image[0], one[0], (1.0, 1.0), 0, 1),
        "coronal": PreviewPlane(image[:, 4], one[:, 4], (1.0, 1.0), 4, 8),
        "sagittal": PreviewPlane(image[:, :, 4], one[:, :, 4], (1.0, 1.0), 4, 8),
    }
    draw_preview(tmp_path / "p.png", drawn, NAMES, "one")
    assert has_colour(imread(tmp_path / "p.png"), 1)


def test_an_unwritable_place_is_named(mask, tmp_path):
    with pytest.raises(VolsegError, match="cannot write"):
        draw_preview(tmp_path / "none" / "p.png", planes(mask), NAMES, "scan")
