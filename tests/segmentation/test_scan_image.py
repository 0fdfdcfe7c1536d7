"""A scan as the network reads it: slab by slab, whatever its file, its padding, and the way it is normalised."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from tiny import SERIAL, ct_like, digest, save_nifti, untrained_run
from volseg.config import Config
from volseg.distributed.communicator import Communicator
from volseg.errors import VolumeError
from volseg.models.stored import WEIGHTS, load_model, save_tensors
from volseg.models.unet import UNet
from volseg.program.schedule import IN_PLACE, RECOMPUTE, SPILL
from volseg.segmentation.job import SegmentationJob
from volseg.segmentation.opening import open_scan
from volseg.segmentation.scan_image import ScanImage
from volseg.segmentation.segment import segment


def deep_run(folder, *, channel="CT", **changes):
    """A run whose model has other settings than `untrained_run`'s."""
    from dataclasses import replace

    model, card = load_model(untrained_run(folder, channels=(channel,)))
    settings = replace(model.config, **changes)
    card = replace(card, config=Config(settings), network=None)
    save_tensors(folder / WEIGHTS, UNet(settings).state_dict(), card)
    return folder


@pytest.mark.parallel([1, 2, 4])
@pytest.mark.parametrize("channel", ["CT", "MR"])
@pytest.mark.parametrize("depth", [17, 20, 33])
def test_every_plane_is_read_and_padding_is_zero(depth, channel, communicator: Communicator, shared) -> None:
    """Padding of more planes than are read together, ranks with nothing else, and a volume's own mean."""
    with communicator.together():
        if communicator.is_root:
            deep_run(shared / "deep", channel=channel, levels=3)
            save_nifti(shared / "scan.nii.gz", ct_like((depth, 18, 15)))
    _, card = load_model(shared / "deep")
    dims = f"{min(communicator.size, -(-depth // 8))}x1x1" if communicator.size < 4 else "1x2x2"
    scan, grid = open_scan(shared / "scan.nii.gz", card, dims, communicator)
    voxels = np.asarray(nib.load(shared / "scan.nii.gz").dataobj, np.float64).T
    rule = card.schemes[0].fixed
    low, high, mean, std = (
        (rule.low, rule.high, rule.mean, rule.std) if rule else (-np.inf, np.inf, voxels.mean(), voxels.std())
    )
    expected = np.zeros(scan.layout.shape, np.float32)
    expected[: voxels.shape[0], : voxels.shape[1], : voxels.shape[2]] = (np.clip(voxels, low, high) - mean) / std
    for kept in (False, True):
        image = ScanImage(scan, card, grid, width=2, kept=kept)
        box = scan.block
        low_d, high_d = min(2, box.start[0]), min(2, scan.layout.shape[0] - box.stop[0])
        for _ in range(2 if kept else 1):
            first = -low_d
            while first < box.shape[0] + high_d:
                last = min(first + 5, box.shape[0] + high_d)
                got = image.planes((first, last), 2)[..., 0].numpy()
                h0, w0 = (max(0, n - 2) for n in box.start[1:])
                there = expected[box.start[0] + first : box.start[0] + last, h0 : box.stop[1] + 2, w0 : box.stop[2] + 2]
                np.testing.assert_allclose(got, there, atol=1e-3)
                first = last - (2 if last < box.shape[0] + high_d else 0)
        image.settled()
        image.close()


@pytest.mark.parametrize("schedule", [IN_PLACE, RECOMPUTE, SPILL])
@pytest.mark.parametrize("norm", ["instance", "batch", "none"])
def test_voxels_that_are_not_finite_are_refused_by_every_schedule(schedule, norm, tmp_path) -> None:
    run = deep_run(tmp_path / "run", norm=norm)
    voxels = ct_like().astype(np.float32)
    voxels[11, 3, 4] = np.nan
    scan = save_nifti(tmp_path / "scan.nii", voxels)
    with pytest.raises(VolumeError, match="1 voxel is NaN or infinite"):
        segment(SegmentationJob(scan, run, schedule=schedule), SERIAL)
    assert not (tmp_path / "scan_mask.nii.gz").exists()


AXIAL, SAGITTAL = np.eye(4), np.array([[0, 0, 1.0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])


@pytest.mark.parametrize("channel", ["CT", "MR"])
@pytest.mark.parametrize("schedule", [IN_PLACE, RECOMPUTE])
@pytest.mark.parametrize("affine", [AXIAL, SAGITTAL], ids=["axial", "sagittal"])
def test_a_compressed_file_is_inflated_once_by_the_network(affine, schedule, channel, tmp_path, monkeypatch) -> None:
    """And of CT once before it, for slices that lie all over the file: are its values Hounsfield units?"""
    from volseg.volumes import inflate

    monkeypatch.setattr("volseg.partition.slabs._ROLLING_FLOATS", 1)
    counted = []
    original = inflate.SeekableGzip._inflate

    def counting(self, size):
        piece = original(self, size)
        counted.append(len(piece))
        return piece

    monkeypatch.setattr(inflate.SeekableGzip, "_inflate", counting)
    run = untrained_run(tmp_path / "run", channels=(channel,))
    voxels = ct_like((40, 36, 44))
    scan = save_nifti(tmp_path / "scan.nii.gz", voxels, affine)
    report = segment(SegmentationJob(scan, run, schedule=schedule), SERIAL)
    times = 2 if channel == "CT" else 1
    assert voxels.nbytes <= sum(counted) <= times * (1.1 * voxels.nbytes + 2**16)
    other = segment(SegmentationJob(scan, run, tmp_path / "other.nii.gz", schedule=SPILL), SERIAL)
    assert digest(report.files[0]) == digest(other.files[0])
