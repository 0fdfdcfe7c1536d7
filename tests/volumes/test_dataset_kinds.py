"""Data sets of other kinds than a plain nnU-Net folder: lists, 4-D images, ingested volumes, one scan."""

import json
import shutil

import numpy as np
import pytest

from data_sets import SIDES, decathlon_folder, describe, image, labels, nnunet_folder, save
from tiny import SERIAL
from volseg.errors import VolumeError
from volseg.geometry import Box
from volseg.volumes.dataset import DataSource, read_dataset, survey_dataset
from volseg.volumes.dataset.check import check_dataset
from volseg.volumes.image_file import ImageFile, count_channels
from volseg.volumes.ingest import IngestJob, ingest
from volseg.volumes.reading import open_volume


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_channel_of_a_4d_image_is_read_box_by_box(tmp_path, ending):
    stored = np.random.default_rng(0).integers(-900, 900, (3, *SIDES)).astype(np.int16)
    path = save(tmp_path / f"four{ending}", stored)
    assert count_channels(path) == 3
    box = Box((2, 1, 3), (SIDES[0], 7, 8))  # the last slices, so that the ends of channel and file are met
    for channel in (2, 0, 1):
        volume = ImageFile(path, channel).open()
        assert volume.shape == SIDES
        np.testing.assert_array_equal(volume.read(box), stored[(channel, *box.slices)])
    with pytest.raises(VolumeError, match=r"no channel 3"):
        open_volume(path, channel=3)
    with pytest.raises(VolumeError, match=r"a 4-D image .* of 3 volumes"):
        open_volume(path)


def test_a_4d_image_cut_short_is_told_whatever_channel_is_asked_for(tmp_path):
    path = save(tmp_path / "four.nii", np.zeros((2, *SIDES), np.int16))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(VolumeError, match="truncated"):
        open_volume(path, channel=0)
    path = save(tmp_path / "four.nii.gz", np.random.default_rng(0).integers(0, 999, (2, *SIDES)).astype(np.int16))
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(VolumeError, match="truncated"):
        open_volume(path, channel=1).read(Box.whole(SIDES))


def test_only_nifti_has_channels(tmp_path):
    (tmp_path / "x.zarr").mkdir()
    with pytest.raises(VolumeError, match="no NIfTI file"):
        open_volume(tmp_path / "x.zarr", channel=0)


def test_the_decathlon_s_list_is_followed(tmp_path):
    folder = decathlon_folder(tmp_path, modalities=("FLAIR", "T1w"))
    dataset = read_dataset(folder)
    assert dataset.channel_names == ("FLAIR", "T1w")
    assert dataset.labels == {"background": 0, "liver": 1, "spleen": 2}
    path = folder / "imagesTr" / "liver_1.nii.gz"
    assert dataset.cases[1].images == (ImageFile(path, 0), ImageFile(path, 1))
    assert dataset.cases[1].label == folder / "labelsTr" / "liver_1.nii.gz"
    np.testing.assert_array_equal(dataset.cases[1].images[1].open().read(Box.whole(SIDES)), image(1) * 2)


def test_without_a_list_4d_images_are_found_by_name(tmp_path):
    folder = decathlon_folder(tmp_path, modalities=("FLAIR", "T1w"))
    listed = json.loads((folder / "dataset.json").read_text())
    described = read_dataset(folder)
    describe(folder, **(listed | {"training": []}))
    assert read_dataset(folder).cases == described.cases


def test_a_decathlon_list_beside_nnunets_names(tmp_path):
    folder = nnunet_folder(tmp_path, cases=2, channels=("CT", "PET"))
    rows = [{"image": f"./imagesTr/case_{n}.nii.gz", "label": f"./labelsTr/case_{n}.nii.gz"} for n in (0, 1)]
    found = read_dataset(folder)
    describe(folder, modality={"0": "CT", "1": "PET"}, labels={"0": "bg", "1": "a", "2": "b"}, training=rows)
    assert read_dataset(folder).cases == found.cases


def test_nnunets_list_of_files_is_followed(tmp_path):
    image_path, label_path = (
        save(tmp_path / "far" / "a.nii.gz", image(0)),
        save(tmp_path / "far" / "b.nii.gz", labels(0)),
    )
    (tmp_path / "set").mkdir()
    entry = {"images": [str(image_path)], "label": "../far/b.nii.gz"}
    folder = describe(
        tmp_path / "set", channel_names={"0": "CT"}, labels={"background": 0, "a": 1, "b": 2}, numTraining=1,
        file_ending=".nii.gz", dataset={"first": entry},
    )  # fmt: skip
    (case,) = read_dataset(folder).cases
    assert (case.name, case.images[0].path) == ("first", image_path)
    assert case.label is not None
    assert case.label.resolve() == label_path


