"""A folder of one CT series: values, geometry, transfer syntaxes, and every refusal by name."""

import itertools
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.data import get_testdata_file
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from dicom_files import recompress, save, series_datasets, stored_values
from volseg.errors import VolumeError
from volseg.geometry import Box
from volseg.volumes import dicom
from volseg.volumes.canonical import Orientation
from volseg.volumes.reading import open_volume

PYDICOM_FILES = Path(get_testdata_file("CT_small.dcm")).parent
STORED = stored_values()
HU = STORED.astype(np.int16) - 1024


def read(folder):
    volume = open_volume(folder)
    array = volume.read(Box.whole(volume.shape))
    assert array.dtype == volume.dtype
    return volume, array


def refused(folder, word):
    with pytest.raises(VolumeError, match=word) as caught:
        open_volume(folder)
    assert str(caught.value).count("\n") <= 1
    return str(caught.value)


def test_values_and_grid(tmp_path):
    volume, array = read(save(series_datasets(STORED), tmp_path))
    assert volume.dtype == np.int16
    np.testing.assert_array_equal(array, HU)
    assert volume.space.spacing == pytest.approx((2.0, 0.8, 0.7))
    expected = [[-0.7, 0, 0, 100], [0, -0.8, 0, 120], [0, 0, 2, 50], [0, 0, 0, 1]]
    np.testing.assert_allclose(volume.space.affine, expected, atol=1e-6)


def test_only_the_slices_of_the_box_are_decoded(tmp_path, monkeypatch):
    volume = open_volume(save(series_datasets(STORED), tmp_path))
    decoded = []
    real = dicom._decode
    monkeypatch.setattr(dicom, "_decode", lambda image, shape: decoded.append(image.path.name) or real(image, shape))
    box = Box((2, 3, 4), (4, 10, 20))
    np.testing.assert_array_equal(volume.read(box), HU[box.slices])
    assert decoded == ["02.dcm", "03.dcm"]


@pytest.mark.parametrize("permutation", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("signs", [(1, 1), (1, -1), (-1, 1), (-1, -1)])
def test_any_orientation_agrees_with_simpleitk(tmp_path, permutation, signs):
    directions = np.eye(3)[list(permutation)]
    across, down = signs[0] * directions[0], signs[1] * directions[1]
    folder = save(series_datasets(STORED, across=tuple(across), down=tuple(down)), tmp_path)
    agrees_with_simpleitk(folder)


def test_an_oblique_orientation_agrees_with_simpleitk(tmp_path):
    a, b = np.cos(0.3), np.sin(0.3)
    folder = save(series_datasets(STORED, across=(a, b, 0), down=(-b * a, a * a, b)), tmp_path)
    agrees_with_simpleitk(folder)


def agrees_with_simpleitk(folder):
    volume, array = read(folder)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    np.testing.assert_array_equal(array, sitk.GetArrayFromImage(image))
    for k, j, i in ((0, 0, 0), tuple(n - 1 for n in volume.shape), (1, 2, 3)):
        left, posterior, superior = image.TransformIndexToPhysicalPoint((i, j, k))
        np.testing.assert_allclose((volume.space.affine @ [i, j, k, 1])[:3], [-left, -posterior, superior], atol=1e-3)


def test_files_in_any_order_nested_and_among_others(tmp_path):
    names = [f"{'abc'[n % 3]}/{9 - n}" for n in range(6)]
    save(series_datasets(STORED), tmp_path, names=names)
    (tmp_path / "README.txt").write_text("notes")
    (tmp_path / "a" / "empty").write_text("")
    (tmp_path / "a" / "short.dcm").write_bytes(b"\x08\x00 not DICOM at all")
    shutil.copy(PYDICOM_FILES / "dicomdirtests" / "DICOMDIR", tmp_path / "DICOMDIR")
    shutil.copy(PYDICOM_FILES / "rtplan.dcm", tmp_path / "plan.dcm")
    np.testing.assert_array_equal(read(tmp_path)[1], HU)


def test_file_without_preamble(tmp_path):
    save(series_datasets(STORED), tmp_path)
    for path in sorted(tmp_path.iterdir())[:3]:
        path.write_bytes(path.read_bytes()[132:])
    np.testing.assert_array_equal(read(tmp_path)[1], HU)


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, RLELossless, JPEGLSLossless]
)
def test_pydicoms_transfer_syntaxes(tmp_path, syntax):
    def encode(ds):
        if syntax.is_compressed and syntax != DeflatedExplicitVRLittleEndian:
            ds.compress(syntax, generate_instance_uid=False)
        else:
            ds.file_meta.TransferSyntaxUID = syntax

    np.testing.assert_array_equal(read(save(series_datasets(STORED), tmp_path, encode=encode))[1], HU)


