"""Files that nobody can read and that look like slices: an error, a warning, or nothing to speak of."""

import gzip
import os
import zipfile

import pytest

from dicom_files import save, series_datasets, stored_values
from volseg.errors import VolumeError
from volseg.volumes.dicom.finding.lookalikes import Likeness, Names
from volseg.volumes.dicom.options import DicomOptions
from volseg.volumes.dicom.volume import open_dicom

STORED = stored_values((6, 4, 5))


def spoilt(folder, number, way):
    """Spoil slice `number` of the files in `folder`."""
    path = sorted(folder.iterdir())[number]
    data = path.read_bytes()
    if way in ("annex link", "dangling link"):
        path.unlink()
        path.symlink_to("../.git/annex/objects/x1/Q2/MD5E-s9--0.dcm" if way == "annex link" else "/nowhere/at/all")
    elif way == "icloud":
        path.rename(path.with_name(f".{path.name}.icloud"))
    elif way == "half a download":
        path.rename(path.with_name(f"{path.name}.part"))
    elif way == "gzip":
        path.unlink()
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(data))
    else:
        path.write_bytes(WAYS[way][0](data))
    return path.name


WAYS = {  # the contents, and what is said
    "empty": (lambda data: b"", "empty, 0 bytes; copy it again"),
    "zeros": (lambda data: bytes(len(data)), "nothing but zeros"),
    "zeros of two megabytes": (lambda data: bytes(2 << 20), "nothing but zeros"),
    "cut within the preamble": (lambda data: data[:100], "nothing but zeros, 100 bytes"),
    "cut within the meta header": (lambda data: data[:200], "damaged header|a CT image without pixels"),
    "cut within the header": (lambda data: data[:500], "damaged|without pixels"),
    "cut within the pixels": (lambda data: data[:-10], "cut off: 30 of 40 bytes"),
    "first half zeros": (lambda data: bytes(len(data) // 2) + data[len(data) // 2 :], "not DICOM: damaged"),
    "zeros after the mark": (lambda data: data[:132] + bytes(len(data)), "a header that says nothing"),
    "noise": (lambda data: bytes((n * 97 + 13) % 251 for n in range(900)), "not DICOM: damaged"),
    "a pointer of LFS": (
        lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull",
    ),
    "a pointer of annex": (lambda data: b"/annex/objects/MD5E-s9--0.dcm\n", "git annex get"),
    "a web page": (lambda data: b"<!DOCTYPE html><html><body>404", "a web page or an error message"),
    "an error of a bucket": (lambda data: b'<?xml version="1.0"?><Error><Code>AccessDenied', "an error message"),
    "gzip under its own name": (gzip.compress, "gzip-compressed; unpack it: gunzip"),
    "annex link": (None, "git annex get"),
    "dangling link": (None, "a link to nowhere"),
    "gzip": (None, "gzip-compressed"),
}  # fmt: skip
NAMES = {
    "dcm": [f"{n:04}.dcm" for n in range(6)],
    "no ending": [f"IM{n + 8}" for n in range(6)],
    "uid": [f"1.2.840.113619.2.{n}.{9 - n}" for n in range(6)],
    "hash": [f"{n * 0x1234567:032x}.dcm" for n in range(6)],
    "siemens": [f"PAT.CT.0001.{n:04}.2020.IMA" for n in range(6)],
    "a folder each": [f"IMG{n:03}/0001" for n in range(6)],
}


@pytest.mark.parametrize("number", [0, 3, 5])
@pytest.mark.parametrize("way", WAYS)
def test_a_slice_that_cannot_be_read_is_an_error(tmp_path, way, number):
    name = spoilt(save(series_datasets(STORED), tmp_path), number, way)
    with pytest.raises(VolumeError, match=f"1 image of the series does not fit the other 5: {name}.*({WAYS[way][1]})"):
        open_dicom(tmp_path)


@pytest.mark.parametrize("way", ["icloud", "half a download"])
def test_a_placeholder_stands_for_its_slice(tmp_path, way):
    save(series_datasets(STORED), tmp_path)
    (tmp_path / "05.dcm").write_bytes(b"bplist00" + bytes(range(200)))
    spoilt(tmp_path, 5, way)
    with pytest.raises(VolumeError, match="1 image of the series does not fit the other 5"):
        open_dicom(tmp_path)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("names", NAMES)
def test_slices_are_known_by_their_names(tmp_path, names, packed):
    source = save(series_datasets(STORED), tmp_path / "s", names=NAMES[names])
    (source / NAMES[names][5]).write_bytes(b"")
    (source / "README").write_text("by the hospital")
    (source / "empty").write_bytes(b"")
    if packed:
        with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
            for path in sorted(source.rglob("*")):
                archive.write(path, f"x/{path.relative_to(source)}")
        source = tmp_path / "s.zip"
    with pytest.raises(VolumeError, match=r"does not fit the other 5: \S+ \(empty, 0 bytes"):
        open_dicom(source)


def test_the_remedy_works(tmp_path):
    save(series_datasets(STORED), tmp_path)
    (tmp_path / "05.dcm").write_bytes(b"")
    with pytest.raises(VolumeError, match="or take it out if the volume is whole without"):
        open_dicom(tmp_path)
    (tmp_path / "05.dcm").unlink()
    assert open_dicom(tmp_path).shape[0] == 5


def test_of_two_series_in_a_folder_the_neighbour_loses_a_slice(tmp_path):
    save(series_datasets(STORED), tmp_path, names=[f"IM{n:03}" for n in range(1, 7)])
    save(series_datasets(STORED), tmp_path, names=[f"IM{n:03}" for n in range(8, 14)])
    (tmp_path / "IM014").write_bytes(b"")
    assert open_dicom(tmp_path, DicomOptions("1")).shape[0] == 6
    with pytest.raises(VolumeError, match="does not fit"):
        open_dicom(tmp_path, DicomOptions("2"))
    (tmp_path / "IM014").rename(tmp_path / "IM007")  # may be of either
    for series in "12":
        with pytest.raises(VolumeError, match="does not fit"):
            open_dicom(tmp_path, DicomOptions(series))


def test_a_series_that_is_lost_entirely_is_a_warning(tmp_path):
    save(series_datasets(STORED), tmp_path / "a")
    (tmp_path / "b").mkdir()
    for n in range(6):
        (tmp_path / "b" / f"{n:02}.dcm").write_bytes(b"")
    (warning, _) = open_dicom(tmp_path).audit.warnings
    assert warning.startswith("6 damaged files, perhaps slices of it, were left out: 00.dcm, 01.dcm, 02.dcm and 3 more")


COMPANIONS = {
    "DICOMDIR": b"", "README.TXT": b"hello", "Thumbs.db": bytes(90), ".DS_Store": bytes(90), "._00.dcm": bytes(90),
    "desktop.ini": b"[x]", "autorun.inf": b"", "viewer.exe": b"MZ" + bytes(900), "JRE/bin/1.dll": b"MZ",
    "index.html": b"<html>", "checksums.md5": b"0 00.dcm", "00.dcm.gz": b"\x1f\x8b", "01.dcm.part": b"", "notes": b"",
    "02.json": b"{}", "3.jpg": b"\xff\xd8", "viewer.tar.gz": b"\x1f\x8b", "data.7z": b"7z\xbc\xaf\x27\x1c",
}  # fmt: skip


def test_innocent_companions_are_no_matter(tmp_path):
    save(series_datasets(STORED), tmp_path)
    for name, data in COMPANIONS.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    volume = open_dicom(tmp_path)
    assert volume.shape[0] == 6
    assert volume.audit.warnings == ("SliceThickness is 99 mm, but slices lie 2 mm apart; their positions were used",)
    assert {item.reason for item in volume.audit.dropped} == {"not DICOM"}
    assert len(volume.audit.dropped) == len(COMPANIONS)


def test_packed_slices_alone(tmp_path):
    save(series_datasets(STORED), tmp_path)
    for path in list(tmp_path.iterdir()):
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    with pytest.raises(VolumeError, match=r"6 x gzip-compressed.*gunzip -r .* unpacks them all") as caught:
        open_dicom(tmp_path)
    assert os.system(str(caught.value).rsplit("; ", 1)[1].removesuffix(" unpacks them all")) == 0
    assert open_dicom(tmp_path).shape[0] == 6


# ---- names


def test_likeness():
    names = Names({"a/1.dcm": 0, "a/2.dcm": 0, "a/10.dcm": 1, "a/SR": None, "b/IM1": None, "b/IM2": None})
    assert names.likeness("a/3.dcm") == Likeness(frozenset({0, 1}), True)
    assert names.likeness("a/0.dcm") == Likeness(frozenset({0}), True)
    assert names.likeness("a/11.dcm") == Likeness(frozenset({1}), True)
    assert names.likeness("a/slice.dcm") == Likeness(possible=True)  # of which of the two?
    assert names.likeness("c/11.dcm") == Likeness(possible=True)
    assert names.likeness("b/IM3") == Likeness()  # beside images of another kind
    assert names.likeness("a/3.txt") == Likeness()
    assert names.likeness("a/.3.dcm") == Likeness()
    assert names.likeness("a/2.dcm.part") == Likeness()
    assert names.likeness("a/.11.dcm.icloud") == Likeness(frozenset({1}), True)


# ---- images that were left out


@pytest.mark.parametrize("way", ["localizer", "other modality", "curve", "lone slice"])
def test_images_on_the_volumes_grid_that_are_left_out_are_told(tmp_path, way):
    datasets = series_datasets(STORED)
    last = datasets[-1]
    if way == "localizer":
        last.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    elif way == "other modality":
        last.Modality = "OT"
    elif way == "curve":
        last.SOPClassUID = "1.2.840.10008.5.1.4.1.1.9"
    else:
        last.SeriesInstanceUID += ".1"
    volume = open_dicom(save(datasets, tmp_path))
    assert volume.shape[0] == 5
    assert volume.audit.warnings[0].startswith("1 image, perhaps a slice of it, was left out: ")


def test_every_second_slice_derived(tmp_path):
    datasets = series_datasets(STORED)
    for ds in datasets[1::2]:
        ds.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]
    volume = open_dicom(save(datasets, tmp_path))
    assert volume.shape[0] == 6
    assert volume.audit.warnings[0].startswith("3 of 6 images are DERIVED\\SECONDARY\\AXIAL: processed")
    (tmp_path / "03.dcm").unlink()  # then they belong to it all the same
    with pytest.raises(VolumeError, match=r"\(1 missing\)"):
        open_dicom(tmp_path)


def test_derived_images_of_the_originals_places_are_left_out_with_a_word(tmp_path):
    datasets = series_datasets(STORED)
    save(datasets, tmp_path, names=[f"a{n}" for n in range(6)])
    for ds in datasets:
        ds.ImageType, ds.SOPInstanceUID = ["DERIVED", "SECONDARY", "AXIAL"], ds.SOPInstanceUID + ".1"
        ds.PixelData = bytes(len(ds.PixelData))
    save(datasets, tmp_path, names=[f"b{n}" for n in range(6)])
    volume = open_dicom(tmp_path)
    assert [name[-2:] for name in volume.audit.used] == [f"a{n}" for n in range(6)]
    assert volume.audit.warnings[0].startswith("6 images, perhaps slices of it, were left out: DERIVED\\SECONDARY")