@pytest.mark.parametrize(
    ("entries", "kind", "message"),
    [
        ([("0", "0"), ("0", "0"), ("1", "1"), ("2", "2")], "duplicate", "lists case liver_0 2 times"),
        ([("0", "0"), ("1", "1"), ("2", "2"), ("7", "1x")], "missing image", "liver_7.nii.gz: missing"),
        ([("0", "0"), ("1", "1"), ("2", "8")], "missing labels", "liver_8.nii.gz: missing"),
        ([("0", "0"), ("1", "1")], "missing labels", "liver_2.nii.gz: dataset.json does not list it"),
    ],
)
def test_what_a_list_gets_wrong_is_named_and_the_rest_is_there(tmp_path, entries, kind, message):
    folder = decathlon_folder(tmp_path)
    rows = [{"image": f"imagesTr/liver_{i}.nii.gz", "label": f"labelsTr/liver_{n}.nii.gz"} for i, n in entries]
    listed = json.loads((folder / "dataset.json").read_text())
    describe(folder, **(listed | {"training": rows, "numTraining": len(rows)}))
    dataset, faults = survey_dataset(DataSource(folder))
    assert [fault.kind for fault in faults] == [kind]
    assert message in faults[0].message
    assert len(dataset.cases) >= 2
    with pytest.raises(VolumeError, match=message.split()[-1]):
        read_dataset(folder)


def test_a_list_that_is_none_is_refused(tmp_path):
    folder = decathlon_folder(tmp_path)
    listed = json.loads((folder / "dataset.json").read_text())
    describe(folder, **(listed | {"training": ["imagesTr/liver_0.nii.gz"]}))
    with pytest.raises(VolumeError, match="its list of cases is malformed"):
        read_dataset(folder)


def ingested(folder, names=("a", "b"), tables=None):
    """`volseg ingest IMAGE --labels MASK -o folder/NAME.zarr` of each, with these label names."""
    from volseg.volumes.label_table import LabelTable
    from volseg.volumes.writing import write_volume

    folder.mkdir(exist_ok=True)
    for seed, name in enumerate(names):
        scan = save(folder / "in" / f"{name}.nii.gz", image(seed))
        mask = save(folder / "in" / f"{name}_seg.nii.gz", labels(seed))
        if tables is not None:
            space, voxels = open_volume(mask).space, labels(seed)
            write_volume(
                mask, space, "u1", lambda units, v=voxels: v[units[0].box.slices], SERIAL, overwrite=True,
                labels=LabelTable(tables[seed]),
            )  # fmt: skip
        ingest(IngestJob(scan, folder / f"{name}.zarr", mask), SERIAL)
    return folder


def test_a_folder_of_ingested_zarr_needs_no_dataset_json(tmp_path):
    folder = ingested(tmp_path / "set", tables=[{"liver": 1, "spleen": 2}] * 2)
    dataset = read_dataset(folder)
    assert [case.name for case in dataset.cases] == ["a", "b"]
    assert dataset.labels == {"background": 0, "liver": 1, "spleen": 2}
    assert dataset.channel_names == ("CT",)
    assert "taken for CT" in dataset.notes[0]
    assert read_dataset(DataSource(folder, channel_names=("MR",))).channel_names == ("MR",)
    assert read_dataset(DataSource(folder, channel_names=("MR",))).notes == ()


def test_names_that_disagree_are_refused_and_those_that_add_up_are_not(tmp_path):
    folder = ingested(tmp_path / "more", tables=[{"liver": 1}, {"liver": 1, "spleen": 2}])
    assert read_dataset(folder).labels == {"background": 0, "liver": 1, "spleen": 2}
    folder = ingested(tmp_path / "set", tables=[{"liver": 1, "spleen": 2}, {"spleen": 1, "liver": 2}])
    with pytest.raises(VolumeError, match=r"b_labels.zarr: calls '(liver|spleen)' what is \d, but in .*a_labels.zarr"):
        read_dataset(folder)
    folder = ingested(tmp_path / "other", tables=[{"liver": 1}, {"kidney": 1}])
    with pytest.raises(VolumeError, match=r"label 1 is 'kidney', but in .* it is 'liver'"):
        read_dataset(folder)
    (tmp_path / "names.json").write_text('{"organ": 1, "other": 2}')
    named = read_dataset(DataSource(folder, label_names=tmp_path / "names.json"))
    assert named.labels == {"background": 0, "organ": 1, "other": 2}


