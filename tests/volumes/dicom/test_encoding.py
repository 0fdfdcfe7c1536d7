"""Files whose transfer syntax contradicts their data: read as they are, and said."""

import zlib

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.filewriter import dcmwrite
from pydicom.uid import UID

from dicom_files import recompress, save, series_datasets, stored_values
from volseg.errors import VolumeError
from volseg.geometry import Box
from volseg.volumes.dicom.volume import open_dicom

STORED = stored_values()
HU = STORED.astype(np.int16) - 1024
IMPLICIT, EXPLICIT, BIG, DEFLATED = (f"1.2.840.10008.1.2{end}" for end in ("", ".1", ".2", ".1.99"))
JPEG_2000, JPEG_LS, JPEG_LOSSLESS, JPEG, RLE = (f"1.2.840.10008.1.2.{n}" for n in ("4.90", "4.80", "4.70", "4.50", "5"))


def says(path, syntax):
    """Change what the file meta says, and nothing else."""
    raw = path.read_bytes()
    at = raw.index(b"\x02\x00\x10\x00UI") + 8
    old = int.from_bytes(raw[at - 2 : at], "little")
    text = syntax.encode() + b"\0" * (len(syntax) % 2)
    group = int.from_bytes(raw[140:144], "little") + len(text) - old
    head = raw[:140] + group.to_bytes(4, "little") + raw[144 : at - 2] + len(text).to_bytes(2, "little") + text
    path.write_bytes(head + raw[at + old :])


def written(folder, syntax, side=16):
    """The series as native files of that syntax."""
    stored = np.tile(STORED, (1, side // 16, 1))
    for number, ds in enumerate(series_datasets(stored)):
        ds.file_meta.TransferSyntaxUID = UID(syntax)
        if syntax == BIG:
            ds.PixelData = stored[number].astype(">u2").tobytes()
        ds["PixelData"].VR = "OW"
        dcmwrite(folder / f"{number}.dcm", ds, enforce_file_format=True, little_endian=syntax != BIG)
    return stored.astype(np.int16) - 1024


def check(folder, expected, words):
    volume = open_dicom(folder)
    np.testing.assert_array_equal(volume.read(Box.whole(volume.shape)), expected)
    notes = [text for text in volume.audit.warnings if "file meta" in text]
    assert [words in note for note in notes] == [True] if words else notes == []


@pytest.mark.parametrize("side", [16, 128])
@pytest.mark.parametrize("declared", [IMPLICIT, EXPLICIT, BIG, DEFLATED])
@pytest.mark.parametrize("real", [IMPLICIT, EXPLICIT, BIG, DEFLATED])
def test_native_pixels(tmp_path, real, declared, side):
    expected = written(tmp_path, real, side)
    for path in tmp_path.iterdir():
        says(path, declared)
    words = f"6 slices: the file meta says {UID(declared).name}, the data are {UID(real).name}; read as they are"
    check(tmp_path, expected, "" if real == declared else words)


@pytest.mark.parametrize("real", [IMPLICIT, EXPLICIT, BIG])
@pytest.mark.parametrize("start", [0, 132])
def test_no_file_meta(tmp_path, real, start):
    expected = written(tmp_path, real)
    for path in tmp_path.iterdir():
        raw = path.read_bytes()
        body = raw[144 + int.from_bytes(raw[140:144], "little") :]
        path.write_bytes(raw[:start] + body)
    check(tmp_path, expected, "")


def test_deflated_with_the_bytes_of_zlib(tmp_path):
    expected = written(tmp_path, EXPLICIT)
    for path in tmp_path.iterdir():
        says(path, DEFLATED)
        raw = path.read_bytes()
        at = 144 + int.from_bytes(raw[140:144], "little")
        path.write_bytes(raw[:at] + zlib.compress(raw[at:]))
    check(tmp_path, expected, "")


@pytest.mark.parametrize("declared", [IMPLICIT, EXPLICIT, JPEG, JPEG_2000, JPEG_LS, RLE])
@pytest.mark.parametrize("real", ["JPEG2000Lossless", "JPEGLSLossless", "JPEGLosslessProcess14_1", "RLELossless"])
def test_compressed_pixels(tmp_path, real, declared):
    save(series_datasets(STORED), tmp_path)
    recompress(tmp_path, real)
    for path in tmp_path.iterdir():
        says(path, declared)
    same = (real, declared) in (("JPEG2000Lossless", JPEG_2000), ("JPEGLSLossless", JPEG_LS), ("RLELossless", RLE))
    check(tmp_path, HU, "" if same else f"the file meta says {UID(declared).name}, the data are ")


@pytest.mark.parametrize("declared", [JPEG_2000, RLE])
def test_native_pixels_that_are_said_to_be_compressed(tmp_path, declared):
    expected = written(tmp_path, EXPLICIT)
    for path in tmp_path.iterdir():
        says(path, declared)
    check(tmp_path, expected, "the data are Explicit VR Little Endian")


def test_compressed_pixels_of_a_defined_length(tmp_path):
    save(series_datasets(STORED), tmp_path)
    recompress(tmp_path, "JPEG2000Lossless")
    for path in tmp_path.iterdir():
        raw = path.read_bytes()
        at = raw.rindex(b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff") + 8
        path.write_bytes(raw[:at] + (len(raw) - at - 12).to_bytes(4, "little") + raw[at + 4 : -8])
    check(tmp_path, HU, "")


def test_pixels_of_big_endian_words_in_a_private_syntax_are_not_taken_for_native(tmp_path):
    written(tmp_path, IMPLICIT)
    for path in tmp_path.iterdir():
        says(path, "1.2.840.113619.5.2")
    with pytest.raises(VolumeError, match="has no decoder here"):
        open_dicom(tmp_path)


@pytest.mark.parametrize(("more", "said"), [(1, False), (2, True), (640, True)])
def test_pixel_data_longer_than_the_header_says(tmp_path, more, said):
    save(series_datasets(STORED), tmp_path)
    for path in tmp_path.iterdir():
        raw = path.read_bytes()
        at = raw.rindex(b"\xe0\x7f\x10\x00") + 8
        path.write_bytes(raw[:at] + (640 + more).to_bytes(4, "little") + raw[at + 4 :] + bytes(more))
    volume = open_dicom(tmp_path)
    np.testing.assert_array_equal(volume.read(Box.whole(volume.shape)), HU)
    text = f"6 slices: pixel data of {more} bytes more than rows, columns and bits say; the last ones were left out"
    assert (text in volume.audit.warnings) == said


def test_pixel_data_shorter_than_the_header_says(tmp_path):
    save(series_datasets(STORED), tmp_path)
    for path in tmp_path.iterdir():
        ds = dcmread(path)
        ds.Rows = 17
        ds.save_as(path)
    with pytest.raises(VolumeError, match="its header promises 680 bytes of pixels, and it has 640"):
        open_dicom(tmp_path)
