"""Hounsfield units from the stored values: transfer syntaxes, rescale, padding, MONOCHROME1, and what is refused."""

import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate, get_frame
from pydicom.uid import (
    HTJ2K,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGExtended12Bit,
    JPEGLSLossless,
    RLELossless,
)

from dicom_files import recompress, save, series_datasets, stored_values
from volseg.errors import VolumeError
from volseg.geometry import Box
from volseg.volumes.dicom.finding.sources import FileEntry
from volseg.volumes.dicom.image import Image
from volseg.volumes.dicom.pixels import decoder_process, decoding
from volseg.volumes.dicom.pixels.hounsfield import hounsfield, hounsfield_dtype
from volseg.volumes.dicom.pixels.stack import open_pixels
from volseg.volumes.dicom.volume import open_dicom

STORED = stored_values()
HU = STORED.astype(np.int16) - 1024


def read(folder):
    volume = open_dicom(folder)
    array = volume.read(Box.whole(volume.shape))
    assert array.dtype == volume.dtype
    return array


def image_of(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # real files
        ds = pydicom.dcmread(path, stop_before_pixels=True)
        header = {element.keyword: element.value for element in ds}
    return Image(
        FileEntry(Path(path)), {"RescaleSlope": 1, "RescaleIntercept": 0, **header}, ds.file_meta.TransferSyntaxUID
    )


def hu_of(path, **changes):
    image = image_of(path)
    image = Image(image.entry, {**image.header, **changes}, image.transfer_syntax)
    with open_pixels(image) as stream:
        return hounsfield(image, stream, hounsfield_dtype(image))


# ---- transfer syntaxes


@pytest.mark.parametrize(
    "syntax",
    [
        ExplicitVRLittleEndian,
        ImplicitVRLittleEndian,
        DeflatedExplicitVRLittleEndian,
        RLELossless,
        JPEGLSLossless,
        JPEG2000Lossless,
    ],
)
def test_transfer_syntaxes_written_by_pydicom(tmp_path, syntax):
    def encode(ds):
        if syntax in (RLELossless, JPEGLSLossless, JPEG2000Lossless):
            ds.compress(syntax, generate_instance_uid=False)
        else:
            ds.file_meta.TransferSyntaxUID = syntax

    stored = stored_values((3, 64, 72))  # openjpeg encodes nothing smaller
    array = read(save(series_datasets(stored), tmp_path, encode=encode))
    np.testing.assert_array_equal(array, stored.astype(np.int16) - 1024)


def test_big_endian(tmp_path):
    for number, ds in enumerate(series_datasets(STORED)):
        ds.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
        ds.PixelData = STORED[number].astype(">u2").tobytes()
        pydicom.dcmwrite(tmp_path / f"{number}.dcm", ds, enforce_file_format=True)
    np.testing.assert_array_equal(read(tmp_path), HU)


def save_bytes_in_big_endian_words(stored, folder):
    for number, ds in enumerate(series_datasets(stored, bits=8)):
        ds.file_meta.TransferSyntaxUID, ds.BitsAllocated = ExplicitVRBigEndian, 8
        padded = np.append(stored[number].ravel(), np.zeros(stored[number].size % 2, np.uint8)).astype(np.uint8)
        ds.PixelData = padded.view(np.uint16).byteswap().tobytes()
        ds["PixelData"].VR = "OW"
        pydicom.dcmwrite(folder / f"{number}.dcm", ds, enforce_file_format=True)


def test_big_endian_bytes_in_words(tmp_path):
    stored = stored_values((2, 15, 20), bits=8).astype(np.uint8)
    save_bytes_in_big_endian_words(stored, tmp_path)
    np.testing.assert_array_equal(read(tmp_path), stored.astype(np.int16) - 1024)


def test_an_odd_number_of_bytes_in_big_endian_words_is_refused(tmp_path):
    save_bytes_in_big_endian_words(stored_values((2, 15, 21), bits=8).astype(np.uint8), tmp_path)
    with pytest.raises(VolumeError, match=r"0\.dcm: an odd number of bytes in big-endian words"):
        read(tmp_path)


@pytest.mark.parametrize(
    "syntax", ["JPEGLosslessProcess14", "JPEGLosslessProcess14_1", "JPEGLSLossless", "JPEG2000Lossless", "RLELossless"]
)
@pytest.mark.parametrize("signed", [False, True])
def test_transfer_syntaxes_written_by_gdcm(tmp_path, syntax, signed):
    stored = STORED.astype(np.int16) - 1000 if signed else STORED
    save(series_datasets(stored, intercept=0, bits=16 if signed else 12), tmp_path)
    recompress(tmp_path, syntax)
    np.testing.assert_array_equal(read(tmp_path), stored)


def test_jpeg_baseline_is_close(tmp_path):
    stored = (STORED // 16).astype(np.uint8)
    datasets = series_datasets(stored, bits=8)
    for ds in datasets:
        ds.BitsAllocated = 8
    save(datasets, tmp_path)
    recompress(tmp_path, "JPEGBaselineProcess1")
    assert np.abs(read(tmp_path) - (stored.astype(int) - 1024)).max() <= 3


def test_jpeg_extended_of_twelve_bits_is_close(tmp_path, capfd):
    save(series_datasets(STORED), tmp_path)
    recompress(tmp_path, "JPEGExtendedProcess2_4")
    assert pydicom.dcmread(tmp_path / "00.dcm").file_meta.TransferSyntaxUID == JPEGExtended12Bit
    capfd.readouterr()
    assert np.abs(read(tmp_path) - HU).max() <= 3
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "name", ["JPEG-lossy.dcm", "JPEG2000.dcm", "bad_sequence.dcm", "explicit_VR-UN.dcm", "693_J2KI.dcm"]
)
def test_real_files_of_lossy_and_rare_syntaxes_agree_with_simpleitk(name):
    path = get_testdata_file(name)
    expected = sitk.GetArrayFromImage(sitk.ReadImage(path))[0]
    padded = pydicom.dcmread(path, stop_before_pixels=True).get("PixelPaddingValue")
    values = hu_of(path)
    if padded is not None:
        expected = np.where(expected == padded + hu_intercept(path), -1024, expected)
    assert np.abs(values - expected).max() <= 1  # decoders of lossy JPEG may round differently
    assert values.std() > 0


def hu_intercept(path):
    return int(pydicom.dcmread(path, stop_before_pixels=True).RescaleIntercept)


def test_signed_values_in_an_unsigned_codestream():
    path = get_testdata_file("J2K_pixelrep_mismatch.dcm")
    values = hu_of(path)
    np.testing.assert_array_equal(values, sitk.GetArrayFromImage(sitk.ReadImage(path))[0])
    assert (values.min(), values.max()) == (-2000, 1896)


@pytest.mark.parametrize("syntax", [HTJ2K, HTJ2KLossless, HTJ2KLosslessRPCL])
def test_htj2k_goes_to_openjpeg(tmp_path, syntax):
    # No encoder of HTJ2K comes as a wheel; openjpeg tells the codestreams apart itself, so a plain one shows the way.
    def encode(ds):
        ds.compress(JPEG2000Lossless, generate_instance_uid=False)
        ds.file_meta.TransferSyntaxUID = syntax

    stored = stored_values((2, 64, 72))
    array = read(save(series_datasets(stored), tmp_path, encode=encode))
    np.testing.assert_array_equal(array, stored.astype(np.int16) - 1024)


def test_a_transfer_syntax_that_nothing_decodes(tmp_path):
    def encode(ds):
        ds.file_meta.TransferSyntaxUID = pydicom.uid.MPEG2MPML
        ds.PixelData = encapsulate([b"nothing"])

    with pytest.raises(VolumeError, match=r"MPEG2 .* has no decoder here: video, not CT; have"):
        open_dicom(save(series_datasets(STORED), tmp_path, encode=encode))


def test_a_missing_decoder_is_named(tmp_path, monkeypatch):
    save(series_datasets(STORED), tmp_path)
    recompress(tmp_path, "JPEGLSLossless")
    monkeypatch.setattr(decoding, "PLUGINS", {**decoding.PLUGINS, "pyjpegls": "absent"})
    with pytest.raises(VolumeError, match=r"JPEG-LS .* has no decoder here; pip install pyjpegls"):
        open_dicom(tmp_path)


# ---- truncated, damaged, lying


@pytest.mark.parametrize("syntax", ["JPEGLosslessProcess14_1", "JPEGLSLossless", "JPEG2000Lossless", "RLELossless"])
def test_truncated_compressed_pixels(tmp_path, syntax):
    save(series_datasets(STORED), tmp_path)
    recompress(tmp_path, syntax)
    path = tmp_path / "04.dcm"
    ds = pydicom.dcmread(path)
    ds.PixelData = encapsulate([get_frame(ds.PixelData, 0, number_of_frames=1)[:-150]])
    ds.save_as(path)
    volume = open_dicom(tmp_path)
    np.testing.assert_array_equal(volume.read(Box((0, 0, 0), (4, 16, 20))), HU[:4])
    with pytest.raises(
        VolumeError, match=r"04\.dcm: pixels cannot be decoded from .*(openjpeg|gdcm|pyjpegls|pydicom):"
    ):
        volume.read(Box.whole(volume.shape))


@pytest.mark.parametrize("syntax", [None, "JPEG2000Lossless"])
def test_a_file_cut_off_after_it_was_opened(tmp_path, syntax):
    save(series_datasets(STORED), tmp_path)
    if syntax:
        recompress(tmp_path, syntax)
    volume = open_dicom(tmp_path)
    path = tmp_path / "04.dcm"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(VolumeError, match=r"04\.dcm: truncated"):
        volume.read(Box.whole(volume.shape))


@pytest.mark.parametrize("syntax", ["JPEGLosslessProcess14_1", "JPEGLSLossless", "JPEG2000Lossless"])
def test_a_codestream_of_another_size_is_not_decoded(tmp_path, syntax, monkeypatch):
    save(series_datasets(STORED), tmp_path)
    recompress(tmp_path, syntax)
    ds = pydicom.dcmread(tmp_path / "04.dcm")
    data = bytearray(get_frame(ds.PixelData, 0, number_of_frames=1))
    height, width = (16, 20) if syntax != "JPEG2000Lossless" else (20, 16)
    size = "2" if syntax != "JPEG2000Lossless" else "4"
    at = data.index(np.array([height, width], f">u{size}").tobytes())
    data[at : at + 2 * int(size)] = np.array([60000, 60000], f">u{size}").tobytes()
    ds.PixelData = encapsulate([bytes(data)])
    ds.save_as(tmp_path / "04.dcm")
    monkeypatch.setattr(decoding, "_one_frame", lambda *_: pytest.fail("a decoder was asked"))
    with pytest.raises(
        VolumeError, match=r"04\.dcm: compressed pixels of 60000 x 60000 x 1, its header promises 16 x 20 x 1"
    ):
        open_dicom(tmp_path).read(Box((4, 0, 0), (5, 16, 20)))


@pytest.mark.parametrize("kind", [np.uint16, np.int16])
def test_a_header_that_says_too_few_bits_is_a_fault(tmp_path, kind):
    stored = (STORED * 4).astype(kind)  # smooth, through 2048 and 4096
    stored[3] += 3000
    assert stored.max() > 4500
    with pytest.raises(VolumeError, match=r"dcm: pixels from \d+ to \d+ do not fit its 12 bits"):
        read(save(series_datasets(stored), tmp_path))


def test_words_in_the_other_byte_order_are_a_fault(tmp_path):
    smooth = np.add.outer(np.arange(6) * 40, np.add.outer(np.arange(16) * 31, np.arange(20) * 17)).astype(np.uint16)
    with pytest.raises(VolumeError, match=r"dcm: pixels from \d+ to \d+ do not fit its 12 bits"):
        read(save(series_datasets(smooth.byteswap()), tmp_path))


@pytest.mark.parametrize(("bits", "what"), [(12, 0x8000), (12, 0xF000), (12, 0x1000), (10, 0x0400), (12, None)])
@pytest.mark.parametrize("syntax", [None, "RLELossless", "JPEG2000Lossless"])
def test_refuse_above_the_bits_stored_is_no_value(tmp_path, bits, what, syntax):
    stored = STORED % 1000 if bits == 10 else STORED.copy()
    expected = stored.astype(np.int16) - 1024
    random = np.random.default_rng(0)
    bad = random.random(stored.shape) < 0.15
    stored[bad] |= (random.integers(1, 16, bad.sum()) << 12).astype(np.uint16) if what is None else np.uint16(what)
    save(series_datasets(stored, bits=16), tmp_path)
    if syntax:
        recompress(tmp_path, syntax)
    for path in tmp_path.iterdir():
        ds = pydicom.dcmread(path)
        ds.BitsStored, ds.HighBit = bits, bits - 1
        ds.save_as(path)
    np.testing.assert_array_equal(read(tmp_path), expected)


def test_refuse_above_signed_values_and_padding_beyond_the_bits(tmp_path):
    values = STORED.astype(np.int16) - 500
    stored = values.copy()
    stored[:, 3::5] ^= 0x4000
    stored[:, :2] = -32000  # beyond 12 bits, and said to be padding

    def encode(ds):
        ds.add_new("PixelPaddingValue", "SS", -32000)

    array = read(save(series_datasets(stored, intercept=0), tmp_path, encode=encode))
    np.testing.assert_array_equal(array[:, 2:], values[:, 2:])
    assert (array[:, :2] == -1024).all()


@pytest.mark.parametrize(("high", "signed"), [(15, False), (13, False), (15, True)])
@pytest.mark.parametrize("refuse", [0, 0x000F, 0xFFFF])
def test_values_in_the_upper_bits(tmp_path, high, signed, refuse):
    values = STORED.astype(np.int16) - (500 if signed else 0)
    shift = high - 11
    mask = ((1 << 12) - 1) << shift
    stored = ((values.astype(np.int32) << shift) & mask | (refuse & ~mask)).astype(np.uint16)

    def encode(ds):
        ds.HighBit = high

    datasets = series_datasets(stored.view(np.int16) if signed else stored, intercept=0)
    np.testing.assert_array_equal(read(save(datasets, tmp_path, encode=encode)), values)


def test_values_in_the_upper_bits_of_a_codestream_are_refused(tmp_path):
    save(series_datasets(STORED), tmp_path)
    recompress(tmp_path, "JPEGLSLossless")
    for path in tmp_path.iterdir():
        ds = pydicom.dcmread(path)
        ds.HighBit = 15
        ds.save_as(path)
    with pytest.raises(VolumeError, match="16 bits allocated, 12 stored, high bit 15"):
        read(tmp_path)


# ---- the end of compressed pixels


def rewritten_end(folder, change, syntax="JPEG2000Lossless"):
    save(series_datasets(STORED), folder)
    recompress(folder, syntax)
    for path in folder.iterdir():
        raw = path.read_bytes()
        assert raw[-8:] == b"\xfe\xff\xdd\xe0" + bytes(4)
        path.write_bytes(change(raw[:-8]))
    return folder


@pytest.mark.parametrize("syntax", ["JPEG2000Lossless", "JPEGLSLossless", "JPEGLosslessProcess14_1", "RLELossless"])
@pytest.mark.parametrize("end", [b"", bytes(8), bytes(200), b"\xfe\xff\xdd", b"\xfc\xff\xfc\xffOB\0\0\4\0\0\0\0\0\0\0"])
def test_pixels_without_their_last_mark(tmp_path, syntax, end):
    np.testing.assert_array_equal(read(rewritten_end(tmp_path, lambda raw: raw + end, syntax)), HU)


def test_a_fragment_that_does_not_count_its_last_byte(tmp_path):
    def change(raw):
        at = raw.rindex(b"\xfe\xff\x00\xe0") + 4
        length = int.from_bytes(raw[at : at + 4], "little")
        assert at + 4 + length == len(raw)
        return raw[:at] + (length + 1).to_bytes(4, "little") + raw[at + 4 :] + b"\0\0" + b"\xfe\xff\xdd\xe0\0\0\0\0"

    np.testing.assert_array_equal(read(rewritten_end(tmp_path, change)), HU)


def test_a_codestream_cut_off_with_its_mark_is_truncated(tmp_path):
    with pytest.raises(VolumeError, match="truncated: the file ends within its compressed pixel data"):
        read(rewritten_end(tmp_path, lambda raw: raw[:-20]))


def test_overlays_in_unused_bits_are_no_values(tmp_path):
    def encode(ds):
        ds.add_new(0x60000100, "US", 16)
        ds.add_new(0x60000102, "US", 15)

    stored = STORED.copy()
    stored[:, 3:5, 4:8] |= 0x8000
    np.testing.assert_array_equal(read(save(series_datasets(stored), tmp_path, encode=encode)), HU)


def test_negative_values_whose_high_bits_are_zero(tmp_path):
    values = STORED.astype(np.int16) - 300
    stored = (values & 0x0FFF).astype(np.int16)
    assert stored.min() >= 0
    np.testing.assert_array_equal(read(save(series_datasets(stored, intercept=0), tmp_path)), values)


# ---- rescale


def test_slope_and_intercept_of_each_slice(tmp_path):
    def encode(ds):
        ds.RescaleSlope, ds.RescaleIntercept = ds.InstanceNumber, -10 * ds.InstanceNumber

    array = read(save(series_datasets(STORED), tmp_path, encode=encode))
    number = np.arange(1, 7)[:, None, None]
    assert array.dtype == np.int16
    np.testing.assert_array_equal(array, STORED * number - 10 * number)


@pytest.mark.parametrize(
    ("slope", "intercept", "bits", "dtype"),
    [
        (1, -1024, 12, np.int16),
        (1, -1024, 16, np.float32),
        (1, -32768, 16, np.int16),
        (16, 0, 12, np.float32),
        (0.5, 0, 12, np.float32),
        (1, 0.5, 12, np.float32),
        (-1, 100, 12, np.int16),
    ],
)
def test_int16_only_where_exact(tmp_path, slope, intercept, bits, dtype):
    def encode(ds):
        ds.RescaleSlope = slope

    array = read(save(series_datasets(STORED, bits=bits, intercept=intercept), tmp_path, encode=encode))
    assert array.dtype == dtype
    np.testing.assert_array_equal(array, STORED * np.float64(slope) + intercept)


def test_one_fractional_slice_makes_all_float(tmp_path):
    def encode(ds):
        ds.RescaleSlope = 0.25 if ds.InstanceNumber == 3 else 1

    array = read(save(series_datasets(STORED), tmp_path, encode=encode))
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, STORED * np.where(np.arange(6) == 2, 0.25, 1)[:, None, None] - 1024)


