"""Data sets of other kinds than a plain nnU-Net folder: lists, 4-D images, ingested volumes, one scan."""

import json
import shutil
import subprocess

import numpy as np
import pytest

from data_sets import NAMES, SIDES, copy_case, decathlon_folder, describe, image, labels, nnunet_folder, save
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
        ingest(IngestJob(scan, folder / f"{name}.zarr", (mask,)), SERIAL)
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


def test_endings_in_capitals_are_read_as_what_they_are(tmp_path):
    folder = nnunet_folder(tmp_path / "set", cases=2)
    for path in list(folder.glob("*Tr/case_1*")):
        path.rename(path.with_name(path.name.replace(".nii.gz", ".NII.GZ")))
    dataset = read_dataset(folder)
    assert [case.name for case in dataset.cases] == ["case_0", "case_1"]
    assert dataset.cases[1].images[0].path.name == "case_1_0000.NII.GZ"
    assert dataset.cases[1].images[0].open().shape == labels(1).shape
    describe(folder, channel_names={"0": "CT"}, labels=NAMES, file_ending=".NII.GZ")
    assert len(read_dataset(folder).cases) == 2
    copy_case(folder, "case_0", "case_1")  # beside the capitals: two files of one case
    with pytest.raises(VolumeError, match=r"case_1_0000.nii.gz are both volume case_1_0000; keep one"):
        read_dataset(folder)


def test_a_folder_of_volumes_in_capitals_and_of_other_formats(tmp_path):
    for name in ("a", "b"):
        save(tmp_path / f"{name}.nii.gz", image(1))
        save(tmp_path / f"{name}_labels.nii.gz", labels(1))
    for end in ("", "_labels"):
        (tmp_path / f"b{end}.nii.gz").rename(tmp_path / f"b{end}.NII.GZ")
    (tmp_path / "c.mnc").touch()
    dataset, faults = survey_dataset(DataSource(tmp_path))
    assert [case.name for case in dataset.cases] == ["a", "b"]
    assert [(fault.kind, fault.serious) for fault in faults] == [("ignored", False)]
    assert "c.mnc" in faults[0].message
    assert read_dataset(tmp_path).warnings == (faults[0].message,)  # which train says too


@pytest.mark.parametrize("end", ["_seg", "-labels", "_label", "_Segmentation", "_gt"])
def test_labels_by_other_names_are_taken_and_it_is_said(tmp_path, end):
    for name in ("a", "b"):
        save(tmp_path / f"{name}.nii.gz", image(1))
        save(tmp_path / f"{name}{end}.nii.gz", labels(1))
    dataset = read_dataset(tmp_path)
    assert [case.label.name for case in dataset.cases] == [f"a{end}.nii.gz", f"b{end}.nii.gz"]
    assert any(f"labels are taken from CASE{end.lower()}" in note for note in dataset.notes)


def test_of_several_labels_the_one_called_labels_wins_else_none_does(tmp_path):
    save(tmp_path / "a.nii.gz", image(1))
    save(tmp_path / "a_seg.nii.gz", labels(1))
    save(tmp_path / "a_gt.nii.gz", labels(2))
    with pytest.raises(VolumeError, match=r"several labels \(.*\); rename the right one to a_labels.nii.gz"):
        read_dataset(tmp_path)
    (tmp_path / "a_gt.nii.gz").rename(tmp_path / "a_labels.nii.gz")
    dataset = read_dataset(tmp_path)
    assert [case.label.name for case in dataset.cases] == ["a_labels.nii.gz"]
    assert "a_seg.nii.gz passed over" in dataset.warnings[0]


def test_a_mask_is_never_taken_for_labels_and_the_remedy_works(tmp_path):
    for name in ("a", "b"):
        save(tmp_path / f"{name}.nii.gz", image(1))
        save(tmp_path / f"{name}_mask.nii.gz", labels(1))
    with pytest.raises(VolumeError, match=r"a_mask.nii.gz is called as volseg segment calls its masks") as raised:
        read_dataset(tmp_path)
    command = str(raised.value).split("all of them: ")[1]
    subprocess.run(["bash", "-c", command], check=True)
    assert [case.label.name for case in read_dataset(tmp_path).cases] == ["a_labels.nii.gz", "b_labels.nii.gz"]


