"""Cases in which only some labels were looked for, from dataset.json to the step and to validation."""

import json
from pathlib import Path

import numpy as np
import pytest

from data_sets import change, describe, nnunet_folder
from tiny import SERIAL, losses, tiny_config
from volseg.errors import VolumeError
from volseg.training.job import TrainingJob
from volseg.training.loop import train
from volseg.volumes.dataset import DataSource, read_dataset
from volseg.volumes.dataset.check import check_dataset


def partly(folder, annotated, forget=True):
    """The spleen of case_0 is not drawn."""
    nnunet_folder(folder)

    def clear(array):
        array[array == 2] = 0

    if forget:
        change(folder / "labelsTr" / "case_0.nii.gz", clear)
    described = json.loads((folder / "dataset.json").read_text())
    return describe(folder, **(described | {"annotated": annotated}))


def test_what_nobody_has_looked_for(tmp_path):
    dataset = read_dataset(partly(tmp_path / "set", {"case_0": ["liver"]}))
    assert [dataset.unknown_in(case) for case in dataset.cases] == [(2,), (), ()]


@pytest.mark.parametrize(
    ("annotated", "message"),
    [
        ({"case_9": ["liver"]}, "names a case case_9, which is not there"),
        ({"case_0": ["kidney"]}, "case case_0: 'kidney' is none of liver, spleen"),
        ({"case_0": "liver"}, "'liver' is no list of labels"),
        (["case_0"], "must name cases with the labels looked for in each"),
    ],
)
def test_what_cannot_be_meant_is_named(tmp_path, annotated, message):
    with pytest.raises(VolumeError, match=message):
        read_dataset(partly(tmp_path / "set", annotated))


def test_a_label_that_was_not_looked_for_and_is_there_is_a_fault(tmp_path):
    report = check_dataset(DataSource(partly(tmp_path / "set", {"case_0": ["liver"]}, forget=False)), SERIAL)
    (fault,) = [one for one in report.faults if one.serious]
    assert fault.case == "case_0"
    assert "holds spleen, which is not annotated in it" in fault.message


@pytest.mark.parallel([1, 2])
@pytest.mark.parametrize("batch_dice", [False, True])
def test_a_run_learns_from_them_on_any_number_of_ranks(tmp_path, communicator, batch_dice):
    shared = Path(communicator.broadcast(str(tmp_path)))
    config = tiny_config(epochs=3, learning_rate=1e-3, accumulate=3 if batch_dice else 1, batch_dice=batch_dice)
    with communicator.together():
        if communicator.is_root:
            train(TrainingJob(partly(shared / "set", {"case_0": ["liver"]}), shared / "alone", config), SERIAL)
    communicator.barrier()
    train(TrainingJob(shared / "set", shared / "many", config), communicator)
    np.testing.assert_allclose(losses(shared / "many"), losses(shared / "alone"), rtol=1e-4)


def test_held_out_cases_have_a_dice_for_what_was_looked_for(tmp_path):
    folder = partly(tmp_path / "set", {f"case_{n}": ["liver"] for n in range(3)}, forget=False)
    for n in range(3):
        change(folder / "labelsTr" / f"case_{n}.nii.gz", lambda array: np.where(array == 2, 0, array).astype(np.uint8))
    report = train(TrainingJob(folder, tmp_path / "run", tiny_config(epochs=1, validation=1)), SERIAL)
    assert set(report.validation_by_class) <= {"liver"}
    assert report.validation_dice == report.validation_by_class["liver"]
