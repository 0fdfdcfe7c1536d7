"""Numbers written as text: with a decimal comma they are read, and said; what is none is shown."""

import re

import numpy as np
import pytest
from pydicom import DataElement
from pydicom.multival import MultiValue

from dicom_files import enhanced, save, series_datasets, stored_values
from volseg.errors import VolumeError
from volseg.geometry import Box
from volseg.volumes.dicom.numbers import as_written, numbers, with_points
from volseg.volumes.dicom.volume import open_dicom

STORED = stored_values()
HU = STORED.astype(np.int16) - 1024


def write(datasets, folder, **texts):
    """The datasets with these elements as the text given, whatever it is."""
    from pydicom.tag import Tag

    for ds in datasets:
        for keyword, text in texts.items():
            ds[keyword] = DataElement(Tag(keyword), "LO", text(ds) if callable(text) else text, validation_mode=0)
    for path in sorted(save(datasets, folder).iterdir()):
        raw = path.read_bytes()
        for keyword in texts:
            tag = Tag(keyword)
            head = tag.group.to_bytes(2, "little") + tag.element.to_bytes(2, "little")
            raw = raw.replace(head + b"LO", head + b"DS")
        path.write_bytes(raw)
    return folder


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1.5, (1.5,)),
        ("0.8\\0.7", (0.8, 0.7)),
        (["0.8", 0.7], (0.8, 0.7)),
        ("0,8\\0,7", (0.8, 0.7)),
        (" -1024,0 ", (-1024.0,)),
        (MultiValue(str, ["1,5e2", "-,5", "7,"]), (150.0, -0.5, 7.0)),
        (b"1,5\\2\0", (1.5, 2.0)),
    ],
)
def test_numbers(value, expected):
    assert numbers(value) == expected


@pytest.mark.parametrize("value", ["1.5,2", "1,000,000", "0,8 mm", "abc", "", ",", None, ["1", "x"], "1\\"])
def test_no_numbers(value):
    with pytest.raises(ValueError, match=re.escape(as_written(value))):
        numbers(value)
    assert as_written(["0,8", "0,7"]) == "0,8\\0,7"


def test_a_comma_that_may_group_thousands_is_left_alone():
    header = {"RescaleIntercept": "-1,024", "RescaleSlope": "1,000", "SeriesDescription": "1,5"}
    mended, notes = with_points(header)
    assert mended == {**header, "RescaleSlope": 1.0}
    assert notes == ("RescaleSlope has a decimal comma, read as a point",)
    assert with_points({"RescaleIntercept": "-1024,000"})[0] == {"RescaleIntercept": -1024.0}


def test_decimal_commas_are_read_and_said(tmp_path):
    def position(ds):
        return "\\".join(f"{float(n):.3f}" for n in ds.ImagePositionPatient).replace(".", ",")

    folder = write(
        series_datasets(STORED), tmp_path, RescaleIntercept="-1024,0", RescaleSlope="1,0", PixelSpacing="0,8\\0,7",
        ImagePositionPatient=position, ImageOrientationPatient="1,0\\0\\0\\0\\1,0\\0",
    )  # fmt: skip
    volume = open_dicom(folder)
    np.testing.assert_array_equal(volume.read(Box.whole(volume.shape)), HU)
    assert volume.space.spacing == pytest.approx((2.0, 0.8, 0.7))
    assert volume.audit.warnings[0] == "6 slices: ImagePositionPatient has a decimal comma, read as a point"
    assert len([text for text in volume.audit.warnings if "comma" in text]) == 5
    (first, *_) = volume.source_datasets()  # what a SEG refers to
    assert [float(n) for n in (*first.PixelSpacing, *first.ImagePositionPatient)] == [0.8, 0.7, -100, -120, 50]


def test_decimal_commas_in_functional_groups(tmp_path):
    ds = enhanced(series_datasets(STORED))
    save([ds], tmp_path)
    path = tmp_path / "00.dcm"
    raw = path.read_bytes()
    assert raw.count(b"-1024.0") == 6
    path.write_bytes(raw.replace(b"-1024.0", b"-1024,0"))
    volume = open_dicom(path)
    np.testing.assert_array_equal(volume.read(Box.whole(volume.shape)), HU)
    assert "6 slices: RescaleIntercept has a decimal comma, read as a point" in volume.audit.warnings


@pytest.mark.parametrize(
    ("keyword", "text", "message"),
    [
        ("RescaleSlope", "1\\1", r"RescaleSlope '1\\\\1' is not one number.*dcmodify -m"),
        ("RescaleIntercept", "-1,024", r"RescaleIntercept '-1,024' is not one number"),
        ("RescaleIntercept", "minus", r"RescaleIntercept 'minus' is not one number"),
        ("PixelSpacing", "0.8", r"a wrong PixelSpacing \(0.8\)"),
        ("PixelSpacing", "0,8 mm\\0,7 mm", r"a wrong PixelSpacing \(0,8 mm\\0,7 mm\)"),
        ("PixelSpacing", "0\\0", r"a wrong PixelSpacing \(0\\0\)"),
        ("PixelSpacing", "-0.8\\-0.8", r"a wrong PixelSpacing \(-0.8\\-0.8\)"),
    ],
)
def test_what_is_no_number_is_shown(tmp_path, keyword, text, message, capfd):
    with pytest.raises(VolumeError, match=message):
        open_dicom(write(series_datasets(STORED), tmp_path, **{keyword: text}))
    assert capfd.readouterr() == ("", "")


def test_the_spacing_of_a_detector_is_none_of_the_patient(tmp_path):
    def encode(ds):
        del ds.PixelSpacing
        ds.ImagerPixelSpacing = [0.8, 0.7]

    with pytest.raises(VolumeError, match=r"no PixelSpacing \(ImagerPixelSpacing 0.8\\0.7 is of the detector"):
        open_dicom(save(series_datasets(STORED), tmp_path, encode=encode))
