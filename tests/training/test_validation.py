"""Whole-volume validation: Dice per class as counted by hand, when it is due, and what a look at each case gets."""

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from data_sets import change, nnunet_folder
from tiny import MODEL, SERIAL
from volseg.config import Config, DataConfig, TrainingConfig
from volseg.distributed.grid import ProcessGrid
from volseg.models.fused import FusedNetwork
from volseg.models.unet import UNet
from volseg.segmentation.evaluation import compare
from volseg.segmentation.job import SegmentationJob
from volseg.segmentation.segment import segment
from volseg.training.data import CaseBlocks
from volseg.training.job import TrainingJob
from volseg.training.loop import train
from volseg.training.validation import Validation, is_validation_due, validate
from volseg.volumes.canonical import in_order_of
from volseg.volumes.dataset import read_dataset
from volseg.volumes.intensity import ChannelScheme
from volseg.volumes.reading import open_volume


def test_dice_by_class_is_the_mean_over_the_cases_that_have_it(tmp_path):
    folder = nnunet_folder(tmp_path, cases=3)
    change(folder / "labelsTr" / "case_1.nii.gz", lambda a: np.where(a == 2, 0, a))
    dataset = read_dataset(folder)
    torch.manual_seed(0)
    grid = ProcessGrid(SERIAL, (1, 1, 1))
    blocks = CaseBlocks(dataset, dataset.cases, grid, 4)
    blocks.schemes = (ChannelScheme("MR", None),)
    seen = []

    def look(case, sample, mask):
        true, found = (part[0, :12, :10, :8].numpy() for part in (sample.target, mask))
        seen.append((case.name, true, found))

    found = validate(FusedNetwork(UNet(MODEL.for_data(1, 3)), grid), blocks, dataset.cases, look)
    assert [name for name, _, _ in seen] == list(found.by_case) == ["case_0", "case_1", "case_2"]
    for name, true, mask in seen:
        for value, dice in zip((1, 2), found.by_case[name], strict=True):
            sizes = (true == value).sum() + (mask == value).sum()
            expected = 2 * ((true == value) & (mask == value)).sum() / sizes if sizes else None
            assert dice == (None if expected is None else pytest.approx(expected, rel=1e-12))
    for number, dice in enumerate(found.by_class):
        there = [row[number] for row in found.by_case.values() if row[number] is not None]
        assert dice == pytest.approx(np.mean(there))
    assert found.mean == pytest.approx(np.mean([dice for dice in found.by_class if dice is not None]))


def test_a_class_that_nobody_has_has_no_dice():
    found = Validation(0.5, (0.5, None), {"a": (0.5, None)})
    assert found.case_means == {"a": 0.5}


@pytest.mark.parametrize(("every", "due"), [(1, [2, 4, 6, 8, 10]), (2, [4, 8, 10]), (9, [10])])
def test_it_is_due_each_few_epochs_and_at_the_end(every, due):
    config = TrainingConfig(epochs=5, validate_every=every)
    assert [step for step in range(1, 11) if is_validation_due(config, step, 2)] == due


def test_the_log_has_dice_by_class(tmp_path):
    folder = nnunet_folder(tmp_path / "set", cases=3)
    config = Config(MODEL, TrainingConfig(epochs=3, validation=1, validate_every=2))
    report = train(TrainingJob(folder, tmp_path / "run", config), SERIAL)
    with (tmp_path / "run" / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    validated = [row for row in rows if row["validation_dice"]]
    assert [row["step"] for row in validated] == ["4", "6"]
    assert float(validated[-1]["validation_dice"]) == pytest.approx(report.validation_dice, abs=1e-6)
    dice = [float(validated[-1][f"validation_dice_{name}"]) for name in ("liver", "spleen")]
    assert np.mean(dice) == pytest.approx(report.validation_dice, abs=1e-6)


def mark_ignored(folder):
    """Nobody has labelled the first slices of any case: half of the foreground is there."""
    for path in sorted((folder / "labelsTr").glob("*.nii.gz")):
        change(path, lambda labels: labels.__setitem__(np.s_[: labels.shape[0] // 2], 3))
    description = json.loads((folder / "dataset.json").read_text())
    description["labels"]["ignore"] = 3
    (folder / "dataset.json").write_text(json.dumps(description))


@pytest.mark.parallel([1, 2])
@pytest.mark.parametrize("kind", ["plain", "turned", "ignored"])
def test_dice_is_counted_on_the_scans_own_grid(tmp_path, communicator, kind):
    """As `segment` and then `evaluate` would: the same mask, and so the same Dice, to the last voxel."""
    folder = Path(communicator.broadcast(str(tmp_path)))
    with communicator.together():
        if communicator.is_root:
            nnunet_folder(folder / "set", cases=3)
            if kind == "ignored":
                mark_ignored(folder / "set")
            if kind == "turned":  # stored along other axes, so that planes are no slices of the file
                for path in sorted((folder / "set").glob("*Tr/*.nii.gz")):
                    stored = nib.load(path)
                    turned = nib.orientations.apply_orientation(
                        np.asarray(stored.dataobj), [[2, -1], [0, 1], [1, 1]]
                    )  # fmt: skip
                    there = stored.affine @ nib.orientations.inv_ornt_aff(
                        np.array([[2, -1], [0, 1], [1, 1]]), stored.shape
                    )
                    nib.save(nib.Nifti1Image(turned, there), path)
    config = Config(MODEL, TrainingConfig(epochs=1, validation=1), DataConfig(spacing="3x2.5x2"))
    report = train(TrainingJob(folder / "set", folder / "run", config), communicator)
    (name,) = json.loads((folder / "run" / "split.json").read_text())["val"]
    job = SegmentationJob(folder / "set" / f"imagesTr/{name}_0000.nii.gz", folder / "run", folder / "mask.nii.gz")
    segment(job, communicator)
    reference = folder / "set" / f"labelsTr/{name}.nii.gz"
    mask = open_volume(folder / "mask.nii.gz")
    case = compare(mask, in_order_of(open_volume(reference), mask.space), 3 if kind == "ignored" else None)
    dice = [case.metrics(label)["Dice"] for label in (1, 2)]
    assert report.validation_dice == pytest.approx(np.nanmean(dice), abs=1e-9)