def test_without_names_the_values_are_the_names(tmp_path):
    folder = ingested(tmp_path / "set")
    assert read_dataset(folder).labels == {"background": 0, "label 1": 1, "label 2": 2}


def test_labels_inside_the_store(tmp_path):
    folder = ingested(tmp_path / "set", names=("a",))
    inside = folder / "a.zarr" / "labels"
    inside.mkdir()
    (folder / "a_labels.zarr").rename(inside / "organs")
    assert read_dataset(folder).cases[0].label == inside / "organs"
    assert read_dataset(folder / "a.zarr").cases[0].label == inside / "organs"  # the one scan
    (inside / "organs").rename(folder / "spare")
    for name in ("one", "two"):
        shutil.copytree(folder / "spare", inside / name)
    with pytest.raises(VolumeError, match=r"several labels \(one, two\)"):
        read_dataset(folder)
    assert read_dataset(DataSource(folder, labels="two")).cases[0].label == inside / "two"
    (folder / "spare").rename(folder / "a_labels.zarr")  # beside it: those inside may be masks of segment
    assert read_dataset(folder).cases[0].label == folder / "a_labels.zarr"
    assert read_dataset(DataSource(folder, labels="two")).cases[0].label == inside / "two"


def test_an_ingested_volume_without_labels_is_named(tmp_path):
    folder = ingested(tmp_path / "set")
    (folder / "b_labels.zarr").rename(folder / "c_labels.zarr")
    _, faults = survey_dataset(DataSource(folder))
    assert {(fault.case, fault.kind) for fault in faults} == {("b", "missing labels"), ("c_labels", "missing image")}


def test_one_scan_with_its_labels(tmp_path):
    scan, mask = save(tmp_path / "scan.nii.gz", image(0)), save(tmp_path / "mask.nii.gz", labels(0))
    dataset = read_dataset(DataSource(scan, labels=str(mask)))
    assert [(case.name, case.images, case.label) for case in dataset.cases] == [("scan", (ImageFile(scan),), mask)]
    assert dataset.labels == {"background": 0, "label 1": 1, "label 2": 2}
    with pytest.raises(VolumeError, match=r"one scan is no data set; give the file of its labels with --labels"):
        read_dataset(scan)
    with pytest.raises(VolumeError, match=r"no labels none.nii; give"):
        read_dataset(DataSource(scan, labels="none.nii"))
    with pytest.raises(VolumeError, match=r"1 image channel\(s\), but --channels names 2"):
        read_dataset(DataSource(scan, labels=str(mask), channel_names=("CT", "PET")))
    with pytest.raises(VolumeError, match=r"are no labels; is this an image\?"):
        read_dataset(DataSource(scan, labels=str(scan)))


def test_values_with_a_gap_need_names(tmp_path):
    scan, mask = save(tmp_path / "scan.nii.gz", image(0)), save(tmp_path / "mask.nii.gz", labels(0) * 3)
    with pytest.raises(VolumeError, match=r"the values found are 0, 3, 6; they must run 0, 1, 2, .*--label-names"):
        read_dataset(DataSource(scan, labels=str(mask)))


def test_options_that_dataset_json_answers_are_refused(tmp_path):
    folder = nnunet_folder(tmp_path)
    with pytest.raises(VolumeError, match=r"has a dataset.json, .* leave --channels out"):
        read_dataset(DataSource(folder, channel_names=("CT",)))


def test_two_files_of_one_volume_are_a_fault(tmp_path):
    """Only one of them would be seen."""
    for name in ("a", "b"):
        save(tmp_path / f"{name}.nii.gz", image(1))
        save(tmp_path / f"{name}_labels.nii.gz", labels(1))
    save(tmp_path / "a.nii", image(2))
    _, faults = survey_dataset(DataSource(tmp_path))
    assert [(fault.case, fault.kind, fault.serious) for fault in faults] == [("a", "duplicate", True)]
    with pytest.raises(VolumeError, match=r"a.nii.gz and a.nii are both volume a; keep one"):
        read_dataset(tmp_path)


def test_files_of_another_ending_are_a_warning(tmp_path):
    folder = nnunet_folder(tmp_path / "set", cases=2)
    save(folder / "imagesTr" / "case_9_0000.nii", image(9))
    dataset, faults = survey_dataset(DataSource(folder))
    assert [(fault.kind, fault.serious) for fault in faults] == [("ignored", False)]
    assert "imagesTr: 1 files do not end in .nii.gz" in faults[0].message
    assert "case_9_0000.nii" in faults[0].message
    assert read_dataset(folder) == dataset
    report = check_dataset(DataSource(folder), SERIAL)
    assert report.is_sound
    assert "ignored" in [fault.kind for fault in report.faults]
