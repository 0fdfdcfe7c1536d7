"""The grid of a series from its positions, and every fault of it by name."""

import itertools
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.data import get_testdata_file

from dicom_files import save, series_datasets, stored_values
from volseg.errors import VolumeError
from volseg.geometry import Box
from volseg.volumes.dicom.finding.headers import read_image
from volseg.volumes.dicom.finding.sources import FileEntry
from volseg.volumes.dicom.geometry import place
from volseg.volumes.dicom.options import DicomOptions
from volseg.volumes.dicom.volume import open_dicom

PYDICOM_FILES = Path(get_testdata_file("CT_small.dcm")).parent
STORED = stored_values()
HU = STORED.astype(np.int16) - 1024


def read(folder):
    volume = open_dicom(folder)
    return volume, volume.read(Box.whole(volume.shape))


def refused(folder, options=DicomOptions()):  # noqa: B008  (frozen)
    with pytest.raises(VolumeError) as caught:
        open_dicom(folder, options)
    assert str(caught.value).count("\n") <= 1
    return str(caught.value)


def placed(folder):
    """The placement of files that `series` need not have grouped."""
    return place(folder, [read_image(FileEntry(path)) for path in sorted(folder.iterdir())])


def test_the_grid(tmp_path):
    volume, array = read(save(series_datasets(STORED), tmp_path))
    np.testing.assert_array_equal(array, HU)
    assert volume.space.spacing == pytest.approx((2.0, 0.8, 0.7))
    expected = [[-0.7, 0, 0, 100], [0, -0.8, 0, 120], [0, 0, 2, 50], [0, 0, 0, 1]]
    np.testing.assert_allclose(volume.space.affine, expected, atol=1e-6)


