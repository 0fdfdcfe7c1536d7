"""Names and colours of labels in NIfTI and OME-Zarr, label images inside a store, and names of split masks."""

import gzip
import json
import os
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from volseg.distributed.communicator import SerialCommunicator
from volseg.errors import VolumeError
from volseg.geometry import Box
from volseg.volumes.label_files import label_table_of
from volseg.volumes.label_table import LabelTable
from volseg.volumes.mask_names import alone, beside, split_paths
from volseg.volumes.nifti.label_names import caret_extension, table_in
from volseg.volumes.reading import open_volume
from volseg.volumes.volume import Space
from volseg.volumes.writing import check_output, write_volume
from volseg.volumes.zarr import output as zarr_output
from volseg.volumes.zarr.label_image import list_label

SHAPE = (5, 6, 7)
SPACE = Space(SHAPE, np.diag([0.8, 0.8, 2.0, 1.0]))
SERIAL = SerialCommunicator()
NAMES = {"background": 0, "liver": 1, 'Größe <&> "q" 肝': 2, "spleen/left": 9}
LABELS = LabelTable(NAMES, {1: (10, 200, 30), 2: (1, 2, 3)})


def mask():
    voxels = np.zeros(SHAPE, np.uint8)
    voxels[1:3, 2:4] = 1
    voxels[4] = 9
    return voxels


def write(path, voxels=None, labels=LABELS, space=SPACE, communicator=SERIAL, **named):
    voxels = mask() if voxels is None else voxels

    def produce(units):
        mine = units[communicator.rank]
        return None if mine is None else voxels[mine.box.slices]

    write_volume(path, space, voxels.dtype, produce, communicator, labels=labels, **named)
    return path


def colours_of(labels):
    return {value: labels.colour(value) for value, _ in labels.foreground}


@pytest.mark.parametrize("name", ["mask.nii", "mask.nii.gz", "mask.zarr"])
def test_names_and_colours_come_back(tmp_path, name):
    table = label_table_of(write(tmp_path / name))
    assert table.names == NAMES
    assert colours_of(table) == colours_of(LABELS)
    np.testing.assert_array_equal(open_volume(tmp_path / name).read(Box.whole(SHAPE)), mask())


@pytest.mark.parametrize("name", ["mask.nii", "mask.nii.gz", "mask.zarr"])
def test_a_volume_that_is_no_mask_has_no_table(tmp_path, name):
    assert label_table_of(write(tmp_path / name, labels=None)) is None


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("side", [7, 40000])
def test_readers_of_nifti_take_the_extension(tmp_path, suffix, side):
    """NIfTI-1, and NIfTI-2 where a side is long; as nibabel sees them, and SimpleITK, which reads no NIfTI-2."""
    space = Space((2, 3, side), np.eye(4))
    voxels = np.arange(6 * side).reshape(2, 3, side).astype(np.uint8)
    path = write(tmp_path / f"m{suffix}", voxels, space=space)
    image = nib.load(path)
    assert [extension.get_code() for extension in image.header.extensions] == [30]
    assert image.header.get_intent()[0] == "label"
    np.testing.assert_array_equal(np.asarray(image.dataobj).T, voxels)
    assert label_table_of(path).names == NAMES
    if side == 7:
        np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))), voxels)


def test_the_table_that_others_wrote(data):
    path = data / "abdomen_dicom" / "labels_117.nii.gz"
    if not path.is_file():
        pytest.skip(f"no {path}")
    table = label_table_of(path)
    assert len(table.names) == 117
    assert (table.names["spleen"], table.names["liver"], table.colour(1)) == (1, 5, (0, 255, 0))


printable = st.text(st.characters(codec="utf-8").filter(str.isprintable), min_size=1, max_size=12)


@settings(deadline=None, max_examples=40)
@given(st.dictionaries(printable.filter(lambda name: name == name.strip()), st.integers(0, 65535), min_size=1))
def test_any_printable_name_survives(names):
    assert table_in([(30, caret_extension(LabelTable(names)))]).names == names


