"""Masks of several readers of one scan: how they are told from other files, and what most of them say."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from data_sets import nnunet_folder
from tiny import SERIAL, ct_like, save_nifti
from volseg.api import ingest
from volseg.config import Readers
from volseg.errors import VolumeError
from volseg.geometry import Box
from volseg.volumes.dataset import DataSource, read_dataset, reference_labels
from volseg.volumes.dataset.check import check_dataset
from volseg.volumes.readers import by_scan, majority


def test_majority_is_what_most_say_and_ties_are_the_first_ones():
    masks = [np.array(row, np.uint8) for row in ([1, 1, 2, 0, 3], [1, 0, 1, 0, 3], [0, 0, 3, 2, 9], [0, 2, 1, 2, 9])]
    assert majority(masks).tolist() == [1, 0, 1, 0, 3]
    assert majority(masks[::-1]).tolist() == [0, 0, 1, 2, 9]
    assert majority(masks[1:], ignore=9).tolist() == [0, 0, 1, 2, 3]
    assert majority(masks[2:], ignore=9).tolist() == [0, 0, 3, 2, 9]


def test_masks_are_told_by_their_names():
    masks = ["a_reader1", "a_reader2", "b", "c_rater-B", "c", "c_rater-A", "d_reader1", "e-seg01", "f_reader1"]
    assert by_scan(masks, {"a", "b", "c", "e", "f_reader1"}) == {
        "a": ["a_reader1", "a_reader2"], "b": ["b"], "c": ["c", "c_rater-A", "c_rater-B"], "d_reader1": ["d_reader1"],
        "e": ["e-seg01"], "f_reader1": ["f_reader1"],
    }  # fmt: skip


def with_readers(folder: Path, count: int = 3) -> Path:
    """nnU-Net's layout with labels of case_0 by several readers, each of whom has moved what the one before drew."""
    nnunet_folder(folder, cases=2)
    image = nib.load(folder / "labelsTr" / "case_0.nii.gz")
    voxels = np.asarray(image.dataobj)
    (folder / "labelsTr" / "case_0.nii.gz").unlink()
    for n in range(count):
        moved = nib.Nifti1Image(np.roll(voxels, n, 2), image.affine)
        nib.save(moved, folder / "labelsTr" / f"case_0_reader{n + 1}.nii.gz")
    return folder


def labels_of(source: Path, readers: Readers = "majority") -> tuple[np.ndarray, tuple[str, ...]]:
    dataset = read_dataset(DataSource(source, readers=readers))
    volume = dataset.open_labels(dataset.cases[0])
    return volume.read(Box.whole(volume.shape)), dataset.notes


def test_a_folder_with_a_mask_of_each_reader(tmp_path):
    folder = with_readers(tmp_path)
    masks = sorted((folder / "labelsTr").glob("case_0*"))
    arrays = [np.asarray(nib.load(mask).dataobj).T for mask in masks]
    dataset = read_dataset(folder)
    assert [case.name for case in dataset.cases] == ["case_0", "case_1"]
    assert dataset.cases[0].masks == tuple(masks)
    values, notes = labels_of(folder)
    assert np.array_equal(values, majority(arrays))
    assert "1 of 2 cases have masks of 3 readers: a voxel has the label that most of them give it" in notes[-1]
    assert np.array_equal(labels_of(folder, "first")[0], arrays[0])
    drawn = read_dataset(DataSource(folder, readers="random"))
    several = [volume.read(Box.whole(volume.shape)) for volume in drawn.open_readers(drawn.cases[0])]
    assert np.array_equal(several, arrays)
    assert drawn.open_readers(drawn.cases[1]) == ()
    assert check_dataset(DataSource(folder), SERIAL).is_sound


def test_a_list_of_labels_in_dataset_json(tmp_path):
    folder = with_readers(tmp_path)
    description = json.loads((folder / "dataset.json").read_text())
    rows = [
        {"image": "./imagesTr/case_0_0000.nii.gz", "label": [f"./labelsTr/case_0_reader{n}.nii.gz" for n in (2, 1)]},
        {"image": "./imagesTr/case_1_0000.nii.gz", "label": "./labelsTr/case_1.nii.gz"},
    ]
    (folder / "dataset.json").write_text(json.dumps(description | {"training": rows}))
    dataset = read_dataset(folder)
    names = [[mask.name for mask in case.masks] for case in dataset.cases]
    assert names == [["case_0_reader2.nii.gz", "case_0_reader1.nii.gz"], ["case_1.nii.gz"]]
    with pytest.raises(VolumeError, match="case_0 has masks of 2 readers, and a mask is compared with one reference"):
        reference_labels(folder)
    rows[0]["label"][1] = "./labelsTr/lost.nii.gz"
    (folder / "dataset.json").write_text(json.dumps(description | {"training": rows}))
    with pytest.raises(VolumeError, match=r"lost\.nii\.gz: missing, but dataset\.json lists it"):
        read_dataset(folder)


def test_masks_beside_images(tmp_path):
    for name in ("scan", "scan_labels_reader1", "scan_labels_reader2", "other", "other_rater_a", "other_rater_b"):
        voxels = ct_like() if name in ("scan", "other") else (ct_like() > 50).astype(np.uint8)
        save_nifti(tmp_path / f"{name}.nii.gz", voxels)
    dataset = read_dataset(tmp_path)
    assert {case.name: [mask.name for mask in case.masks] for case in dataset.cases} == {
        "other": ["other_rater_a.nii.gz", "other_rater_b.nii.gz"],
        "scan": ["scan_labels_reader1.nii.gz", "scan_labels_reader2.nii.gz"],
    }


def test_a_reader_with_another_grid_or_an_unknown_value_is_a_fault(tmp_path):
    folder = with_readers(tmp_path)
    path = folder / "labelsTr" / "case_0_reader3.nii.gz"
    image = nib.load(path)
    voxels = np.asarray(image.dataobj).copy()
    nib.save(nib.Nifti1Image(voxels, image.affine + np.diag([0, 0, 0.5, 0])), path)
    said = check_dataset(DataSource(folder), SERIAL).faults[0].message
    assert "case_0_reader3.nii.gz: labels of another reader of the same shape" in said
    voxels[0, 0, 0] = 7
    nib.save(nib.Nifti1Image(voxels, image.affine), path)
    said = check_dataset(DataSource(folder), SERIAL).faults[0].message
    assert "case_0_reader3.nii.gz: holds the label value(s) 7" in said


def test_masks_of_several_readers_are_brought_in_and_found_again(tmp_path):
    (tmp_path / "set").mkdir()
    image = save_nifti(tmp_path / "image.nii.gz", ct_like())
    masks = [save_nifti(tmp_path / f"{n}.nii.gz", (ct_like() > n * 50).astype(np.uint8)) for n in range(2)]
    report = ingest(image, tmp_path / "set" / "scan.nii.gz", labels=masks, communicator=SERIAL)
    names = ["scan_labels_reader1.nii.gz", "scan_labels_reader2.nii.gz"]
    assert [mask.path.name for mask in report.masks] == names
    assert [Path(name).name for name in json.loads(report.report.read_text())["labels"]] == names
    (case,) = read_dataset(tmp_path / "set").cases
    assert [mask.name for mask in case.masks] == names
