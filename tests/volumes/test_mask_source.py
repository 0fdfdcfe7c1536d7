"""Labels from masks and folders: floats that are whole, other voxel orders, other grids, and what is no mask."""

import nibabel as nib
import numpy as np
import pytest

from label_sources import Image, structures
from volseg.errors import VolumeError
from volseg.geometry import Box
from volseg.volumes.mask_source import open_labels, open_mask
from volseg.volumes.mask_values import NOT_NUMBERS, ROUNDED, together
from volseg.volumes.volume import Space

SHAPE = (6, 7, 8)
AFFINE = np.array([[-0.7, 0, 0, 90], [0, 0.7, 0, -126], [0, 0, 2.5, -72], [0, 0, 0, 1.0]])


def mask():
    return np.random.default_rng(3).integers(0, 4, SHAPE).astype(np.uint8)


def image():
    return Image(Space(SHAPE, AFFINE))


def saved(folder, array, affine=AFFINE, name="labels.nii.gz"):
    nib.save(nib.Nifti1Image(array.T, affine, dtype=array.dtype), folder / name)
    return folder / name


def read(volume):
    return volume.read(Box.whole(volume.shape))


@pytest.mark.parametrize("dtype", ["u1", "i2", "i4", "u2", "i8", "f4", "f8"])
def test_whole_numbers_of_any_type(tmp_path, dtype):
    volume, table = open_labels(saved(tmp_path, mask().astype(dtype)), image())
    assert volume.dtype == (np.int16 if dtype[0] == "f" else dtype)
    array = read(volume)
    assert array.dtype == volume.dtype
    np.testing.assert_array_equal(array, mask())
    slabs = list(volume.slabs(4))
    np.testing.assert_array_equal(np.concatenate([slab for _, slab in slabs]), mask())
    assert table is None


@pytest.mark.parametrize(
    ("value", "dtype", "words"),
    [
        (0.5, "f4", r"labels must be whole numbers up to 32767; it holds 0\.5"),
        (40_000, "f4", "whole numbers up to 32767; it holds 40000"),
        (np.inf, "f4", "1 voxel is infinite in a mask; set them to 0, the background"),
        (0.9176, "f4", r"it holds 0\.9176; store them again as integers without a scale factor"),
        (-1, "f4", "holds -1; labels are 0"),
        (-1024, "i2", "holds -1024; labels are 0"),
    ],
)
def test_what_is_no_label(tmp_path, value, dtype, words):
    array = mask().astype(dtype)
    array[4, 2, 3] = value
    volume, _ = open_labels(saved(tmp_path, array), image())
    volume.read(Box((0, 0, 0), (4, 7, 8)))
    with pytest.raises(VolumeError, match=words):
        read(volume)
    with pytest.raises(VolumeError, match=words):
        list(volume.slabs(4))


@pytest.mark.parametrize("resample", [False, True])
def test_values_that_are_nearly_whole_are_rounded_and_said(tmp_path, resample):
    """By a scale factor of nibabel's."""
    labels = mask()
    labels[0, 0, 0] = 7
    bent = nib.Nifti1Image(labels.T.astype("f8"), AFFINE)
    bent.header.set_data_dtype("i2")
    nib.save(bent, tmp_path / "bent.nii")
    stored = nib.load(tmp_path / "bent.nii").get_fdata()
    assert 0 < np.abs(stored - np.rint(stored)).max() < 1e-3
    remarks = set()
    volume, _ = open_labels(tmp_path / "bent.nii", image(), resample=resample, remark=remarks.add)
    np.testing.assert_array_equal(read(volume), labels)
    assert remarks == {ROUNDED}


def test_nan_is_background_and_said(tmp_path):
    array = mask().astype("f4")
    array[:, :2] = np.nan
    expected = np.where(np.isnan(array), 0, array)
    path, remarks = saved(tmp_path, array), set()
    volume, _ = open_labels(path, image(), remark=remarks.add)
    np.testing.assert_array_equal(read(volume), expected)
    np.testing.assert_array_equal(read(open_mask(path)), expected)
    np.testing.assert_array_equal(np.concatenate([slab for _, slab in open_mask(path).slabs(4)]), expected)
    assert remarks == {NOT_NUMBERS}


