"""`check`: each planted fault is found, all of them in one go, the same on any number of ranks."""

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import dicom_files
from data_sets import NAMES, change, copy_case, cut_short, describe, move, nnunet_folder, save
from dicom_files import series_datasets, stored_values
from tiny import SERIAL
from volseg.errors import VolumeError
from volseg.volumes.dataset import DataSource, read_dataset
from volseg.volumes.dataset.check import check_dataset
from volseg.volumes.dataset.examination import examine
from volseg.volumes.reading import open_volume


def image_of(folder, case=1, channel=0):
    return folder / "imagesTr" / f"case_{case}_{channel:04d}.nii.gz"


def label_of(folder, case=1):
    return folder / "labelsTr" / f"case_{case}.nii.gz"


def put(value, dtype=None):
    def edit(array):
        array = array if dtype is None else array.astype(dtype)
        array[4, 5, 6] = value
        return array

    return edit


def describe_again(folder, **changes):
    describe(folder, **(json.loads((folder / "dataset.json").read_text()) | changes))


def exchange(one, other):
    kept = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(kept)


PLANTED = {  # name: what is done to a sound folder; then case, kind, and words of the message
    "image without labels": (lambda f: label_of(f).unlink(), "case_1", "missing labels", "belongs to no case"),
    "labels without image": (lambda f: image_of(f).unlink(), "case_1", "missing image", "_0000.nii.gz is missing"),
    "other shape": (
        lambda f: change(label_of(f), lambda a: a[:, :, :-1]), "case_1", "geometry", "labels of 11x10x8 voxels",
    ),
    "other place": (lambda f: move(label_of(f), 3.0), "case_1", "geometry", "up to 3 mm off"),
    "label outside the list": (
        lambda f: change(label_of(f), put(7)), "case_1", "outside the list", r"label value(s) 7; the labels named",
    ),
    "half a label": (
        lambda f: change(label_of(f), put(0.5, np.float32)), "case_1", "no whole numbers", "it holds 0.5",
    ),
    "NaN": (
        lambda f: change(image_of(f), put(np.nan, np.float32)), "case_1", "not finite", "the first at D x H x W 6x5x4",
    ),
    "constant image": (
        lambda f: change(image_of(f), lambda a: a * 0 + 3), "case_1", "constant image", "every voxel is 3, a constant",
    ),
    "empty labels": (lambda f: change(label_of(f), lambda a: a * 0), "case_1", "empty labels", "background alone"),
    "truncated file": (lambda f: cut_short(image_of(f)), "case_1", "unreadable", "truncated"),
    "no NIfTI": (lambda f: label_of(f).write_bytes(b"text"), "case_1", "unreadable", "not a readable NIfTI"),
    "an image for labels": (
        lambda f: shutil.copy(image_of(f), label_of(f)), "case_1", "outside the list", "is this an image?",
    ),
    "image and labels exchanged": (
        lambda f: exchange(image_of(f), label_of(f)), "case_1", "outside the list",
        "_0000.nii.gz holds nothing but whole numbers from 0 to 2: image and labels are exchanged",
    ),
    "a link to nowhere": (
        lambda f: (label_of(f).unlink(), label_of(f).symlink_to("/annex/objects/x.nii.gz")), "case_1", "unreadable",
        "a link to /annex/objects/x.nii.gz, which is not there",
    ),
    "numTraining": (lambda f: describe_again(f, numTraining=5), "", "numTraining", "numTraining 5, labelsTr/ holds 3"),
    "one image twice": (
        lambda f: (copy_case(f, "case_1", "twin"), describe_again(f, numTraining=4)), "twin", "duplicate",
        "the same image as case case_1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_the_only_one_found(tmp_path, name):
    plant, case, kind, words = PLANTED[name]
    plant(nnunet_folder(tmp_path))
    report = check_dataset(DataSource(tmp_path), SERIAL)
    assert [(fault.case, fault.kind, fault.serious) for fault in report.faults] == [(case, kind, True)]
    assert words in report.faults[0].message
    assert not report.is_sound


def test_an_origin_that_differs_is_told(tmp_path):
    move(label_of(nnunet_folder(tmp_path)), 3.0)
    (fault,) = check_dataset(DataSource(tmp_path), SERIAL).faults
    assert "it begins at (x, y, z) (3, 0, 0) mm, not at (0, 0, 0) mm; correct the origin in the header" in fault.message


def test_where_every_case_lacks_a_channel_the_names_may_be_wrong(tmp_path):
    folder, said = nnunet_folder(tmp_path), []
    describe_again(folder, channel_names={"0": "CT", "1": "PET"})
    report = check_dataset(DataSource(folder), SERIAL, said.append)
    assert [fault.kind for fault in report.faults] == ["missing image"] * 3
    assert any("channel_names in dataset.json may name more" in event.text for event in said)
    with pytest.raises(VolumeError, match=r"is missing \(`volseg check .*` shows all faults\)"):
        read_dataset(folder)


def test_a_sound_set_has_no_faults(tmp_path):
    report = check_dataset(DataSource(nnunet_folder(tmp_path, channels=("CT", "PET"))), SERIAL)
    assert report.faults == ()
    assert report.is_sound
    assert [case.name for case in report.fingerprint.cases] == ["case_0", "case_1", "case_2"]


def test_a_channel_on_another_grid_is_a_fault(tmp_path):
    folder = nnunet_folder(tmp_path, channels=("CT", "PET"))
    move(image_of(folder, 2, 1), 1.0)
    (fault,) = check_dataset(DataSource(folder), SERIAL).faults
    assert (fault.case, fault.kind) == ("case_2", "geometry")
    assert "case_2_0001.nii.gz: a channel of the same shape" in fault.message


def test_a_missing_channel_is_a_fault(tmp_path):
    folder = nnunet_folder(tmp_path, channels=("CT", "PET"))
    image_of(folder, 0, 1).unlink()
    faults = check_dataset(DataSource(folder), SERIAL).faults
    assert [(fault.case, fault.kind) for fault in faults] == [("case_0", "missing image")]


def test_other_labels_are_judged_although_the_grid_differs(tmp_path):
    folder = nnunet_folder(tmp_path)
    change(label_of(folder), put(9))
    move(label_of(folder), 3.0)
    faults = check_dataset(DataSource(folder), SERIAL).faults
    assert [fault.kind for fault in faults] == ["geometry", "outside the list"]


def test_empty_labels_may_be_meant(tmp_path):
    folder = nnunet_folder(tmp_path)
    change(label_of(folder), lambda a: a * 0)
    report = check_dataset(DataSource(folder), SERIAL, allow_empty=True)
    assert [(fault.kind, fault.serious) for fault in report.faults] == [("empty labels", False)]
    assert report.is_sound
    for case in (0, 2):
        change(label_of(folder, case), lambda a: a * 0)
    report = check_dataset(DataSource(folder), SERIAL, allow_empty=True)
    assert next(fault for fault in report.faults if fault.serious).message.endswith("check the label files")
    assert not report.is_sound


def test_a_label_that_no_case_has_is_a_warning(tmp_path):
    folder = nnunet_folder(tmp_path)
    describe_again(folder, labels=NAMES | {"gallbladder": 3})
    report = check_dataset(DataSource(folder), SERIAL)
    assert [(fault.kind, fault.serious) for fault in report.faults] == [("unused label", False)]
    assert report.faults[0].message.endswith("in no case occur the labels gallbladder (3)")
    describe_again(folder, labels=NAMES | {f"rib_{n}": n for n in range(3, 20)})
    (fault,) = check_dataset(DataSource(folder), SERIAL).faults
    assert fault.message.endswith("rib_10 (10) and 9 more")


def test_what_is_no_data_set_is_an_error(tmp_path):
    with pytest.raises(VolumeError, match="no such data set"):
        check_dataset(DataSource(tmp_path / "none"), SERIAL)


@pytest.mark.parallel([1, 2, 4])
@pytest.mark.parametrize("dtype", ["i2", "f4"])
def test_all_faults_at_once_are_the_same_on_any_number_of_ranks(tmp_path, communicator, dtype):
    """Three cases, so that with four ranks several share none; two, so that ranks share the slices of one."""
    folder = Path(communicator.broadcast(str(tmp_path)))
    if communicator.is_root:
        for cases in (2, 6):
            part = nnunet_folder(folder / str(cases), cases=cases)
            for number in range(cases):
                change(image_of(part, number), lambda a: a.astype(dtype) / (1 if dtype == "i2" else 7))
            change(label_of(part, 0), put(7))
        for plant in ("truncated file", "numTraining"):
            PLANTED[plant][0](folder / "6")
        change(image_of(folder / "6", 3), put(np.nan, np.float32))
        move(label_of(folder / "6", 4), 3.0)
    communicator.barrier()
    for cases in (2, 6):
        together = check_dataset(DataSource(folder / str(cases)), communicator)
        alone = check_dataset(DataSource(folder / str(cases)), SERIAL)
        assert together == alone
    assert [fault.case for fault in alone.faults] == ["case_0", "case_1", "case_3", "case_4", ""]
    assert [case.name for case in alone.fingerprint.cases] == ["case_2", "case_5"]
    communicator.barrier()


@pytest.mark.parametrize("ending", [".nii.gz", ".nii"])
def test_the_pieces_that_are_read_do_not_matter(tmp_path, monkeypatch, ending):
    """Tiny pieces (slices of a compressed file, bricks of another), and what other shares of the ranks find."""
    folder = nnunet_folder(tmp_path / "set", cases=2)
    shape = (37, 70, 9)
    for case in (0, 1):
        values = np.random.default_rng(case).normal(size=shape).astype(np.float32)
        values[5, 40, 3] = values[34, 2, 1] = np.nan if case else 1
        image_of(folder, case).unlink()
        label_of(folder, case).unlink()
        save(folder / "imagesTr" / f"case_{case}_0000{ending}", values)
        save(folder / "labelsTr" / f"case_{case}{ending}", (np.arange(np.prod(shape)) % 3).reshape(shape).astype("u1"))
    describe_again(folder, file_ending=ending, numTraining=2)
    whole = check_dataset(DataSource(folder), SERIAL)
    assert [fault.kind for fault in whole.faults] == ["not finite"]
    assert "2 voxels are NaN or infinite, the first at D x H x W 5x40x3" in whole.faults[0].message
    monkeypatch.setattr("volseg.volumes.dataset.examination.PIECE_VOXELS", 1)
    assert check_dataset(DataSource(folder), SERIAL) == whole


def test_a_copy_in_another_format_is_the_same_image(tmp_path):
    folder = nnunet_folder(tmp_path / "set", cases=2)
    first = examine(read_dataset(folder), SERIAL).fingerprint
    for file in [*(folder / "imagesTr").iterdir(), *(folder / "labelsTr").iterdir()]:
        nib.save(nib.load(file), str(file).removesuffix(".gz"))
    describe_again(folder, file_ending=".nii")
    assert examine(read_dataset(folder), SERIAL).fingerprint == first


def test_a_label_that_rounding_made_a_fraction_is_that_label(tmp_path):
    folder = nnunet_folder(tmp_path / "set")
    change(label_of(folder), lambda a: a.astype(np.float32) * np.float32(1.0000001) + np.float32(1e-4) * (a > 0))
    report = check_dataset(DataSource(folder), SERIAL)
    (fault,) = report.faults
    assert (fault.kind, fault.serious) == ("doubtful labels", False)
    assert fault.message.endswith("labels that a scale factor left within 0.001 of whole numbers are rounded")
    sound = nnunet_folder(tmp_path / "sound")
    assert report.fingerprint == check_dataset(DataSource(sound), SERIAL).fingerprint


def test_voxels_that_nobody_labelled_are_counted_apart(tmp_path):
    folder = nnunet_folder(tmp_path / "set")
    before = check_dataset(DataSource(folder), SERIAL).fingerprint

    def forget(array):
        array[0, 0, 0] = 3  # of the background

    change(label_of(folder), forget)
    describe_again(folder, labels=NAMES | {"ignore": 3})
    report = check_dataset(DataSource(folder), SERIAL)
    assert report.faults == ()
    assert report.dataset.labels == NAMES
    assert [case.ignored for case in report.fingerprint.cases] == [0, 1, 0]
    assert sum(report.fingerprint.voxels) == sum(before.voxels) - 1
    assert report.fingerprint.intensities == before.intensities


def test_labels_of_another_case_are_told_by_their_grid(tmp_path):
    folder = nnunet_folder(tmp_path / "set")
    for path in (image_of(folder, 2), label_of(folder, 2)):
        change(path, lambda a: a[:, :, :-1])
    exchange(label_of(folder, 1), label_of(folder, 2))
    messages = {fault.case: fault.message for fault in check_dataset(DataSource(folder), SERIAL).faults}
    assert "they lie on the grid of case case_1: are they its labels?" not in messages["case_1"]
    assert messages["case_1"].endswith("they lie on the grid of case case_2: are they its labels?")
    assert "they lie on the grid" not in messages["case_2"]  # two cases have that grid


def test_more_labels_than_can_be_trained_are_a_fault_and_train_says_the_same(tmp_path):
    folder = nnunet_folder(tmp_path / "set")
    names = {"background": 0} | {f"r{n}": n for n in range(1, 254)}
    describe_again(folder, labels=names)
    assert check_dataset(DataSource(folder), SERIAL).is_sound  # 254 of them: unused labels are a warning
    describe_again(folder, labels=names | {"r254": 254})
    (fault,) = [fault for fault in check_dataset(DataSource(folder), SERIAL).faults if fault.serious]
    assert fault.kind == "too many labels"
    assert "255 labels with the background; volseg trains 254 at most" in fault.message
    with pytest.raises(VolumeError, match="255 labels with the background; volseg trains 254 at most"):
        read_dataset(folder)


def test_what_a_dicom_scan_leaves_out_is_a_warning(tmp_path):
    datasets = series_datasets(stored_values((6, 8, 8)))
    for ds in datasets:
        ds.SliceThickness = 2
    datasets[-1].ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    scan = open_volume(dicom_files.save(datasets, tmp_path / "scan"))
    labels = np.zeros(scan.shape, np.uint8)
    labels[2, 3, 4] = 1
    nib.save(nib.Nifti1Image(labels.T, scan.space.affine), tmp_path / "labels.nii.gz")
    report = check_dataset(DataSource(tmp_path / "scan", str(tmp_path / "labels.nii.gz")), SERIAL)
    (fault,) = report.faults
    assert (fault.kind, fault.serious, report.is_sound) == ("doubtful image", False, True)
    assert "1 image, perhaps a slice of it, was left out: localizer (scout) (05.dcm)" in fault.message
