"""A folder of one mask a structure: TotalSegmentator's layout, as one volume of labels."""

import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from label_sources import Image
from volseg import api
from volseg.errors import VolumeError
from volseg.geometry import Box
from volseg.volumes.label_files import label_table_of
from volseg.volumes.mask_source import open_labels, open_mask
from volseg.volumes.reading import open_volume
from volseg.volumes.volume import Space

SHAPE = (6, 7, 8)
AFFINE = np.diag([1.5, 1.5, 2.0, 1.0])


def image():
    return Image(Space(SHAPE, AFFINE))


def organs():
    """Labels 1 to 3 that share no voxel; 4 has none."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[1:3, 1:5, 1:5], labels[3:5, 2:6, 2:6], labels[5, :2, :2] = 1, 2, 3
    return labels


NAMES = {"aorta": 1, "kidney_left": 2, "liver": 3, "spleen": 4}


def saved(path, array, affine=AFFINE):
    nib.save(nib.Nifti1Image(array.T, affine, dtype=array.dtype), path)
    return path


def folder_of(root, labels, ending=".nii.gz", convert=lambda inside: inside.astype("u1")):
    folder = root / "segmentations"
    folder.mkdir()
    for name, value in NAMES.items():
        saved(folder / f"{name}{ending}", convert(labels == value))
    return folder


def read(volume):
    return volume.read(Box.whole(volume.shape))


@pytest.mark.parametrize(
    ("ending", "convert"),
    [
        (".nii.gz", lambda inside: inside.astype("u1")),
        (".nii", lambda inside: inside.astype("u1") * np.uint8(255)),
        (".NII.GZ", lambda inside: inside.astype("f4")),
        (".nii", lambda inside: inside.astype("f8") * 255),
        (".nii.gz", lambda inside: inside.astype("i2")),
    ],
)
def test_each_mask_is_a_class_by_its_name(tmp_path, ending, convert):
    folder = folder_of(tmp_path, organs(), ending, convert)
    volume, table = open_labels(folder, image())
    assert dict(table.names) == NAMES == dict(label_table_of(folder).names)
    np.testing.assert_array_equal(read(volume), organs())
    box = Box((2, 1, 0), (5, 6, 4))
    np.testing.assert_array_equal(volume.read(box), organs()[box.slices])
    np.testing.assert_array_equal(np.concatenate([slab for _, slab in volume.slabs(4)]), organs())
    np.testing.assert_array_equal(read(open_mask(folder)), organs())
    assert len(volume.audit.inputs) == 4


def test_masks_in_another_voxel_order_and_on_another_grid(tmp_path):
    folder = folder_of(tmp_path, organs())
    liver = nib.load(folder / "liver.nii.gz")
    nib.save(liver.as_reoriented([[0, -1], [2, 1], [1, 1]]), folder / "liver.nii.gz")
    np.testing.assert_array_equal(read(open_labels(folder, image())[0]), organs())
    fine = np.repeat((organs() == 3).astype("u1"), 2, axis=2)
    saved(folder / "liver.nii.gz", fine, AFFINE @ np.diag([0.5, 1, 1, 1]))
    with pytest.raises(VolumeError, match=r"liver\.nii\.gz: labels of 6x7x16 voxels .* --resample-labels"):
        open_labels(folder, image())
    with pytest.raises(
        VolumeError, match=r"liver\.nii\.gz: a mask of 6x7x16 voxels .*; masks of one folder must lie on"
    ):
        open_mask(folder)
    volume, _ = open_labels(folder, image(), resample=True)
    np.testing.assert_array_equal(read(volume), organs())


def overlapping(root):
    """A small mask in a large one, and one that touches neither; the small one's name comes first."""
    folder = folder_of(root, organs())
    body = np.zeros(SHAPE, "u1")
    body[:5, :, :] = 1
    saved(folder / "kidney_left.nii.gz", body)
    return folder, organs() == 1, body == 1


def test_the_smallest_of_overlapping_masks_has_the_voxel(tmp_path):
    folder, aorta, body = overlapping(tmp_path)
    for rule, expected, line in (
        ("smallest", np.where(aorta, 1, 2 * body), "goes to the smallest: aorta in kidney_left"),
        ("last", 2 * body, "goes to the last: kidney_left over aorta"),
    ):
        remarks = set()
        volume, _ = open_labels(folder, image(), overlap=rule, remark=remarks.add)
        np.testing.assert_array_equal(np.where(read(volume) == 3, 0, read(volume)), expected)
        assert volume.read(Box((2, 2, 2), (3, 3, 3))) == expected[2, 2, 2]  # where the box shows nothing of the sizes
        assert remarks == {f"masks overlap, and a voxel of several {line}"}
    with pytest.raises(VolumeError, match=r"masks overlap, and a mask holds one label a voxel: .*; --overlap smallest"):
        read(open_labels(folder, image(), overlap="error")[0])