def test_remarks_of_several_ranks_are_brought_together():
    overlaps = [f"masks overlap: {name} in body" for name in "abcde"]
    lines = together(["rounded", *overlaps, *overlaps, "rounded"])
    assert lines == ["rounded", "masks overlap: a in body, b in body, c in body and 2 more"]


@pytest.mark.parametrize("axes", ["LPS", "RAS", "SAR", "PIL"])
def test_another_voxel_order_is_the_same_grid(tmp_path, axes):
    own = nib.Nifti1Image(mask().T, AFFINE)
    turned = own.as_reoriented(nib.orientations.ornt_transform(
        nib.io_orientation(AFFINE), nib.orientations.axcodes2ornt(axes)))  # fmt: skip
    nib.save(turned, tmp_path / "turned.nii")
    volume, _ = open_labels(tmp_path / "turned.nii", image())
    np.testing.assert_array_equal(read(volume), mask())
    np.testing.assert_allclose(volume.space.affine, AFFINE, atol=1e-5)


def test_another_grid_is_an_error_that_names_both(tmp_path):
    with pytest.raises(
        VolumeError, match=r"labels of 6x7x7 voxels .*, but image\.nii has 6x7x8; --resample-labels bri"
    ):
        open_labels(saved(tmp_path, mask()[:, :, :7]), image())
    moved = AFFINE.copy()
    moved[2, 3] += 2.5
    with pytest.raises(
        VolumeError,
        match=r"up to 2\.5 mm off \(1 voxel\), with the same spacing: it begins at .*, or --resample-labels",
    ):
        open_labels(saved(tmp_path, mask(), moved), image())


def test_another_grid_by_resampling(tmp_path):
    """A mask of double the resolution along W, whose every second voxel the image shares; the fix is told."""
    fine = np.repeat(mask(), 2, axis=2)
    path = saved(tmp_path, fine.astype("f4"), AFFINE @ np.diag([0.5, 1, 1, 1]))
    volume, _ = open_labels(path, image(), resample=True)
    assert volume.shape == SHAPE
    np.testing.assert_array_equal(read(volume), mask())
    (line,) = volume.audit.fixes
    grids = "from 6x7x16 voxels of 2.5x0.7x0.35 mm to 6x7x8 voxels of 2.5x0.7x0.7 mm"
    assert line == f"labels resampled by nearest voxel {grids}"


def test_resampling_that_is_not_needed_changes_nothing(tmp_path):
    volume, _ = open_labels(saved(tmp_path, mask()), image(), resample=True)
    assert volume.audit.fixes == ()
    np.testing.assert_array_equal(read(volume), mask())


def test_a_folder_with_one_object_of_labels(tmp_path):
    square = np.array([[-100, 120, -72], [-86, 120, -72], [-86, 127, -72], [-100, 127, -72.0]])
    (tmp_path / "notes.txt").write_text("not DICOM")
    structures([("a", [square])], tmp_path / "first.dcm")
    volume, table = open_labels(tmp_path, image())
    assert dict(table.names) == {"a": 1}
    assert volume.audit.inputs == (tmp_path / "first.dcm",)
    structures([("b", [square])], tmp_path / "second.dcm")
    with pytest.raises(VolumeError, match=r"2 files of labels, give one of them: first\.dcm \(RTSTRUCT\), second\.dcm"):
        open_labels(tmp_path, image())


def test_nothing_that_labels(tmp_path):
    with pytest.raises(VolumeError, match="no such file or folder"):
        open_labels(tmp_path / "none.nii", image())
    with pytest.raises(VolumeError, match=r"no labels \(no DICOM file in it\); give a NIfTI mask"):
        open_labels(tmp_path, image())


def test_more_items_than_labels_ever_have(tmp_path, monkeypatch):
    from volseg.volumes.dicom import limits

    monkeypatch.setattr(limits, "MAX_SEQUENCE_ITEMS", 2)
    path = structures([("a", [np.zeros((3, 3))])], tmp_path / "rs.dcm")
    with pytest.raises(VolumeError, match="3 items in its sequences, limit 2"):
        open_labels(path, image())


def test_a_deflated_file(tmp_path):
    from pydicom import dcmread
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    path = structures([("a", [np.zeros((3, 3))])], tmp_path / "rs.dcm")
    stored = dcmread(path)
    stored.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    stored.save_as(path)
    with pytest.raises(VolumeError, match="a deflated file; store it uncompressed"):
        open_labels(path, image())