def test_sixteen_bits_signed_stay_int16_below_any_scan(tmp_path):
    stored = STORED.astype(np.int16)
    stored[:, 0, 0] = -32768  # with the intercept -33792: filler that no PixelPaddingValue declares
    stored[:, 0, 1] = -31744
    array = read(save(series_datasets(stored, bits=16), tmp_path))
    assert array.dtype == np.int16
    assert (array[:, 0, 0] == -1024).all()
    assert (array[:, 0, 1] == -32768).all()
    np.testing.assert_array_equal(array[:, 1:], HU[:, 1:])


@pytest.mark.parametrize(
    ("keyword", "value"), [("RescaleSlope", None), ("RescaleIntercept", None), ("RescaleSlope", 0)]
)
def test_no_rescale_no_unit(tmp_path, keyword, value):
    def encode(ds):
        if ds.InstanceNumber == 3:
            setattr(ds, keyword, value)

    with pytest.raises(VolumeError, match=rf"02\.dcm: .*{keyword}"):
        open_dicom(save(series_datasets(STORED), tmp_path, encode=encode))


# ---- padding


@pytest.mark.parametrize(("value", "limit"), [(-2000, None), (63536, None), (-2000, -1900), (-1900, -2000)])
def test_padding_is_air(tmp_path, value, limit):
    stored = STORED.astype(np.int16)
    stored[:, 0, :5] = -2000
    stored[:, 1, 0] = -1950

    def encode(ds):
        ds.add_new("PixelPaddingValue", "US" if value > 0 else "SS", value)
        if limit is not None:
            ds.add_new("PixelPaddingRangeLimit", "SS", limit)

    array = read(save(series_datasets(stored, bits=16, intercept=0), tmp_path, encode=encode))
    assert (array[:, 0, :5] == -1024).all()
    assert (array[:, 1, 0] == (-1950 if limit is None else -1024)).all()
    np.testing.assert_array_equal(array[:, 2:], stored[:, 2:])


