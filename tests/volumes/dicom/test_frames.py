"""Enhanced multi-frame CT: frames as slices, functional groups, random access, and what is refused."""

import io

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate, encapsulate_extended, get_frame
from pydicom.uid import ExplicitVRBigEndian, JPEGLSLossless, LegacyConvertedEnhancedCTImageStorage, RLELossless

from dicom_files import enhanced, save, series_datasets, stored_values
from volseg.errors import VolumeError
from volseg.geometry import Box
from volseg.volumes.dicom.finding.headers import read_image
from volseg.volumes.dicom.finding.sources import FileEntry
from volseg.volumes.dicom.frames import expand
from volseg.volumes.dicom.image import Image
from volseg.volumes.dicom.pixels.stack import SliceStack, open_pixels
from volseg.volumes.dicom.volume import open_dicom

STORED = stored_values()
HU = STORED.astype(np.int16) - 1024


def read(path):
    volume = open_dicom(path)
    return volume, volume.read(Box.whole(volume.shape))


def image_of(path):
    image = read_image(FileEntry(path))
    assert isinstance(image, Image)
    return image


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [3, 0, 5, 1, 4, 2]])
@pytest.mark.parametrize("legacy", [False, True])
def test_an_enhanced_file_is_the_series_of_its_frames(tmp_path, order, legacy):
    datasets = series_datasets(STORED)
    single, _ = read(save(datasets, tmp_path / "single"))
    ds = enhanced(datasets, order)
    if legacy:
        ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = LegacyConvertedEnhancedCTImageStorage
    volume, array = read(save([ds], tmp_path / "multi"))
    np.testing.assert_array_equal(array, HU)
    np.testing.assert_array_equal(volume.space.affine, single.space.affine)
    assert [image.frame for image in volume.images] == [order.index(n) for n in range(6)]
    assert volume.images[0].name.endswith(f"00.dcm frame {order.index(0) + 1}")
    assert len(volume.source_datasets()) == 1


def test_one_enhanced_file_by_its_own_name(tmp_path):
    save([enhanced(series_datasets(STORED))], tmp_path)
    np.testing.assert_array_equal(read(tmp_path / "00.dcm")[1], HU)


def test_each_frame_has_its_own_rescale(tmp_path):
    datasets = series_datasets(STORED)
    for number, ds in enumerate(datasets):
        ds.RescaleSlope, ds.RescaleIntercept = number + 1, -7 * number
    number = np.arange(6)[:, None, None]
    np.testing.assert_array_equal(read(save([enhanced(datasets)], tmp_path))[1], STORED * (number + 1) - 7 * number)


def test_a_group_of_the_frame_counts_before_the_shared_one(tmp_path):
    ds = enhanced(series_datasets(STORED))
    own = pydicom.Dataset()
    own.RescaleSlope, own.RescaleIntercept = 9, 9
    ds.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence = [own]
    ds.RescaleSlope, ds.RescaleIntercept = 5, 5
    np.testing.assert_array_equal(read(save([ds], tmp_path))[1], HU)


def test_frame_types_stand_as_image_types(tmp_path):
    datasets = series_datasets(STORED)
    datasets[2].ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER", "NONE"]
    save([enhanced(datasets)], tmp_path)
    frames = expand(image_of(tmp_path / "00.dcm"))
    assert [list(frame.get("ImageType"))[2] for frame in frames] == ["AXIAL"] * 2 + ["LOCALIZER"] + ["AXIAL"] * 3


def test_a_plain_slice_is_itself(tmp_path):
    save(series_datasets(STORED[:1]), tmp_path)
    image = image_of(tmp_path / "00.dcm")
    assert expand(image) == [image]


def test_frames_without_functional_groups_are_refused(tmp_path):
    ds = enhanced(series_datasets(STORED))
    del ds.PerFrameFunctionalGroupsSequence
    save([ds], tmp_path)
    with pytest.raises(VolumeError, match=r"00\.dcm: 6 frames without functional groups"):
        expand(image_of(tmp_path / "00.dcm"))


def test_fewer_groups_than_frames_are_refused(tmp_path):
    save([enhanced(series_datasets(STORED))], tmp_path)
    image = image_of(tmp_path / "00.dcm")
    header = {**image.header, "NumberOfFrames": 7}
    with pytest.raises(VolumeError, match="7 frames, but not as many functional groups"):
        expand(Image(image.entry, header, image.transfer_syntax))


def test_a_frame_without_a_position_is_named(tmp_path):
    ds = enhanced(series_datasets(STORED))
    del ds.PerFrameFunctionalGroupsSequence[3].PlanePositionSequence
    with pytest.raises(VolumeError, match=r"00\.dcm frame 4 .*no ImagePositionPatient"):
        open_dicom(save([ds], tmp_path))


# ---- pixels of one frame


def compressed(syntax, way):
    """An enhanced data set of compressed frames, and how their places are told: in a table, or by one fragment each."""
    ds = enhanced(series_datasets(STORED))
    ds.compress(syntax, generate_instance_uid=False)
    frames = [get_frame(ds.PixelData, n, number_of_frames=6) for n in range(6)]
    if way == "extended table":
        ds.PixelData, ds.ExtendedOffsetTable, ds.ExtendedOffsetTableLengths = encapsulate_extended(frames)
    else:
        ds.PixelData = encapsulate(
            frames, fragments_per_frame=2 if way == "fragments" else 1, has_bot=way != "no table"
        )
    ds["PixelData"].VR = "OB"
    return ds


