"""Volumes on another grid: the formulas, SimpleITK as an independent reference, and the same bits in every box."""

import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from tiny import ct_like, save_nifti
from volseg.errors import VolumeError
from volseg.geometry import Box
from volseg.volumes import planes_output
from volseg.volumes.canonical import canonical
from volseg.volumes.reading import open_volume
from volseg.volumes.resampling import kept_where_close, resampled, resampled_space
from volseg.volumes.volume import Space, Volume
from volseg.volumes.writing import write_volume

RAS = np.array([[0.7, 0, 0, -31.0], [0, 0.9, 0, 12.0], [0, 0, 2.5, 100.0], [0, 0, 0, 1]])
LPI = np.array([[-0.7, 0, 0, 31.0], [0, -0.9, 0, 12.0], [0, 0, -2.5, 100.0], [0, 0, 0, 1]])


class Held(Volume):
    """An array as a volume, which notes what is read of it."""

    def __init__(self, array, affine, *, whole_slices=False):
        self.path, self.space, self.dtype = "held", Space(array.shape, affine), array.dtype
        self.whole_slices, self.array, self.boxes = whole_slices, array, []

    def read(self, box):
        assert Box.whole(self.shape).contains(box)
        self.boxes.append(box)
        return np.ascontiguousarray(self.array[box.slices])


def whole(volume):
    return volume.read(Box.whole(volume.shape))


def tilted(angle, about=2):
    turn = np.eye(4)
    a, b = [n for n in range(3) if n != about]
    turn[[a, a, b, b], [a, b, a, b]] = math.cos(angle), -math.sin(angle), math.sin(angle), math.cos(angle)
    return turn


def as_sitk(array, affine):
    """The image in ITK's LPS, built by hand."""
    image = sitk.GetImageFromArray(array)
    lps = np.diag([-1, -1, 1, 1]) @ affine
    spacing = np.sqrt((lps[:3, :3] ** 2).sum(axis=0))
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    return image


def by_sitk(array, affine, space, interpolator):
    """ITK's resampling; NaN where it finds the voxel outside."""
    target = as_sitk(np.zeros(space.shape, np.float32), space.affine)
    image = sitk.Cast(as_sitk(array, affine), sitk.sitkFloat32)
    return sitk.GetArrayFromImage(sitk.Resample(image, target, sitk.Transform(), interpolator, math.nan))


@pytest.mark.parametrize(
    ("shape", "old", "new", "expected"),
    [
        ((10, 20, 30), (2.5, 0.9, 0.7), (1.0, 1.0, 1.0), (25, 18, 21)),
        ((7, 8, 9), (1.5, 1, 1), (3, 1, 1), (4, 8, 9)),  # 3.5 rounds up, whatever noise the affine has
        ((2, 2, 2), (1, 1, 1), (50, 1, 1), (1, 2, 2)),
    ],
)
def test_a_new_grid_has_the_asked_spacing_and_the_old_centre(shape, old, new, expected):
    affine = tilted(0.3) @ np.diag([*reversed(old), 1])
    affine[:3, 3] = 5, -7, 11
    space = Space(shape, affine)
    found = resampled_space(space, new)
    assert found.shape == expected
    np.testing.assert_allclose(found.spacing, new, rtol=1e-12)
    np.testing.assert_allclose(found.affine[:3, :3] / new[::-1], affine[:3, :3] / old[::-1], atol=1e-12)
    centres = [s.affine @ [*((n - 1) / 2 for n in reversed(s.shape)), 1] for s in (space, found)]
    np.testing.assert_allclose(*centres, atol=1e-9)
    overhang = np.abs(np.multiply(found.shape, new) - np.multiply(shape, old))
    assert (overhang <= np.array(new) / 2 + 1e-6).all() or found.shape[0] == 1


@pytest.mark.parametrize("spacing", [(0, 1, 1), (1, -1, 1), (1, 1, math.nan), (math.inf, 1, 1)])
def test_no_spacing_but_positive_numbers(spacing):
    with pytest.raises(VolumeError, match="three positive numbers"):
        resampled_space(Space((3, 3, 3), np.eye(4)), spacing)


