"""Volumes at half their resolution: means and votes of 2 x 2 x 2, the same in every box, in the same place."""

import numpy as np
import pytest

from tiny import ct_like, save_nifti
from volseg.geometry import Box
from volseg.volumes.coarsening import coarse_space, coarsened
from volseg.volumes.reading import open_volume

AFFINE = np.array([[-0.7, 0, 0, 31.0], [0, 0.9, 0, 12.0], [0, 0, -2.5, 100.0], [0, 0, 0, 1]])


def padded(array):
    """With its last planes repeated, up to even sides."""
    return np.pad(array, [(0, n % 2) for n in array.shape], mode="edge")


def eights(array):
    """[d, h, w, 8] of [2 d, 2 h, 2 w]."""
    d, h, w = (n // 2 for n in array.shape)
    return array.reshape(d, 2, h, 2, w, 2).transpose(0, 2, 4, 1, 3, 5).reshape(d, h, w, 8)


@pytest.mark.parametrize("shape", [(12, 16, 14), (13, 18, 15), (1, 5, 6)])
def test_a_voxel_is_the_mean_of_its_eight(tmp_path, shape):
    image = ct_like(shape).astype(np.float32)
    volume = coarsened(open_volume(save_nifti(tmp_path / "a.nii.gz", image, AFFINE)), 1, "linear")
    found = volume.read(Box.whole(volume.shape))
    np.testing.assert_allclose(found, eights(padded(image)).mean(-1), rtol=1e-6, atol=1e-4)
    part = Box((0, 1, 1), (1, 3, 2))
    np.testing.assert_array_equal(volume.read(part), found[part.slices])


def test_a_label_is_that_of_most_of_its_eight(tmp_path):
    labels = np.random.default_rng(0).integers(0, 3, (8, 10, 6)).astype(np.uint8)
    volume = coarsened(open_volume(save_nifti(tmp_path / "a.nii.gz", labels)), 1, "labels")
    expected = np.apply_along_axis(lambda eight: np.bincount(eight, minlength=3).argmax(), 3, eights(labels))
    np.testing.assert_array_equal(volume.read(Box.whole(volume.shape)), expected)


def test_halvings_follow_each_other(tmp_path):
    image = ct_like((16, 24, 8)).astype(np.float32)
    opened = open_volume(save_nifti(tmp_path / "a.nii.gz", image))
    twice = coarsened(opened, 2, "linear")
    assert coarsened(opened, 0, "linear") is opened
    assert twice.shape == (4, 6, 2)
    expected = eights(eights(image).mean(-1)).mean(-1)
    np.testing.assert_allclose(twice.read(Box.whole(twice.shape)), expected, rtol=1e-5, atol=1e-3)


def test_a_voxel_lies_where_its_eight_lie(tmp_path):
    space = open_volume(save_nifti(tmp_path / "a.nii.gz", ct_like((12, 16, 14)), AFFINE)).space
    coarse = coarse_space(space)
    fine = np.array([[2 * 3 + i, 2 * 5 + j, 2 * 1 + k, 1] for i in (0, 1) for j in (0, 1) for k in (0, 1)])
    centre = (fine @ space.affine.T).mean(0)
    np.testing.assert_allclose(np.array([3, 5, 1, 1]) @ coarse.affine.T, centre, atol=1e-9)
    assert coarse.spacing == tuple(2 * side for side in space.spacing)
