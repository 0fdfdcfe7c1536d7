"""The facts that `volseg info` shows."""

import itertools

import nibabel as nib
import numpy as np
import pytest

from volseg.errors import VolumeError
from volseg.geometry import Box
from volseg.volumes.checks import check_affine, check_finite, exact_dtype
from volseg.volumes.reading import open_volume
from volseg.volumes.summary import header_facts, orientation_codes, value_facts


def volume(folder, array, affine=None):
    nib.save(nib.Nifti1Image(array.T, np.eye(4) if affine is None else affine), folder / "scan.nii.gz")
    return open_volume(folder / "scan.nii.gz")


@pytest.mark.parametrize("permutation", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("signs", list(itertools.product((1, -1), repeat=3)))
def test_codes_are_nibabels_read_backwards(permutation, signs):
    affine = np.eye(4)
    affine[:3, :3] = np.diag(signs) @ np.eye(3)[list(permutation)]
    assert orientation_codes(affine) == "".join(nib.aff2axcodes(affine))[::-1]


def test_header_facts(tmp_path):
    facts = header_facts(volume(tmp_path, np.zeros((4, 5, 6), "i2"), np.diag([-1, 2, 3, 1.0])))
    assert facts["shape"] == [4, 5, 6]
    assert facts["spacing_mm"] == [3, 2, 1]
    assert facts["orientation_dhw"] == "SAL"
    assert facts["voxel_ml"] == pytest.approx(0.006)
    assert facts["dtype"] == "int16"


def test_values_of_a_mask(tmp_path):
    array = np.zeros((30, 600, 500), "u1")  # several slabs
    array[3, :2, :2] = 5
    array[29, 0, 0] = 117
    facts = value_facts(volume(tmp_path, array))
    assert facts["labels"] == {"0": array.size - 5, "5": 4, "117": 1}
    assert (facts["minimum"], facts["maximum"], facts["not_finite"]) == (0, 117, 0)


@pytest.mark.parametrize("array", [np.arange(-3, 21), np.arange(24) * 0.5, np.arange(300), np.arange(24) * 10000])
def test_images_have_no_labels(tmp_path, array):
    array = np.resize(array, (10, 5, 6)).astype("i4" if array.dtype.kind == "i" else "f4")
    facts = value_facts(volume(tmp_path, array))
    assert "labels" not in facts
    assert (facts["minimum"], facts["maximum"]) == (array.min(), array.max())


def test_an_image_of_8_bits_is_no_mask_of_many_labels(tmp_path):
    rng = np.random.default_rng(0)
    image = np.clip(rng.normal(120, 25, (20, 40, 40)), 1, 255).astype("u1")
    image[:, :20] = 0  # air, outside of the window
    facts = value_facts(volume(tmp_path, image))
    assert "labels" not in facts
    assert (facts["minimum"], facts["maximum"]) == (0, image.max())
    assert len(value_facts(volume(tmp_path, image), is_mask=True)["labels"]) > 100  # where names of labels say so


def test_a_mask_of_many_structures_is_one(tmp_path):
    mask = np.kron(np.arange(1, 118).reshape(13, 9, 1), np.ones((2, 5, 30))).astype("u1")
    assert len(value_facts(volume(tmp_path, mask))["labels"]) == 117


def test_values_that_are_no_numbers(tmp_path):
    array = np.full((2, 3, 4), np.nan, "f4")
    assert value_facts(volume(tmp_path, array)) == {"minimum": None, "maximum": None, "not_finite": 24}
    array[0] = 1
    assert value_facts(volume(tmp_path, array)) == {"minimum": 1, "maximum": 1, "not_finite": 12}


def test_check_finite_names_the_first_voxel_in_the_whole_volume():
    box = Box((10, 20, 30), (12, 23, 34))
    array = np.zeros(box.shape, "f4")
    check_finite(array, box, "scan.nii")
    check_finite(array.astype("i2"), box, "scan.nii")
    array[1, 2, 3] = -np.inf
    array[1, 1, 0] = np.nan
    with pytest.raises(VolumeError, match=r"scan.nii: 2 voxels .* slices 10:12, the first .NaN. at D x H x W 11x21x30"):
        check_finite(array, box, "scan.nii")


@pytest.mark.parametrize("column", [[0, 0, 0], [np.nan, 0, 0], [1, 1, 0]])
def test_check_affine(tmp_path, column):
    affine = np.eye(4)
    affine[:3, 0] = [1, 1, 0]
    affine[:3, 1] = column
    with pytest.raises(VolumeError, match="maps no voxel grid"):
        check_affine(affine, tmp_path)
    check_affine(np.diag([1e-4, 1e-4, 1e-4, 1]), tmp_path)


@pytest.mark.parametrize(
    ("bounds", "slope", "intercept", "expected"),
    [
        ((0, 4095), 1, -1024, np.int16),
        ((-32768, 32767), 1, 0, np.int16),
        ((-32768, 32767), -1, 0, np.int32),
        ((0, 65535), 1, -1024, np.int32),
        ((-(2**31), 2**31 - 1), 2, 0, np.int64),
        ((0, 2**64 - 1), 1, 1, np.float32),
        ((0, 1), 0.1, 0, np.float32),
    ],
)
def test_exact_dtype(bounds, slope, intercept, expected):
    assert exact_dtype(bounds, slope, intercept) == expected