@pytest.mark.parametrize("folder_of", ["/nas/x/", "C:\\data\\"])
def test_a_list_of_another_machine_is_followed_by_name(tmp_path, folder_of):
    folder = nnunet_folder(tmp_path / "set", cases=3)
    rows = [
        {"image": f"{folder_of}imagesTr/case_{n}_0000.nii.gz", "label": f"{folder_of}labelsTr/case_{n}.nii.gz"}
        for n in range(3)
    ]
    described = json.loads((folder / "dataset.json").read_text()) | {"training": rows, "numTraining": "3"}
    describe(folder, **described)
    dataset = read_dataset(folder)
    assert [case.images[0].path for case in dataset.cases] == [
        folder / "imagesTr" / f"case_{n}_0000.nii.gz" for n in range(3)
    ]
    assert [case.label.name for case in dataset.cases] == [f"case_{n}.nii.gz" for n in range(3)]
    assert "those of that name in imagesTr/ and labelsTr/ are taken" in dataset.notes[0]
    (folder / "imagesTr" / "case_1_0000.nii.gz").unlink()
    (folder / "labelsTr" / "case_2.nii.gz").unlink()
    _, faults = survey_dataset(DataSource(folder))
    assert [(fault.case, fault.kind) for fault in faults] == [("case_1", "missing image"), ("case_2", "missing labels")]


def test_dataset_json_stands_for_its_folder_and_a_part_names_it(tmp_path):
    folder = nnunet_folder(tmp_path / "set", cases=1)
    assert read_dataset(folder / "dataset.json") == read_dataset(folder)
    for part in ("imagesTr", "labelsTr"):
        with pytest.raises(VolumeError, match=f"{part}: a part of the data set {folder}; give that"):
            read_dataset(folder / part)


def test_a_set_in_a_folder_is_named(tmp_path):
    folder = nnunet_folder(tmp_path / "outer" / "set", cases=1)
    with pytest.raises(VolumeError, match=f"there is a data set in it: give {folder}"):
        read_dataset(tmp_path / "outer")
    describe(tmp_path / "outer", channel_names={"0": "CT"}, labels=NAMES)
    with pytest.raises(VolumeError, match=f"no imagesTr/ in it.*give {folder}"):
        read_dataset(tmp_path / "outer")
    (folder / "dataset.json").unlink()
    with pytest.raises(VolumeError, match=r"imagesTr/ and labelsTr/, but no dataset.json; write one, such as"):
        read_dataset(folder)


def test_names_that_differ_in_case_alone_are_told(tmp_path):
    folder = nnunet_folder(tmp_path / "set", cases=1)
    (folder / "imagesTr" / "case_0_0000.nii.gz").rename(folder / "imagesTr" / "Case_0_0000.nii.gz")
    _, faults = survey_dataset(DataSource(folder))
    assert [fault.kind for fault in faults] == ["missing image"]
    assert "Case_0_0000.nii.gz differs in upper and lower case alone" in faults[0].message


@pytest.mark.parametrize("name", ["dataset.json.txt", "Dataset.JSON"])
def test_what_is_called_alike_is_named(tmp_path, name):
    folder = nnunet_folder(tmp_path / "set", cases=1)
    (folder / "dataset.json").rename(folder / name)
    with pytest.raises(VolumeError, match=f"there is {name}: rename it to dataset.json"):
        read_dataset(folder)
    (folder / name).rename(folder / "dataset.json")
    (folder / "labelsTr").rename(folder / "LabelsTr")
    with pytest.raises(VolumeError, match="there is LabelsTr: rename it to labelsTr"):
        read_dataset(folder)