def test_control_characters_which_xml_has_not_become_spaces():
    assert table_in([(30, caret_extension(LabelTable({"a\0b\x1bc": 1})))]).names == {"a b c": 1}


@pytest.mark.parametrize(
    "content",
    [
        b"<CaretExtension", b"<CaretExtension></CaretExtension>", b"\xff<CaretExtension/>", b"",
        b'<CaretExtension><Label Key="x">a</Label></CaretExtension>',
        b'<!DOCTYPE a [<!ENTITY b "cc">]><CaretExtension><Label Key="1">&b;</Label></CaretExtension>',
    ],
)  # fmt: skip
def test_damaged_tables_are_no_tables(content):
    assert table_in([(0, content)]) is None
    assert table_in([(6, b"<CaretExtension"), (0, content), (30, caret_extension(LABELS))]).names == NAMES


def test_colours_that_are_none_get_a_default():
    rows = b'<Label Key="4" Red="nan" Green="0" Blue="9">a</Label><Label Key="5">a</Label>'
    table = table_in([(0, b"<CaretExtension>" + rows + b"</CaretExtension>")])
    assert table.names == {"a": 4, "a 5": 5}
    assert table.colour(4) == LabelTable({}).colour(4)


@pytest.mark.parametrize("offset", [float("nan"), float("inf"), -1.0, 1e30, 352.0])
@pytest.mark.parametrize("length", [-5, 0, 2**31 - 1])
def test_headers_that_lie_have_no_table(tmp_path, offset, length):
    header = bytearray(write(tmp_path / "m.nii").read_bytes())
    header[108:112] = struct.pack("<f", offset)
    header[352:356] = struct.pack("<i", length)
    (tmp_path / "m.nii").write_bytes(header)
    assert label_table_of(tmp_path / "m.nii") is None
    (tmp_path / "m.nii.gz").write_bytes(gzip.compress(header)[:-20])
    assert label_table_of(tmp_path / "m.nii.gz") is None


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(VolumeError, match="cannot be read"):
        label_table_of(tmp_path / "no.nii.gz")
    assert label_table_of(tmp_path) is None


@pytest.fixture
def store(tmp_path):
    return write(tmp_path / "scan.zarr", np.zeros(SHAPE, np.int16), labels=None)


def listed(store):
    return json.loads((store / "labels" / "zarr.json").read_text())["attributes"]["ome"]


def content(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_label_image_in_a_store_is_as_ome_zarr_has_it(store):
    write(store / "labels" / "organs")
    write(store / "labels" / "lesions")
    assert listed(store) == {"version": "0.5", "labels": ["organs", "lesions"]}
    group = zarr.open_group(str(store), mode="r")["labels/organs"]
    ome = group.attrs["ome"]
    assert ome["version"] == "0.5"
    assert [axis["name"] for axis in ome["multiscales"][0]["axes"]] == ["z", "y", "x"]
    label = ome["image-label"]
    assert label["version"] == "0.5"
    assert label["source"] == {"image": "../../"}
    assert label["colors"][1] == {"label-value": 1, "rgba": [10, 200, 30, 255]}
    assert label["colors"][0] == {"label-value": 0, "rgba": [0, 0, 0, 0]}
    assert label["properties"][3] == {"label-value": 9, "name": "spleen/left"}
    assert all(len(row["rgba"]) == 4 and 0 <= min(row["rgba"]) <= max(row["rgba"]) <= 255 for row in label["colors"])
    np.testing.assert_array_equal(group["0"][:], mask())
    assert label_table_of(store / "labels" / "organs").names == NAMES
    np.testing.assert_array_equal(open_volume(store / "labels" / "organs").read(Box.whole(SHAPE)), mask())
    assert not open_volume(store).read(Box.whole(SHAPE)).any()  # the image is still the image
    assert [file.name for file in store.iterdir() if file.name.startswith(".")] == []


def test_a_mask_of_its_own_names_no_source(tmp_path):
    ome = zarr.open_group(str(write(tmp_path / "mask.zarr")), mode="r").attrs["ome"]
    assert "source" not in ome["image-label"]
    assert len(ome["image-label"]["properties"]) == len(NAMES)


def test_a_label_is_overwritten_only_when_asked(store):
    write(store / "labels" / "organs")
    before = content(store)
    with pytest.raises(VolumeError, match="exists already"):
        write(store / "labels" / "organs", mask() * 2)
    assert content(store) == before
    write(store / "labels" / "organs", mask() * 2, overwrite=True)
    assert listed(store)["labels"] == ["organs"]
    np.testing.assert_array_equal(open_volume(store / "labels" / "organs").read(Box.whole(SHAPE)), mask() * 2)


@pytest.mark.parametrize("former", [False, True])
def test_a_failure_leaves_the_store_as_it_was(store, monkeypatch, former):
    if former:
        write(store / "labels" / "organs")
    before = content(store)

    def full(folder, name):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zarr_output, "list_label", full)
    with pytest.raises(OSError, match="No space left"):
        write(store / "labels" / "organs", mask() * 2, overwrite=True)
    assert content(store) == before
    assert (store / "labels").exists() == former
    assert [file.name for file in store.iterdir() if file.name.startswith(".")] == []


