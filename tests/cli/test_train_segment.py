"""The commands as a stranger types them, from data set to Dice: NIfTI, zarr, several channels, other layouts."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np

from tiny import ct_like, digest, losses, save_nifti, tiny_dataset
from volseg.config import PRESETS, read_config

SMALL = ["--base-channels=4", "--levels=2", "--epochs=2", "-q"]


def test_with_nothing_but_defaults_on_two_ranks(tmp_path, mpirun, python):
    """The commands of the README; only sizes are given, to be quick."""
    scan = "ellipsoids/imagesTr/ellipsoids_000_0000.nii.gz"

    def both(*arguments):
        ended = mpirun(2, ["-m", "volseg", *arguments], cwd=tmp_path, timeout=90)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    assert python(["-m", "volseg", "generate", "--shape=16x20x18", "--cases=2"], cwd=tmp_path).returncode == 0
    trained = both("train", *SMALL)
    assert trained.count("model: volseg-run") == 1
    assert "planned" in trained
    segmented = both("segment", scan, "--statistics", "--no-progress")
    assert "class_1" in segmented
    assert segmented.count("ellipsoids_000_0000_mask.nii.gz") == 1
    assert nib.load(tmp_path / scan.replace(".nii.gz", "_mask.nii.gz")).shape == (18, 20, 16)
    assert "bit-identical" in both("verify-partition", scan)
    found = json.loads(both("verify-partition", scan, "--json", "--partition=1x2x1"))
    assert (found["largest_difference"], found["mismatches"], found["identical"]) == (0.0, 0, True)
    assert found["grid"] == [1, 2, 1]
    # The mask now lies beside the images, and the data set is still one.
    again = both("train", "--continue", "--epochs=3", "-q")
    assert "6 steps" in again
    assert len(losses(tmp_path / "volseg-run")) == 6


def test_coarse_levels_on_one_of_two_ranks(tmp_path, mpirun, volseg):
    scan = "ellipsoids/imagesTr/ellipsoids_000_0000.nii.gz"
    volseg("generate", "--shape=16x20x18", "--cases=2", "-q")

    def both(*arguments):
        options = ["--partition=1x2x1", "--agglomerate=1:1x1x1"]
        ended = mpirun(2, ["-m", "volseg", *arguments, *options], cwd=tmp_path, timeout=90)
        return ended.returncode, ended.stdout, ended.stderr

    code, _, err = both("train", *SMALL[:-1], "--no-progress")
    assert code == 0, err
    assert "on 2 ranks as 1x2x1, from level 1 on as 1x1x1" in err
    assert both("segment", scan, "-o", "many.nii", "-q")[0] == 0
    volseg("segment", scan, "-o", "one.nii", "-q")
    assert digest(tmp_path / "many.nii") == digest(tmp_path / "one.nii")
    code, out, err = both("verify-partition", scan)
    assert code == 0, err
    assert "grid 1x2x1, agglomerated 1:1x1x1, against 1 rank: max |delta logit| 0, 0 label mismatches" in out


def test_zarr_from_end_to_end(volseg, tmp_path):
    volseg("generate", "--format=zarr", "--shape=16x20x18", "--cases=2", "-q")
    volseg("train", *SMALL)
    scan = Path("ellipsoids/imagesTr/ellipsoids_001_0000.zarr")
    out = volseg("segment", scan, "-o", "mask.zarr", "-q", "--save-probabilities")
    assert "wrote mask_probabilities.zarr" in out
    volseg("segment", scan, "-q")
    assert (tmp_path / "ellipsoids/imagesTr/ellipsoids_001_0000_mask.nii.gz").is_file()
    assert "mean" in volseg("evaluate", "mask.zarr", "ellipsoids/labelsTr/ellipsoids_001.zarr", "-q")
    assert volseg("info", "mask.zarr")
    volseg("train", "--overwrite", *SMALL)


def test_two_channels_from_end_to_end(volseg, tmp_path):
    """CT by the training set's numbers, the other channel by each volume's own."""
    data = tiny_dataset(tmp_path / "ellipsoids")
    description = json.loads((data / "dataset.json").read_text())
    description["channel_names"] = {"0": "CT", "1": "PET"}
    (data / "dataset.json").write_text(json.dumps(description))
    for image in list((data / "imagesTr").iterdir()):
        grid = nib.load(image)
        second = (np.asarray(grid.dataobj) * 50).astype(np.int16)
        nib.save(nib.Nifti1Image(second, grid.affine), str(image).replace("_0000", "_0001"))
    volseg("train", *SMALL)
    volseg("segment", "ellipsoids/imagesTr/ellipsoids_000_0000.nii.gz", "-q")
    volseg("train", *SMALL, "--overwrite")


def test_the_decathlon_s_layout_from_end_to_end(volseg, tmp_path):
    data = tiny_dataset(tmp_path / "Task03")
    for image in list((data / "imagesTr").iterdir()):
        image.rename(str(image).replace("_0000", ""))
        (image.parent / f"._{image.name}").write_bytes(b"mac")
    names = {"0": "background", "1": "liver", "2": "cancer"}
    description = {"name": "Liver", "modality": {"0": "CT"}, "labels": names, "numTraining": 2, "training": []}
    (data / "dataset.json").write_text(json.dumps(description))
    volseg("train", "Task03", *SMALL)
    out = volseg("segment", "Task03/imagesTr/ellipsoids_000.nii.gz", "-q")
    assert "cancer" in out
    volseg("train", "Task03", *SMALL, "--overwrite")  # the mask beside the scan is no case


def test_cases_of_different_sizes_and_orientations(volseg, tmp_path):
    data = tiny_dataset(tmp_path / "ellipsoids")
    turned = np.array([[0, 0, -1.0, 9], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
    labels = (ct_like((9, 30, 11)) > 100).astype(np.uint8)
    save_nifti(data / "imagesTr/ellipsoids_001_0000.nii.gz", ct_like((9, 30, 11)), turned)
    save_nifti(data / "labelsTr/ellipsoids_001.nii.gz", labels, turned)
    out = volseg("train", *SMALL, "--validation=1")
    assert "held-out Dice" in out


def test_a_dicom_folder_as_the_working_folder(volseg, tmp_path, monkeypatch):
    sample = Path(__file__).resolve().parents[2] / "sample_data" / "phantom_dicom"
    shutil.copytree(sample, tmp_path / "series")
    tiny_dataset(tmp_path / "ellipsoids")
    volseg("train", *SMALL)
    monkeypatch.chdir(tmp_path / "series")
    assert "series_mask.nii.gz" in volseg("segment", ".", "--model", tmp_path / "volseg-run", "-q")
    assert nib.load(tmp_path / "series_mask.nii.gz").shape == (80, 64, 48)


def test_augmented_crops_from_the_command_line(tmp_path, volseg):
    volseg("generate", "--shape=16x20x18", "--cases=3", "-q")
    volseg("train", "--augment=full", "--flip=dh", "--crop=12x40x12", "--validation=1", *SMALL)
    settings = read_config(tmp_path / "volseg-run" / "config.toml")
    assert settings.augmentation == replace(PRESETS["full"], flip=(0.5, 0.5, 0.0))
    assert settings.data.crop == (12, 40, 12)
    facts = json.loads((tmp_path / "volseg-run" / "report.json").read_text())
    assert facts["time"]["seconds_by_rank"]["augmentation"][0] > 0
    assert facts["validation_dice"] is not None
    assert "6 steps" in volseg("train", "--continue", "--epochs=3", "-q")
