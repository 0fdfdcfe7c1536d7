"""A scan as an imported network sees it: any order, cropped, normalised by its own voxels; masks go the way back."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest

from tiny import SERIAL, ct_like, save_nifti
from volseg.distributed.communicator import Communicator
from volseg.distributed.grid import ProcessGrid
from volseg.geometry import Box
from volseg.volumes.image_file import ImageFile
from volseg.volumes.imported_scan import Manner, lay_out_imported, view_as_imported
from volseg.volumes.intensity import ChannelScheme, Normalization
from volseg.volumes.scan import open_channels

AS_IT_IS = ChannelScheme("CT", Normalization(-np.inf, np.inf, 0.0, 1.0))


def scan_file(folder, voxels: np.ndarray, order=(0, 1, 2), flips=(1, 1, 1)):
    """A file whose axes run along other axes of the patient, some backwards."""
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for axis, (towards, sign) in enumerate(zip(order, flips, strict=True)):
        affine[towards, axis] = sign * (axis + 1)
    return save_nifti(folder / "scan.nii.gz", voxels, affine)


def seen(file, manner: Manner, schemes=(AS_IT_IS,), spacing=None, communicator=SERIAL, dims=(1, 1, 1)):
    channels = open_channels([ImageFile(file)])
    view = view_as_imported(channels, manner, spacing, schemes, communicator)
    return lay_out_imported(view, ProcessGrid(communicator, dims), 1)


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_stored_order_is_that_of_the_file_and_masks_go_back(order, tmp_path) -> None:
    voxels = np.pad(ct_like((6, 8, 7)), ((1, 0), (2, 1), (0, 3)))
    for flips in product((1, -1), repeat=3):
        file = scan_file(tmp_path, voxels, order, flips)
        for transpose in ((0, 1, 2), (2, 0, 1)):
            scan = seen(file, Manner(stored=True, transpose=transpose, crop=True, cubic=True))
            inside = voxels[1:, 2:-1, :-3].transpose(transpose)
            assert np.array_equal(scan.read()[0], inside)
            mask = np.zeros(scan.mask_box.shape, np.int16)
            scan.seen(mask)[...] = inside
            assert np.array_equal(mask, scan.images[0].read(Box.whole(mask.shape)))


def test_canonical_order_may_have_its_axes_exchanged(tmp_path) -> None:
    file = scan_file(tmp_path, ct_like((6, 8, 7)), (1, 0, 2), (-1, 1, 1))
    scan = seen(file, Manner(stored=False, transpose=(2, 0, 1), crop=False, cubic=False))
    canonical = scan.images[0].read(Box.whole(scan.images[0].shape))
    assert np.array_equal(scan.read()[0], canonical.transpose(2, 0, 1))


def test_masked_deviation_leaves_zeros(tmp_path) -> None:
    voxels = np.abs(ct_like((6, 8, 7))) + 1
    voxels[:, 0, 0] = 0
    scheme = ChannelScheme("T1", None, method="zscore_nonzero")
    (found,) = seen(
        scan_file(tmp_path, voxels), Manner(stored=True, transpose=(0, 1, 2), crop=True, cubic=True), (scheme,)
    ).read()
    there = voxels[voxels != 0].astype(np.float64)
    expected = np.where(voxels != 0, (voxels - there.mean()) / there.std(), 0)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_scan_of_zeros_is_not_cropped(tmp_path) -> None:
    file = scan_file(tmp_path, np.zeros((6, 8, 7), np.int16))
    scan = seen(file, Manner(stored=True, transpose=(0, 1, 2), crop=True, cubic=True))
    assert scan.space.shape == (6, 8, 7)


@pytest.mark.parallel([1, 2, 4])
@pytest.mark.parametrize("spacing", [(3.0, 2.0, 1.0), (4.0, 1.5, 1.7), (9.0, 1.0, 1.5)])
def test_blocks_are_those_of_one_rank_and_tile_the_mask(spacing, communicator: Communicator, shared) -> None:
    with communicator.together():
        if communicator.is_root:
            voxels = np.pad(np.abs(ct_like((9, 12, 11))) + 1, ((1, 2), (3, 0), (0, 2)))
            scan_file(shared, voxels, (1, 0, 2), (-1, 1, 1))
    scheme = ChannelScheme("T1", None, method="zscore_nonzero")
    manner = Manner(stored=True, transpose=(1, 0, 2), crop=True, cubic=True)
    dims = {1: (1, 1, 1), 2: (1, 2, 1), 4: (2, 1, 2)}[communicator.size]
    scan = seen(shared / "scan.nii.gz", manner, (scheme,), spacing, communicator, dims)
    alone = seen(shared / "scan.nii.gz", manner, (scheme,), spacing)
    assert np.array_equal(scan.read()[0], alone.read()[0][scan.inside.slices])
    count = np.zeros(scan.mask_space.shape, int)
    for box in scan.boxes:
        count[box.slices] += 1
    assert (count == 1).all()
