"""``[labels]``: values of label files merged, dropped, chosen and renamed, wherever labels are read."""

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from data_sets import NAMES, describe, image, labels, nnunet_folder, save
from tiny import SERIAL, tiny_config
from volseg.config import LabelsConfig, config_tables, parse_config, read_config, read_label_map
from volseg.config.labels import labels_of_table
from volseg.distributed.grid import ProcessGrid
from volseg.errors import CheckpointError, ConfigError, VolumeError
from volseg.models.stored import load_model
from volseg.nn.losses import IGNORE
from volseg.segmentation.comparison import EvaluationJob, evaluate
from volseg.training.data import CaseBlocks
from volseg.training.job import TrainingJob
from volseg.training.loop import train
from volseg.volumes.dataset import DataSource, read_dataset
from volseg.volumes.dataset.check import check_dataset
from volseg.volumes.intensity import ChannelScheme

# As the files have them; a mask of data_sets.labels with 1 and 2 in other places.
STORED = {"background": 0, "liver left": 5, "liver right": 6, "spleen": 9}


def far_set(folder, **more):
    """Values 5, 6 and 9 with gaps: the liver in two halves, and the spleen."""
    folder.mkdir()
    for seed in range(3):
        found = labels(seed).astype(np.int16)
        far = np.where(found == 2, 9, np.where(found == 1, 5, 0))
        far[:, ::2][found[:, ::2] == 1] = 6
        save(folder / "imagesTr" / f"case_{seed}_0000.nii.gz", image(seed))
        save(folder / "labelsTr" / f"case_{seed}.nii.gz", far.astype(np.int16))
    return describe(
        folder, **({"channel_names": {"0": "CT"}, "labels": STORED, "numTraining": 3, "file_ending": ".nii.gz"} | more)
    )


def made(**table):
    return labels_of_table(table, "here")


def target_of(dataset):
    blocks = CaseBlocks(dataset, dataset.cases, ProcessGrid(SERIAL, (1, 1, 1)), 1)
    blocks.schemes = (ChannelScheme("MR", None),)
    return blocks.load(dataset.cases[0]).target[0].numpy()


def test_labels_merge_and_get_new_values(tmp_path):
    folder = far_set(tmp_path / "far")
    with pytest.raises(VolumeError, match=r"must run 0, 1, 2, .* \[labels\]"):
        read_dataset(folder)
    plain = read_dataset(nnunet_folder(tmp_path / "plain"))
    dataset = read_dataset(DataSource(folder, label_map=made(liver=[5, "liver right"], spleen=9)))
    assert dataset.labels == NAMES
    assert np.array_equal(target_of(dataset), target_of(plain))


def test_what_no_label_names_is_background_and_the_order_is_that_of_the_table(tmp_path):
    folder = far_set(tmp_path / "far")
    target = target_of(read_dataset(DataSource(folder, label_map=made(spleen=9, right="liver right"))))
    stored = target_of(read_dataset(DataSource(folder, label_map=made(a=5, b=6, c=9))))
    assert np.array_equal(target, np.select([stored == 3, stored == 2, stored == IGNORE], [1, 2, IGNORE]))


def test_voxels_that_do_not_count(tmp_path):
    folder = far_set(tmp_path / "far", labels=STORED | {"ignore": 12})
    by_map = read_dataset(DataSource(folder, label_map=made(liver=[5, 6], ignore=9)))
    assert (by_map.labels, by_map.ignore) == ({"background": 0, "liver": 1}, 2)
    target = target_of(by_map)
    inside = slice(None, 12), slice(None, 10), slice(None, 8)
    assert (target[inside] == IGNORE).sum() == (labels(0) == 2).sum()
    of_set = read_dataset(DataSource(folder, label_map=made(liver=[5, 6])))
    assert of_set.ignore == 2
    assert (target_of(of_set)[inside] == IGNORE).sum() == 0


def test_regions_of_the_set_give_way_to_the_map(tmp_path):
    folder = far_set(tmp_path / "far", labels={"background": 0, "all": [5, 6, 9], "spleen": 9})
    dataset = read_dataset(DataSource(folder, label_map=made(liver=[5, 6], spleen="spleen")))
    assert dataset.regions == ()
    assert dataset.labels == NAMES


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"liver": [5, 6], "spleen": [6, 9]}, "labels.liver and labels.spleen both have 6"),
        ({"background": [0, 5]}, "labels.background is what no other label names"),
        ({"liver": 0}, "0 is no label value of 1 to 32767"),
        ({"liver": 1.5}, "1.5 is no label value"),
        ({"liver": True}, "True is no label value"),
        ({"liver": []}, "labels.liver has no value"),
        ({"ignore": 5}, "has no label to learn"),
    ],
)
def test_maps_that_are_none_are_named(table, message):
    with pytest.raises(ConfigError, match=message):
        made(**table)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"liver": [5, 7]}, r"liver: .*far has no label 7; it has liver left .5., liver right .6., spleen .9."),
        ({"liver": "kidney"}, "has no label 'kidney'"),
        ({"left": 5, "liver": ["liver left", 6]}, "left and liver both have 5"),
    ],
)
def test_values_that_the_set_does_not_have_are_named(tmp_path, table, message):
    folder = far_set(tmp_path / "far")
    with pytest.raises(VolumeError, match=message):
        read_dataset(DataSource(folder, label_map=made(**table)))