def test_a_killed_writer_leaves_no_label(store, python):
    script = f"""
import os, numpy as np
from volseg.distributed.communicator import SerialCommunicator
from volseg.volumes.label_table import LabelTable
from volseg.volumes.volume import Space
from volseg.volumes.writing import write_volume
from volseg.volumes.zarr import output as zarr_output
zarr_output.list_label = lambda folder, name: os._exit(9)
write_volume({str(store)!r} + "/labels/organs", Space({SHAPE}, np.diag([0.8, 0.8, 2.0, 1.0])), "u1",
             lambda units: np.ones({SHAPE}, "u1"), SerialCommunicator(), labels=LabelTable({{"a": 1}}))
"""
    assert python(["-c", script]).returncode == 9
    assert not (store / "labels" / "zarr.json").exists()  # the label is whole, and not yet listed
    write(store / "labels" / "organs", overwrite=True)
    assert listed(store)["labels"] == ["organs"]


def test_others_entries_in_the_list_stay_and_writers_at_once_lose_none(store):
    (store / "labels").mkdir()
    there = {"zarr_format": 3, "node_type": "group", "attributes": {"ome": {"version": "0.5", "labels": ["a"]}, "x": 1}}
    (store / "labels" / "zarr.json").write_text(json.dumps(there))
    children = []
    for name in "bcdefgh":
        child = os.fork()
        if child == 0:
            try:
                list_label(store / "labels", name)
            finally:
                os._exit(0)
        children.append(child)
    assert all(os.waitpid(child, 0)[1] == 0 for child in children)
    assert sorted(listed(store)["labels"]) == list("abcdefgh")
    assert json.loads((store / "labels" / "zarr.json").read_text())["attributes"]["x"] == 1
    assert [file.name for file in (store / "labels").iterdir()] == ["zarr.json"]


def break_store(store, how):
    metadata = json.loads((store / "zarr.json").read_text())
    ome = metadata["attributes"]["ome"]
    if how == "old":
        ome["version"] = "0.4"
    elif how == "pyramid":
        ome["multiscales"][0]["datasets"] *= 3
    elif how == "consolidated":
        metadata["consolidated_metadata"] = {"metadata": {}}
    elif how == "list":
        metadata = []
    elif how == "labels":
        (store / "labels").mkdir()
        (store / "labels" / "zarr.json").write_text('{"attributes": 5}')
    (store / "zarr.json").write_text("{" if how == "json" else json.dumps(metadata))


@pytest.mark.parametrize(
    ("how", "word"),
    [("old", "no OME-Zarr 0.5"), ("pyramid", "3 levels"), ("consolidated", "consolidated"), ("json", "cannot be read"),
     ("list", "no zarr metadata"), ("labels", "damaged")],
)  # fmt: skip
def test_stores_that_take_no_label(store, how, word):
    break_store(store, how)
    before = content(store)
    with pytest.raises(VolumeError, match=word):
        check_output(store / "labels" / "organs", mask=True)
    with pytest.raises(VolumeError, match=word):
        write(store / "labels" / "organs")
    assert content(store) == before