def test_big_endian(tmp_path):
    for number, ds in enumerate(series_datasets(STORED)):
        ds.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
        ds.PixelData = STORED[number].astype(">u2").tobytes()
        pydicom.dcmwrite(tmp_path / f"{number}.dcm", ds, enforce_file_format=True)
    np.testing.assert_array_equal(read(tmp_path)[1], HU)


@pytest.mark.parametrize(
    "syntax", ["JPEGLosslessProcess14", "JPEGLosslessProcess14_1", "JPEGLSLossless", "JPEG2000Lossless", "RLELossless"]
)
@pytest.mark.parametrize("signed", [False, True])
def test_gdcms_transfer_syntaxes(tmp_path, syntax, signed):
    stored = STORED.astype(np.int16) - 1000 if signed else STORED
    save(series_datasets(stored, intercept=0, bits=16 if signed else 12), tmp_path)
    recompress(tmp_path, syntax)
    np.testing.assert_array_equal(read(tmp_path)[1], stored)


def test_a_transfer_syntax_without_decoder(tmp_path):
    def encode(ds):
        ds.file_meta.TransferSyntaxUID = pydicom.uid.MPEG2MPML
        ds.PixelData = pydicom.encaps.encapsulate([b"nothing"])

    save(series_datasets(STORED), tmp_path, encode=encode)
    refused(tmp_path, r"MPEG2 .* has no decoder")


def test_slope_and_intercept_of_each_slice(tmp_path):
    def encode(ds):
        ds.RescaleSlope, ds.RescaleIntercept = ds.InstanceNumber, -10 * ds.InstanceNumber

    volume, array = read(save(series_datasets(STORED), tmp_path, encode=encode))
    number = np.arange(1, 7)[:, None, None]
    assert volume.dtype == np.int16
    np.testing.assert_array_equal(array, STORED * number - 10 * number)


@pytest.mark.parametrize(
    ("slope", "intercept", "bits", "dtype"),
    [
        (1, -1024, 12, np.int16),
        (1, -1024, 16, np.int32),
        (1, -32768, 16, np.int16),
        (16, 0, 12, np.int32),
        (0.5, 0, 12, np.float32),
        (1, 0.5, 12, np.float32),
    ],
)
def test_integers_only_where_exact(tmp_path, slope, intercept, bits, dtype):
    def encode(ds):
        ds.RescaleSlope = slope

    volume, array = read(save(series_datasets(STORED, bits=bits, intercept=intercept), tmp_path, encode=encode))
    assert volume.dtype == dtype
    np.testing.assert_array_equal(array, STORED * np.float64(slope) + intercept)


def test_one_fractional_slice_makes_all_float(tmp_path):
    def encode(ds):
        ds.RescaleSlope = 0.25 if ds.InstanceNumber == 3 else 1

    assert open_volume(save(series_datasets(STORED), tmp_path, encode=encode)).dtype == np.float32


@pytest.mark.parametrize(("value", "limit"), [(-2000, None), (63536, None), (-2000, -1900)])
def test_padding_is_air(tmp_path, value, limit):
    stored = STORED.astype(np.int16)
    stored[:, 0, :5] = -2000
    stored[:, 1, 0] = -1950

    def encode(ds):
        ds.add_new("PixelPaddingValue", "US" if value > 0 else "SS", value)
        if limit is not None:
            ds.add_new("PixelPaddingRangeLimit", "SS", limit)

    _, array = read(save(series_datasets(stored, bits=16, intercept=0), tmp_path, encode=encode))
    assert (array[:, 0, :5] == -1024).all()
    assert (array[:, 1, 0] == (-1950 if limit is None else -1024)).all()
    np.testing.assert_array_equal(array[:, 2:], stored[:, 2:])