def test_axes_within_one_per_cent_stay():
    assert kept_where_close((2.0, 1.005, 0.7), (2.5, 1.0, 0.69)) == (2.5, 1.005, 0.69)


@pytest.mark.parametrize("affine", [RAS, LPI, tilted(0.2) @ RAS], ids=["RAS", "LPI", "oblique"])
@pytest.mark.parametrize("spacing", [(1.1, 1.3, 0.95), (4.1, 0.53, 2.3)])
def test_linear_and_nearest_agree_with_simpleitk(affine, spacing):
    image = ct_like((9, 14, 17))
    space = resampled_space(Space(image.shape, affine), spacing)
    linear = whole(resampled(Held(image.astype(np.float32), affine), space, "linear"))
    expected = by_sitk(image, affine, space, sitk.sitkLinear)
    assert np.isfinite(expected).mean() > 0.99
    np.testing.assert_allclose(linear[np.isfinite(expected)], expected[np.isfinite(expected)], atol=2e-2)
    rounded = whole(resampled(Held(image, affine), space, "linear"))
    assert rounded.dtype == np.int16
    np.testing.assert_array_equal(rounded, np.rint(linear))
    near = whole(resampled(Held(image, affine), space, "nearest"))
    expected = by_sitk(image, affine, space, sitk.sitkNearestNeighbor)
    assert (near == expected)[np.isfinite(expected)].mean() > 0.99


def test_a_mask_on_a_rotated_grid_agrees_with_simpleitk_class_by_class():
    rng = np.random.default_rng(0)
    mask = rng.integers(0, 4, (5, 6, 7)).repeat(3, 0).repeat(3, 1).repeat(3, 2).astype(np.uint8)
    affine = tilted(0.3, about=0) @ tilted(0.2) @ LPI
    space = Space((24, 30, 26), np.diag([0.8, 0.9, 1.7, 1]))
    space.affine[:3, 3] = (affine @ [10, 9, 7, 1] - space.affine @ [12, 14, 11, 1])[:3]
    found = whole(resampled(Held(mask, affine), space, "labels"))
    scores = np.stack([by_sitk((mask == n) * 1.0, affine, space, sitk.sitkLinear) for n in range(4)])
    inside = np.isfinite(scores[0])
    assert 0.2 < inside.mean() < 0.9
    first, second = np.sort(scores, axis=0)[:-3:-1]
    clear = inside & (first - second > 1e-5)
    assert clear.sum() > 0.95 * inside.sum()
    np.testing.assert_array_equal(found[clear], scores.argmax(0)[clear])
    assert not found[~inside].any()


def label_reference(mask, coordinates, labels):
    """Each label's indicator interpolated by itself, in float64; the smaller label wins a tie."""
    scores = []
    for label in range(labels):
        values = (mask == label).astype(np.float64)
        for axis, c in enumerate(coordinates):
            low = np.floor(c).astype(int)
            weight = (c - low).reshape([-1 if n == axis else 1 for n in range(3)])
            values = (
                values.take(low, axis) * (1 - weight)
                + values.take(np.minimum(low + 1, mask.shape[axis] - 1), axis) * weight
            )
        scores.append(values)
    return np.argmax(scores, axis=0)


def test_labels_are_interpolated_one_by_one_and_a_tie_goes_to_the_smaller():
    mask = np.random.default_rng(1).integers(0, 3, (8, 9, 10)).astype(np.int16)
    space = resampled_space(Space(mask.shape, np.eye(4)), (2.0, 0.5, 1.0))  # halfway on D, quarters on H: all exact
    found = whole(resampled(Held(mask, np.eye(4)), space, "labels"))
    d, h = np.arange(4) * 2 + 0.5, np.clip(np.arange(18) / 2 - 0.25, 0, 8)
    np.testing.assert_array_equal(found, label_reference(mask, (d, h, np.arange(10.0)), 3))
    pair = np.array([5, 3], dtype=np.uint8).reshape(2, 1, 1)
    halfway = resampled_space(Space((2, 1, 1), np.eye(4)), (2.0, 1, 1))
    assert whole(resampled(Held(pair, np.eye(4)), halfway, "labels")).item() == 3


