"""Overlapping regions (nnU-Net's ``regions_class_order``), from a data set to masks and their Dice."""

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from data_sets import change, describe, nnunet_folder
from tiny import SERIAL, losses, tiny_config
from volseg.config.stored_run import read_run_config
from volseg.errors import CheckpointError, ConfigError, VolumeError
from volseg.models.stored import load_model
from volseg.segmentation.comparison import EvaluationJob, evaluate
from volseg.segmentation.job import SegmentationJob
from volseg.segmentation.segment import segment
from volseg.training.job import TrainingJob
from volseg.training.loop import train
from volseg.volumes.dataset import read_dataset
from volseg.volumes.regions import Region

LABELS = {"background": 0, "organs": [1, 2], "spleen": 2}
ORDER = [1, 2]
REGIONS = (Region("organs", (1, 2), 1), Region("spleen", (2,), 2))


def region_set(folder, **more):
    nnunet_folder(folder)
    described = json.loads((folder / "dataset.json").read_text())
    return describe(folder, **(described | {"labels": LABELS, "regions_class_order": ORDER} | more))


def test_regions_and_the_labels_they_are_made_of(tmp_path):
    dataset = read_dataset(region_set(tmp_path / "set"))
    assert dataset.regions == REGIONS
    assert dataset.labels == {"background": 0, "organs (1)": 1, "spleen": 2}
    assert dataset.outputs == dataset.scored == ("organs", "spleen")
    assert dataset.ignore is None


def test_unlabelled_voxels_lie_beside_regions(tmp_path):
    dataset = read_dataset(region_set(tmp_path / "set", labels=LABELS | {"ignore": 3}))
    assert dataset.regions == REGIONS
    assert dataset.ignore == 3


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"regions_class_order": [1]}, 'needs "regions_class_order", .* such as .1, 2.'),
        ({"regions_class_order": [1, 9]}, "holds 9, which is no value of a region; they are 1, 2"),
        ({"labels": {"organs": [0, 1, 2], "spleen": 2}}, "region 'organs' .0, 1, 2. holds 0; 0 is the background"),
        ({"labels": {"organs": [1, 3], "spleen": 3}, "regions_class_order": [1, 3]}, "must run 0, 1, 2"),
    ],
)
def test_regions_that_do_not_go_together_are_named(tmp_path, more, message):
    with pytest.raises(VolumeError, match=message):
        read_dataset(region_set(tmp_path / "set", **more))


def test_weights_of_classes_are_refused(tmp_path):
    config = tiny_config(class_weights=(1.0, 2.0))
    with pytest.raises(ConfigError, match=r"training.class_weights: .* has regions, whose loss has no weights"):
        train(TrainingJob(region_set(tmp_path / "set"), tmp_path / "run", config), SERIAL)


@pytest.fixture
def shared(tmp_path, communicator):
    """One folder for all ranks."""
    folder = Path(communicator.broadcast(str(tmp_path)))
    communicator.barrier()
    return folder


def run_of(folder, communicator, data):
    """Train, segment a scan and compare; what came out, by name."""
    config = tiny_config(epochs=4, learning_rate=3e-3, validation=1)
    report = train(TrainingJob(data, folder / "run", config), communicator)
    mask, scan = folder / "masks" / "case_0.nii.gz", data / "imagesTr" / "case_0_0000.nii.gz"
    if communicator.is_root:
        mask.parent.mkdir()
    communicator.barrier()
    segment(SegmentationJob(scan, folder / "run", mask, probabilities=True), communicator)
    compared = evaluate(EvaluationJob(mask, data / "labelsTr" / "case_0.nii.gz", data / "dataset.json"), communicator)
    return report, mask, compared


@pytest.mark.parallel([1, 2, 4])
def test_a_run_learns_regions_on_any_number_of_ranks(shared, communicator):
    data = shared / "data"
    with communicator.together():
        if communicator.is_root:
            region_set(data)
            (shared / "alone").mkdir()
            run_of(shared / "alone", SERIAL, data)
            (shared / "many").mkdir()
    communicator.barrier()
    report, mask, compared = run_of(shared / "many", communicator, data)
    np.testing.assert_allclose(losses(shared / "many" / "run"), losses(shared / "alone" / "run"), rtol=2e-4)
    assert set(report.validation_by_class) <= {"organs", "spleen"}
    assert report.validation_by_class
    model, card = load_model(shared / "many" / "run")
    assert (card.regions, card.labels, card.outputs) == (REGIONS, {"background": 0, "organs (1)": 1, "spleen": 2},
                                                         ("organs", "spleen"))  # fmt: skip
    assert model.network.classes == 2

    found = np.asarray(nib.load(mask).dataobj)
    probabilities = nib.load(mask.with_name("case_0_probabilities.nii.gz")).get_fdata()
    expected = np.where(probabilities[..., 1] > 0.5, 2, np.where(probabilities[..., 0] > 0.5, 1, 0))
    assert np.array_equal(found, expected)
    assert probabilities.sum(-1).max() > 1 or (found == 0).all()  # no softmax

    true = np.asarray(nib.load(data / "labelsTr" / "case_0.nii.gz").dataobj)
    assert list(compared.labels.items()) == [("organs", (1, 2)), ("spleen", 2)]
    for name, members in (("organs", (1, 2)), ("spleen", (2,))):
        one, other = np.isin(found, members), np.isin(true, members)
        dice = 2 * (one & other).sum() / max(1, one.sum() + other.sum())
        assert compared.dice[name] == pytest.approx(dice)
    assert set(compared.summary["mean"]) == {"(1, 2)", "2"}


@pytest.mark.parallel([1, 2, 4])
def test_masks_of_one_model_are_the_same_on_any_ranks_and_at_another_spacing(shared, communicator):
    data = shared / "data"
    with communicator.together():
        if communicator.is_root:
            region_set(data)
            config = tiny_config(epochs=2, learning_rate=3e-3)
            train(TrainingJob(data, shared / "run", config), SERIAL)
    communicator.barrier()
    scan = data / "imagesTr" / "case_1_0000.nii.gz"
    for name, spacing in (("model", "model"), ("finer", (1.7, 0.9, 1.1))):
        job = SegmentationJob(scan, shared / "run", shared / f"{name}.nii.gz", spacing=spacing)
        with communicator.together():
            if communicator.is_root:
                segment(replace(job, output=shared / f"{name}_alone.nii.gz"), SERIAL)
        communicator.barrier()
        segment(job, communicator)
        one, many = (np.asarray(nib.load(shared / f"{n}.nii.gz").dataobj) for n in (name, f"{name}_alone"))
        assert np.array_equal(one, many)
        assert one.any()


def test_a_run_goes_on_only_with_its_own_regions(tmp_path):
    data = region_set(tmp_path / "set")
    job = TrainingJob(data, tmp_path / "run", tiny_config(epochs=1))
    train(job, SERIAL)
    described = json.loads((data / "dataset.json").read_text())
    describe(data, **(described | {"labels": {"background": 0, "spleen": 2, "organs": [1, 2]}}))
    with pytest.raises(CheckpointError, match="was trained with regions"):
        train(replace(job, config=read_run_config(job.run), proceed=True), SERIAL)


def test_a_value_that_no_region_holds_is_named(tmp_path):
    data = region_set(tmp_path / "set")

    def strange(array):
        array[0, 0, 0] = 7

    change(data / "labelsTr" / "case_0.nii.gz", strange)
    with pytest.raises(VolumeError, match=r"holds the label value\(s\) 7"):
        train(TrainingJob(data, tmp_path / "run", tiny_config(epochs=1)), SERIAL)
