"""Tilt sheared back and gaps interpolated: against known truth, a whole-volume reference, and dcm2niix."""

import subprocess
from dataclasses import replace

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from dicom_files import dcm2niix, save, series_datasets
from volseg.errors import VolumeError
from volseg.geometry import Box
from volseg.volumes.dicom.corrections import GAP_SNAP, _neighbours, even_grid, interpolated_slices, plan_corrections
from volseg.volumes.dicom.finding.choice import choose
from volseg.volumes.dicom.finding.series import survey
from volseg.volumes.dicom.finding.sources import open_source
from volseg.volumes.dicom.geometry import place
from volseg.volumes.dicom.options import DicomOptions
from volseg.volumes.dicom.pixels import stack as stacks
from volseg.volumes.dicom.pixels.stack import SliceStack
from volseg.volumes.dicom.volume import open_dicom

BOTH = DicomOptions(fix_tilt=True, resample_gaps=True)
SHAPE, PIXEL = (12, 40, 36), (0.8, 0.7)
UNEVEN = [0, 2, 4, 6, 8, 12, 14, 16, 18, 20, 24, 26]


def truth(points):
    """A smooth HU at LPS points [..., 3]; its second derivatives are within 300 * (0.15**2 + 0.1**2 + 0.2**2)."""
    x, y, z = np.moveaxis(points, -1, 0)
    return 300 * (np.sin(0.15 * x) + np.cos(0.1 * y + 1) + np.sin(0.2 * z))


def centres(space):
    """LPS millimetres of every voxel, [D, H, W, 3]."""
    k, j, i = np.indices(space.shape)
    ras = np.stack([i, j, k, np.ones_like(i)], axis=-1) @ space.affine.T
    return ras[..., :3] * [-1, -1, 1]


def sampled(folder, *, angle=0.0, sideways=0.0, heights=range(0, 24, 2), slope=1.0, scene=truth):
    """Slices of `scene`, moved along z by `heights`, tilted about x by `angle` and about y by `sideways`."""
    across = np.array([np.cos(sideways), 0, np.sin(sideways)])
    down = np.array([0, np.cos(angle), np.sin(angle)])
    down = down - (down @ across) * across
    down /= np.linalg.norm(down)
    datasets = series_datasets(np.zeros(SHAPE, np.int16), across=tuple(across), down=tuple(down), bits=16, intercept=0)
    rows, columns = np.indices(SHAPE[1:])
    for height, ds in zip(heights, datasets, strict=True):
        origin = np.array([-10.0, -15.0, 5.0 + height])
        ds.ImagePositionPatient = [f"{n:.6f}" for n in origin]
        points = origin + rows[..., None] * PIXEL[0] * down + columns[..., None] * PIXEL[1] * across
        ds.RescaleSlope = slope
        ds.PixelData = np.rint(scene(points) / slope).astype(np.int16).tobytes()
    return save(datasets, folder)


def read(folder, options=BOTH):
    volume = open_dicom(folder, options)
    array = volume.read(Box.whole(volume.shape))
    assert array.dtype == volume.dtype
    return volume, array


def covered(volume, edge=1.0):
    """Where neither air beyond the slices nor, unless `edge` is 0, their outermost pixels took part."""
    plan = volume.plan

    class Inside:
        def read(self, number):
            return np.pad(np.zeros((SHAPE[1] - 2, SHAPE[2] - 2)), 1, constant_values=edge)

    shape = volume.shape
    return interpolated_slices(Inside(), plan, Box.whole(shape), np.empty(shape)) == 0