def test_padding_that_means_water_is_water(tmp_path):
    stored = STORED.astype(np.int16)
    stored[0] = 0

    def encode(ds):
        ds.add_new("PixelPaddingValue", "SS", 0)

    _, array = read(save(series_datasets(stored, bits=16, intercept=0), tmp_path, encode=encode))
    assert (array[0] == 0).all()


def test_positions_rounded_in_the_files(tmp_path):
    def encode(ds):
        ds.ImagePositionPatient = [f"{float(n):.2f}" for n in ds.ImagePositionPatient]

    volume = open_volume(save(series_datasets(STORED, spacing=0.625), tmp_path, encode=encode))
    assert volume.space.spacing[0] == pytest.approx(0.625, abs=2e-3)


# ---- refusals


def test_no_dicom(tmp_path):
    refused(tmp_path, "no DICOM images .it is empty")
    (tmp_path / "notes.txt").write_text("nothing")
    refused(tmp_path, "its 1 files hold none")


def test_one_slice(tmp_path):
    shutil.copy(PYDICOM_FILES / "CT_small.dcm", tmp_path)
    refused(tmp_path, "the only slice of its series")
    refused(tmp_path / "CT_small.dcm", "give the folder that holds its series")


def test_several_series_are_listed(tmp_path):
    save(series_datasets(STORED, description="thin"), tmp_path / "a")
    scouts = series_datasets(STORED[:2], description="scout")
    for ds in scouts:
        ds.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    save(scouts, tmp_path / "b")
    message = refused(tmp_path, "2 series")
    assert "'thin' 6 images 16x20 in a" in message
    assert "'scout' 2 images 16x20 (localizer) in b" in message


def test_pydicoms_mixed_folders():
    message = refused(PYDICOM_FILES / "dicomdirtests", "13 series")
    assert "'SmartScore - Gated 0.5 sec' 5 images" in message
    refused(PYDICOM_FILES / "dicomdirtests" / "98892001", r"'Scout' 2 images 16x16 \(localizer\)")
    refused(PYDICOM_FILES / "dicomdirtests" / "77654033" / "CT2", "202.5 mm between 17106 and 17136")


def test_pydicoms_clean_series():
    volume = open_volume(PYDICOM_FILES / "dicomdirtests" / "98892001" / "CT5N")
    assert volume.shape == (5, 16, 16)
    assert volume.space.spacing[0] == pytest.approx(2.5)


@pytest.mark.parametrize(
    ("words", "some", "message"),
    [
        (
            ["ORIGINAL", "PRIMARY", "LOCALIZER"],
            [2],
            "5 original, 1 localizer images.*remove the localizer ones: 02.dcm",
        ),
        (["DERIVED", "SECONDARY", "MPR"], [0, 1], "4 original, 2 derived .*: 00.dcm, 01.dcm"),
        (["ORIGINAL", "PRIMARY", "LOCALIZER"], range(6), "6 images are localizers"),
    ],
)
def test_kinds_of_images_do_not_mix(tmp_path, words, some, message):
    def encode(ds):
        if ds.InstanceNumber - 1 in some:
            ds.ImageType = words

    refused(save(series_datasets(STORED), tmp_path, encode=encode), message)


def test_a_wholly_derived_series_is_a_series(tmp_path):
    def encode(ds):
        ds.ImageType = ["DERIVED", "SECONDARY", "MPR"]

    assert open_volume(save(series_datasets(STORED), tmp_path, encode=encode)).shape == STORED.shape


def test_a_missing_slice_is_between_its_neighbours(tmp_path):
    save(series_datasets(STORED), tmp_path)
    (tmp_path / "03.dcm").unlink()
    refused(tmp_path, "uneven slices: 4 mm between 02.dcm and 04.dcm, mostly 2 mm")


