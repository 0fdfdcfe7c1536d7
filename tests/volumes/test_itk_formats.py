"""NRRD and MetaImage as SimpleITK writes them: the same voxels at the same places as in its NIfTI file of the image."""

import gzip

import numpy as np
import pytest
import SimpleITK as sitk

from volseg.api import check
from volseg.errors import VolumeError
from volseg.geometry import Box
from volseg.volumes.canonical import canonical
from volseg.volumes.dataset import write_dataset_json
from volseg.volumes.image_file import ImageFile, count_channels
from volseg.volumes.label_files import label_table_of
from volseg.volumes.mask_source import open_labels
from volseg.volumes.open_options import OpenOptions
from volseg.volumes.reading import open_volume

SIDES = (5, 7, 6)  # D, H, W
BOX = Box((1, 2, 0), (5, 7, 4))
TYPES = {"i2": np.int16, "u1": np.uint8, "u4": np.uint32, "f4": np.float32, "f8": np.float64}


def voxels(dtype="i2", lead=()):
    values = np.random.default_rng(0).integers(0, 200, (*lead, *SIDES))
    return values.astype(TYPES[dtype])


def oblique(array, vector=False):
    """An image whose axes are turned and one of them flipped."""
    image = sitk.GetImageFromArray(array, isVector=vector)
    turn = sitk.Euler3DTransform((0, 0, 0), 0.3, -0.2, 1.4)
    image.SetDirection((np.array(turn.GetMatrix()).reshape(3, 3) @ np.diag([1, -1, 1])).ravel())
    image.SetSpacing((0.5, 0.7, 2.5))
    image.SetOrigin((-12.5, 30.25, 7))
    return image


def read(path, channel=None):
    volume = ImageFile(path, channel).open()
    return volume, volume.read(Box.whole(volume.shape))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("ending", [".nrrd", ".nhdr", ".mha", ".mhd"])
@pytest.mark.parametrize("dtype", ["i2", "u4", "f8"])
def test_the_same_voxels_at_the_same_places(tmp_path, dtype, ending, packed):
    array = voxels(dtype)
    sitk.WriteImage(oblique(array), tmp_path / "scan.nii.gz")
    sitk.WriteImage(oblique(array), tmp_path / f"scan{ending}", packed)
    (nifti, expected), (volume, values) = read(tmp_path / "scan.nii.gz"), read(tmp_path / f"scan{ending}")
    np.testing.assert_array_equal(values, array)
    np.testing.assert_array_equal(volume.read(BOX), array[BOX.slices])
    np.testing.assert_allclose(volume.space.affine, nifti.space.affine, atol=1e-5)
    turned = canonical(nifti)
    whole = Box.whole(turned.shape)
    np.testing.assert_array_equal(canonical(volume).read(whole), turned.read(whole))
    assert volume.whole_slices == packed
    assert values.dtype == expected.dtype
    assert volume.audit.warnings == ()
    assert len(volume.audit.inputs) == (2 if ending in (".nhdr", ".mhd") else 1)


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
@pytest.mark.parametrize("packed", [False, True])
def test_channels_beside_each_other(tmp_path, ending, packed):
    array = voxels(lead=(3,))
    path = tmp_path / f"four{ending}"
    sitk.WriteImage(oblique(np.moveaxis(array, 0, -1), vector=True), path, packed)
    assert count_channels(path) == 3
    for channel in (2, 0):
        np.testing.assert_array_equal(read(path, channel)[1], array[channel])
        np.testing.assert_array_equal(ImageFile(path, channel).open().read(BOX), array[(channel, *BOX.slices)])
    for channel, words in ((None, "3 channels of 5x7x6"), (3, "no channel 3")):
        with pytest.raises(VolumeError, match=words):
            read(path, channel)


def nrrd(path, *lines, data=b"", array=None):
    """A NRRD file of int16 voxels, with `lines` in place of those of the same fields."""
    array = voxels() if array is None else array
    fields = {
        "type": "short", "dimension": "3", "sizes": "6 7 5", "encoding": "raw", "endian": "little",
        "space": "left-posterior-superior", "space directions": "(0.5,0,0) (0,0.7,0) (0,0,2.5)",
        "space origin": "(1,2,3)",
    }  # fmt: skip
    fields |= dict(line.split(": ", 1) for line in lines if ":=" not in line)
    head = ["NRRD0005", "# made by hand", *(f"{name}: {text}" for name, text in fields.items() if text)]
    head += [line for line in lines if ":=" in line]
    path.write_bytes("\n".join(head).encode() + b"\n\n" + (data or array.astype("<i2").tobytes()))
    return path


