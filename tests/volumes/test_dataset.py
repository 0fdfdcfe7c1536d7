"""nnU-Net folders: what is found, and what is refused by name."""

import json

import numpy as np
import pytest

from volseg.errors import VolsegError, VolumeError
from volseg.volumes.dataset import (
    check_labels,
    read_dataset,
    read_label_names,
    write_dataset_json,
)
from volseg.volumes.image_file import ImageFile

LABELS = {"background": 0, "liver": 1, "spleen": 2}


@pytest.fixture
def folder(tmp_path):
    """Two cases with two channels; files are empty, as reading a data set opens none."""
    for name in ("imagesTr", "labelsTr"):
        (tmp_path / name).mkdir()
    for case in ("b", "a"):
        (tmp_path / "labelsTr" / f"{case}.nii.gz").touch()
        for channel in range(2):
            (tmp_path / "imagesTr" / f"{case}_{channel:04d}.nii.gz").touch()
    write_dataset_json(tmp_path, channel_names=("CT", "PET"), labels=LABELS, cases=2, file_ending=".nii.gz")
    return tmp_path


def edit(folder, **changes):
    path = folder / "dataset.json"
    description = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in description.items() if v is not None}))


def test_reads_what_was_written(folder):
    dataset = read_dataset(folder)
    assert dataset.channel_names == ("CT", "PET")
    assert dataset.labels == LABELS
    assert dataset.label_names == ("background", "liver", "spleen")
    assert [case.name for case in dataset.cases] == ["a", "b"]
    assert dataset.cases[0].images == tuple(ImageFile(folder / "imagesTr" / f"a_000{c}.nii.gz") for c in (0, 1))
    assert dataset.cases[0].label == folder / "labelsTr" / "a.nii.gz"


def test_dataset_json_is_nnunets(folder):
    assert json.loads((folder / "dataset.json").read_text()) == {
        "channel_names": {"0": "CT", "1": "PET"},
        "labels": LABELS,
        "numTraining": 2,
        "file_ending": ".nii.gz",
    }
    assert not [p for p in folder.iterdir() if "partial" in p.name]


def test_hidden_files_are_no_cases(folder):
    (folder / "labelsTr" / "._a.nii.gz").touch()
    assert len(read_dataset(folder).cases) == 2


def test_masks_that_segment_wrote_beside_the_images_are_no_cases(folder):
    for end in ("_mask", "_mask_probabilities"):
        (folder / "imagesTr" / f"a_0000{end}.nii.gz").touch()
    assert [case.name for case in read_dataset(folder).cases] == ["a", "b"]
    (folder / "imagesTr" / "c_mask.nii.gz").touch()  # of no image here: perhaps somebody's case
    with pytest.raises(VolumeError, match=r"c_mask.nii.gz: belongs to no case"):
        read_dataset(folder)


def test_zarr_folders_are_cases(folder):
    for path in list(folder.glob("*Tr/*")):
        path.unlink()
        path.with_name(path.name.replace(".nii.gz", ".zarr")).mkdir()
    edit(folder, file_ending=".zarr")
    assert [case.name for case in read_dataset(folder).cases] == ["a", "b"]


def test_decathlon_layout(tmp_path):
    for name in ("imagesTr", "labelsTr"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "liver_1.nii.gz").touch()
    description = {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "liver"}, "numTraining": 1}
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    dataset = read_dataset(tmp_path)
    assert dataset.labels == {"background": 0, "liver": 1}
    assert dataset.cases[0].images == (ImageFile(tmp_path / "imagesTr" / "liver_1.nii.gz"),)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": None}, 'no "labels"'),
        ({"labels": {"background": 0, "all": [1, 2]}}, "region"),
        ({"labels": {"background": 0, "liver": "x"}}, "whole number"),
        ({"labels": {"background": 0, "liver": 2}}, "without a gap"),
        ({"labels": {"background": 0, "liver": 1, "spleen": 1}}, "repeat"),
        ({"labels": LABELS | {"ignore": 1}}, "ignore.*above all others; it has 1, the others go up to 2"),
        ({"labels": {"background": 0, "liver": 1.5}}, "whole number"),
        (
            {"channel_names": {"1": "CT", "2": "PET"}},
            'as their files are: {"0": "CT", "1": "PET"}',
        ),
        ({"channel_names": None}, "channel_names"),
        ({"channel_names": {"1": "CT"}}, "channel_names"),
        ({"channel_names": {"0": "CT"}}, "belongs to no case"),
        ({"channel_names": {"0": "CT", "1": "PET", "2": "MR"}}, "a_0002.nii.gz is missing"),
        ({"file_ending": ".mnc"}, "file_ending"),
        ({"numTraining": 3}, "numTraining 3"),
    ],
)
def test_a_wrong_description_is_named(folder, changes, message):
    edit(folder, **changes)
    with pytest.raises(VolumeError, match=message):
        read_dataset(folder)


def test_missing_parts_are_named(folder):
    with pytest.raises(VolumeError, match="no such data set"):
        read_dataset(folder / "nowhere")
    (folder / "imagesTr" / "a_0001.nii.gz").unlink()
    with pytest.raises(VolumeError, match=r"case a has labels, but imagesTr/a_0001.nii.gz is missing"):
        read_dataset(folder)
    (folder / "labelsTr" / "a.nii.gz").unlink()
    with pytest.raises(VolumeError, match=r"a_0000.nii.gz: belongs to no case"):
        read_dataset(folder)
    for path in folder.glob("labelsTr/*"):
        path.unlink()
    with pytest.raises(VolumeError, match="no case"):
        read_dataset(folder)
    (folder / "labelsTr").rmdir()
    with pytest.raises(VolumeError, match="no labelsTr/"):
        read_dataset(folder)
    (folder / "dataset.json").write_text("{")
    with pytest.raises(VolumeError, match="not valid JSON"):
        read_dataset(folder)
    (folder / "dataset.json").write_text("[]")
    with pytest.raises(VolumeError, match="no JSON object"):
        read_dataset(folder)
    (folder / "dataset.json").unlink()
    with pytest.raises(VolumeError, match=r"no dataset\.json"):
        read_dataset(folder)


def test_label_names_from_a_plain_object_or_a_dataset(folder, tmp_path):
    plain = tmp_path / "labels.json"
    plain.write_text('{"spleen": 2, "liver": 1}')
    assert list(read_label_names(plain).items()) == [("background", 0), ("liver", 1), ("spleen", 2)]
    assert read_label_names(folder / "dataset.json") == LABELS
    with pytest.raises(VolumeError, match="cannot be read"):
        read_label_names(tmp_path / "none.json")


def test_write_into_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(VolsegError, match="cannot write"):
        write_dataset_json(tmp_path / "x", channel_names=("CT",), labels=LABELS, cases=1, file_ending=".nii")


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_labels_within_the_list_pass(dtype):
    check_labels(np.array([0, 1, 2], dtype=dtype), LABELS, "x")
    check_labels(np.array([], dtype=dtype), LABELS, "x")


@pytest.mark.parametrize(
    ("values", "shown"),
    [([0, 3], "3"), (np.array([-1, 1], np.int8), "-1"), ([0.5, 1.0], r"0\.5"), ([np.nan, 1.0], "nan")],
)
def test_other_labels_are_named(values, shown):
    with pytest.raises(VolumeError, match=rf"x: holds the label value\(s\) {shown};"):
        check_labels(np.asarray(values), LABELS, "x")