def test_padding_may_lie_beyond_the_bits_stored(tmp_path):
    stored = STORED.copy()
    stored[:, 0, :5] = 63536

    def encode(ds):
        ds.add_new("PixelPaddingValue", "US", 63536)

    array = read(save(series_datasets(stored), tmp_path, encode=encode))
    assert (array[:, 0, :5] == -1024).all()
    np.testing.assert_array_equal(array[:, 1:], HU[:, 1:])


@pytest.mark.parametrize(("value", "limit"), [(0, None), (-1100, 3200)])
def test_padding_that_means_tissue_marks_nothing(tmp_path, value, limit):
    stored = STORED.astype(np.int16)
    stored[0] = 0

    def encode(ds):
        ds.add_new("PixelPaddingValue", "SS", value)
        if limit is not None:
            ds.add_new("PixelPaddingRangeLimit", "SS", limit)

    array = read(save(series_datasets(stored, bits=16, intercept=0), tmp_path, encode=encode))
    np.testing.assert_array_equal(array, stored)


# ---- MONOCHROME1


@pytest.mark.parametrize("signed", [False, True])
def test_monochrome1_is_inverted_as_simpleitk_does(tmp_path, signed):
    stored = STORED.astype(np.int16) - 1000 if signed else STORED

    def encode(ds):
        ds.PhotometricInterpretation = "MONOCHROME1"

    save(series_datasets(stored, bits=16 if signed else 12), tmp_path, encode=encode)
    volume = open_dicom(tmp_path)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path)))
    array = volume.read(Box.whole(volume.shape))
    np.testing.assert_array_equal(array, sitk.GetArrayFromImage(reader.Execute()))
    np.testing.assert_array_equal(array, (-1 - stored if signed else 4095 - stored.astype(int)) - 1024)
    assert "6 slices are MONOCHROME1 without RescaleType HU: their stored values were inverted" in volume.audit.warnings