def test_a_label_of_another_grid_or_of_no_store_is_refused(store, tmp_path):
    with pytest.raises(VolumeError, match="not on the grid"):
        write(store / "labels" / "organs", space=Space(SHAPE, np.eye(4)))
    with pytest.raises(VolumeError, match="cannot be read"):
        write(tmp_path / "no.zarr" / "labels" / "organs")
    with pytest.raises(VolumeError, match="cannot write that format"):
        check_output(tmp_path / "labels" / "organs", mask=True)
    with pytest.raises(VolumeError, match="cannot write that format"):
        check_output(store / "labels" / ".organs", mask=True)
    assert not (store / "labels").exists()


@pytest.mark.parallel([2])
def test_ranks_write_one_label(tmp_path, communicator):
    store = Path(communicator.broadcast(str(tmp_path))) / "scan.zarr"
    write(store, np.zeros(SHAPE, np.int16), labels=None, communicator=communicator)
    write(store / "labels" / "organs", communicator=communicator)
    assert listed(store)["labels"] == ["organs"]
    np.testing.assert_array_equal(open_volume(store / "labels" / "organs").read(Box.whole(SHAPE)), mask())
    communicator.barrier()


def test_names_of_split_masks():
    names = {"background": 0, "liver": 1, "a/b": 2, "a b": 3, "Liver": 4, "///": 5, "肝臓": 6, "../../etc/passwd": 7,
             "a_b_2": 8, "n" * 300: 9}  # fmt: skip
    paths = split_paths(Path("out/scan_mask.nii.gz"), LabelTable(names))
    assert set(paths) == set(range(1, 10))
    assert {path.parent for path in paths.values()} == {Path("out")}
    assert paths[6].name == "scan_mask_肝臓.nii.gz"
    assert paths[1].name == "scan_mask_liver_1.nii.gz"
    assert paths[5].name == "scan_mask_label_5.nii.gz"
    assert paths[7].name == "scan_mask_etc_passwd.nii.gz"
    assert len({path.name.casefold() for path in paths.values()}) == 9
    assert max(len(path.name.encode()) for path in paths.values()) < 200


@settings(deadline=None, max_examples=100)
@given(st.lists(st.text(max_size=8), unique=True, max_size=10))
def test_split_names_never_meet_nor_leave_the_folder(names):
    labels = LabelTable({name: value for value, name in enumerate(names, 1)})
    paths = split_paths(Path("a/m.zarr"), labels)
    assert len({path.name.casefold() for path in paths.values()}) == len(names)
    assert all(path.parent == Path("a") and "/" not in path.name for path in paths.values())


def test_split_masks_are_written_from_the_same_voxels(tmp_path):
    voxels = mask()
    for value, path in split_paths(tmp_path / "m.nii.gz", LABELS).items():
        write(path, voxels == value, labels=alone(LABELS, value))
        np.testing.assert_array_equal(open_volume(path).read(Box.whole(SHAPE)), voxels == value)
        table = label_table_of(path)
        assert list(table.names.values()) == [1]
        assert table.colour(1) == LABELS.colour(value)
    assert len(list(tmp_path.iterdir())) == 3


def test_what_goes_with_a_mask_lies_beside_it(store):
    assert beside(Path("a/m.nii.gz"), "_statistics.csv") == Path("a/m_statistics.csv")
    assert beside(Path("a/m.dcm"), "_probabilities.nii.gz") == Path("a/m_probabilities.nii.gz")
    assert beside(store / "labels" / "organs", "_preview.png") == store.parent / "scan_organs_preview.png"
    assert split_paths(store / "labels" / "o", LabelTable({"a": 3})) == {3: store / "labels" / "o_a"}
    with pytest.raises(VolumeError, match="cannot write"):
        beside(Path("a/m.mgz"), "_x.csv")