@pytest.mark.parametrize(("value", "words"), [(3, "holds 3;"), (0.5, r"holds 0\.5;"), (-1, "holds -1;")])
def test_what_is_no_mask_of_one_structure(tmp_path, value, words):
    folder = folder_of(tmp_path, organs())
    saved(folder / "liver.nii.gz", ((organs() == 3) * value).astype("f4"))
    with pytest.raises(
        VolumeError, match=rf"liver\.nii\.gz: {words} in a folder of masks each file holds one structure"
    ):
        read(open_labels(folder, image())[0])
    saved(folder / "liver.nii.gz", organs())
    with pytest.raises(VolumeError, match=r"liver\.nii\.gz: holds 1 and 3;.* give a file of several labels by itself"):
        read(open_labels(folder, image())[0])


def test_what_else_lies_in_the_folder(tmp_path):
    folder = folder_of(tmp_path, organs())
    for name in ("._liver.nii.gz", ".DS_Store", "statistics.json", "tumour.mnc"):
        (folder / name).write_bytes(b"x")
    saved(folder / "background.nii.gz", (organs() == 0).astype("u1"))
    volume, table = open_labels(folder, image())
    assert dict(table.names) == NAMES
    assert [item.name for item in volume.audit.dropped] == [
        ".DS_Store", "._liver.nii.gz", "background.nii.gz", "statistics.json", "tumour.mnc",
    ]  # fmt: skip
    assert volume.audit.warnings == ("left out, for they are no masks: background.nii.gz, statistics.json, tumour.mnc",)
    saved(folder / "liver.nii", (organs() == 3).astype("u1"))
    with pytest.raises(VolumeError, match=r"liver\.nii and liver\.nii\.gz are both mask liver; keep one of them"):
        open_labels(folder, image())


def test_ingest_and_check_take_the_folder(tmp_path):
    folder, aorta, body = overlapping(tmp_path)
    scan = saved(tmp_path / "ct.nii.gz", np.random.default_rng(1).integers(-900, 900, SHAPE).astype("i2"))
    heard = []
    report = api.ingest(scan, tmp_path / "out.nii.gz", labels=folder, listen=heard.append)
    labels = read(open_volume(report.labels))
    np.testing.assert_array_equal(np.where(labels == 3, 0, labels), np.where(aorta, 1, 2 * body))
    assert report.masks[0].names == NAMES == dict(label_table_of(report.labels).names)
    line = "masks overlap, and a voxel of several goes to the smallest: aorta in kidney_left"
    assert [event.text for event in heard if type(event).__name__ == "Caution"] == [f"{folder}: {line}"]
    assert line in report.masks[0].audit.warnings
    checked = api.check(scan, labels=folder)
    assert checked.is_sound
    assert checked.dataset.labels == {"background": 0} | NAMES
    assert [fault.message for fault in checked.faults if fault.kind == "doubtful labels"] == [f"{folder}: {line}"]


def test_evaluate_takes_the_folder_as_reference_by_names(tmp_path):
    """A prediction whose labels have other values; without names nothing says which is which."""
    folder = folder_of(tmp_path, organs())
    scan = saved(tmp_path / "ct.nii.gz", np.random.default_rng(1).integers(-900, 900, SHAPE).astype("i2"))
    for name in ("aorta", "spleen"):
        (folder / f"{name}.nii.gz").rename(tmp_path / f"{name}.nii.gz")
    prediction = api.ingest(scan, tmp_path / "p.nii.gz", labels=folder).labels  # kidney_left is 1, liver 2
    for name in ("aorta", "spleen"):
        (tmp_path / f"{name}.nii.gz").rename(folder / f"{name}.nii.gz")
    result = api.evaluate(prediction, folder)
    assert result.dice["kidney_left"] == result.dice["liver"] == 1
    nameless = saved(tmp_path / "n.nii.gz", organs())
    with pytest.raises(
        VolumeError, match="give two masks or two folders of masks; a folder of one mask a structure is"
    ):
        api.evaluate(nameless, folder)
    holes = organs().astype("f4")
    holes[0] = np.nan
    heard = []
    api.evaluate(saved(tmp_path / "h.nii.gz", holes), nameless, listen=heard.append)
    texts = [event.text for event in heard if type(event).__name__ == "Caution"]
    assert texts == [f"{tmp_path / 'h.nii.gz'}: voxels that are NaN are taken as background"]


def test_a_set_of_such_folders_is_told_how_to_be_brought_in(tmp_path):
    """By a loop for a shell, which is run here."""
    case = tmp_path / "all cases" / "s0001"
    case.mkdir(parents=True)
    folder_of(case, organs())
    saved(case / "ct.nii.gz", np.arange(organs().size, dtype="i2").reshape(organs().shape))
    with pytest.raises(VolumeError, match=r"1 folder with segmentations/, .*; bring each in") as refusal:
        api.check(tmp_path / "all cases")
    loop = str(refusal.value).partition("and give NEW: ")[2]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    subprocess.run(["bash", "-ec", loop], cwd=tmp_path, env=os.environ | {"PATH": path}, check=True, timeout=60)
    assert {path.name for path in (tmp_path / "NEW").glob("*.nii.gz")} == {"s0001.nii.gz", "s0001_labels.nii.gz"}