@pytest.mark.parametrize("permutation", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("signs", [(1, 1), (1, -1), (-1, 1), (-1, -1)])
def test_any_orientation_agrees_with_simpleitk(tmp_path, permutation, signs):
    directions = np.eye(3)[list(permutation)]
    across, down = signs[0] * directions[0], signs[1] * directions[1]
    agrees_with_simpleitk(save(series_datasets(STORED, across=tuple(across), down=tuple(down)), tmp_path))


def test_an_oblique_orientation_agrees_with_simpleitk(tmp_path):
    a, b = np.cos(0.3), np.sin(0.3)
    agrees_with_simpleitk(save(series_datasets(STORED, across=(a, b, 0), down=(-b * a, a * a, b)), tmp_path))


def agrees_with_simpleitk(folder):
    volume, array = read(folder)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    np.testing.assert_array_equal(array, sitk.GetArrayFromImage(image))
    for k, j, i in ((0, 0, 0), tuple(n - 1 for n in volume.shape), (1, 2, 3)):
        left, posterior, superior = image.TransformIndexToPhysicalPoint((i, j, k))
        np.testing.assert_allclose((volume.space.affine @ [i, j, k, 1])[:3], [-left, -posterior, superior], atol=1e-3)


def test_the_order_is_that_of_positions_not_of_instance_numbers(tmp_path):
    def encode(ds):
        ds.InstanceNumber = (7 * ds.InstanceNumber) % 11

    np.testing.assert_array_equal(read(save(series_datasets(STORED), tmp_path, encode=encode))[1], HU)


@pytest.mark.parametrize("names", [[f"{9 - n}" for n in range(6)], [f"{'abc'[n % 3]}/{n}" for n in range(6)]])
def test_the_order_is_not_that_of_names(tmp_path, names):
    np.testing.assert_array_equal(read(save(series_datasets(STORED), tmp_path, names=names))[1], HU)


def test_positions_rounded_in_the_files(tmp_path):
    def encode(ds):
        ds.ImagePositionPatient = [f"{float(n):.2f}" for n in ds.ImagePositionPatient]

    volume = open_dicom(save(series_datasets(STORED, spacing=0.625), tmp_path, encode=encode))
    assert volume.space.spacing[0] == pytest.approx(0.625, abs=2e-3)
    assert volume.audit.fixes == ()


def test_a_real_series_with_a_clean_geometry():
    volume = open_dicom(PYDICOM_FILES / "dicomdirtests" / "98892001" / "CT5N")
    assert volume.shape == (5, 16, 16)
    assert volume.space.spacing[0] == pytest.approx(2.5)


# ---- faults


def test_one_slice(tmp_path):
    save(series_datasets(STORED[:1]), tmp_path)
    with pytest.raises(VolumeError, match=r"00\.dcm: the only slice of its series; a volume needs two"):
        placed(tmp_path)


@pytest.mark.parametrize("missing", [[3], [2, 3]])
def test_missing_slices_are_between_their_neighbours(tmp_path, missing):
    save(series_datasets(STORED), tmp_path)
    for number in missing:
        (tmp_path / f"{number:02}.dcm").unlink()
    first, gap = missing[0] - 1, 2 * (len(missing) + 1)
    message = refused(tmp_path)
    assert f"uneven slices: {gap} mm between {first:02}.dcm at (-100, -120, {50 + 2 * first})" in message
    assert f"and 04.dcm at (-100, -120, 58) ({len(missing)} missing); mostly 2 mm (2 to {gap})" in message
    assert "--resample-gaps" in message
    assert "--fix-tilt" not in message


def tilted(folder, angle=0.2, heights=range(0, 12, 2)):
    datasets = series_datasets(STORED, down=(0, np.cos(angle), np.sin(angle)))
    for height, ds in zip(heights, datasets, strict=True):
        ds.ImagePositionPatient = [-100, -120, 50 + height]
    return save(datasets, folder)


def test_gantry_tilt(tmp_path):
    message = refused(tilted(tmp_path))
    assert (
        "gantry tilt of 11.5 degrees: slices drift 1.99 mm off their normal from 00.dcm at (-100, -120, 50)" in message
    )
    assert "to 05.dcm at (-100, -120, 60), limit 0.07 mm: --fix-tilt shears the slices back" in message
    assert "--resample-gaps" not in message


def test_several_faults_are_told_at_once(tmp_path):
    tilted(tmp_path, heights=[0, 2, 4, 6, 9, 11])
    both = refused(tmp_path)
    assert "gantry tilt of 11.5 degrees" in both
    assert "uneven slices: 2.94 mm between 03.dcm" in both
    assert "--fix-tilt" in both
    assert "--resample-gaps" in both
    assert "tilt" not in refused(tmp_path, DicomOptions(fix_tilt=True))
    assert "uneven" not in refused(tmp_path, DicomOptions(resample_gaps=True))


def test_a_real_series_that_is_tilted_and_uneven(data):
    message = refused(data / "head_ct_tilted")
    assert "gantry tilt of 18.5 degrees: slices drift 48.2 mm off their normal from 01.dcm" in message
    assert "1.081 mm between 14.dcm at (-125, -123.5, 60.7) and 15.dcm at (-125, -123.5, 61.84)" in message
    assert "mostly 4.002 mm (1.081 to 6.999)" in message
    assert "--fix-tilt" in message
    assert "--resample-gaps" in message


def test_a_gap_in_a_real_series():
    message = refused(PYDICOM_FILES / "dicomdirtests" / "77654033" / "CT2")
    assert "202.5 mm between 17106 at " in message
    assert "and 17136 at " in message


def test_a_wandering_slice(tmp_path):
    def encode(ds):
        if ds.InstanceNumber == 3:
            ds.ImagePositionPatient = [-95, -120, 54]

    message = refused(save(series_datasets(STORED), tmp_path, encode=encode), DicomOptions(None, True, True))
    assert "not in one line: 02.dcm at (-95, -120, 54) is 5 mm off" in message


def test_two_slices_at_one_height_beside_each_other(tmp_path):
    def encode(ds):
        if ds.InstanceNumber == 4:
            ds.ImagePositionPatient = [-90, -120, 54]

    message = refused(save(series_datasets(STORED), tmp_path, encode=encode), DicomOptions(None, True, True))
    assert "1 slices lie at the height of another, as 02.dcm at (-100, -120, 54) and 03.dcm" in message


CHANGES = {
    r"several orientations: unlike the others are 02\.dcm \(the first at -100, -120, 54\)": lambda ds: setattr(
        ds, "ImageOrientationPatient", [1, 0, 0, 0, 0, 1]
    ),
    r"PixelSpacing differs, 0.7 to 0.9 mm: unlike the others are 02\.dcm": lambda ds: setattr(
        ds, "PixelSpacing", [0.8, 0.9]
    ),
    r"different sizes \(16x20, 20x16\): unlike the others are 02\.dcm": lambda ds: (
        setattr(ds, "Rows", 20),
        setattr(ds, "Columns", 16),
    ),
    r"02\.dcm: no ImagePositionPatient; without it": lambda ds: ds.pop("ImagePositionPatient"),
    r"02\.dcm: a wrong \(1.0\\2.0\) ImagePositionPatient": lambda ds: setattr(ds, "ImagePositionPatient", [1, 2]),
    r"02\.dcm: PixelSpacing 0.0 mm": lambda ds: setattr(ds, "PixelSpacing", [0, 0.9]),
}


@pytest.mark.parametrize("message", CHANGES)
def test_a_slice_unlike_the_others(tmp_path, message):
    def encode(ds):
        if ds.InstanceNumber == 3:
            CHANGES[message](ds)

    save(series_datasets(STORED), tmp_path, encode=encode)
    with pytest.raises(VolumeError, match=message):
        placed(tmp_path)


def test_several_differences_are_told_at_once(tmp_path):
    def encode(ds):
        if ds.InstanceNumber == 3:
            ds.Rows, ds.Columns = 20, 16
        if ds.InstanceNumber == 5:
            ds.PixelSpacing = [1, 1]

    save(series_datasets(STORED), tmp_path, encode=encode)
    with pytest.raises(VolumeError, match=r"sizes .* 02\.dcm .*; PixelSpacing differs, .* 04\.dcm"):
        placed(tmp_path)


def test_directions_that_are_not_perpendicular(tmp_path):
    def encode(ds):
        ds.ImageOrientationPatient = [1, 0, 0, 0.2, 1, 0]

    assert "no pair of perpendicular directions" in refused(save(series_datasets(STORED), tmp_path, encode=encode))


def test_a_position_beyond_any_scanner(tmp_path):
    save(series_datasets(STORED), tmp_path)
    ds = pydicom.dcmread(tmp_path / "03.dcm")
    ds.ImagePositionPatient = [0, 0, "1e300"]
    ds.save_as(tmp_path / "03.dcm")
    with pytest.raises(VolumeError, match=r"03\.dcm: a wrong \(.*\) ImagePositionPatient"):
        placed(tmp_path)


# ---- positions rounded to few decimals


def rounded_series(folder, step, digits, count=40, gone=(), across=(1, 0, 0), down=(0, 1, 0)):
    stored = stored_values((count, 16, 20))
    datasets = series_datasets(stored, spacing=step, across=across, down=down)
    for ds in datasets:
        ds.ImagePositionPatient = [round(float(n), digits) for n in ds.ImagePositionPatient]
    stays = [n for n in range(count) if n not in gone]
    return save([datasets[n] for n in stays], folder, names=[f"{n:02}.dcm" for n in stays]), stored


@pytest.mark.parametrize(
    ("step", "digits"), [(0.625, 1), (0.75, 1), (1.25, 1), (0.4, 1), (0.45, 1), (4.5, 0), (0.0093, 3)]
)
@pytest.mark.parametrize("options", [DicomOptions(), DicomOptions(resample_gaps=True)])
def test_positions_that_rounding_explains_are_even(tmp_path, step, digits, options):
    folder, stored = rounded_series(tmp_path, step, digits)
    volume = open_dicom(folder, options)
    np.testing.assert_array_equal(volume.read(Box.whole(volume.shape)), stored.astype(np.int16) - 1024)
    assert volume.space.spacing[0] == pytest.approx(step, abs=10**-digits / 39)
    assert volume.audit.fixes == ()
    said = [text for text in volume.audit.warnings if f"rounded to {10**-digits:g} mm" in text]
    assert len(said) == (0 if (step, digits) == (0.4, 1) else 1)


def test_oblique_positions_that_are_rounded_are_neither_tilted_nor_out_of_line(tmp_path):
    turn = np.radians(20)
    folder, stored = rounded_series(tmp_path, 1.25, 1, down=(0, np.cos(turn), np.sin(turn)))
    volume = open_dicom(folder)
    np.testing.assert_array_equal(volume.read(Box.whole(volume.shape)), stored.astype(np.int16) - 1024)


def test_a_missing_slice_among_rounded_positions_is_missed_and_no_other_is_changed(tmp_path):
    folder, stored = rounded_series(tmp_path, 0.625, 1, gone=(17,))
    with pytest.raises(
        VolumeError, match=r"uneven slices: 1\.2 mm between 16\.dcm .* and 18\.dcm .*\(1 missing\); mos"
    ):
        open_dicom(folder)
    volume = open_dicom(folder, DicomOptions(resample_gaps=True))
    hu = stored.astype(np.int16) - 1024
    assert volume.shape == hu.shape
    array = volume.read(Box.whole(volume.shape))
    assert [n for n in range(40) if not np.array_equal(array[n], hu[n])] == [17]
    assert "39 of them unchanged" in volume.audit.fixes[0]


def test_what_rounding_does_not_explain_is_uneven(tmp_path):
    datasets = series_datasets(STORED, spacing=1.0)
    datasets[3].ImagePositionPatient[2] += 0.2  # to one decimal, as all are; but twice what rounding may do
    with pytest.raises(VolumeError, match="uneven slices"):
        open_dicom(save(datasets, tmp_path))