@pytest.mark.parametrize(
    ("space", "signs"), [("LPS", (-1, -1, 1)), ("left-anterior-superior", (-1, 1, 1)), ("RAS", (1, 1, 1))]
)
def test_spaces_by_their_names(tmp_path, space, signs):
    volume, values = read(nrrd(tmp_path / "a.nrrd", f"space: {space}"))
    np.testing.assert_allclose(volume.space.affine[:3, :3], np.diag([0.5, 0.7, 2.5] * np.array(signs)))
    np.testing.assert_allclose(volume.space.affine[:3, 3], np.array([1, 2, 3]) * signs)
    np.testing.assert_array_equal(values, voxels())
    said = read(nrrd(tmp_path / "b.nrrd", "space: scanner-xyz"))[0]
    assert "check left and right" in said.audit.warnings[0]


def test_voxel_sizes_of_nrrd(tmp_path):
    micro = nrrd(tmp_path / "a.nrrd", 'space units: "um" "um" "um"')
    np.testing.assert_allclose(read(micro)[0].space.spacing, (2.5e-3, 0.7e-3, 0.5e-3))
    assert read(micro)[0].space.affine[0, 3] == pytest.approx(-1e-3)
    spaced = nrrd(tmp_path / "b.nrrd", "space directions: ", "space: ", "spacings: 0.5 0.7 2.5")
    np.testing.assert_allclose(read(spaced)[0].space.spacing, (2.5, 0.7, 0.5))
    bare = nrrd(tmp_path / "c.nrrd", "space directions: ", "space: ")
    with pytest.raises(VolumeError, match="give --voxel-size with the sides in mm"):
        open_volume(bare)
    assert open_volume(bare, OpenOptions(voxel_size=(3, 2, 1))).space.spacing == (3, 2, 1)
    told = open_volume(spaced, OpenOptions(voxel_size=(3, 2, 1)))
    assert told.space.spacing == (3, 2, 1)
    assert "the file says voxels of 2.5x0.7x0.5 mm" in told.audit.warnings[-1]


def test_where_the_voxels_begin(tmp_path):
    packed = gzip.compress(b"1234" + voxels().tobytes())
    for name, lines, data in (
        ("end", ("byte skip: -1",), bytes(99) + voxels().tobytes()),
        ("skip", ("byte skip: 4",), b"1234" + voxels().tobytes()),
        ("packed", ("byte skip: 4", "encoding: gz"), packed),
        ("big", ("endian: big",), voxels().astype(">i2").tobytes()),
    ):
        np.testing.assert_array_equal(read(nrrd(tmp_path / f"{name}.nrrd", *lines, data=data))[1], voxels())


def test_channels_one_after_the_other(tmp_path):
    array = voxels(lead=(2,))
    path = nrrd(
        tmp_path / "a.nrrd", "dimension: 4", "sizes: 6 7 5 2",
        "space directions: (0.5,0,0) (0,0.7,0) (0,0,2.5) none", array=array,
    )  # fmt: skip
    np.testing.assert_array_equal(read(path, 1)[1], array[1])
    path = nrrd(
        tmp_path / "b.nrrd", "dimension: 4", "sizes: 6 2 7 5",
        "space directions: (0.5,0,0) none (0,0.7,0) (0,0,2.5)", array=array,
    )  # fmt: skip
    with pytest.raises(VolumeError, match="channels must come first or last"):
        read(path, 1)


def test_segments_of_slicer(tmp_path):
    keys = (
        "Segment0_ID:=Segment_1", "Segment0_Name:=left kidney", "Segment0_LabelValue:=2", "Segment0_Color:=1 0.5 0",
        "Segment1_Name:=tumour", "Segment1_LabelValue:=1", "Segment1_Color:=none",
    )  # fmt: skip
    path = nrrd(tmp_path / "scan.seg.nrrd", *keys)
    table = label_table_of(path)
    assert table.names == {"tumour": 1, "left kidney": 2}
    assert table.colours == {2: (255, 128, 0)}
    assert label_table_of(nrrd(tmp_path / "plain.nrrd")) is None
    layers = nrrd(
        tmp_path / "layers.seg.nrrd", *keys, "dimension: 4", "sizes: 2 6 7 5",
        "space directions: none (0.5,0,0) (0,0.7,0) (0,0,2.5)", array=voxels(lead=(2,)),
    )  # fmt: skip
    assert open_volume(layers).shape == SIDES


