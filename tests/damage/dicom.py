"""Series of DICOM slices, and enhanced files, with bytes, lengths and values damaged."""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pydicom
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage

from damage.flips import Random, damage_bytes

FRAME_OF_REFERENCE = "1.2.4"
CT_FOLDER = Path("dicomdirtests/98892001/CT5N")


@cache
def ct_slices() -> tuple[bytes, ...]:
    """Five real CT slices of a few pixels, uncompressed, put at even distances."""
    folder = Path(str(get_testdata_file("CT_small.dcm"))).parent / CT_FOLDER
    files = sorted(folder.iterdir())
    return tuple(dataset_bytes(_placed(pydicom.dcmread(file), n)) for n, file in enumerate(files))


@cache
def coded_slices(name: str) -> tuple[bytes, ...]:
    """Three slices with the pixels of a real file of some transfer syntax, made CT."""
    return tuple(dataset_bytes(_placed(pydicom.dcmread(str(get_testdata_file(name))), n)) for n in range(3))


CODED = (
    "CT_small.dcm",
    "MR_small_RLE.dcm",
    "MR_small_jp2klossless.dcm",
    "MR_small_jpeg_ls_lossless.dcm",
    "MR_small_expb.dcm",
    "MR_small_implicit.dcm",
)


def _placed(ds: Dataset, number: int) -> Dataset:
    ds.SOPClassUID, ds.Modality, ds.ImageType = CTImageStorage, "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.SeriesInstanceUID, ds.SOPInstanceUID = "1.2.3", f"1.2.3.{number}"
    ds.ImageOrientationPatient, ds.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 2 * number]
    ds.PixelSpacing, ds.RescaleSlope, ds.RescaleIntercept, ds.InstanceNumber = [0.7, 0.7], 1, -1024, number + 1
    ds.FrameOfReferenceUID = FRAME_OF_REFERENCE
    return ds


@cache
def enhanced() -> bytes:
    """A real enhanced CT of two frames, cut down to 16 x 16 pixels."""
    source = get_testdata_file("eCT_Supplemental.dcm", download=False)
    if source is None:  # pydicom-data is not installed
        return ct_slices()[0]
    ds = pydicom.dcmread(str(source))
    pixels = ds.pixel_array[:, :16, :16]
    ds.Rows, ds.Columns, ds.PixelData = 16, 16, pixels.tobytes()
    return dataset_bytes(ds)