def test_monochrome1_in_declared_hounsfield_units_is_taken_at_its_word(tmp_path):
    def encode(ds):
        ds.PhotometricInterpretation, ds.RescaleType = "MONOCHROME1", "HU"

    volume = open_dicom(save(series_datasets(STORED), tmp_path, encode=encode))
    np.testing.assert_array_equal(volume.read(Box.whole(volume.shape)), HU)
    assert any("taken as they are" in line for line in volume.audit.warnings)


def test_padding_of_monochrome1_is_told_before_inversion(tmp_path):
    stored = STORED.copy()
    stored[:, 0, :5] = 4095

    def encode(ds):
        ds.PhotometricInterpretation = "MONOCHROME1"
        ds.add_new("PixelPaddingValue", "US", 4095)

    datasets = series_datasets(stored, intercept=-2000)
    array = read(save(datasets, tmp_path, encode=encode))
    assert (array[:, 0, :5] == -1024).all()
    np.testing.assert_array_equal(array[:, 1:], 4095 - stored[:, 1:].astype(int) - 2000)


@pytest.mark.parametrize("syntax", ["JPEGLosslessProcess14_1", "JPEGExtendedProcess2_4"])
def test_a_codestream_that_kills_gdcm_is_an_error(tmp_path, syntax):
    save(series_datasets(STORED), tmp_path)
    recompress(tmp_path, syntax)
    ds = pydicom.dcmread(tmp_path / "04.dcm")
    frame = get_frame(ds.PixelData, 0, number_of_frames=1)
    rng = np.random.default_rng(0)
    fates = []
    for _ in range(12):
        data = np.frombuffer(frame, np.uint8).copy()
        data[rng.integers(20, 200, 6)] = rng.integers(0, 256, 6)
        ds.PixelData = encapsulate([data.tobytes()])
        ds.save_as(tmp_path / "04.dcm")
        try:
            open_dicom(tmp_path).read(Box((4, 0, 0), (5, 16, 20)))
            fates.append("read")
        except VolumeError as error:
            assert "04.dcm: " in str(error)  # noqa: PT017  (others fail the test)
            fates.append("refused")
    assert "refused" in fates
    array = open_dicom(tmp_path).read(Box((0, 0, 0), (4, 16, 20)))  # the next frame is decoded as if nothing had been
    assert np.abs(array - HU[:4]).max() <= (0 if "Lossless" in syntax else 3)


def test_an_interrupted_frame_is_not_taken_for_the_next(monkeypatch):
    import jpeg_ls

    first, second = (np.full((8, 8), value, np.uint16) for value in (700, 900))
    coded = [bytes(jpeg_ls.encode_array(plane)) for plane in (first, second)]
    description = {"syntax": str(JPEGLSLossless), "allocated": 16, "signed": 0}
    process = decoder_process.DecoderProcess()

    def interrupt(_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(decoder_process, "_receive", interrupt)
        with pytest.raises(KeyboardInterrupt):
            process.decode(coded[0], **description)
    assert process.decode(coded[1], **description) == second.tobytes()
    process.close()


@pytest.mark.skipif(not hasattr(signal, "alarm"), reason="no alarms here")
def test_a_decoder_that_hangs_ends_without_its_parent():
    program = (
        "import time; from volseg.volumes.dicom.pixels import decoder_process as module\n"
        "module.SECONDS, module._decode = 0.5, lambda *_, **__: time.sleep(60)\n"
        "module.main()"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as child:
        assert child.stdin is not None
        for message in (b"{}", b"a frame"):
            decoder_process._send(child.stdin, message)
        assert child.wait(20) == -signal.SIGALRM