@pytest.mark.parametrize("encoding", ["raw", "gzip"])
def test_segments_that_overlap(tmp_path, encoding):
    body, organ, other = (np.zeros(SIDES, "i2") for _ in range(3))
    body[1:], organ[2:4, 1:4, 1:4], other[0] = 1, 1, 2
    keys = [
        f"Segment{n}_{field}:={text}"
        for n, row in enumerate((("organ", 1, 1), ("other", 2, 1), ("body", 1, 0)))
        for field, text in zip(("Name", "LabelValue", "Layer"), row, strict=True)
    ]
    array = np.stack([body, organ + other], axis=-1)  # layers lie beside each other
    path = nrrd(
        tmp_path / "scan.seg.nrrd", *keys, "dimension: 4", "sizes: 2 6 7 5", f"encoding: {encoding}",
        "space directions: none (0.5,0,0) (0,0.7,0) (0,0,2.5)",
        data=array.tobytes() if encoding == "raw" else gzip.compress(array.tobytes()),
    )  # fmt: skip
    assert label_table_of(path).names == {"organ": 1, "other": 2, "body": 3}
    image, said = open_volume(nrrd(tmp_path / "scan.nrrd")), []
    outside = other + 3 * body
    for overlap, expected in (("smallest", np.where(organ > 0, 1, outside)), ("last", outside)):
        mask, _ = open_labels(path, image, overlap=overlap, remark=said.append)
        np.testing.assert_array_equal(mask.read(Box.whole(SIDES)), expected)
    assert said[0] == "segments overlap, and a voxel of several goes to the smallest: organ in body"
    with pytest.raises(VolumeError, match=r"segments overlap, .*body and organ|segments overlap, .*organ and body"):
        open_labels(path, image, overlap="error")[0].read(Box.whole(SIDES))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("type: block", "voxels are block"),
        ("encoding: bzip2", "encoding bzip2; volseg reads raw and gzip"),
        ("encoding: ascii", "encoding ascii"),
        ("sizes: 6 7", "sizes is '6 7'; 3 whole numbers"),
        ("sizes: 6 0 5", "an empty image"),
        ("sizes: 600000000 700000000 500000000", "truncated: .* its header promises"),
        ("dimension: 999999999", "dimension is 999999999"),
        ("dimension: 2", "sizes is"),
        ("endian: ", r"byte order \(endian\)"),
        ("space directions: (0,0,0) (0,0.7,0) (0,0,2.5)", "have no size"),
        ("space directions: (1,0,0) (1,0,0) (0,0,1)", "maps no voxel grid"),
        ("space directions: (nan,0,0) (0,1,0) (0,0,1)", "space directions is"),
        ("space directions: (1,0,0)", "1 vectors for 3 axes"),
        ("line skip: 3", "skips lines"),
        ("byte skip: 9000", "truncated"),
        ("data file: none.raw", "none.raw, which is missing"),
        ("data file: LIST", "in several files"),
        ("data file: s%03d.raw 1 5 1", "in several files"),
    ],
)
def test_nrrd_that_cannot_be_read(tmp_path, line, words):
    with pytest.raises(VolumeError, match=words):
        read(nrrd(tmp_path / "a.nrrd", line))


def meta(path, *lines, data=None):
    """A MetaImage of int16 voxels, with `lines` in place of those of the same fields."""
    fields = {
        "ObjectType": "Image", "NDims": "3", "BinaryData": "True", "BinaryDataByteOrderMSB": "False",
        "TransformMatrix": "1 0 0 0 1 0 0 0 1", "Offset": "1 2 3", "ElementSpacing": "0.5 0.7 2.5",
        "DimSize": "6 7 5", "ElementType": "MET_SHORT", "ElementDataFile": "LOCAL",
    }  # fmt: skip
    fields |= dict(line.split(" = ", 1) for line in lines)
    last = fields.pop("ElementDataFile")
    head = [*(f"{name} = {text}" for name, text in fields.items() if text), f"ElementDataFile = {last}"]
    path.write_bytes("\n".join(head).encode() + b"\n" + (voxels().tobytes() if data is None else data))
    return path


