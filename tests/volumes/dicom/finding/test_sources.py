"""Where images come from: folders, zips, DICOMDIRs, single files, and what hostile ones may not do."""

import io
import os
import stat
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, generate_uid

from dicom_files import save, series_datasets, stored_values
from volseg.errors import VolumeError
from volseg.volumes.audit import Dropped
from volseg.volumes.dicom import limits
from volseg.volumes.dicom.finding.choice import choose
from volseg.volumes.dicom.finding.headers import Damaged, read_image
from volseg.volumes.dicom.finding.series import survey
from volseg.volumes.dicom.finding.sources import FileEntry, open_source
from volseg.volumes.dicom.image import Image
from volseg.volumes.dicom.volume import open_dicom

PYDICOM_FILES = Path(get_testdata_file("CT_small.dcm")).parent
STORED = stored_values()


def names(source):
    return [entry.name.replace("!", "/").rsplit("/", 1)[-1] for entry in source]


def reasons(dropped):
    return {item.name.replace("!", "/").rsplit("/", 1)[-1]: item.reason for item in dropped}


def make_zip(path, members, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


@pytest.fixture
def series_zip(tmp_path):
    folder = save(series_datasets(STORED), tmp_path / "files")
    members = [(f"study/{'ab'[n % 2]}/{n}.dcm", path.read_bytes()) for n, path in enumerate(sorted(folder.iterdir()))]
    return make_zip(tmp_path / "series.zip", [*members, ("notes.txt", b"notes"), ("study/", b"")])


# ---- folders


def test_folder_is_walked_in_order_without_links_to_folders(tmp_path):
    for name in ("b/2", "a/1", "b/c/3", "0"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    (tmp_path / "linked").symlink_to(tmp_path / "a" / "1")
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing")
    os.mkfifo(tmp_path / "pipe")
    source = open_source(tmp_path)
    assert source.kind == "folder"
    assert names(source) == ["0", "linked", "1", "2", "3"]
    found = reasons(source.dropped)
    assert found.keys() == {"loop", "nowhere", "pipe"}
    assert "link to a folder" in found["loop"]
    assert "pipe" in found["pipe"]


def test_names_that_no_terminal_should_see(tmp_path):
    (tmp_path / "\x1b[31m\n.txt").write_bytes(b"x")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.dcm")).write_bytes(b"x")
    assert all(entry.name.isprintable() for entry in open_source(tmp_path))


def test_too_many_files(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "MAX_FILES", 3)
    for n in range(4):
        (tmp_path / str(n)).write_bytes(b"")
    with pytest.raises(VolumeError, match="more than 3 files"):
        open_source(tmp_path)


@pytest.mark.parametrize(
    ("name", "start", "message"),
    [
        ("a.gz", b"\x1f\x8b\x08", "gzip-compressed"),
        ("a.tar", b"x" * 257 + b"ustar", "a tar archive"),
        ("a.7z", b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
        ("a.txt", b"hello", "of no format that volseg reads"),
        ("a.empty", b"", "empty, 0 bytes; copy it again"),
        ("a.zip", b"PK\x03\x04 and nothing more", "a damaged zip archive"),
    ],
)
def test_other_files_are_refused(tmp_path, name, start, message):
    (tmp_path / name).write_bytes(start)
    with pytest.raises(VolumeError, match=message):
        open_source(tmp_path / name)


def test_nothing_there(tmp_path):
    with pytest.raises(VolumeError, match="no such file or folder"):
        open_source(tmp_path / "missing")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(VolumeError, match="neither a file nor a folder"):
        open_source(tmp_path / "pipe")


# ---- zips


def test_zip_members_are_read_in_place(series_zip, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    source = open_source(series_zip)
    assert source.kind == "zip"
    found = survey(source)
    chosen = choose(series_zip, found, None)
    assert chosen.images[0].name == f"{series_zip}!study/a/0.dcm"
    assert {image.entry.file for image in chosen.images} == {series_zip}
    assert reasons(chosen.dropped) == {"notes.txt": "not DICOM"}
    for image in chosen.images:
        with image.entry.open() as file:
            number = int(image.short_name[0])
            np.testing.assert_array_equal(pydicom.dcmread(file).pixel_array, STORED[number])
    assert sorted(tmp_path.rglob("*")) == before


def test_a_member_is_a_seekable_file(tmp_path):
    data = np.random.default_rng(0).bytes(300_000)
    entry = next(iter(open_source(make_zip(tmp_path / "a.zip", [("x", data)]))))
    with entry.open() as file:
        assert file.seek(-10, io.SEEK_END) == len(data) - 10
        assert file.read() == data[-10:]
        assert (file.seek(5), file.read(7), file.tell()) == (5, data[5:12], 12)
        assert (file.seek(3, io.SEEK_CUR), file.read(0), file.read(2)) == (15, b"", data[15:17])
        assert file.seek(len(data) + 5) == len(data) + 5
        assert file.read(3) == b""
        buffer = bytearray(4)
        file.seek(1)
        assert (file.readinto(buffer), bytes(buffer)) == (4, data[1:5])


def test_only_the_header_of_a_member_is_inflated(tmp_path, monkeypatch):
    (dataset,) = series_datasets(np.zeros((1, 2000, 2000), np.uint16))
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    path = make_zip(tmp_path / "a.zip", [("x.dcm", buffer.getvalue())])
    sizes = []
    real = zipfile.ZipExtFile.read
    monkeypatch.setattr(zipfile.ZipExtFile, "read", lambda self, n=-1: sizes.append(n) or real(self, n))
    (entry,) = open_source(path)
    assert isinstance(read_image(entry), Image)
    assert sum(sizes) <= 1 << 17


@pytest.mark.parametrize(
    "name", ["../evil.dcm", "a/../../evil.dcm", "/etc/evil.dcm", "\\evil.dcm", "..\\evil.dcm", "C:\\evil.dcm"]
)
def test_zip_slip(tmp_path, name):
    path = make_zip(tmp_path / "a.zip", [(name, b"x"), ("fine", b"y")])
    source = open_source(path)
    assert names(source) == ["fine"]
    (dropped,) = source.dropped
    assert "leads out of the archive" in dropped.reason


def test_links_nested_archives_encrypted_and_doubled_members(tmp_path):
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    path = tmp_path / "a.zip"
    with pytest.warns(UserWarning, match="Duplicate name"):
        make_zip(path, [(link, b"/etc/passwd"), ("inner.ZIP", b"PK"), ("secret", b"s"), ("two", b"1"), ("two", b"2")])
    data = bytearray(path.read_bytes())
    at = data.rindex(b"secret") - 46  # its entry in the archive's directory
    assert data[at : at + 4] == b"PK\x01\x02"
    data[at + 8] |= 1
    path.write_bytes(data)
    source = open_source(path)
    assert names(source) == ["two"]
    found = reasons(source.dropped)
    assert "a link" in found["link"]
    assert "archive within" in found["inner.ZIP"]
    assert "encrypted" in found["secret"]
    assert "same name" in found["two"]


@pytest.mark.parametrize(("method", "called"), [(zipfile.ZIP_BZIP2, "bzip2"), (zipfile.ZIP_LZMA, "LZMA")])
def test_other_compression(tmp_path, method, called):
    (dropped,) = open_source(make_zip(tmp_path / "a.zip", [("x", b"x" * 100)], method)).dropped
    assert f"compressed by {called}" in dropped.reason


def test_a_real_bomb_is_never_inflated(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("one", "two"):
            with archive.open(name, "w") as member:
                for _ in range(40):
                    member.write(bytes(1 << 20))
    with pytest.raises(VolumeError, match="times its size, limit 200: perhaps a zip bomb"):
        open_source(tmp_path / "a.zip")
    rest = np.random.default_rng(0).bytes(1 << 20)
    with zipfile.ZipFile(tmp_path / "b.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("noise", rest)
        with archive.open("bomb", "w") as member:
            for _ in range(70):
                member.write(bytes(1 << 20))
    source = open_source(tmp_path / "b.zip")
    assert names(source) == ["noise"]
    assert "perhaps a zip bomb" in reasons(source.dropped)["bomb"]


def declare_size(path, name, size):
    """Make the archive's directory lie about a member's inflated size."""
    data = bytearray(path.read_bytes())
    at = data.rindex(name.encode()) - 46
    assert data[at : at + 4] == b"PK\x01\x02"
    data[at + 24 : at + 28] = struct.pack("<I", size)
    path.write_bytes(data)
    return path


def test_a_member_longer_than_declared_is_cut_there(tmp_path):
    path = declare_size(make_zip(tmp_path / "a.zip", [("bomb", bytes(50 << 20))]), "bomb", 5000)
    (entry,) = open_source(path)
    tracemalloc.start()
    with entry.open() as file, pytest.raises(VolumeError, match="damaged archive"):
        file.read()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_a_member_shorter_than_declared(tmp_path):
    data = save(series_datasets(STORED), tmp_path / "files").joinpath("00.dcm").read_bytes()
    path = declare_size(make_zip(tmp_path / "a.zip", [("x.dcm", data[:-200])]), "x.dcm", len(data) + (1 << 19))
    (entry,) = open_source(path)
    with entry.open() as file, pytest.raises(VolumeError, match="bytes where it declares"):
        file.read()


@pytest.mark.parametrize(
    ("limit", "value", "message"),
    [
        ("MAX_ZIP_MEMBERS", 5, "7 members, limit 5"),
        ("MAX_ZIP_BYTES", 1000, "inflates to .* KiB, limit 1000 bytes"),
        ("MAX_ZIP_DIRECTORY_BYTES", 100, "a list of members of"),
    ],
)
def test_limits_of_a_zip(series_zip, monkeypatch, limit, value, message):
    monkeypatch.setattr(limits, limit, value)
    with pytest.raises(VolumeError, match=message):
        open_source(series_zip)


def test_a_huge_member(series_zip, monkeypatch):
    monkeypatch.setattr(limits, "MAX_MEMBER_BYTES", 1000)
    source = open_source(series_zip)
    assert names(source) == ["notes.txt"]
    assert len(source.dropped) == 6


def test_a_damaged_member_is_named(series_zip):
    data = bytearray(series_zip.read_bytes())
    at = data.index(b"study/a/2.dcm") + 60
    data[at : at + 100] = bytes(100)
    series_zip.write_bytes(data)
    found = reasons(survey(open_source(series_zip)).dropped)
    assert "damaged archive" in found["2.dcm"]


def test_changed_bytes_of_an_archive_are_a_reason_or_an_error(tmp_path):
    series = save(series_datasets(STORED[:3]), tmp_path / "files")
    members = [(path.name, path.read_bytes()) for path in sorted(series.iterdir())]
    path, rng = make_zip(tmp_path / "a.zip", members), np.random.default_rng(0)
    data, refusals = path.read_bytes(), 0
    for number in range(200):
        changed = bytearray(data)
        for at in rng.integers(0, 400, 3) if number % 2 else len(data) - rng.integers(1, 250, 3):
            changed[at] = rng.integers(256)
        path.write_bytes(changed)
        try:
            for image in choose(path, survey(open_source(path)), None).images:
                with image.entry.open() as file:
                    file.read()
        except VolumeError:
            refusals += 1
    assert 0 < refusals < 200


# ---- DICOMDIR


def make_directory(path, references, in_use=0xFFFF):
    """A DICOMDIR with one IMAGE record for each reference, a list of names."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
    ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.FileSetID, ds.FileSetConsistencyFlag = "TEST", 0
    records = []
    for reference in references:
        record = Dataset()
        record.OffsetOfTheNextDirectoryRecord, record.RecordInUseFlag = 0, in_use
        record.OffsetOfReferencedLowerLevelDirectoryEntity = 0
        record.DirectoryRecordType, record.ReferencedFileID = "IMAGE", reference
        records.append(record)
    ds.DirectoryRecordSequence = Sequence(records)
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
    return path


pytestmark = pytest.mark.filterwarnings("ignore:Invalid value for VR CS")  # names that real discs have


@pytest.mark.parametrize("name", ["DICOMDIR", "DICOMDIR-bigEnd", "DICOMDIR-implicit", "DICOMDIR-nooffset"])
def test_pydicoms_dicomdirs(name):
    source = open_source(PYDICOM_FILES / "dicomdirtests" / name)
    assert (source.kind, len(source.entries), source.dropped) == ("DICOMDIR", 31, ())
    described = {one.description: one.slices for one in survey(source).candidates}
    assert described == {"Routine Brain": 4, "SmartScore - Gated 0.5 sec": 5}


def test_dicomdir_names_in_any_case(tmp_path):
    save(series_datasets(STORED[:3]), tmp_path / "Images", names=["im0", "Im1.;1", "IM2."])
    path = make_directory(tmp_path / "DICOMDIR", [["IMAGES", "IM0"], ["IMAGES", "IM1"], ["images", "im2"]])
    source = open_source(path)
    assert names(source) == ["im0", "Im1.;1", "IM2."]
    assert survey(source).candidates[0].slices == 3


def test_dicomdir_missing_and_doubled_files(tmp_path):
    save(series_datasets(STORED[:2]), tmp_path / "A", names=["0", "1"])
    path = make_directory(tmp_path / "DICOMDIR", [["A", "1"], ["A", "0"], ["A", "1"], ["A", "2"], ["A"], ["x" * 300]])
    source = open_source(path)
    assert names(source) == ["1", "0"]
    assert [item.reason for item in source.dropped] == ["named in the DICOMDIR, but missing"] * 3


@pytest.mark.parametrize(
    "reference",
    [["..", "evil"], ["A", "..", "..", "evil"], ["/evil"], ["..\\evil"], ["../evil"], [".", "evil"], ["C:"]],
)
def test_dicomdir_may_not_leave_its_folder(tmp_path, reference):
    save(series_datasets(STORED[:1]), tmp_path, names=["evil"])
    save(series_datasets(STORED[:1]), tmp_path / "disc" / "A", names=["fine"])
    source = open_source(make_directory(tmp_path / "disc" / "DICOMDIR", [reference, ["A", "fine"]]))
    assert names(source) == ["fine"]
    assert source.dropped
    assert all(word in source.dropped[0].reason for word in ("DICOMDIR", "not opened"))


def test_dicomdir_may_not_leave_its_folder_by_a_link(tmp_path):
    save(series_datasets(STORED[:1]), tmp_path / "outside", names=["evil"])
    path = make_directory(tmp_path / "disc" / "DICOMDIR", [["LINK", "evil"]])
    (tmp_path / "disc" / "LINK").symlink_to(tmp_path / "outside")
    source = open_source(path)
    assert source.entries == ()
    assert "outside its folder" in source.dropped[0].reason


def test_a_dicomdir_in_a_folder_does_not_limit_it(tmp_path):
    save(series_datasets(STORED), tmp_path / "A")
    make_directory(tmp_path / "DICOMDIR", [["A", "00.dcm"]])
    found = survey(open_source(tmp_path))
    assert found.candidates[0].slices == 6
    assert reasons(found.dropped) == {"DICOMDIR": "a DICOMDIR, which only lists files"}


def test_slices_that_the_dicomdir_does_not_name_are_a_warning(tmp_path):
    """A DICOMDIR that was written before the transfer ended."""
    datasets = series_datasets(stored_values((8, 6, 5)))
    save(datasets, tmp_path / "IMAGES")
    names = sorted(path.name for path in (tmp_path / "IMAGES").iterdir())
    (tmp_path / "IMAGES" / "notes.txt").write_text("of the ward")
    directory = make_directory(tmp_path / "DICOMDIR", [["IMAGES", name] for name in names[:6]])
    volume = open_dicom(directory)
    assert volume.shape[0] == 6
    (said,) = [line for line in volume.audit.warnings if "DICOMDIR" in line]
    assert said.startswith("2 images, perhaps slices of it, were left out: the DICOMDIR does not name it")
    assert all(name in said for name in names[6:])
    whole = open_dicom(make_directory(tmp_path / "DICOMDIR", [["IMAGES", name] for name in names]))
    assert whole.shape[0] == 8
    assert not [line for line in whole.audit.warnings if "DICOMDIR" in line]
    assert open_dicom(tmp_path).shape[0] == 8  # the remedy


def test_a_damaged_dicomdir(tmp_path):
    path = make_directory(tmp_path / "DICOMDIR", [["A", "00.dcm"]] * 50)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(VolumeError, match=r"damaged DICOMDIR .the file ends within DirectoryRecordSequence"):
        open_source(path)


# ---- headers


def header_of(tmp_path, change=lambda ds: None, edit=lambda data: data):
    (dataset,) = series_datasets(STORED[:1])
    change(dataset)
    path = tmp_path / "x.dcm"
    dataset.save_as(path, enforce_file_format=True)
    path.write_bytes(edit(path.read_bytes()))
    return read_image(FileEntry(path))


def element(group, number, vr, length):
    """An explicit little-endian element's first bytes, with whatever length it claims."""
    return struct.pack("<HH2sH", group, number, vr, length)


LIES = {
    "65535 x 65535 pixels": lambda ds: (setattr(ds, "Rows", 65535), setattr(ds, "Columns", 65535)),
    "0 x 20 pixels": lambda ds: setattr(ds, "Rows", 0),
    "1000000000 frames": lambda ds: setattr(ds, "NumberOfFrames", 10**9),
    "-3 frames": lambda ds: setattr(ds, "NumberOfFrames", -3),
    "promises 6400 bytes of pixels, and it has 640": lambda ds: setattr(ds, "NumberOfFrames", 10),
    "promises 680 bytes of pixels, and it has 640": lambda ds: setattr(ds, "Rows", 17),
    "12 of 64 bits": lambda ds: setattr(ds, "BitsAllocated", 64),
    "12 of 1 bits": lambda ds: setattr(ds, "BitsAllocated", 1),
    "17 of 16 bits": lambda ds: setattr(ds, "BitsStored", 17),
}


@pytest.mark.parametrize("message", LIES)
def test_headers_that_the_file_does_not_bear_out(tmp_path, message):
    found = header_of(tmp_path, LIES[message])
    assert isinstance(found, Damaged)
    assert message in found.reason
    assert found.series_uid


def test_a_description_of_pixels_that_is_no_number(tmp_path):
    whole, short = element(0x0028, 0x0100, b"US", 2), element(0x0028, 0x0100, b"US", 1)
    found = header_of(tmp_path, edit=lambda data: data.replace(whole + b"\x10\x00", short + b"\x10"))
    assert isinstance(found, Damaged)
    assert "no usable description of its pixels" in found.reason


def test_pixels_cut_off_and_a_file_cut_before_them(tmp_path):
    found = header_of(tmp_path, edit=lambda data: data[:-100])
    assert isinstance(found, Damaged)
    assert "cut off: 540 of 640 bytes" in found.reason
    cut = header_of(tmp_path, edit=lambda data: data[: data.index(element(0x7FE0, 0x0010, b"OW", 0))])
    assert isinstance(cut, Damaged)
    assert "without pixels" in cut.reason


def test_lengths_that_lie_cost_no_memory(tmp_path):
    start = element(0x0008, 0x103E, b"LO", 4)
    huge = struct.pack("<HH2sHI", 0x0008, 0x103E, b"UT", 0, 0xFFFFFFF0)
    tracemalloc.start()
    found = header_of(tmp_path, edit=lambda data: data.replace(start, huge))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(found, Dropped)
    assert "claims to be longer" in found.reason
    assert peak < 8 << 20


def test_an_element_of_a_million_values(tmp_path):
    found = header_of(tmp_path, lambda ds: ds.add_new("SeriesDescription", "UT", "x" * 100_000))
    assert isinstance(found, Damaged)
    assert "SeriesDescription of 100000 bytes" in found.reason
    many = header_of(tmp_path, lambda ds: ds.add_new("DimensionIndexSequence", "SQ", []), edit=many_items)
    assert isinstance(many, Damaged)
    assert "items" in many.reason


def many_items(data):
    start = struct.pack("<HH2sHI", 0x0020, 0x9222, b"SQ", 0, 0)
    assert start in data
    items = b"\xfe\xff\x00\xe0\x00\x00\x00\x00" * (limits.MAX_SEQUENCE_ITEMS + 1)
    return data.replace(start, struct.pack("<HH2sHI", 0x0020, 0x9222, b"SQ", 0, len(items)) + items)


def test_a_deflated_bomb(tmp_path):
    def deflate(ds):
        ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        ds.add_new("ImageComments", "UT", " " * (80 << 20))

    dataset = series_datasets(STORED[:1])[0]
    deflate(dataset)
    dataset.save_as(tmp_path / "x.dcm", enforce_file_format=True)
    tracemalloc.start()
    found = read_image(FileEntry(tmp_path / "x.dcm"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(found, Damaged)
    assert peak < 60 << 20


def test_numbers_that_are_none_do_not_crash(tmp_path):
    position = b"-100.000000\\-120.000000\\50.000000"

    def edit(value):
        return lambda data: data.replace(position, value.ljust(len(position)))

    for value in (b"nan\\nan\\nan", b"a\\b\\c", b"1e999\\0\\0", b"\\\\\\\\", b"1\\2", b"123", b"\xff\xfe\\\x00\x01\\x"):
        found = header_of(tmp_path, edit=edit(value))
        assert isinstance(found, Image)
        assert survey(open_source(tmp_path)).candidates == ()


def test_every_cut_and_every_changed_byte_is_an_image_or_a_reason(tmp_path):
    (dataset,) = series_datasets(STORED[:1])
    path = tmp_path / "x.dcm"
    dataset.save_as(path, enforce_file_format=True)
    data, rng = path.read_bytes(), np.random.default_rng(0)
    header = data.index(b"OW\x00\x00")
    for _ in range(300):
        changed = bytearray(data)
        for at in rng.integers(128, header, 3):
            changed[at] = rng.integers(256)
        path.write_bytes(changed[: rng.integers(header, len(data) + 1)] if rng.random() < 0.3 else changed)
        found = survey(open_source_unless_refused(path) or open_source(tmp_path))
        assert found.candidates == ()
        assert len(found.dropped) == 1


def open_source_unless_refused(path):
    try:
        return open_source(path)
    except VolumeError:
        return None


def test_header_carries_what_the_reading_needs(tmp_path):
    found = header_of(tmp_path, lambda ds: ds.add_new("PixelPaddingValue", "US", 63536))
    assert isinstance(found, Image)
    assert found.transfer_syntax == ExplicitVRLittleEndian
    assert (found.get("Rows"), found.get("PixelPaddingValue"), found.get("RescaleIntercept")) == (16, 63536, -1024)
    assert list(found.get("PixelSpacing")) == [0.8, 0.7]


def test_functional_groups_stay_sequences():
    enhanced = pytest.importorskip("data_store")
    path = Path(enhanced.__file__).parent / "data" / "eCT_Supplemental.dcm"
    found = read_image(FileEntry(path))
    assert isinstance(found, Image)
    assert len(found.header["PerFrameFunctionalGroupsSequence"]) == 2
    assert len(found.header["SharedFunctionalGroupsSequence"]) == 1
    (candidate,) = survey(open_source(path)).candidates
    assert [image.frame for image in candidate.images] == [0, 1]


def test_a_file_that_is_a_single_slice(tmp_path):
    save(series_datasets(STORED), tmp_path)
    with pytest.raises(VolumeError, match="one slice only; give the folder that holds its series"):
        choose(tmp_path / "00.dcm", survey(open_source(tmp_path / "00.dcm")), None)
