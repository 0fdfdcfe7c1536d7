"""Train, segment and evaluate on data sets as people have them, the real abdomen among them."""

import csv
import json
import shutil

import nibabel as nib
import numpy as np
import pytest

from data_sets import SIDES, decathlon_folder, describe, image, labels, nnunet_folder, save
from volseg.geometry import Box
from volseg.volumes.reading import open_volume

SMALL = ["--base-channels=4", "--levels=1", "--epochs=2", "-q"]


def held_out_dice(run_folder):
    with (run_folder / "log.csv").open(newline="") as file:
        return [float(row["validation_dice"]) for row in csv.DictReader(file) if row["validation_dice"]]


def test_4d_images_from_end_to_end(volseg, tmp_path):
    decathlon_folder(tmp_path / "Task", modalities=("FLAIR", "T1w"))
    volseg("train", "Task", *SMALL, "--fold=0", "--folds=3")
    assert len(held_out_dice(tmp_path / "volseg-run")) == 2
    (tmp_path / "pred").mkdir()
    for case in range(3):
        volseg("segment", f"Task/imagesTr/liver_{case}.nii.gz", "-o", f"pred/liver_{case}.nii.gz", "-q")
        assert nib.load(tmp_path / "pred" / f"liver_{case}.nii.gz").shape == SIDES[::-1]
    out = volseg("evaluate", "pred", "Task", "-q")
    assert "spleen" in out  # names from dataset.json


def test_ingested_volumes_from_end_to_end(volseg, tmp_path):
    (tmp_path / "set").mkdir()
    for seed in range(3):
        save(tmp_path / "scan.nii.gz", image(seed))
        save(tmp_path / "seg.nii.gz", labels(seed))
        volseg("ingest", "scan.nii.gz", "--labels=seg.nii.gz", "-o", f"set/case_{seed}.zarr", "-q")
    volseg("train", "set", *SMALL, "--validation=1")
    assert len(held_out_dice(tmp_path / "volseg-run")) == 2
    out = volseg("segment", "set/case_1.zarr", "-q")
    assert "label 2" in out
    volseg("train", "set", *SMALL, "--overwrite")  # the mask beside the volume is no case


def test_one_scan_from_end_to_end(volseg, tmp_path):
    save(tmp_path / "scan.nii.gz", image(0))
    save(tmp_path / "seg.nii.gz", labels(0))
    (tmp_path / "names.json").write_text('{"liver": 1, "spleen": 2}')
    volseg("train", "scan.nii.gz", "--labels=seg.nii.gz", "--label-names=names.json", *SMALL)
    assert held_out_dice(tmp_path / "volseg-run") == []
    split = json.loads((tmp_path / "volseg-run" / "split.json").read_text())
    assert split == {"train": ["scan"], "val": []}
    assert "spleen" in volseg("segment", "scan.nii.gz", "-q")
    assert "mean" in volseg("evaluate", "scan_mask.nii.gz", "seg.nii.gz", "-q")


def test_fold_alone_is_one_of_five(volseg, tmp_path):
    nnunet_folder(tmp_path / "set", cases=5)
    volseg("train", "set", *SMALL, "--fold=4")
    config = (tmp_path / "volseg-run" / "config.toml").read_text()
    assert "folds = 5" in config
    assert "fold = 4" in config
    assert len(json.loads((tmp_path / "volseg-run" / "split.json").read_text())["val"]) == 1
    volseg("train", "set", *SMALL[:-2], "--epochs=3", "-q", "--continue")  # the split is the run's own


def abdomen(data, folder, layout):
    """Parts of the real abdomen at 3 mm as four cases of 32 x 48 x 48 voxels or so, no two alike."""
    ct, mask = (open_volume(data / "abdomen_ct" / name) for name in ("ct.nii.gz", "labels.nii.gz"))
    names = json.loads((data / "abdomen_ct" / "labels.json").read_text())
    listed = []
    for number, (d, h, w) in enumerate([(40, 20, 10), (44, 30, 60), (60, 25, 20), (70, 28, 55)]):
        box = Box((d, h, w), (d + 30 + number, h + 48, w + 46))
        part, true = ct.read(box), mask.read(box).astype(np.uint8)
        file = f"part_{number}_0000.nii.gz" if layout == "nnunet" else f"part_{number}.nii.gz"
        save(folder / "imagesTr" / file, part, (3.0, 3.0, 3.0))
        save(folder / "labelsTr" / f"part_{number}.nii.gz", true, (3.0, 3.0, 3.0))
        listed.append({"image": f"./imagesTr/{file}", "label": f"./labelsTr/part_{number}.nii.gz"})
    if layout == "nnunet":
        return describe(folder, channel_names={"0": "CT"}, labels=names, numTraining=4, file_ending=".nii.gz")
    labels = {str(value): name for name, value in names.items()}
    return describe(
        folder, name="Abdomen", modality={"0": "CT"}, labels=labels, numTraining=4, training=listed, test=[]
    )


@pytest.mark.parametrize("layout", ["nnunet", "decathlon"])
def test_the_real_abdomen_is_trained_validated_segmented_and_evaluated(volseg, tmp_path, data, layout):
    folder = abdomen(data, tmp_path / "abdomen", layout)
    out = volseg("check", folder, "--no-progress")
    assert "4 cases, no faults" in out
    volseg(
        "train", folder, "--base-channels=6", "--levels=2", "--epochs=6", "--fold=1", "--folds=2", "-q",
        "--validate-every=3",
    )  # fmt: skip
    run_folder = tmp_path / "volseg-run"
    assert len(held_out_dice(run_folder)) == 2
    with (run_folder / "log.csv").open(newline="") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert np.mean(losses[-2:]) < 0.95 * np.mean(losses[:2])  # it learns
    held_out = json.loads((run_folder / "split.json").read_text())["val"]
    (tmp_path / "pred").mkdir()
    for name in held_out:
        scan = next((folder / "imagesTr").glob(f"{name}*"))
        volseg("segment", scan, "-o", f"pred/{name}.nii.gz", "-q")
        assert nib.load(tmp_path / "pred" / f"{name}.nii.gz").shape == nib.load(scan).shape
    evaluated = json.loads(volseg("evaluate", "pred", folder, "--partial", "--json", "-q"))
    # Validation in training and evaluation of the masks written count the same voxels.
    assert evaluated["foreground_mean"]["Dice"] == pytest.approx(held_out_dice(run_folder)[-1], abs=1e-6)
    shutil.rmtree(tmp_path / "pred")