@pytest.mark.parametrize(
    ("angle", "sideways"), [(0.3, 0.0), (-0.3, 0.0), (0.0, 0.25), (0.2, -0.25)], ids=["down", "up", "left", "oblique"]
)
def test_tilt_of_a_known_scene(tmp_path, angle, sideways):
    volume, array = read(sampled(tmp_path, angle=angle, sideways=sideways))
    inside = covered(volume)
    # Linear interpolation errs by no more than side**2 / 8 times the second derivative, an axis; and both roundings.
    bound = 300 * (0.15**2 + 0.1**2 + 0.2**2) * (PIXEL[0] ** 2 + PIXEL[1] ** 2) / 8 + 1
    error = np.abs(array - truth(centres(volume.space)))
    assert error[inside].max() <= bound < 5
    assert (array[~covered(volume, edge=0)] == -1024).all()
    assert covered(volume, edge=0).sum() == np.prod(SHAPE)  # nothing is cut off
    assert volume.corrected
    assert volume.audit.fixes[0].startswith("gantry tilt of ")
    assert len(volume.audit.fixes) == 1


def test_tilted_slices_stand_upright(tmp_path):
    volume = open_dicom(sampled(tmp_path, angle=0.3), BOTH)
    directions = volume.space.affine[:3, :3] / np.linalg.norm(volume.space.affine[:3, :3], axis=0)
    np.testing.assert_allclose(directions.T @ directions, np.eye(3), atol=1e-12)
    assert volume.space.spacing == pytest.approx((2 * np.cos(0.3), *PIXEL))
    drift = 22 * np.sin(0.3) / PIXEL[0]
    assert volume.shape == (12, 40 + int(np.ceil(drift)), 36)
    np.testing.assert_allclose(centres(volume.space)[0].reshape(-1, 3).min(axis=0)[0], -10, atol=1e-6)
    assert f"up to {drift:.2f} rows and 0.00 columns" in volume.audit.fixes[0]


def test_tilt_and_gaps_of_a_known_scene(tmp_path):
    volume, array = read(sampled(tmp_path, angle=0.3, heights=UNEVEN))
    inside = covered(volume)
    bound = 300 * (0.15**2 + 0.1**2 + 0.2**2) * (4.0**2 + PIXEL[0] ** 2) / 8 + 1.5
    assert np.abs(array - truth(centres(volume.space)))[inside].max() <= bound
    assert volume.shape[0] == 14
    assert [fix.split()[0] for fix in volume.audit.fixes] == ["gantry", "uneven"]


def test_gaps_in_a_ramp_are_exact(tmp_path):
    def ramp(points):
        return 10 * points[..., 2] + np.rint(points[..., 1])

    volume, array = read(sampled(tmp_path, heights=UNEVEN, scene=ramp))
    assert volume.space.spacing == pytest.approx((2.0, *PIXEL))
    np.testing.assert_array_equal(array, np.rint(ramp(centres(volume.space).round(6))))
    (fix,) = volume.audit.fixes
    assert fix.startswith("uneven slices interpolated (linear): 12 slices 2 to 4 mm apart became 14 slices 2 mm apart")
    assert fix.endswith(", 12 of them unchanged")