def dataset_bytes(ds: Dataset) -> bytes:
    """The data set as a file."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds.save_as(buffer, enforce_file_format=False)
    return buffer.getvalue()


def dicom_bytes(rng: Random, folder: Path) -> Path:
    """A series, one or all of its files damaged anywhere."""
    return _series(rng, folder, damage_bytes)


def dicom_lengths(rng: Random, folder: Path) -> Path:
    """Lengths of elements that lie, and elements doubled or lost."""

    def lie(rng: Random, data: bytes) -> bytes:
        keyword = str(
            rng.choice(["Rows", "ImageType", "PixelData", "PixelSpacing", "SeriesInstanceUID", "RescaleSlope"])
        )
        tag = pydicom.datadict.tag_for_keyword(keyword)
        assert tag is not None
        order = "<" if rng.random() < 0.8 else ">"
        place = data.find(struct.pack(f"{order}HH", tag >> 16, tag & 0xFFFF), 132)
        if place < 0:
            return damage_bytes(rng, data)
        if rng.random() < 0.3:
            length = int(rng.choice([12, 20, 40]))
            element = data[place : place + length]
            return data[:place] + element * int(rng.choice([0, 2, 50])) + data[place + length :]
        long = int(rng.choice([0, 1, 3, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0xFFFFFFFE, 10**6]))
        at = place + int(rng.choice([4, 6, 8]))
        packed = struct.pack(f"{order}I", long)
        return data[:at] + packed[: int(rng.choice([2, 4]))].ljust(2, b"\0") + data[at + int(rng.choice([2, 4])) :]

    return _series(rng, folder, lie)


ABSURD: dict[str, tuple[Any, ...]] = {
    "Rows": (0, 1, 65535, 12345),
    "Columns": (0, 1, 65535, 12345),
    "NumberOfFrames": (0, -1, 2, 10**9, 2**31 - 1),
    "BitsAllocated": (0, 1, 8, 12, 32, 64, 65535),
    "BitsStored": (0, 1, 17, 64, 65535),
    "HighBit": (0, 31, 65535),
    "PixelRepresentation": (1, 2, 65535),
    "SamplesPerPixel": (0, 3, 65535),
    "PhotometricInterpretation": ("RGB", "MONOCHROME1", "PALETTE COLOR", "", "YBR_FULL_422", "X"),
    "PixelPaddingValue": (0, 65535, -1, b"\x00"),
    "PixelPaddingRangeLimit": (0, 65535),
    "RescaleSlope": ("0", "nan", "inf", "1e300", "-1", "0.1", "", "x", "1e-300", "1e18"),
    "RescaleIntercept": ("nan", "inf", "1e300", "-1e18", "", "x"),
    "ImagePositionPatient": (
        ["nan"] * 3,
        ["1e30"] * 3,
        ["0"] * 3,
        ["0", "0"],
        [],
        ["1e300"] * 3,
        ["x"] * 3,
        ["inf", "0", "0"],
    ),
    "ImageOrientationPatient": (["0"] * 6, ["nan"] * 6, ["1e30"] * 6, ["1", "0", "0"], [], ["1"] * 6, ["1e300"] * 6),
    "PixelSpacing": (
        ["0", "0"],
        ["-1", "-1"],
        ["nan", "nan"],
        ["1e30", "1e30"],
        ["1"],
        [],
        ["1e300"] * 2,
        ["1e-300"] * 2,
    ),
    "ImageType": ("LOCALIZER", ["DERIVED", "SECONDARY"], "", ["\\"] * 3, ["A"] * 500),
    "SeriesInstanceUID": ("", "1.2.9", "x" * 5000, ".." * 40, "1.2.3\x00"),
    "SOPInstanceUID": ("", "1.2.3.0", "x" * 5000),
    "SOPClassUID": ("", "1.2", "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.2.1"),
    "Modality": ("MR", "", "SEG", "RTSTRUCT", ["CT", "CT"]),
    "GantryDetectorTilt": ("nan", "90", "1e300"),
    "SliceThickness": ("nan", "0"),
    "InstanceNumber": ("nan", "99999999999999999999", ""),
    "PixelData": (b"", b"\0", b"\xff" * 5000),
    "SharedFunctionalGroupsSequence": ([], [Dataset()], [Dataset(), Dataset()]),
    "PerFrameFunctionalGroupsSequence": ([], [Dataset()], [Dataset()] * 3),
    "LossyImageCompression": ("01",),
    "FrameOfReferenceUID": ("", "9"),
}


SYNTAXES = (
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.4.90",
    "1.2.840.10008.1.2.5",
    "1.2.840.10008.1.2.1.99",
    "1.2",
    "",
    "..",
)


def dicom_values(rng: Random, folder: Path) -> Path:
    """Elements of absurd values, in one slice or in all of them."""
    keywords = [str(k) for k in rng.choice(list(ABSURD), int(rng.integers(1, 4)), replace=False)]
    values = [ABSURD[k][int(rng.integers(len(ABSURD[k])))] for k in keywords]

    def change(rng: Random, data: bytes) -> bytes:
        ds = pydicom.dcmread(io.BytesIO(data))
        for keyword, value in zip(keywords, values, strict=True):
            _set(ds, keyword, value)
        try:
            changed = dataset_bytes(ds)
        except Exception:  # a value that pydicom cannot write makes no file
            return damage_bytes(rng, data)
        if rng.random() < 0.15:
            changed = changed.replace(str(ds.file_meta.TransferSyntaxUID).encode(), str(rng.choice(SYNTAXES)).encode())
        return changed

    return _series(rng, folder, change)


def _set(ds: Dataset, keyword: str, value: Any) -> None:
    tag = pydicom.datadict.tag_for_keyword(keyword)
    assert tag is not None
    vr = {"PixelData": "OW", "PixelPaddingValue": "US", "PixelPaddingRangeLimit": "US"}.get(keyword)
    vr = vr or pydicom.datadict.dictionary_VR(tag)
    if vr in ("DS", "IS") and not isinstance(value, (list, tuple)):
        value = str(value)
    where = ds
    if rows := ds.get("PerFrameFunctionalGroupsSequence"):  # an enhanced file keeps its positions in there
        for group in ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence"):
            for item in (*rows[:1], *(ds.get("SharedFunctionalGroupsSequence") or ())[:1]):
                if group in item and item[group].value and keyword in item[group].value[0]:
                    where = item[group].value[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if vr in ("DS", "IS"):
            # As text of another kind, so that pydicom writes it without a look.
            text = "\\".join(value) if isinstance(value, (list, tuple)) else value
            where[tag] = pydicom.DataElement(tag, "LO", text, validation_mode=0)
            where[tag].VR = "LO"
        else:
            where[tag] = pydicom.DataElement(tag, vr, value, validation_mode=0)


def _series(rng: Random, folder: Path, change: Callable[[Random, bytes], bytes]) -> Path:
    kind = rng.random()
    if kind < 0.5:
        slices = list(ct_slices())
    elif kind < 0.7:
        slices = [enhanced()]
    else:
        slices = list(coded_slices(str(rng.choice(CODED))))
    hit = range(len(slices)) if rng.random() < 0.3 else [int(rng.integers(len(slices)))]
    state = rng.bit_generator.state
    for number in hit:
        rng.bit_generator.state = state  # the same damage to each
        slices[number] = change(rng, slices[number])
    place = folder / "series"
    place.mkdir()
    for number, data in enumerate(slices):
        (place / f"{number}.dcm").write_bytes(data)
    return place
