"""`--whole` with `--folds` and `--mirror`: the mean of the passes, the same bits on any ranks, within the plan."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations

import nibabel as nib
import numpy as np
import pytest
import torch

from tiny import SERIAL, ct_like, digest, save_nifti, untrained_run
from volseg.distributed.communicator import Communicator
from volseg.models.origin import Origin
from volseg.models.stored import WEIGHTS, fold_path, load_model, load_tensors, save_tensors
from volseg.segmentation.averaging import passes_bytes
from volseg.segmentation.job import SegmentationJob
from volseg.segmentation.limit import BesideVoxels
from volseg.segmentation.segment import segment
from volseg.segmentation.windows.options import WindowOptions

SHAPE = (13, 18, 15)  # no side is a multiple of 4
FOLDS, MIRRORED = (0, 2), (0, 2)


def run_with_folds(folder):
    """An untrained run that says it is imported, with weights of two folds."""
    tensors, card = load_tensors(untrained_run(folder) / WEIGHTS)
    origin = Origin(tool="nnunet", source="a test", window=(8, 12, 8), mirrored=MIRRORED, folds=FOLDS)
    for fold in FOLDS:
        some = {name: tensor * (1 + 0.1 * fold) for name, tensor in tensors.items()}
        save_tensors(fold_path(folder, fold, FOLDS), some, replace(card, origin=origin))
    return folder


def expected_probabilities(run, voxels: np.ndarray) -> np.ndarray:
    """The plain mean over both folds and four mirror images, each padded behind, by plain torch."""
    padded = [(0, 0), *((0, -n % 4) for n in voxels.shape)]
    total, count = torch.zeros(1, 3, *voxels.shape), 0
    for fold in FOLDS:
        model, _ = load_model(fold_path(run, fold, FOLDS))
        for axes in (axes for n in range(3) for axes in combinations(MIRRORED, n)):
            x = (np.clip(voxels.astype(np.float32), -200, 300)[None] - 20) / 150  # as `untrained_run` says
            x = np.pad(np.flip(x, [axis + 1 for axis in axes]), padded)
            with torch.no_grad():
                logits = model(torch.from_numpy(x.copy())[None])
            d, h, w = voxels.shape
            total += logits[:, :, :d, :h, :w].flip([axis + 2 for axis in axes])
            count += 1
    return torch.softmax(total / count, 1)[0].numpy()


def test_logits_are_the_mean_of_all_passes(tmp_path) -> None:
    run, voxels = run_with_folds(tmp_path / "run"), ct_like(SHAPE)
    scan = save_nifti(tmp_path / "scan.nii.gz", voxels)
    view = WindowOptions(whole=True, folds="all", mirror=True)
    job = SegmentationJob(scan, run, probabilities=True, view=view, report=tmp_path / "r.json")
    segment(job, SERIAL)
    got = np.asarray(nib.load(tmp_path / "scan_mask_probabilities.nii.gz").dataobj).transpose(3, 2, 1, 0)
    np.testing.assert_allclose(got, expected_probabilities(run, voxels), atol=1e-4)
    report = json.loads((tmp_path / "r.json").read_text())
    assert (report["folds"], report["mirrored"]) == (2, [0, 2])


@pytest.mark.parallel([2, 3, 4])
@pytest.mark.parametrize("affine", [np.eye(4), np.diag([1.3, 0.7, 1.5, 1])])
def test_the_same_bytes_on_any_ranks(affine, communicator: Communicator, shared) -> None:
    view = WindowOptions(whole=True, folds="all", mirror=True)

    def prepared():
        save_nifti(shared / "scan.nii.gz", ct_like(SHAPE), affine)
        run_with_folds(shared / "model")
        segment(SegmentationJob(shared / "scan.nii.gz", shared / "model", shared / "one.nii.gz", view=view), SERIAL)

    communicator.on_root(prepared)
    segment(SegmentationJob(shared / "scan.nii.gz", shared / "model", shared / "all.nii.gz", view=view), communicator)
    communicator.on_root(lambda: None)
    assert digest(shared / "all.nii.gz") == digest(shared / "one.nii.gz")
    assert len(np.unique(np.asarray(nib.load(shared / "one.nii.gz").dataobj))) > 1


def test_the_plan_holds_the_sums_and_every_folds_weights(tmp_path) -> None:
    run = run_with_folds(tmp_path / "run")
    scan = save_nifti(tmp_path / "scan.nii.gz", ct_like(SHAPE))
    plans = [
        segment(
            SegmentationJob(scan, run, tmp_path / f"{folds}.nii.gz", view=WindowOptions(whole=True, folds=folds)),
            SERIAL,
        ).choice.plan
        for folds in ("first", "all")
    ]  # fmt: skip
    voxels = 16 * 20 * 16
    assert plans[1].weights == 2 * plans[0].weights
    assert plans[1].parts["sums of passes"] == passes_bytes(3) * voxels
    assert plans[1].peak >= plans[0].peak + passes_bytes(3) * voxels + plans[0].weights
    assert BesideVoxels().added_to(plans[0], voxels) is plans[0]