def test_slices_that_lie_right_stay_as_they_are(tmp_path):
    folder = sampled(tmp_path, heights=UNEVEN)
    volume, array = read(folder)
    kept = SliceStack(volume.images)
    for number, height in enumerate(UNEVEN):
        np.testing.assert_array_equal(array[height // 2], kept.read(number))


def test_nothing_is_done_unless_it_is_needed(tmp_path):
    folder = sampled(tmp_path)
    plain, asked = open_dicom(folder), open_dicom(folder, BOTH)
    assert not asked.corrected
    assert asked.audit.fixes == ()
    assert asked.space.matches(plain.space, tolerance=0)


def test_fractional_values_are_not_rounded(tmp_path):
    volume, array = read(sampled(tmp_path, angle=0.3, slope=0.5))
    assert array.dtype == np.float32
    inside = covered(volume)
    bound = 300 * (0.15**2 + 0.1**2 + 0.2**2) * (PIXEL[0] ** 2 + PIXEL[1] ** 2) / 8 + 0.25
    assert np.abs(array - truth(centres(volume.space)))[inside].max() <= bound
    assert (array != np.rint(array)).any()


def reference(volume):
    """The corrected volume at once, by numpy's own interpolation: rows, then columns, then slices; in float64."""
    plan, slices = volume.plan, SliceStack(volume.images)
    _, h, w = volume.shape
    sheared = np.full((len(slices), h, w), -1024.0)
    for number in range(len(slices)):
        plane = slices.read(number).astype(np.float64)
        rows = np.arange(h) + plan.corner[0] - plan.shifts[number, 0]
        columns = np.arange(w) + plan.corner[1] - plan.shifts[number, 1]
        down = np.stack([np.interp(rows, np.arange(plane.shape[0]), column) for column in plane.T], axis=1)
        both = np.stack([np.interp(columns, np.arange(plane.shape[1]), row) for row in down])
        seen = np.logical_and.outer(abs(rows - (SHAPE[1] - 1) / 2) <= SHAPE[1] / 2, abs(columns - 17.5) <= SHAPE[2] / 2)
        sheared[number][seen] = both[seen]
    weights = plan.weights[:, None, None]
    above = np.minimum(plan.lower + 1, len(slices) - 1)
    return (1 - weights) * sheared[plan.lower] + weights * sheared[above]


@pytest.mark.parametrize("slope", [1.0, 0.5])
def test_any_box_has_the_values_of_the_whole(tmp_path_factory, slope):
    folder = sampled(tmp_path_factory.mktemp("series"), angle=0.3, sideways=0.1, heights=UNEVEN, slope=slope)
    volume, whole = read(folder)
    expected = reference(volume)
    np.testing.assert_allclose(whole, expected, atol=0.5 + 1e-6 if whole.dtype == np.int16 else 1e-4)

    @hypothesis_settings(deadline=None, max_examples=40)
    @given(st.data())
    def check(data):
        ends = [sorted(data.draw(st.lists(st.integers(0, n), min_size=2, max_size=2))) for n in volume.shape]
        box = Box(*zip(*ends, strict=True))
        np.testing.assert_array_equal(volume.read(box), whole[box.slices])

    check()


def test_a_box_decodes_only_the_slices_it_meets(tmp_path, monkeypatch):
    volume = open_dicom(sampled(tmp_path, angle=0.3, heights=UNEVEN), BOTH)
    decoded = []
    real = stacks.hounsfield
    monkeypatch.setattr(stacks, "hounsfield", lambda *given: decoded.append(given[0].short_name) or real(*given))
    volume.read(Box((3, 5, 5), (6, 20, 20)))  # the last of them lies midway between slices 04 and 05
    assert decoded == ["03.dcm", "04.dcm", "05.dcm"]
    volume.read(Box((4, 5, 5), (6, 20, 20)))
    assert len(decoded) == 3


# ---- the even grid, and limits


@pytest.mark.parametrize(
    ("gaps", "slices", "spacing"),
    [
        ([2.0] * 5 + [4.0] + [2.0] * 4, 12, 2.0),
        ([5.0] * 15 + [1.0] * 5, 81, 1.0),
        ([1.0, 1.01, 0.99] * 10 + [2.0], 33, 1.0),
        ([4.002] * 13 + [1.081] + [6.999] * 13, 37, 4.0025),
        ([3.0], 2, 3.0),
    ],
)
def test_the_even_grid_keeps_the_finest_usual_spacing(gaps, slices, spacing):
    count, step = even_grid(np.array(gaps))
    assert count == slices
    assert step == pytest.approx(spacing, abs=2e-3)
    assert step * (count - 1) == pytest.approx(sum(gaps))


@pytest.mark.parametrize(
    ("heights", "limit"),
    [
        ([0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 28], "6.3 mm"),  # three slices missing
        ([0, 6, 12, 18, 24, 30, 36, 42, 48, 54, 60, 76], "15.75 mm"),
    ],
)
def test_too_wide_a_gap_is_not_bridged(tmp_path, heights, limit):
    folder = sampled(tmp_path, heights=heights)
    with pytest.raises(VolumeError, match=rf"mm between 10\.dcm at .* and 11\.dcm .* too wide .*limit {limit}"):
        open_dicom(folder, BOTH)


def test_small_gaps_between_thin_slices_are_bridged(tmp_path):
    volume = open_dicom(sampled(tmp_path, heights=[*np.arange(11) * 0.5, 10.0]), BOTH)
    assert volume.shape[0] == 21


def test_a_tilt_of_no_gantry(tmp_path):
    with pytest.raises(VolumeError, match=r"50\.0 degrees off their normal, more than any gantry tilts .limit 45"):
        open_dicom(sampled(tmp_path, angle=np.radians(50)), BOTH)


# ---- a real series


def test_a_real_tilted_and_uneven_series(data):
    volume = open_dicom(data / "head_ct_tilted", BOTH)
    assert volume.shape == (37, 611, 512)
    assert volume.space.spacing == pytest.approx((4.00245, 0.48828, 0.48828), abs=1e-4)
    assert (
        "gantry tilt of 18.50 degrees sheared back: slices moved in plane by up to 98.74 rows" in volume.audit.fixes[0]
    )
    assert "28 slices 1.081 to 6.999 mm apart became 37 slices 4.002 mm apart" in volume.audit.fixes[1]
    first = volume.read(Box((0, 0, 0), (1, 611, 512)))[0]
    stored = SliceStack(volume.images).read(0)
    np.testing.assert_array_equal(first[99:], stored)  # the first slice does not move; the others lie above it
    assert (first[:99] == -1024).all()
    assert stored.min() == -1024  # padding of -1500


def test_dcm2niix_shears_and_interpolates_alike(data, tmp_path):
    """On dcm2niix's own spacing: voxels within 1 HU (it rounds twice) where no padding took part, and the affine."""
    program = dcm2niix()
    if program is None:
        pytest.skip("no dcm2niix beside this Python, nor on the PATH")
    folder = data / "head_ct_tilted"
    subprocess.run([program, "-o", tmp_path, "-f", "head", folder], check=True, stdout=subprocess.DEVNULL, timeout=60)
    image = nibabel.load(tmp_path / "head_Tilt_Eq_1.nii")
    assert image.shape == (512, 611, 56)
    placement = place(folder, choose(folder, survey(open_source(folder)), None).images)
    plan = plan_corrections(folder, placement, tilt=True, gaps=True)
    spacing = placement.heights[-1] / 55  # the spacing that doubles the number of slices
    lower, weights = _neighbours(placement.heights, spacing * np.arange(56), GAP_SNAP)
    origin = plan.space.affine[:3, 3] * [-1, -1, 1]
    plan = replace(plan, space=placement.grid((56, 611, 512), spacing, origin), lower=lower, weights=weights)
    flip = np.array([[1, 0, 0, 0], [0, -1, 0, 610], [0, 0, 1, 0], [0, 0, 0, 1]])  # dcm2niix turns the rows over
    np.testing.assert_allclose(plan.space.affine @ flip, image.affine, atol=5e-5)
    stack = SliceStack(placement.images)

    class Padded:
        def read(self, number):
            return np.where(stack.read(number) == -1024, -1024, 0)

    for k in (5, 12, 24, 40, 50):
        box = Box((k, 0, 0), (k + 1, 611, 512))
        ours = interpolated_slices(stack, plan, box, np.empty(box.shape, np.int16))[0]
        theirs = np.asarray(image.dataobj[:, ::-1, k]).T
        scan = interpolated_slices(Padded(), plan, box, np.empty(box.shape))[0] == 0
        apart = np.abs(ours.astype(int) - theirs)[scan]
        assert scan.mean() > 0.5
        assert (apart > 1).sum() <= 2  # at the first or last row, of which half a pixel counts here
        assert (apart == 0).mean() > 0.7
