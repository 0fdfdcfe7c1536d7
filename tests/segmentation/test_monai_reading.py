"""Scans read as MONAI reads them, and masks brought back as it does: the same bytes on any number of ranks."""

from __future__ import annotations

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from tiny import SERIAL, ct_like, digest, save_nifti, untrained_run
from volseg.distributed.communicator import Communicator
from volseg.models.origin import Origin
from volseg.models.stored import WEIGHTS, load_tensors, save_tensors
from volseg.segmentation.job import SegmentationJob
from volseg.segmentation.segment import segment
from volseg.segmentation.windows.options import WindowOptions

ORIGIN = Origin(
    tool="monai", source="a test", window=(8, 12, 16), first=True, late=True, back="probabilities", above=-500.0,
    weighting="gaussian", edge=True,
)  # fmt: skip


@pytest.mark.parallel([2, 3])
@pytest.mark.parametrize("view", [WindowOptions(), WindowOptions(whole=True)])
def test_the_same_bytes_on_any_ranks(view: WindowOptions, communicator: Communicator, shared) -> None:
    def job(name: str) -> SegmentationJob:
        return SegmentationJob(shared / "scan.nii.gz", shared / "model", shared / f"{name}.nii.gz", view=view)

    def prepared() -> None:
        voxels = ct_like((13, 18, 25))
        voxels[:2] = voxels[:, :, -4:] = -1000  # air, which is cropped
        save_nifti(shared / "scan.nii.gz", voxels, np.diag([-1.3, 0.7, 1.5, 1]))
        tensors, card = load_tensors(untrained_run(shared / "model") / WEIGHTS)
        save_tensors(shared / "model" / WEIGHTS, tensors, replace(card, origin=ORIGIN))
        segment(job("one"), SERIAL)

    communicator.on_root(prepared)
    segment(job("all"), communicator)
    communicator.on_root(lambda: None)
    assert digest(shared / "all.nii.gz") == digest(shared / "one.nii.gz")
    mask = np.asarray(nib.load(shared / "one.nii.gz").dataobj).T
    assert len(np.unique(mask)) > 1
    assert not mask[0].any()