def test_metaimage_of_other_writers(tmp_path):
    big = meta(tmp_path / "big.mha", "BinaryDataByteOrderMSB = True", data=voxels().astype(">i2").tobytes())
    np.testing.assert_array_equal(read(big)[1], voxels())
    (tmp_path / "a.raw").write_bytes(bytes(11) + voxels().tobytes())
    for skip in (11, -1):
        apart = meta(tmp_path / "a.mhd", f"HeaderSize = {skip}", "ElementDataFile = a.raw", data=b"")
        np.testing.assert_array_equal(read(apart)[1], voxels())
    bare = read(
        meta(tmp_path / "bare.mha", "TransformMatrix = ", "Offset = ", "ElementSpacing = ", "ElementSize = 1 2 3")
    )
    assert bare[0].space.spacing == (3, 2, 1)
    assert "no TransformMatrix" in bare[0].audit.warnings[0]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("NDims = 2", "DimSize is '6 7 5'; 2 whole numbers"),
        ("NDims = ", "NDims is ''"),
        ("DimSize = 6 7 -5", "an empty image"),
        ("DimSize = 66666666 77777777 55555555", "truncated: .* its header promises"),
        ("ElementType = MET_OTHER", "voxels are MET_OTHER"),
        ("BinaryData = False", "written as text"),
        ("CompressedData = True", "truncated|damaged"),
        ("TransformMatrix = 1 0 0 1 0 0 0 0 1", "maps no voxel grid"),
        ("ElementSpacing = ", "give --voxel-size"),
        ("ElementSpacing = 0 1 1", "have no size"),
        ("ElementDataFile = b.raw", "b.raw, which is missing"),
        ("ElementDataFile = LIST", "in several files"),
        ("ObjectType = Tube", "no image"),
        ("HeaderSize = 5", "HeaderSize 5 is not read here"),
    ],
)
def test_metaimages_that_cannot_be_read(tmp_path, line, words):
    with pytest.raises(VolumeError, match=words):
        read(meta(tmp_path / "a.mha", line))


def test_files_cut_short_and_of_other_names(tmp_path):
    for name in ("a.nrrd", "a.mha"):
        for packed in (False, True):
            path = tmp_path / name
            sitk.WriteImage(oblique(voxels()), path, packed)
            whole = path.read_bytes()
            path.write_bytes(whole[:-20])
            with pytest.raises(VolumeError, match="truncated"):
                read(path)
            path.write_bytes(whole[:25])
            with pytest.raises(VolumeError, match="not a readable"):
                read(path)
        (tmp_path / "strange").write_bytes(whole)
        np.testing.assert_array_equal(read(tmp_path / "strange")[1], voxels())
        (tmp_path / "a.nii").write_bytes(whole)
        with pytest.raises(VolumeError, match=r"not a readable NIfTI file but a .*give it its name: mv"):
            read(tmp_path / "a.nii")
        (tmp_path / "b.nrrd").write_bytes(b"<html>404")
        with pytest.raises(VolumeError, match="not a readable NRRD file but a web page"):
            read(tmp_path / "b.nrrd")


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_a_data_set_of_nnunet_and_a_folder_of_masks(tmp_path, ending):
    folder = tmp_path / "set"
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    labels = (voxels() > 100).astype("u1")
    for number, case in enumerate(("a", "b")):
        sitk.WriteImage(oblique(voxels() + np.int16(number)), folder / "imagesTr" / f"{case}_0000{ending}")
        sitk.WriteImage(oblique(labels), folder / "labelsTr" / f"{case}{ending}", True)
    write_dataset_json(folder, channel_names=("CT",), labels={"background": 0, "x": 1}, cases=2, file_ending=ending)
    report = check(folder)
    assert [fault for fault in report.faults if fault.serious] == []
    assert len(report.fingerprint.cases) == 2
    masks = tmp_path / "segmentations"
    masks.mkdir()
    sitk.WriteImage(oblique(labels), masks / f"liver{ending}")
    mask, table = open_labels(masks, open_volume(folder / "imagesTr" / f"a_0000{ending}"))
    assert table.names == {"liver": 1}
    np.testing.assert_array_equal(mask.read(BOX), labels[BOX.slices])