@pytest.mark.parametrize("how", ["linear", "nearest", "labels"])
@pytest.mark.parametrize("grid", ["other spacing", "flipped", "rotated"])
@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_every_box_has_the_bits_of_the_whole(how, grid, data):
    kind = data.draw(st.sampled_from([np.int16, np.float32, np.int32]))
    shape = data.draw(st.tuples(*[st.integers(1, 9)] * 3))
    values = np.random.default_rng(2).normal(0, 100, shape)
    source = (np.rint(values / 60) if how == "labels" else values * (1000 if kind == np.int32 else 1)).astype(kind)
    spacing = data.draw(st.tuples(*[st.sampled_from([0.5, 0.8, 1.0, 1.7, 4.0])] * 3))
    space = resampled_space(Space(shape, RAS), spacing)
    if grid == "flipped":
        space = canonical(Held(np.zeros(space.shape), space.affine @ np.diag([-1, 1, -1, 1]))).space
        space = Space(space.shape, space.affine @ np.diag([1, -1, 1, 1]))
    elif grid == "rotated":
        space = Space(space.shape, tilted(0.4, about=1) @ space.affine)
    volume = resampled(Held(source, RAS), space, how)
    everything = whole(volume)
    assert everything.dtype == source.dtype
    start = tuple(data.draw(st.integers(0, n - 1)) for n in space.shape)
    stop = tuple(data.draw(st.integers(a + 1, n)) for a, n in zip(start, space.shape, strict=True))
    part = volume.read(Box(start, stop))
    assert part.flags.c_contiguous
    np.testing.assert_array_equal(
        part.view(f"V{part.itemsize}"),
        np.ascontiguousarray(everything[Box(start, stop).slices]).view(f"V{part.itemsize}"),
    )


def test_flipped_grids_give_the_same_anatomy():
    mask = np.random.default_rng(3).integers(0, 3, (6, 7, 8)).astype(np.uint8)
    space = resampled_space(Space(mask.shape, RAS), (1.1, 1.1, 1.1))
    straight = whole(resampled(Held(mask, RAS), space, "labels"))
    last = np.eye(4)
    last[0, 0], last[0, 3] = -1, mask.shape[2] - 1
    turned = whole(resampled(Held(np.ascontiguousarray(mask[..., ::-1]), RAS @ last), space, "labels"))
    np.testing.assert_array_equal(turned, straight)


def test_only_what_is_needed_is_read():
    image = ct_like((40, 40, 40))
    source = Held(image, np.eye(4))
    view = resampled(source, resampled_space(source.space, (2.0, 2.0, 2.0)), "linear")
    view.read(Box((5, 6, 7), (8, 9, 10)))
    assert source.boxes == [Box((10, 12, 14), (16, 18, 20))]


@pytest.mark.parametrize("grid", ["spacing", "rotated"])
def test_runs_of_planes_read_a_compressed_file_forward_and_each_slice_once(grid):
    image = ct_like((40, 18, 15))
    space = resampled_space(Space(image.shape, RAS), (1.1, 1.3, 1.2))
    if grid == "rotated":
        space = Space(space.shape, tilted(0.1, about=1) @ space.affine)
    expected = whole(resampled(Held(image, RAS), space, "linear"))
    source = Held(image, RAS, whole_slices=True)
    view = resampled(source, space, "linear")
    for first in range(0, space.shape[0], 3):
        box = Box((first, 0, 0), (min(first + 3, space.shape[0]), *space.shape[1:]))
        np.testing.assert_array_equal(view.read(box), expected[box.slices])
    ends = [box.start[0] for box in source.boxes], [box.stop[0] for box in source.boxes]
    assert ends[0][1:] == ends[1][:-1]
    assert max(box.shape[0] for box in source.boxes) < 15


