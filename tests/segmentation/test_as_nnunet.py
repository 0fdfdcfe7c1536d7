"""What nnU-Net's own package makes of a scan, and volseg with the imported model: the network's input, and the mask.

Needs the package nnunetv2, which volseg does not depend on.
"""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch

from nnunet_folders import dataset, plans, result_folder
from tiny import SERIAL, ct_like, save_nifti
from volseg.api import import_model
from volseg.models.stored import load_model
from volseg.segmentation.job import SegmentationJob
from volseg.segmentation.opening import open_scan
from volseg.segmentation.scan_image import ScanImage
from volseg.segmentation.segment import segment
from volseg.segmentation.windows.options import WindowOptions

SHAPE = (17, 40, 37)


def plan(**changes):
    """A plan that nnU-Net's package can run."""
    resampling = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    transposed = changes.pop("transpose_forward", [0, 1, 2])
    masked = changes.pop("masked", False)
    names = changes.pop("schemes", ["CTNormalization"])
    full = {
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": resampling,
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_seg_kwargs": resampling | {"is_seg": True},
        "normalization_schemes": names,
        "use_mask_for_norm": [masked] * len(names),
    }
    of = plans(channels=len(names), **(full | changes))
    backward = [transposed.index(axis) for axis in range(3)]
    return of | {
        "image_reader_writer": "SimpleITKIO", "transpose_forward": transposed, "transpose_backward": backward,
    }  # fmt: skip


CASES = {
    "finer, all axes alike": ({"spacing": [1.4, 0.9, 1.0]}, (2.0, 1.0, 1.3)),
    "coarser": ({"spacing": [2.5, 1.6, 1.5]}, (2.0, 1.0, 1.1)),
    "coarse slices": ({"spacing": [3.0, 1.0, 0.9]}, (5.0, 0.8, 0.8)),
    "to coarse slices": ({"spacing": [5.0, 1.0, 0.9]}, (2.0, 0.8, 0.8)),
    "own spacing": ({"spacing": [2.0, 1.0, 1.0]}, (2.0, 1.0, 1.0)),
    "transposed": ({"spacing": [1.0, 1.5, 0.9], "transpose_forward": [1, 0, 2]}, (2.0, 1.1, 1.0)),
    "two channels of MR, masked": (
        {"spacing": [2.0, 1.2, 0.9], "schemes": ["ZScoreNormalization"] * 2, "masked": True}, (2.4, 1.0, 1.0)
    ),
    "MR, not masked": ({"spacing": [2.0, 1.2, 0.9], "schemes": ["ZScoreNormalization"]}, (2.4, 1.0, 1.0)),
    "range": ({"spacing": [2.0, 1.2, 0.9], "schemes": ["RescaleTo01Normalization"]}, (2.4, 1.0, 1.0)),
}  # fmt: skip


def spread_labels(checkpoint) -> None:
    """Draw the heads' weights anew, so that every label has its share of the voxels."""
    torch.manual_seed(7)
    values = torch.load(checkpoint, weights_only=False)
    for name, tensor in values["network_weights"].items():
        if ".seg_layers." in name:
            tensor.zero_() if name.endswith("bias") else tensor.normal_(0, 2).sub_(tensor.mean(1, keepdim=True))
    torch.save(values, checkpoint)


def case(name, folder):
    """nnU-Net's folder, volseg's run, and the files of a scan that is oblique and zero at its borders."""
    changes, spacing = CASES[name]
    of = plan(**changes)
    channels = len(of["configurations"]["3d_fullres"]["normalization_schemes"])
    is_ct = "CT" in of["configurations"]["3d_fullres"]["normalization_schemes"][0]
    names = ("CT",) if is_ct else ("T1", "T2")[:channels]
    trained = result_folder(folder / "theirs", of, dataset(channels=names), folds=("0", "1"))
    for checkpoint in trained.glob("fold_*/checkpoint_final.pth"):
        spread_labels(checkpoint)
    import_model(trained, folder / "run")
    matrix = np.diag([-spacing[2], spacing[1], spacing[0], 1.0])
    tilt = np.deg2rad(4)
    cos, sin = np.cos(tilt), np.sin(tilt)
    turn = np.array([[1, 0, 0, 3], [0, cos, -sin, -7], [0, sin, cos, 2], [0, 0, 0, 1]])
    files = []
    for number in range(channels):
        voxels = ct_like((SHAPE[0] - 3, SHAPE[1] - 5, SHAPE[2] - 4), seed=number)
        if len(names) > 1 or names[0] != "CT":
            voxels = np.abs(voxels) + 50
            voxels[:, 3, 4] = 0 if number else voxels[:, 3, 4]
            voxels[5:8, 12:16, 10:14] = 0  # a hole
        voxels = np.pad(voxels, ((1, 2), (3, 2), (0, 4)))
        files.append(save_nifti(folder / f"scan_000{number}.nii.gz", voxels, turn @ matrix))
    return trained, folder / "run", files


def theirs(trained, folds=(0,), mirror=False):
    """nnU-Net's predictor."""
    module = pytest.importorskip("nnunetv2.inference.predict_from_raw_data")
    predictor = module.nnUNetPredictor(
        use_mirroring=mirror, perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False
    )
    predictor.initialize_from_trained_model_folder(str(trained), use_folds=folds)
    return predictor


@pytest.mark.parametrize("name", CASES)
def test_the_network_sees_what_nnunets_does(name, tmp_path) -> None:
    pytest.importorskip("nnunetv2")
    trained, run, files = case(name, tmp_path)
    predictor = theirs(trained)
    preprocessor = predictor.configuration_manager.preprocessor_class(verbose=False)
    expected, _, _ = preprocessor.run_case(
        [str(file) for file in files], None, predictor.plans_manager, predictor.configuration_manager,
        predictor.dataset_json,
    )  # fmt: skip
    _, card = load_model(run)
    scan, grid = open_scan(files[0], card, "auto", SERIAL)
    assert scan.space.shape == expected.shape[1:]
    got = ScanImage(scan, card, grid, 0).planes((0, scan.layout.shape[0]), 0).numpy()
    d, h, w = scan.space.shape
    np.testing.assert_allclose(np.moveaxis(got, 3, 0)[:, :d, :h, :w], expected, atol=1e-4)


@pytest.mark.parametrize("name", ["coarse slices", "transposed", "two channels of MR, masked"])
def test_the_mask_is_nnunets(name, tmp_path) -> None:
    pytest.importorskip("nnunetv2")
    trained, run, files = case(name, tmp_path)
    several = name == "coarse slices"
    predictor = theirs(trained, (0, 1) if several else (0,), several)
    reader = predictor.plans_manager.image_reader_writer_class()
    image, properties = reader.read_images([str(file) for file in files])
    expected, shares = predictor.predict_single_npy_array(image, properties, None, None, True)
    view = WindowOptions(folds="all", mirror=True) if several else WindowOptions()
    segment(SegmentationJob(files[0], run, tmp_path / "mask.nii.gz", probabilities=True, view=view), SERIAL)
    got = np.asarray(nib.load(tmp_path / "mask.nii.gz").dataobj).T
    ours = np.asarray(nib.load(tmp_path / "mask_probabilities.nii.gz").dataobj).transpose(3, 2, 1, 0)
    assert min(np.bincount(expected.ravel().astype(int), minlength=3)) > 0.02 * expected.size
    # Its sums of weighted logits are in half precision, coarse where windows have little weight, as at the corners
    # of the volume.
    assert (np.abs(ours - shares) < 0.02).mean() > 0.999
    assert (got == expected).mean() > 0.999
