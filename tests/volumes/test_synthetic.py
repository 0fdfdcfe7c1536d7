"""Synthetic scenes: any box equals the same box of the whole, and a scene is what was asked for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from volseg.errors import ConfigError
from volseg.geometry import Box
from volseg.volumes.gaussian import gaussian_kernel
from volseg.volumes.synthetic import Scene, class_intensities

SHAPE = (21, 37, 70)  # odd, and wider than a noise tile


@pytest.fixture(scope="module")
def scene():
    return Scene.random(SHAPE, seed=3, case=1, ellipsoids=(4, 4), classes=3)


@pytest.fixture(scope="module")
def whole(scene):
    return scene.render(Box.whole(SHAPE))


@st.composite
def boxes(draw):
    spans = [sorted(draw(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)))) for n in SHAPE]
    return Box(tuple(a for a, _ in spans), tuple(b + 1 for _, b in spans))


@settings(deadline=None, max_examples=60)
@given(box=boxes())
def test_any_box_has_the_bits_of_the_whole(scene, whole, box):
    image, labels = scene.render(box)
    assert image.dtype == np.float32
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(image, whole[0][box.slices])
    np.testing.assert_array_equal(labels, whole[1][box.slices])


def test_labels_are_ellipsoids_and_later_ones_cover_earlier_ones(scene, whole):
    grid = np.indices(SHAPE).reshape(3, -1).astype(float)
    expected = np.zeros(grid.shape[1], dtype=np.uint8)
    for e in scene.ellipsoids:
        inside = np.linalg.norm(np.asarray(e.matrix) @ (grid - np.asarray(e.centre)[:, None]), axis=0) <= 1
        expected[inside] = e.label
    differing = np.count_nonzero(expected.reshape(SHAPE) != whole[1])
    assert differing <= 2  # a point on a surface may fall to either side


def test_bounds_hold_the_ellipsoid(scene):
    wide = Box(tuple(-n for n in SHAPE), tuple(2 * n for n in SHAPE))
    for e in scene.ellipsoids:
        assert e.inside(e.bounds).sum() == e.inside(wide).sum() > 0


def test_the_blur_is_scipys_gaussian():
    ndimage = pytest.importorskip("scipy.ndimage")
    shape = (24, 24, 24)
    kept = {"seed": 0, "case": 0, "noise": 0.0, "bias": 0.0}
    sharp = Scene.random(shape, blur=0.0, **kept).render_image(Box.whole(shape))
    blurred = Scene.random(shape, blur=0.9, **kept).render_image(Box.whole(shape))
    inner = (slice(4, -4),) * 3  # what lies beyond the faces is known to the scene, not to scipy
    expected = ndimage.gaussian_filter(sharp, 0.9, truncate=4.0 / 0.9)
    np.testing.assert_allclose(blurred[inner], expected[inner], atol=4e-4)


def test_noise_is_white_gaussian_and_differs_by_case():
    shape = (32, 80, 80)
    kept = {"seed": 0, "bias": 0.0, "blur": 0.0}
    noise = [
        Scene.random(shape, case=case, noise=0.5, **kept).render_image(Box.whole(shape))
        - Scene.random(shape, case=case, noise=0.0, **kept).render_image(Box.whole(shape))
        for case in (0, 1)
    ]
    assert noise[0].std() == pytest.approx(0.5, rel=0.01)
    assert abs(noise[0].mean()) < 0.005
    for axis in range(3):
        neighbours = np.corrcoef(np.delete(noise[0], 0, axis).ravel(), np.delete(noise[0], -1, axis).ravel())[0, 1]
        assert abs(neighbours) < 0.01
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.01


def test_bias_field_is_smooth_and_within_its_limit():
    shape = (20, 30, 40)
    kept = {"seed": 5, "case": 0, "noise": 0.0, "blur": 0.0}
    plain = Scene.random(shape, bias=0.0, **kept).render_image(Box.whole(shape))
    shaded = Scene.random(shape, bias=0.3, **kept).render_image(Box.whole(shape))
    field = shaded[plain != 0] / plain[plain != 0]
    assert 0.7 <= field.min() < field.max() <= 1.3


@pytest.mark.parametrize("case", range(12))
def test_every_class_is_there_where_the_number_allows(case):
    scene = Scene.random((32, 32, 32), seed=9, case=case, ellipsoids=(3, 6), classes=3)
    assert set(np.unique(scene.render_labels(Box.whole(scene.shape)))) == {0, 1, 2, 3}
    assert 3 <= len(scene.ellipsoids) <= 6


def test_a_single_ellipsoid_has_one_of_the_classes():
    labels = {Scene.random((16, 16, 16), seed=0, case=c, ellipsoids=(1, 1), classes=4).ellipsoids[0].label
              for c in range(40)}  # fmt: skip
    assert labels == {1, 2, 3, 4}


def test_a_case_does_not_depend_on_the_others_or_on_anything_but_its_seed():
    first, again, other = (Scene.random((16, 16, 16), seed=s, case=2) for s in (4, 4, 5))
    assert first == again
    assert first.ellipsoids != other.ellipsoids


def test_rotations_are_rotations(scene):
    rng = np.random.default_rng(0)
    from volseg.volumes.synthetic import _random_rotation

    for _ in range(20):
        r = np.asarray(_random_rotation(rng))
        np.testing.assert_allclose(r @ r.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(r) == pytest.approx(1)


def test_class_intensities_are_one_contrast_apart():
    assert class_intensities(2) == (0.0, 2.0, -2.0)
    assert np.diff(sorted(class_intensities(5))).tolist() == [2.0] * 5


@pytest.mark.parametrize("sigma", [0.0, 0.5, 2.0])
def test_kernel_sums_to_one_and_is_symmetric(sigma):
    kernel = gaussian_kernel(sigma)
    assert kernel.sum() == pytest.approx(1, abs=1e-6)
    np.testing.assert_array_equal(kernel, kernel[::-1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": (3, 64, 64)}, "at least 4"),
        ({"ellipsoids": (0, 2)}, "FEWEST:MOST"),
        ({"ellipsoids": (3, 2)}, "FEWEST:MOST"),
        ({"classes": 0}, "1 to 255"),
        ({"classes": 256}, "1 to 255"),
        ({"noise": -0.1}, "noise"),
        ({"noise": float("nan")}, "noise"),
        ({"bias": 1.0}, "bias"),
        ({"seed": -1}, "seed"),
        ({"shape": (4, 4, 4), "ellipsoids": (500, 500)}, "do not fit"),
    ],
)
def test_what_cannot_be_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        Scene.random(**({"shape": (16, 16, 16), "seed": 0, "case": 0} | change))
