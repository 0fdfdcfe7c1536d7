"""Headers of a Segmentation: whatever its scan's say, they are what DICOM allows, with the text that they had."""

import re
import warnings

import numpy as np
import pydicom
import pytest
from pydicom.uid import generate_uid

from dicom_files import save, series_datasets, stored_values
from volseg.distributed.communicator import SerialCommunicator
from volseg.errors import VolumeError
from volseg.geometry import Box
from volseg.volumes.dicom.seg import output as seg_output
from volseg.volumes.dicom.seg.text import decoded
from volseg.volumes.label_table import LabelTable
from volseg.volumes.output import Content
from volseg.volumes.reading import open_volume
from volseg.volumes.writing import Intended, rehearse, write_volume

LABELS = LabelTable({"background": 0, "liver": 1, "Milz ü 肝": 3})
SHAPE = (3, 8, 10)


def series(folder, raw=(), **tags):
    """A series with these header values; `raw` are (old, new) bytes of equal length put into the files."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        datasets = series_datasets(stored_values(SHAPE))
        for dataset in datasets:
            for keyword, value in tags.items():
                setattr(dataset, keyword, value)
        save(datasets, folder)
    for file in folder.iterdir():
        content = file.read_bytes()
        for old, new in raw:
            assert old in content
            assert len(old) == len(new)
            content = content.replace(old, new)
        file.write_bytes(content)
    return open_volume(folder)


def write(path, scan):
    """(what was said before the work, the object); no warning of a library may get out."""
    mask = np.zeros(scan.shape, np.uint8)
    mask[1, 2:4, 3], mask[2, 3, 3] = 1, 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        said = rehearse([Intended(path, Content(scan.space, mask.dtype, labels=LABELS), scan)], False)
        write_volume(path, scan.space, "u1", lambda units: mask[units[0].box.slices], SerialCommunicator(),
                     labels=LABELS, source=scan)  # fmt: skip
    segmentation = pydicom.dcmread(path)
    assert segmentation.SpecificCharacterSet == "ISO_IR 192"
    assert segmentation.SegmentSequence[1].SegmentLabel == "Milz ü 肝"
    return [line.partition(": ")[2] for line in said], segmentation


@pytest.mark.parametrize(
    ("keyword", "value", "right", "words"),
    [
        ("PatientSex", "U", "", "PatientSex 'U'"),
        ("PatientSex", "m", "M", None),
        ("PatientSex", "Female", "F", None),
        ("PatientBirthDate", "19000000", "", "PatientBirthDate '19000000'"),
        ("PatientBirthDate", "1950", "", "empty"),
        ("StudyDate", "anonymized", "", "empty.*StudyDate 'anonymized'"),
        ("StudyDate", "2019.08.28", "20190828", None),
        ("StudyTime", "99:99", "", "StudyTime '99:99'"),
        ("StudyTime", "12:30:45", "123045", None),
        ("PatientAge", "45Y", "045Y", None),
        ("PatientAge", "unknown", "", "PatientAge 'unknown'"),
        ("AccessionNumber", "A" * 40, "", "AccessionNumber"),
        ("PatientName", "A" * 80, "A" * 64, "shortened.*PatientName"),
        ("PatientName", ["A^B", "C"], "", "PatientName"),
        ("PatientID", ["1", "2"], "", "empty.*PatientID"),
        ("PatientID", ["1", "1"], "1", None),
        ("StudyDescription", ["head", "neck"], "head/neck", None),
        ("StudyDescription", "x" * 90, "x" * 64, "shortened.*StudyDescription"),
        ("SeriesNumber", 2147483600, "1000", None),
        ("StudyInstanceUID", "1.2.840.00123.4", "1.2.840.00123.4", "kept.*StudyInstanceUID"),
        ("FrameOfReferenceUID", "anonymized", None, "replaced.*FrameOfReferenceUID 'anonymized'"),
    ],
)
def test_values_that_dicom_does_not_allow(tmp_path, keyword, value, right, words):
    said, segmentation = write(tmp_path / "m.dcm", series(tmp_path / "s", **{keyword: value}))
    if right is None:
        assert pydicom.uid.UID(segmentation[keyword].value).is_valid
    else:
        assert str(segmentation[keyword].value or "") == right
    if words is None:
        assert said == []
    else:
        assert len(said) == 1
        assert re.search(words, said[0])


def test_numbers_with_a_comma_or_text(tmp_path):
    scan = series(tmp_path / "s", [(b"80.5", b"80,5"), (b"IS\x02\x0077", b"IS\x02\x00ab")], PatientWeight="80.5",
                  SeriesNumber=77)  # fmt: skip
    said, segmentation = write(tmp_path / "m.dcm", scan)
    assert "PatientWeight '80,5'" in said[0]
    assert segmentation.SeriesNumber == 1000


NAMES = [
    (["", "ISO 2022 IR 87"], b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B", "Yamada^Tarou=山田^太郎"),
    (["ISO 2022 IR 13", "ISO 2022 IR 87"], b"\xd4\xcf\xc0\xde=\x1b$B;3ED\x1b(J", "ﾔﾏﾀﾞ=山田"),
    (["", "ISO 2022 IR 149"], b"Hong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7", "Hong=洪^吉洞"),
    (["", "ISO 2022 IR 149"], b"Hong=\x1b$)C\xfb\xf3^\xd1\xce\xd4\xd7", "Hong=洪^吉洞"),  # no second escape
    (["", "ISO 2022 IR 58"], b"Zhang=\x1b$)A\xd5\xc5^\x1b$)A\xd0\xa1", "Zhang=张^小"),
    (["ISO_IR 100", "ISO 2022 IR 87"], b"\x1b$B;3ED\x1b(B", "山田"),
    (["GB18030"], "王^小东".encode("gb18030"), "王^小东"),
    (["GBK"], "王^小东".encode("gbk"), "王^小东"),
    (["ISO_IR 192"], "王^小东".encode(), "王^小东"),
    (["UTF8"], "王^小东".encode(), "王^小东"),
    (["ISO_IR 100"], "王^小东".encode(), "王^小东"),  # the wrong character set: such bytes are no Latin text
    ([], "王^小东".encode(), "王^小东"),
    ([], b"\x1b$B;3ED\x1b(B", "山田"),
    (["ISO_IR 13"], "表^山田".encode("shift_jis"), "表^山田"),  # a backslash is the second byte of the first letter
    (["ISO_IR_100"], "Müller".encode("latin-1"), "Müller"),
    (["ISO_IR 126"], "Διονυσιος".encode("iso8859-7"), "Διονυσιος"),
    (["ISO_IR 144"], "Люкceмбypг".encode("iso8859-5"), "Люкceмбypг"),
    (["ISO_IR 166"], "สมชาย".encode("iso8859-11"), "สมชาย"),
    (["ISO_IR 203"], "Œuvre".encode("iso8859-15"), "Œuvre"),
    ([], "王^小东".encode("gbk"), None),
    (["nonsense"], "王^小东".encode("gbk"), None),
]


@pytest.mark.parametrize(("character_set", "value", "right"), NAMES)
def test_names_in_every_character_set(character_set, value, right):
    assert decoded(value, character_set, names=True) == (right, False)


def test_latin_1_is_taken_and_said_where_no_character_set_is_given():
    for character_set in ([], ["ISO_IR 192"]):
        assert decoded("Müller".encode("latin-1"), character_set, names=True) == ("Müller", True)


@pytest.mark.parametrize("number", [0, 2, 4, 5, 6, 13])
def test_a_name_comes_out_as_the_same_text_in_utf_8(tmp_path, number):
    character_set, value, right = NAMES[number]
    scan = series(tmp_path / "s", [(b"x" * len(value), value)], SpecificCharacterSet=character_set,
                  PatientName="x" * len(value))  # fmt: skip
    said, segmentation = write(tmp_path / "m.dcm", scan)
    assert (said, str(segmentation.PatientName)) == ([], right)


def test_a_name_of_unknown_bytes_is_left_empty_and_said(tmp_path):
    value = "王^小东".encode("gbk")
    scan = series(tmp_path / "s", [(b"x" * len(value), value)], PatientName="x" * len(value))
    said, segmentation = write(tmp_path / "m.dcm", scan)
    assert "PatientName" in said[0]
    assert str(segmentation.PatientName) == ""


def test_images_of_one_uid_are_refused_before_the_work(tmp_path):
    scan = series(tmp_path / "s")
    uid = generate_uid()
    for file in (tmp_path / "s").iterdir():
        dataset = pydicom.dcmread(file)
        dataset.SOPInstanceUID = uid
        dataset.save_as(file)
    with pytest.raises(VolumeError, match=r"3 images .* share 1 UIDs.*nii.gz"):
        write(tmp_path / "m.dcm", scan)


def test_headers_are_read_before_the_work_and_never_again(tmp_path):
    scan = series(tmp_path / "s")
    rehearse([Intended(tmp_path / "m.dcm", Content(scan.space, np.dtype("u1"), labels=LABELS), scan)], False)
    for file in (tmp_path / "s").iterdir():
        file.unlink()
    write(tmp_path / "m.dcm", scan)


def test_a_mask_that_makes_no_segmentation_after_all_is_kept(tmp_path, monkeypatch):
    scan = series(tmp_path / "s")
    mask = np.zeros(SHAPE, np.uint8)
    mask[1, 2:4, 3], mask[2, 3, 3] = 1, 3
    monkeypatch.setattr(seg_output, "MOST_BYTES", 8)
    with pytest.raises(VolumeError, match=r"2 frames of 2 segments .* The mask itself is in .*m\.nii\.gz"):
        write_volume(tmp_path / "m.dcm", scan.space, "u1", lambda units: mask[units[0].box.slices],
                     SerialCommunicator(), labels=LABELS, source=scan)  # fmt: skip
    kept = open_volume(tmp_path / "m.nii.gz")
    np.testing.assert_array_equal(kept.read(Box.whole(SHAPE)), mask)
    assert kept.space.matches(scan.space)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["m.nii.gz", "s"]


def test_more_than_a_segmentation_may_hold_is_said_before_the_work(tmp_path, monkeypatch):
    scan = series(tmp_path / "s")
    monkeypatch.setattr(seg_output, "MOST_BYTES", 8)
    said = rehearse([Intended(tmp_path / "m.dcm", Content(scan.space, np.dtype("u1"), labels=LABELS), scan)], False)
    assert "holds 4 GiB" in said[0]