def test_check_sees_the_labels_of_the_map_and_names_values_that_nobody_knows(tmp_path):
    folder = far_set(tmp_path / "far")
    change = made(liver=[5, 6], spleen=9)
    report = check_dataset(DataSource(folder, label_map=change), SERIAL)
    assert report.is_sound
    plain = check_dataset(DataSource(nnunet_folder(tmp_path / "plain")), SERIAL)
    assert report.fingerprint == plain.fingerprint
    path = folder / "labelsTr" / "case_1.nii.gz"
    stored = nib.load(path)
    array = np.asarray(stored.dataobj).copy()
    array[0, 0, 0] = 7
    nib.save(nib.Nifti1Image(array, stored.affine), path)
    (fault,) = [one for one in check_dataset(DataSource(folder, label_map=change), SERIAL).faults if one.serious]
    assert fault.case == "case_1"
    assert "holds 7, which the data set does not name (0, 5, 6, 9)" in fault.message


def test_a_set_without_names_has_the_values_that_its_files_hold(tmp_path):
    folder = far_set(tmp_path / "far")
    (folder / "dataset.json").unlink()
    mask, scan = folder / "labelsTr" / "case_0.nii.gz", folder / "imagesTr" / "case_0_0000.nii.gz"
    dataset = read_dataset(DataSource(scan, str(mask), label_map=made(liver=[5, 6])))
    assert dataset.labels == {"background": 0, "liver": 1}
    with pytest.raises(VolumeError, match="has no label 7"):
        read_dataset(DataSource(scan, str(mask), label_map=made(liver=7)))


def test_a_run_keeps_its_map_and_goes_on_with_it(tmp_path):
    folder, run = far_set(tmp_path / "far"), tmp_path / "run"
    config = replace(tiny_config(epochs=1), labels=made(liver=[5, 6], spleen=9))
    job = TrainingJob(folder, run, config)
    train(job, SERIAL)
    _, card = load_model(run)
    assert card.labels == NAMES
    assert card.config.labels == config.labels == read_config(run / "config.toml").labels
    assert read_label_map([str(run)]) == config.labels
    stored = read_config(run / "config.toml")
    with pytest.raises(CheckpointError, match=r"was trained with the table \[labels\]"):
        train(replace(job, config=replace(stored, labels=made(liver=5, spleen=9)), proceed=True), SERIAL)


@pytest.mark.parametrize("kind", ["dataset.json", "nothing"])
def test_a_reference_is_compared_by_the_map(tmp_path, kind):
    folder = far_set(tmp_path / "far")
    if kind == "nothing":
        (folder / "dataset.json").unlink()
    mask = save(tmp_path / "mask.nii.gz", labels(0))
    job = EvaluationJob(mask, folder / "labelsTr" / "case_0.nii.gz", label_map=made(liver=[5, 6], spleen=9))
    found = evaluate(job, SERIAL)
    assert found.dice == {"liver": 1.0, "spleen": 1.0}


def test_maps_of_a_command_line(tmp_path):
    expected = LabelsConfig((("liver", (5, "liver right")), ("spleen", (9,))))
    assert read_label_map(["liver=5,liver right", "spleen=9"]) == expected
    assert made(background=0, liver=[5, "liver right"], spleen=9) == expected
    path = tmp_path / "map.json"
    path.write_text(json.dumps(expected.as_table()))
    assert read_label_map([str(path)]) == expected
    toml = tmp_path / "settings.toml"
    toml.write_text('[labels]\nliver = [5, "liver right"]\nspleen = 9\n')
    assert read_label_map([str(toml)]) == read_config(toml).labels == expected
    assert parse_config(config_tables(read_config(toml)), "here").labels == expected
    assert "labels" not in config_tables(tiny_config())
    for texts, message in (
        (["liver=5", "liver=6"], "give a file, or NAME=5,6 once for each label"),
        ([str(tmp_path / "none.json")], "cannot be read"),
        ([str(tmp_path)], "cannot be read"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_label_map(texts)
    empty = Path(tmp_path / "empty.toml")
    empty.write_text("[model]\n")
    with pytest.raises(ConfigError, match=r"holds no \[labels\]"):
        read_label_map([str(empty)])