@pytest.mark.parametrize("way", ["table", "extended table", "no table", "fragments"])
@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless])
def test_compressed_frames(tmp_path, syntax, way):
    np.testing.assert_array_equal(read(save([compressed(syntax, way)], tmp_path))[1], HU)


def test_fragments_that_cannot_be_told_apart(tmp_path):
    ds = compressed(RLELossless, "table")
    frames = [get_frame(ds.PixelData, n, number_of_frames=6) for n in range(6)]
    ds.PixelData = encapsulate(frames, fragments_per_frame=2, has_bot=False)
    with pytest.raises(VolumeError, match="12 fragments, 6 frames, and no table to tell them apart"):
        read(save([ds], tmp_path))


def test_a_table_that_lies_is_not_needed_for_one_fragment_a_frame(tmp_path):
    save([compressed(RLELossless, "table")], tmp_path)
    path = tmp_path / "00.dcm"
    data = path.read_bytes()
    at = data.index(b"\xfe\xff\x00\xe0\x18\x00\x00\x00") + 8
    path.write_bytes(data[: at + 4] + b"\xff\xff\xff\x7f" + data[at + 8 :])
    np.testing.assert_array_equal(read(tmp_path)[1], HU)


def test_a_table_that_lies_of_several_fragments_a_frame(tmp_path):
    for name, syntax in (("jpeg-ls", JPEGLSLossless), ("rle", RLELossless)):
        path = save([compressed(syntax, "fragments")], tmp_path / name) / "00.dcm"
        data = path.read_bytes()
        at = data.index(b"\xfe\xff\x00\xe0\x18\x00\x00\x00") + 8
        path.write_bytes(data[: at + 4] + b"\xff\xff\xff\x7f" + data[at + 8 :])
    np.testing.assert_array_equal(read(tmp_path / "jpeg-ls")[1], HU)  # a codestream begins with its mark
    with pytest.raises(VolumeError, match="12 fragments, 6 frames, and no table to tell them apart"):
        read(tmp_path / "rle")


def test_big_endian_frames(tmp_path):
    ds = enhanced(series_datasets(STORED))
    ds.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    ds.PixelData = STORED.astype(">u2").tobytes()
    pydicom.dcmwrite(tmp_path / "00.dcm", ds, enforce_file_format=True)
    np.testing.assert_array_equal(read(tmp_path)[1], HU)


class CountingEntry:
    """A file that counts how often it is opened, and the bytes read of it."""

    def __init__(self, path):
        self.name, self.file, self.opened, self.bytes = str(path), path, 0, 0
        self.data = path.read_bytes()

    def open(self):
        entry = self
        entry.opened += 1

        class Counted(io.BytesIO):
            def read(self, size=-1):
                found = super().read(size)
                entry.bytes += len(found)
                return found

        return Counted(self.data)


@pytest.mark.parametrize("packed", [False, True])
def test_a_frame_costs_no_more_than_itself(tmp_path, packed):
    stored = stored_values((6, 128, 128))
    ds = enhanced(series_datasets(stored))
    if packed:
        ds.compress(RLELossless, generate_instance_uid=False)
    save([ds], tmp_path)
    entry = CountingEntry(tmp_path / "00.dcm")
    image = image_of(tmp_path / "00.dcm")
    stack = SliceStack(tuple(expand(Image(entry, image.header, image.transfer_syntax))))
    np.testing.assert_array_equal(stack.read(5), stored[5].astype(np.int16) - 1024)
    header = len(entry.data) - len(ds.PixelData)
    largest = 2 * 128 * 128 if not packed else len(entry.data) / 5
    assert entry.bytes < header + largest + 2000
    entry.bytes = 0
    np.testing.assert_array_equal(stack.read(1), stored[1].astype(np.int16) - 1024)
    assert entry.opened == 1
    assert entry.bytes <= largest
    stack.close()
    stack.read(2)
    assert entry.opened == 2


def test_a_real_enhanced_file_agrees_with_simpleitk():
    path = get_testdata_file("eCT_Supplemental.dcm")
    volume, array = read(path)
    image = sitk.ReadImage(path)
    # Its frames are stored against their normal; SimpleITK keeps them so, on a left-handed grid.
    np.testing.assert_array_equal(array, sitk.GetArrayFromImage(image)[::-1])
    for k, j, i in ((0, 0, 0), (1, 511, 511), (1, 3, 5)):
        left, posterior, superior = image.TransformIndexToPhysicalPoint((i, j, 1 - k))
        np.testing.assert_allclose((volume.space.affine @ [i, j, k, 1])[:3], [-left, -posterior, superior], atol=1e-4)
    assert "values are of RescaleType US, perhaps not Hounsfield units" in volume.audit.warnings
    assert volume.dtype == np.float32  # 16 bits unsigned reach beyond int16


def test_the_pixels_of_a_frame_that_is_not_there(tmp_path):
    save([enhanced(series_datasets(STORED))], tmp_path)
    with (
        open_pixels(image_of(tmp_path / "00.dcm")) as stream,
        pytest.raises(VolumeError, match="no frame 7; it holds 6"),
    ):
        stream.frame(6)