def test_gantry_tilt(tmp_path, data):
    tilted = series_datasets(STORED, down=(0, np.cos(0.2), np.sin(0.2)))
    for number, ds in enumerate(tilted):
        ds.ImagePositionPatient = [-100, -120, 50 + 2 * number]
    refused(save(tilted, tmp_path), "gantry tilt of 11.5 degrees")
    refused(data / "head_ct_tilted", "gantry tilt of 18.5 degrees")


def test_a_wandering_slice(tmp_path):
    def encode(ds):
        if ds.InstanceNumber == 3:
            ds.ImagePositionPatient = [-95, -120, 54]

    refused(save(series_datasets(STORED), tmp_path, encode=encode), "not in one line: 5.0 mm off")


def test_two_slices_at_one_place(tmp_path):
    save(series_datasets(STORED), tmp_path)
    again = pydicom.dcmread(tmp_path / "02.dcm")
    again.SOPInstanceUID = again.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    again.save_as(tmp_path / "copy.dcm")
    refused(tmp_path, "1 slices lie where another does .02.dcm and copy.dcm")


CHANGES = {
    "no ImagePositionPatient": lambda ds: ds.pop("ImagePositionPatient"),
    "no ImageOrientationPatient": lambda ds: ds.pop("ImageOrientationPatient"),
    "no PixelSpacing": lambda ds: ds.pop("PixelSpacing"),
    "several orientations .* 02.dcm": lambda ds: setattr(ds, "ImageOrientationPatient", [1, 0, 0, 0, 0, 1]),
    "PixelSpacing differs": lambda ds: setattr(ds, "PixelSpacing", [0.8, 0.9]),
    "different sizes .* 16x20, 20x16": lambda ds: (setattr(ds, "Rows", 20), setattr(ds, "Columns", 16)),
    "no RescaleSlope": lambda ds: ds.pop("RescaleSlope"),
    "multi-frame image of 2 frames": lambda ds: setattr(ds, "NumberOfFrames", 2),
    "must be MONOCHROME2": lambda ds: setattr(ds, "PhotometricInterpretation", "MONOCHROME1"),
    "its series is MR": lambda ds: setattr(ds, "Modality", "MR"),
}


@pytest.mark.parametrize("message", CHANGES)
def test_a_slice_unlike_the_others(tmp_path, message):
    def encode(ds):
        if ds.InstanceNumber == 3:
            CHANGES[message](ds)

    refused(save(series_datasets(STORED), tmp_path, encode=encode), message)


def test_directions_that_are_not_perpendicular(tmp_path):
    def encode(ds):
        ds.ImageOrientationPatient = [1, 0, 0, 0.2, 1, 0]

    refused(save(series_datasets(STORED), tmp_path, encode=encode), "no pair of perpendicular directions")


def test_truncated_pixels_are_named(tmp_path):
    save(series_datasets(STORED), tmp_path)
    path = tmp_path / "04.dcm"
    path.write_bytes(path.read_bytes()[:-100])
    volume = open_volume(tmp_path)
    np.testing.assert_array_equal(volume.read(Box((0, 0, 0), (4, 16, 20))), HU[:4])
    with pytest.raises(VolumeError, match=r"04\.dcm: pixels cannot be decoded"):
        volume.read(Box.whole(volume.shape))


# ---- real CT


def test_real_series_lies_on_the_grid_of_its_reference_mask(data):
    volume, array = read(data / "abdomen_dicom" / "series")
    mask = open_volume(data / "abdomen_dicom" / "labels_117.nii.gz")
    assert volume.shape == (20, 512, 512)
    assert volume.space.spacing == pytest.approx((2.0, 0.9765625, 0.9765625))  # not SliceThickness, 3 mm
    ours, theirs = (Orientation.of(v.space).canonical_space(v.space) for v in (volume, mask))
    assert ours.matches(theirs)
    assert (volume.dtype, array.min(), array.max()) == (np.int16, -1024, 1839)
    agrees_with_simpleitk(data / "abdomen_dicom" / "series")
