"""Tolerances are fractions of a voxel: from half a micrometre to five millimetres the same passes and is refused."""

import nibabel as nib
import numpy as np
import pytest

from dicom_files import save, series_datasets, stored_values
from label_sources import full_datasets
from volseg.distributed.communicator import SerialCommunicator
from volseg.errors import VolumeError
from volseg.geometry import Box
from volseg.volumes.checks import check_affine
from volseg.volumes.dicom.volume import open_dicom
from volseg.volumes.label_table import table_of
from volseg.volumes.mask_source import open_labels
from volseg.volumes.nifti.output import header_bytes
from volseg.volumes.nifti.reading import open_nifti
from volseg.volumes.output import Content
from volseg.volumes.summary import header_facts
from volseg.volumes.volume import Space
from volseg.volumes.writing import write_volume

SHAPE = (6, 16, 20)
SIDES = [0.0005, 0.002, 0.009, 0.3, 1.0, 5.0]  # mm


def space(side, shift=0.0, origin=0.0, axis=0):
    affine = np.diag([side, side, side, 1.0])
    affine[:3, 3] = origin
    affine[axis, 3] += shift * side
    return Space(SHAPE, affine)


@pytest.mark.parametrize("side", SIDES)
def test_a_twentieth_of_a_voxel_is_another_grid_at_any_size(side):
    for axis in range(3):
        assert not space(side).matches(space(side, shift=0.05, axis=axis))
        assert space(side).matches(space(side, shift=0.01, axis=axis))
    wider = Space(SHAPE, np.diag([side * 1.005, side, side, 1.0]))
    assert not space(side).matches(wider)  # a tenth of a voxel at the far end of 20


@pytest.mark.parametrize("side", [0.009, 0.3, 5.0])
def test_a_float32_header_half_a_metre_from_the_origin_is_the_same_grid(side):
    exact = space(side, origin=-512.3456789)
    rounded = Space(SHAPE, exact.affine.astype(np.float32).astype(np.float64))
    assert not np.array_equal(exact.affine, rounded.affine)
    assert exact.matches(rounded)
    assert rounded.matches(exact)


def test_thick_slices_do_not_lend_their_tolerance_to_fine_pixels():
    thick = np.diag([0.1, 0.1, 5.0, 1.0])
    moved = thick.copy()
    moved[0, 3] = 0.05  # half a pixel, a hundredth of a slice
    assert not Space(SHAPE, thick).matches(Space(SHAPE, moved))


@pytest.mark.parametrize("side", SIDES)
def test_a_mask_one_voxel_off_is_refused(tmp_path, side):
    affine = space(side).affine
    nib.save(nib.Nifti1Image(np.zeros(SHAPE[::-1], np.int16), affine), tmp_path / "ct.nii")
    image = open_nifti(tmp_path / "ct.nii")
    labels = np.ones(SHAPE[::-1], np.uint8)
    nib.save(nib.Nifti1Image(labels, affine), tmp_path / "fits.nii")
    nib.save(nib.Nifti1Image(labels, space(side, shift=1).affine), tmp_path / "off.nii")
    open_labels(tmp_path / "fits.nii", image)
    with pytest.raises(VolumeError, match=rf"up to {side:.4g} mm off \(1 voxel\), with the same spacing"):
        open_labels(tmp_path / "off.nii", image)
    resampled, _ = open_labels(tmp_path / "off.nii", image, resample=True)
    assert resampled.read(Box.whole(SHAPE))[0, 0].tolist() == [0] + [1] * 19


@pytest.mark.parametrize("side", SIDES)
def test_a_dicom_series_of_any_size(tmp_path, side):
    datasets = series_datasets(stored_values(), pixel=(side, side), origin=(0, 0, 0))
    for number, ds in enumerate(datasets):
        ds.ImagePositionPatient = [0, 0, f"{number * side:.7f}"]
    volume = open_dicom(save(datasets, tmp_path))
    assert volume.space.spacing == pytest.approx((side,) * 3, rel=1e-5)
    assert header_facts(volume)["spacing_mm"] == pytest.approx([side] * 3, rel=1e-5)


def test_a_gap_of_millimetres_is_no_small_one_in_a_scan_of_micrometres(tmp_path):
    datasets = series_datasets(stored_values(), pixel=(0.009, 0.009), spacing=0.009, origin=(0, 0, 0))
    for ds in datasets[3:]:
        ds.ImagePositionPatient[2] += 3
    with pytest.raises(VolumeError, match="give one side of the widest gap"):
        open_dicom(save(datasets, tmp_path))


def test_a_grid_that_24_bits_cannot_place_is_written_with_64(tmp_path):
    for origin, version in ((10.0, 348), (512.3456789, 540)):
        content = Content(space(0.0005, origin=origin), np.dtype(np.uint8))
        head = header_bytes(content)
        assert int.from_bytes(head[:4], "little") == version
        path = tmp_path / f"{version}.nii"
        path.write_bytes(head + bytes(np.prod(SHAPE)))
        assert content.space.matches(open_nifti(path).space)


def test_a_message_does_not_round_small_voxels_away():
    with pytest.raises(VolumeError, match=r"\[\[0\.0005, 0, 0, 0\], \[0, 0\.0005, 0, 0\], \[0, 0, 0, 0\]\] maps no"):
        check_affine(np.diag([0.0005, 0.0005, 0.0, 1.0]), "v.nii")


@pytest.mark.parametrize(("step", "digits"), [(0.625, 1), (0.0005, 7)])
def test_a_seg_of_rounded_or_tiny_slices_comes_back(tmp_path, step, digits):
    datasets = full_datasets(series_datasets(stored_values((12, 16, 20)), pixel=(step, step)))
    for number, ds in enumerate(datasets):
        ds.ImagePositionPatient = [0, 0, f"{number * step:.{digits}f}"]
    series = open_dicom(save(datasets, tmp_path / "ct"))
    mask = (np.random.default_rng(0).random(series.shape) < 0.3).astype(np.uint8)
    write_volume(
        tmp_path / "mask.dcm", series.space, mask.dtype, lambda units: mask[units[0].box.slices], SerialCommunicator(),
        source=series, labels=table_of([(1, "liver", None)]),
    )  # fmt: skip
    labels, _ = open_labels(tmp_path / "mask.dcm", series)
    np.testing.assert_array_equal(labels.read(Box.whole(mask.shape)), mask)