def test_what_lies_outside_and_how_the_edge_is_carried_on():
    image = np.full((2, 2, 2), 7, dtype=np.int16)
    space = Space((2, 2, 10), np.array([[0.5, 0, 0, -1.0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]))
    for how in ("linear", "nearest", "labels"):
        found = whole(resampled(Held(image, np.eye(4)), space, how, outside=-1))
        np.testing.assert_array_equal(found[0, 0], [-1, 7, 7, 7, 7, 7, -1, -1, -1, -1])
    far = Space((2, 2, 2), np.array([[1, 0, 0, 50.0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]))
    assert not whole(resampled(Held(image, np.eye(4)), far, "labels")).any()
    assert not whole(resampled(Held(image, np.eye(4)), Space((2, 2, 2), tilted(0.5) @ far.affine), "labels")).any()


def test_a_constant_stays_constant_and_a_ramp_a_ramp():
    flat = Held(np.full((5, 6, 7), 0.1, np.float32), RAS)
    space = resampled_space(flat.space, (0.77, 0.31, 1.3))
    assert (whole(resampled(flat, space, "linear")) == np.float32(0.1)).all()
    ramp = np.broadcast_to(np.arange(7, dtype=np.float32), (5, 6, 7)).copy()
    found = whole(resampled(Held(ramp, RAS), space, "linear"))[0, 0]
    there = 3 + (np.arange(space.shape[2]) - (space.shape[2] - 1) / 2) * 1.3 / 0.7
    np.testing.assert_allclose(found, np.clip(there, 0, 6), atol=1e-5)


def test_the_audit_says_what_was_done_and_nothing_is_done_for_nothing():
    volume = Held(ct_like(), RAS)
    view = resampled(volume, resampled_space(volume.space, (1, 1, 1)), "linear")
    assert view.audit.fixes == ("resampled from 2.5x0.9x0.7 to 1x1x1 mm, linear",)
    assert resampled(volume, resampled_space(volume.space, volume.space.spacing), "linear") is volume
    assert canonical(view).audit == view.audit


def test_nan_in_the_source_is_named_where_it_lies():
    image = ct_like().astype(np.float32)
    image[3, 4, 5] = np.nan
    view = resampled(Held(image, RAS), resampled_space(Space(image.shape, RAS), (1, 1, 1)), "linear")
    with pytest.raises(VolumeError, match="3x4x5"):
        whole(view)


@pytest.mark.parallel([1, 2, 4])
@pytest.mark.parametrize("suffix", [".nii.gz", ".zarr"])
def test_written_by_any_number_of_ranks_it_is_the_whole(tmp_path, communicator, suffix, monkeypatch):
    monkeypatch.setattr(planes_output, "UNIT_BYTES", 2000)
    folder = Path(communicator.broadcast(str(tmp_path)))
    with communicator.together():
        if communicator.is_root:
            save_nifti(folder / "scan.nii.gz", ct_like((11, 18, 15)), LPI)
    view = resampled_scan(folder / "scan.nii.gz")
    out = folder / f"out{suffix}"

    def produce(units):
        mine = units[communicator.rank]
        return None if mine is None else view.read(mine.box)

    write_volume(out, view.space, view.dtype, produce, communicator, overwrite=True)
    written, expected = open_volume(out), resampled_scan(folder / "scan.nii.gz")
    np.testing.assert_allclose(written.space.affine, expected.space.affine, atol=1e-5)
    np.testing.assert_array_equal(whole(written), whole(expected))


def resampled_scan(path):
    volume = open_volume(path)
    return resampled(volume, resampled_space(volume.space, (1.3, 1.1, 0.6)), "linear")


def test_a_real_ct_and_its_mask(data):
    """Down to 4.5 mm: each voxel as in ITK, each organ by its own indicator."""
    volume, labels = (open_volume(data / "abdomen_ct" / name) for name in ("ct.nii.gz", "labels.nii.gz"))
    space = resampled_space(volume.space, (4.5, 4.5, 4.5))
    image, mask = whole(resampled(volume, space, "linear")), whole(resampled(labels, space, "labels"))
    expected = by_sitk(whole(volume), np.asarray(nib.load(volume.path).affine), space, sitk.sitkLinear)
    np.testing.assert_allclose(image[np.isfinite(expected)], expected[np.isfinite(expected)], atol=0.6)
    fine, affine = whole(labels), np.asarray(nib.load(labels.path).affine)
    scores = np.stack([by_sitk((fine == n) * 1.0, affine, space, sitk.sitkLinear) for n in range(fine.max() + 1)])
    second, first = np.sort(scores, axis=0)[-2:]
    clear = first - second > 1e-4  # False where ITK finds the voxel outside
    assert clear.mean() > 0.95
    np.testing.assert_array_equal(mask[clear], scores.argmax(0)[clear])
