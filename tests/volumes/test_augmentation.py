"""Augmentation: any way of cutting a view gives the same bits; what each change does, against scipy and plain numpy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from volseg.config import PRESETS, AugmentationConfig
from volseg.geometry import Box
from volseg.volumes.augmentation.appearance import Appearance, distribution
from volseg.volumes.augmentation.drawing import Draw, draw
from volseg.volumes.augmentation.elastic import Elastic
from volseg.volumes.augmentation.interpolating import SMALLEST, interpolate, pieces
from volseg.volumes.augmentation.spatial import SpatialMap, spatial_map

SHAPE, SPACING = (13, 18, 15), (3.0, 1.0, 1.5)
WHOLE = Box.whole(SHAPE)
OUTSIDE = 255
ALONE = {
    "flip": AugmentationConfig(flip=(1.0, 1.0, 1.0)),
    **{
        name: AugmentationConfig(**{name: 1.0})
        for name in (
            "rotate", "scale", "elastic", "noise", "blur", "brightness", "contrast", "low_resolution", "gamma",
            "gamma_inverted",
        )
    },
}  # fmt: skip
EVERYTHING = AugmentationConfig(
    flip=(0.5, 0.5, 0.5), rotate=1, scale=1, elastic=1, noise=1, blur=1, brightness=1, contrast=1, low_resolution=1,
    gamma=1, gamma_inverted=1,
)  # fmt: skip


def volume(shape=SHAPE, seed=0):
    """Two channels and labels 0 to 3, in blobs."""
    rng = np.random.default_rng(seed)
    images = ndimage.gaussian_filter(rng.normal(size=(2, *shape)), (0, 2, 2, 2)).astype(np.float32)
    images /= images.std()
    labels = np.digitize(ndimage.gaussian_filter(rng.normal(size=shape), 2), (-0.05, 0.0, 0.05)).astype(np.uint8)
    return images, labels


def drawn(config, seed=0, view=WHOLE, shape=SHAPE, channels=2) -> Draw:
    return draw(config, np.random.default_rng(seed), shape, SPACING, view, channels)


def known(images):
    return [distribution(*(a for a in np.unique(image.astype(float), return_counts=True))) for image in images]


def render(draw: Draw, images, labels, box, most=10**9, threads=1):
    """`box` of the view, from no more of the volume than the draw says it needs."""
    held = draw.reach(box)
    values = np.empty((len(images), *held.shape), np.float32)
    names = np.empty(held.shape, np.uint8)
    for piece in pieces(held, draw.space, most):
        source = draw.space.source_box(piece)
        cut = piece.relative_to(held).slices
        parts = [image[source.slices] for image in images]
        into = values[(slice(None), *cut)], names[cut]
        interpolate(parts, labels[source.slices], source, draw.space, piece, into, OUTSIDE, threads)
    view = draw.space.view
    made = [
        channel.apply(image, held, box, view, about)
        for channel, image, about in zip(draw.channels, values, known(images), strict=True)
    ]
    return np.stack(made), names[box.relative_to(held).slices]


def cuts(shape, parts):
    """A volume cut into so many blocks a side, unevenly."""
    ends = [[0, *sorted(set(np.linspace(0, n, parts + 1).astype(int)[1:-1] + 1)), n] for n in shape]
    for d, h, w in np.ndindex(*(len(e) - 1 for e in ends)):
        start, stop = (ends[0][d], ends[1][h], ends[2][w]), (ends[0][d + 1], ends[1][h + 1], ends[2][w + 1])
        yield Box(tuple(map(int, start)), tuple(map(int, stop)))


@pytest.mark.parametrize("config", [*ALONE.values(), EVERYTHING], ids=[*ALONE, "everything"])
@pytest.mark.parametrize("view", [WHOLE, Box((2, 4, 1), (11, 13, 14))], ids=["whole", "crop"])
def test_any_cut_gives_the_bits_of_the_whole(config, view):
    images, labels = volume()
    for seed in range(2):
        how = drawn(config, seed, view)
        image, names = render(how, images, labels, Box.whole(view.shape))
        for box in cuts(view.shape, 2):
            part, part_names = render(how, images, labels, box, most=900, threads=2)
            np.testing.assert_array_equal(part.view(np.uint32), image[(slice(None), *box.slices)].view(np.uint32))
            np.testing.assert_array_equal(part_names, names[box.slices])
        assert set(np.unique(names)) <= {*np.unique(labels), OUTSIDE}


@pytest.mark.parametrize("config", [*ALONE.values()], ids=[*ALONE])
def test_every_change_changes_something(config):
    images, labels = volume()
    image, _ = render(drawn(config), images, labels, WHOLE)
    assert np.abs(image - images).max() > 1e-3


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**62), st.integers(0, 2**31), st.integers(0, 100))
def test_probabilities_of_0_leave_everything_untouched(seed, step, place):
    rng = np.random.default_rng([seed, step, place])
    how = draw(AugmentationConfig(), rng, SHAPE, SPACING, WHOLE, 2)
    assert how.untouched
    images, labels = volume()
    image, names = render(how, images, labels, WHOLE)
    np.testing.assert_array_equal(image, images)
    np.testing.assert_array_equal(names, labels)


def test_a_change_leaves_the_others_numbers_as_they_are():
    with_noise, both = drawn(ALONE["noise"]), drawn(replace(ALONE["noise"], rotate=1.0, blur=1.0))
    assert with_noise.channels[0].noise == both.channels[0].noise > 0
    assert with_noise.channels[0].noise_key == both.channels[0].noise_key


def test_flips_are_numpys():
    images, labels = volume()
    image, names = render(drawn(AugmentationConfig(flip=(1.0, 0.0, 1.0))), images, labels, WHOLE)
    np.testing.assert_array_equal(image, np.flip(images, (1, 3)))
    np.testing.assert_array_equal(names, np.flip(labels, (0, 2)))


def sampled(space: SpatialMap, image, labels):
    made, names = np.empty((1, *space.view), np.float32), np.empty(space.view, np.uint8)
    whole = Box.whole(space.volume)
    interpolate([image], labels, whole, space, Box.whole(space.view), (made, names), OUTSIDE)
    return made[0], names


def test_a_quarter_turn_is_numpys():
    shape = (5, 9, 9)
    image, labels = volume(shape)[0][0], volume(shape)[1]
    space = spatial_map(shape, shape, (2.0, 4.0, 4.0), (2.0, 1.0, 1.0), degrees=(90.0, 0.0, 0.0))
    made, names = sampled(space, image, labels)
    np.testing.assert_allclose(made, np.rot90(image, -1, (1, 2)), atol=1e-5)
    np.testing.assert_array_equal(names, np.rot90(labels, -1, (1, 2)))


@pytest.mark.parametrize("degrees", [(25.0, 0.0, 0.0), (0.0, -20.0, 0.0), (10.0, 15.0, -30.0)])
@pytest.mark.parametrize("scale", [0.8, 1.0, 1.3])
def test_rotation_and_scaling_are_scipys(degrees, scale):
    images, labels = volume()
    centre = tuple((n - 1) / 2 for n in SHAPE)
    space = spatial_map(SHAPE, SHAPE, centre, SPACING, degrees=degrees, scale=scale)
    made, names = sampled(space, images[0], labels)
    # In mm, turned about the axes one by one by scipy's own rotation.
    from scipy.spatial.transform import Rotation

    turn = np.eye(3)
    for axis, angle in zip(np.eye(3), degrees, strict=True):
        turn = turn @ Rotation.from_rotvec(np.radians(angle) * axis).as_matrix()
    matrix = np.diag(1 / np.array(SPACING)) @ turn @ np.diag(SPACING) / scale
    grid = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij")).reshape(3, -1)
    places = matrix @ (grid - np.array(centre)[:, None]) + np.array(centre)[:, None]
    inside = ((places >= 0) & (places <= np.array(SHAPE)[:, None] - 1)).all(0).reshape(SHAPE)
    expected = ndimage.map_coordinates(images[0].astype(float), places, order=1, mode="nearest").reshape(SHAPE)
    np.testing.assert_allclose(made[inside], expected[inside], atol=2e-5)
    votes = [ndimage.map_coordinates((labels == n).astype(float), places, order=1) for n in range(4)]
    ranked = np.sort(votes, axis=0)
    clear = inside & (ranked[-1] - ranked[-2] > 1e-6).reshape(SHAPE)
    assert clear.sum() > 500
    np.testing.assert_array_equal(names[clear], np.argmax(votes, axis=0).reshape(SHAPE)[clear])
    beyond = ((places < -0.51) | (places > np.array(SHAPE)[:, None] - 0.49)).any(0).reshape(SHAPE)
    assert (names[beyond] == OUTSIDE).all()
    assert (made[beyond] == 0).all()


def test_the_displacement_is_smooth_and_within_its_bound():
    elastic = Elastic((2.0, 4.0, 3.0), (6.5, 9.0, 7.0), (1, 2))
    field = elastic.displacement(Box.whole((40, 50, 30)))
    for axis, most in enumerate(elastic.amplitude):
        assert 0.2 * most < np.abs(field[axis]).max() <= most * 1.00001
        for along, distance in enumerate(elastic.distance):
            # A cubic B-spline of coefficients within +-a rises by 2a a distance at most.
            assert np.abs(np.diff(field[axis], axis=along)).max() <= 2 * most / distance * 1.0001
            assert np.abs(np.diff(field[axis], 2, axis=along)).max() <= 4 * most / distance**2 * 1.001
    part = Box((7, 11, 3), (20, 30, 29))
    np.testing.assert_array_equal(elastic.displacement(part), field[(slice(None), *part.slices)])


def test_an_elastic_view_does_not_fold_over():
    config = AugmentationConfig(elastic=1.0, elastic_mm=16.0, elastic_grid_mm=40.0)
    for seed in range(5):
        how = draw(config, np.random.default_rng(seed), (60, 60, 60), (1.0, 1.0, 1.0), Box.whole((60, 60, 60)), 1)
        places = np.stack(how.space.places(Box.whole((60, 60, 60))))
        slopes = np.stack([np.stack(np.gradient(p), 0) for p in places])
        assert (np.linalg.det(slopes.transpose(2, 3, 4, 0, 1)) > 0).all()


def test_blur_is_scipys():
    images, _ = volume()
    made = Appearance(blur=0.8).apply(images[0].copy(), WHOLE, WHOLE, SHAPE, None)
    expected = ndimage.gaussian_filter(images[0].astype(float), 0.8, mode="nearest", radius=4)
    np.testing.assert_allclose(made, expected, atol=1e-5)


def test_noise_has_its_deviation_and_differs_by_channel_and_step():
    shape = (40, 40, 40)
    whole = Box.whole(shape)
    fields = []
    for seed in (0, 1):
        for channel in drawn(ALONE["noise"], seed, whole, shape).channels:
            made = channel.apply(np.zeros(shape, np.float32), whole, whole, shape, None)
            assert made.std() == pytest.approx(channel.noise, rel=0.02)
            fields.append(made.ravel() / channel.noise)
    assert np.abs(np.corrcoef(fields) - np.eye(4)).max() < 0.02


def test_contrast_keeps_the_mean_and_gamma_mean_deviation_and_order():
    images, _ = volume((20, 20, 20))
    image, whole = images[0], Box.whole((20, 20, 20))
    about = known(images)[0]
    more = Appearance(contrast=1.2).apply(image.copy(), whole, whole, whole.shape, about)
    assert more.mean() == pytest.approx(image.mean(), abs=1e-4)
    assert more.std() == pytest.approx(1.2 * image.std(), rel=1e-4)
    for changes in ({"gamma": 0.7}, {"gamma": 1.4}, {"gamma_inverted": 1.4}, {"gamma": 0.8, "gamma_inverted": 1.3}):
        made = Appearance(**changes).apply(image.copy(), whole, whole, whole.shape, about)
        assert made.mean() == pytest.approx(image.mean(), abs=5e-3)
        assert made.std() == pytest.approx(image.std(), rel=5e-3)
        order = np.argsort(image.ravel())
        assert (np.diff(made.ravel()[order]) >= -1e-5).all()
        assert np.abs(made - image).max() > 0.05


def test_a_coarser_scan_is_nearest_voxels_interpolated():
    image = np.arange(12, dtype=np.float32).reshape(1, 1, 12)
    whole = Box.whole((1, 1, 12))
    made = Appearance(resolution=0.5).apply(image.copy(), whole, whole, whole.shape, None).ravel()
    coarse = image.ravel()[1::2]  # the voxel at or after the centre of each pair
    expected = np.interp((np.arange(12) + 0.5) / 2 - 0.5, np.arange(6), coarse)
    np.testing.assert_allclose(made, expected, atol=1e-6)


def test_what_is_kept_of_many_values_is_little_and_keeps_the_ends():
    values = np.sort(np.random.default_rng(0).normal(size=50_000))
    kept = distribution(values, np.ones(50_000, np.int64))
    assert len(kept.values) <= 2048
    assert (kept.values[0], kept.values[-1]) == (values[0], values[-1])
    assert kept.mean == pytest.approx(values.mean(), abs=1e-3)
    assert kept.deviation == pytest.approx(values.std(), rel=1e-2)


def test_full_draws_each_change_as_often_as_it_says():
    draws = [drawn(PRESETS["full"], seed) for seed in range(1500)]
    channels = [d.channels[0] for d in draws]
    for share, found in [
        (0.2 + 0.8 * 0.2, [d.space.elastic is not None or abs(d.space.matrix[0][1]) > 0 for d in draws]),
        (0.5, [d.space.matrix[1][1] < 0 for d in draws]),
        (0.1, [c.noise > 0 for c in channels]),
        (0.2, [c.blur > 0 for c in channels]),
        (0.15, [c.brightness != 1 for c in channels]),
        (0.15, [c.contrast != 1 for c in channels]),
        (0.25, [c.resolution != 1 for c in channels]),
        (0.3, [c.gamma != 1 for c in channels]),
        (0.1, [c.gamma_inverted != 1 for c in channels]),
    ]:
        assert np.mean(found) == pytest.approx(share, abs=0.045)


def test_a_view_far_outside_is_all_outside():
    images, labels = volume()
    space = spatial_map(SHAPE, (4, 4, 4), (100.0, 0.0, 0.0), SPACING, scale=1.1)
    assert space.source_box(Box.whole((4, 4, 4))).size == 0
    made, names = sampled(space, images[0], labels)
    assert (made == 0).all()
    assert (names == OUTSIDE).all()


def test_pieces_tile_a_box_and_keep_to_their_bound():
    how = drawn(replace(EVERYTHING, scale_range=(0.9, 1.1)), 3)
    found = pieces(WHOLE, how.space, 2000)
    assert len(found) > 2
    assert all(how.space.source_box(piece).size <= 2000 or piece.size <= SMALLEST for piece in found)
    seen = np.zeros(SHAPE, int)
    for piece in found:
        seen[piece.slices] += 1
    assert (seen == 1).all()


@pytest.mark.parametrize("degrees", [0.0, 10.0])
def test_pieces_of_a_compressed_volume_come_from_few_planes(degrees):
    """Turned about D or not at all, planes are read about twice; by pieces as long as they are wide more often."""
    side, whole = 256, Box.whole((256, 256, 256))
    space = spatial_map(
        whole.shape, whole.shape, (127.5, 127.5, 127.5), (1.0, 1.0, 1.0), flips=(False, False, False),
        degrees=(degrees, 0.0, 0.0), scale=1.0, elastic=None,
    )  # fmt: skip
    found, other = (pieces(whole, space, 300_000, planes) for planes in (True, False))
    assert sum(piece.size for piece in found) == whole.size
    assert all(space.source_box(piece).size <= 300_000 for piece in found)
    read, read_else = (sum(space.source_box(piece).shape[0] for piece in some) for some in (found, other))
    assert read < 3 * side
    assert read_else > 10 * side
