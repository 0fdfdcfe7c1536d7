"""What MONAI's own transforms and inferer make of a scan, and volseg with the imported bundle.

Needs the package monai, which volseg does not depend on.
"""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from monai_bundles import (
    ARGMAX,
    INVERTED,
    NETWORK,
    ORIENTATION,
    ROI,
    SCALED,
    SIGMOID,
    SOFTMAX,
    SPACING,
    THRESHOLD,
    bundle,
    config,
    metadata,
    with_random_norms,
)
from tiny import SERIAL, ct_like, save_nifti
from volseg.api import import_model
from volseg.segmentation.job import SegmentationJob
from volseg.segmentation.segment import segment
from volseg.segmentation.windows.options import WindowOptions

NONZERO = {"_target_": "NormalizeIntensityd", "keys": "@key", "nonzero": True, "channel_wise": True}
TO_RANGE = {"_target_": "ScaleIntensityd", "keys": "@key", "minv": -1.0, "maxv": 1.0}
NEAREST = {key: value for key, value in INVERTED.items() if key != "nearest_interp"}
GAUSSIAN = {
    "_target_": "SlidingWindowInferer", "roi_size": ROI, "overlap": 0.25, "mode": "gaussian",
    "padding_mode": "replicate",
}  # fmt: skip
CROP = {"_target_": "CropForegroundd", "keys": "@key", "source_key": "@key"}
WHOLE = {"_target_": "SimpleInferer"}
CASES = {
    "spleen: CT at a spacing": (config(), metadata(), (25, 33, 30)),
    "whole body: nearest": (
        config([ORIENTATION, SPACING, NONZERO, TO_RANGE], [SOFTMAX, ARGMAX, NEAREST], inferer=GAUSSIAN), metadata(),
        (9, 33, 30),
    ),
    "tumour: several channels, regions": (
        config([NONZERO], [SIGMOID, INVERTED, THRESHOLD], channels=2), metadata("MR", ("T1", "T2"), ("A", "B", "C")),
        (20, 24, 26),
    ),
    "normalised before resampling": (config([ORIENTATION, SCALED, SPACING]), metadata(), (25, 33, 30)),
    "cropped to what is above 0": (config([ORIENTATION, SPACING, SCALED, CROP]), metadata(), (25, 33, 30)),
    "regions at a spacing": (
        config(after=[SIGMOID, INVERTED, THRESHOLD]), metadata("CT", ("image",), ("A", "B", "C")), (25, 33, 30)
    ),
}  # fmt: skip


def files_of(values, shape, folder):
    """The files of a scan that is oblique and stored in another order than RAS."""
    cos, sin = np.cos(0.05), np.sin(0.05)
    axes = np.array([[0, -1, 0], [cos, 0, -sin], [sin, 0, cos]]) @ np.diag([1.2, 1.5, 1.7])
    turn = np.block([[axes, np.array([[3], [-7], [2]])], [np.zeros((1, 3)), 1]])
    files = []
    for number in range(values["channels"]):
        voxels = ct_like(shape, seed=number)
        voxels[:3, :4] = 0
        voxels[-4:] = voxels[:, :, -5:] = -1000
        files.append(save_nifti(folder / f"scan_000{number}.nii.gz", voxels, turn))
    return files


def theirs(folder, values, files):
    """The mask and what was made discrete [K, d, h, w], by MONAI."""
    bundles, torch = pytest.importorskip("monai.bundle"), pytest.importorskip("torch")
    transforms = values["postprocessing"]["transforms"][:-1]  # but for that which saves
    parser = bundles.ConfigParser(values | {"postprocessing": {"_target_": "Compose", "transforms": transforms}})
    network = parser.get_parsed_content("network_def")
    network.load_state_dict(torch.load(folder / "models" / "model.pt"))
    before, after = (parser.get_parsed_content(name) for name in ("preprocessing", "postprocessing"))
    data = before({"image": [str(file) for file in files] if len(files) > 1 else str(files[0])})
    with torch.no_grad():
        data["pred"] = parser.get_parsed_content("inferer")(data["image"][None], network.eval())[0]
    return np.asarray(after(data)["pred"]).transpose(0, 3, 2, 1)


@pytest.mark.parametrize("name", CASES)
def test_the_mask_is_monais(name, tmp_path) -> None:
    nets = pytest.importorskip("monai.networks.nets")
    values, described, shape = CASES[name]
    arguments = {key: value for key, value in NETWORK.items() if key != "_target_"}
    module = with_random_norms(nets.UNet(**arguments | {"in_channels": values["channels"]}))
    folder = bundle(tmp_path / "bundle", module, values, described)
    files = files_of(values, shape, tmp_path)
    expected = theirs(folder, values, files)
    if len(expected) > 1:  # of overlapping channels the last
        expected = np.max([(n + 1) * (channel > 0) for n, channel in enumerate(expected)], axis=0)[None]
    imported = import_model(folder, tmp_path / "run")
    assert imported.card.origin.transpose == (0, 1, 2)
    segment(SegmentationJob(files[0], tmp_path / "run", tmp_path / "mask.nii.gz"), SERIAL)
    got = np.asarray(nib.load(tmp_path / "mask.nii.gz").dataobj).T
    assert len(np.unique(got)) > 2
    assert (got == expected[0]).mean() > 0.999


def test_the_whole_volume_at_once(tmp_path) -> None:
    nets = pytest.importorskip("monai.networks.nets")
    values = config(inferer=WHOLE, spacing=[1.5, 1.2, 1.7])
    module = with_random_norms(nets.UNet(**{k: v for k, v in NETWORK.items() if k != "_target_"} | {"in_channels": 1}))
    folder = bundle(tmp_path / "bundle", module, values)
    files = files_of(values, (24, 32, 28), tmp_path)
    expected = theirs(folder, values, files)
    import_model(folder, tmp_path / "run")
    segment(SegmentationJob(files[0], tmp_path / "run", tmp_path / "mask.nii.gz", view=WindowOptions()), SERIAL)
    got = np.asarray(nib.load(tmp_path / "mask.nii.gz").dataobj).T
    assert (got == expected[0]).mean() > 0.999
