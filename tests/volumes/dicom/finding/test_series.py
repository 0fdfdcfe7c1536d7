"""Which images form a volume, which are left out and why, and how one of several is chosen."""

import random
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.data import get_testdata_file
from pydicom.uid import SecondaryCaptureImageStorage, generate_uid

from dicom_files import save, series_datasets, stored_values
from volseg.errors import VolumeError
from volseg.volumes.audit import count_reasons
from volseg.volumes.dicom import limits
from volseg.volumes.dicom.finding import series as series_module
from volseg.volumes.dicom.finding.candidates import candidate_rows
from volseg.volumes.dicom.finding.choice import choose
from volseg.volumes.dicom.finding.series import survey
from volseg.volumes.dicom.finding.sources import FileEntry, Source, open_source
from volseg.volumes.dicom.image import Image

PYDICOM_FILES = Path(get_testdata_file("CT_small.dcm")).parent
STORED = stored_values()
LOCALIZER = ["ORIGINAL", "PRIMARY", "LOCALIZER"]


def survey_of(folder):
    return survey(open_source(folder))


def chosen(folder, series=None):
    return choose(folder, survey_of(folder), series)


def refused(folder, message, series=None):
    with pytest.raises(VolumeError, match=message) as caught:
        chosen(folder, series)
    return str(caught.value)


def reasons(dropped):
    return {item.name.rsplit("/", 1)[-1]: item.reason for item in dropped}


def files_of(candidate):
    return [image.short_name for image in candidate.images]


def change(numbers, **elements):
    """An `encode` for `save`: sets elements of the slices of these numbers, from 0; None takes one out."""

    def encode(ds):
        if ds.InstanceNumber - 1 in numbers:
            for keyword, value in elements.items():
                if value is None:
                    del ds[keyword]
                else:
                    setattr(ds, keyword, value)

    return encode


def transpose(ds):
    ds.Rows, ds.Columns = ds.Columns, ds.Rows


# ---- one series


def test_one_series_among_other_files(tmp_path):
    save(series_datasets(STORED), tmp_path / "a")
    (tmp_path / "README.txt").write_text("notes")
    (tmp_path / "a" / "empty").write_text("")
    (tmp_path / "a" / "._00.dcm").write_bytes(b"\x00\x05\x16\x07" + bytes(60))
    for name in ("rtplan.dcm", "rtstruct.dcm", "test-SR.dcm", "liver_1frame.dcm", "MR_small.dcm"):
        shutil.copy(PYDICOM_FILES / name, tmp_path / name)
    one = chosen(tmp_path)
    assert files_of(one) == [f"{n:02}.dcm" for n in range(6)]
    assert (one.number, one.slices, one.rows, one.columns, one.modality) == (1, 6, 16, 20, "CT")
    assert one.spacing == pytest.approx((2.0, 0.8, 0.7))
    assert (one.plane, one.kind, one.description, one.warnings, one.faults) == ("axial", "original", "test", (), ())
    hint = "; labels go with their image: ingest CT --labels THIS"
    assert reasons(one.dropped) == {
        "README.txt": "not DICOM",
        "empty": "not DICOM",
        "._00.dcm": "not DICOM",
        "rtplan.dcm": "RTPLAN, RT Plan Storage, without an image",
        "rtstruct.dcm": "RTSTRUCT, RT Structure Set Storage, without an image" + hint,
        "test-SR.dcm": "SR, Comprehensive SR Storage, without an image",
        "liver_1frame.dcm": "modality SEG, not CT" + hint,
        "MR_small.dcm": "modality MR, not CT",
    }


def test_without_preamble(tmp_path):
    save(series_datasets(STORED), tmp_path)
    for path in sorted(tmp_path.iterdir())[:3]:
        path.write_bytes(path.read_bytes()[132:])
    assert chosen(tmp_path).slices == 6


@pytest.mark.parametrize("word", ["LOCALIZER", "localizer", "SCOUT"])
def test_localizers_are_dropped(tmp_path, word):
    save(series_datasets(STORED), tmp_path, encode=change([2, 5], ImageType=["ORIGINAL", "PRIMARY", word]))
    one = chosen(tmp_path)
    assert one.slices == 4
    assert reasons(one.dropped) == {"02.dcm": "localizer (scout)", "05.dcm": "localizer (scout)"}


def test_two_scouts_are_no_volume(tmp_path):
    save(series_datasets(STORED[:2]), tmp_path, encode=change([0, 1], ImageType=LOCALIZER))
    refused(tmp_path, r"no CT volume of two or more slices in its 2 files: 2 x localizer \(scout\) \(00.dcm, 01.dcm\)")
    refused(PYDICOM_FILES / "dicomdirtests" / "98892001" / "CT2N", r"2 x localizer \(scout\) \(6293, 6924\)")


def test_secondary_images_are_dropped_beside_originals(tmp_path):
    def encode(ds):
        if ds.InstanceNumber in (1, 6):
            ds.ImageType = ["DERIVED", "SECONDARY", "MPR"]
        if ds.InstanceNumber == 6:
            transpose(ds)

    one = chosen(save(series_datasets(STORED), tmp_path, encode=encode))
    assert files_of(one) == ["00.dcm", "01.dcm", "02.dcm", "03.dcm", "04.dcm"]  # the first goes on with the originals
    assert reasons(one.dropped).keys() == {"05.dcm"}
    assert "beside the originals" in one.dropped[0].reason
    assert one.warnings[-1].startswith("1 image, perhaps a slice of it, was left out: DERIVED\\SECONDARY, beside")


@pytest.mark.parametrize("words", [["DERIVED", "SECONDARY", "MPR"], ["DERIVED", "PRIMARY", "AXIAL"]])
def test_a_wholly_derived_series_is_a_volume_with_a_warning(tmp_path, words):
    one = chosen(save(series_datasets(STORED), tmp_path, encode=change(range(6), ImageType=words)))
    assert one.slices == 6
    assert one.kind == "\\".join(words).lower()
    assert "processed, not the scanner's own slices" in one.warnings[0]


def screens(ds):
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage


def colours(ds):
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "RGB", 0
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit, ds.PixelData = 7, bytes(ds.Rows * ds.Columns * 3)


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (screens, "secondary capture"),
        (colours, "RGB, not CT values"),
        (lambda ds: setattr(ds, "ImageType", ["DERIVED", "SECONDARY", "SCREEN SAVE"]), "a screen"),
        (lambda ds: setattr(ds, "ImageType", ["DERIVED", "SECONDARY", "PROJECTION IMAGE"]), "a projection"),
        (lambda ds: setattr(ds, "Modality", "PT"), "modality PT, not CT"),
        (lambda ds: setattr(ds, "SOPClassUID", "1.2.840.10008.5.1.4.1.1.9"), "CT, but Standalone Curve Storage"),
        (lambda ds: setattr(ds, "PhotometricInterpretation", "PALETTE COLOR"), "PALETTE COLOR"),
    ],
)
def test_images_that_are_no_slices(tmp_path, alter, message):
    def encode(ds):
        if ds.InstanceNumber == 6:
            alter(ds)

    one = chosen(save(series_datasets(STORED), tmp_path, encode=encode))
    assert one.slices == 5
    assert message in reasons(one.dropped)["05.dcm"]


def test_old_multi_frame_images_are_dropped(tmp_path):
    many = series_datasets(STORED[:1])[0]
    many.NumberOfFrames, many.PixelData = 6, STORED.tobytes()
    save([many], tmp_path, names=["many.dcm"])
    refused(tmp_path, "6 frames without functional groups, and without SpacingBetweenSlices")


# ---- slices that do not fit


MISFITS = {
    r"02.dcm \(no ImagePositionPatient": change([2], ImagePositionPatient=None),
    r"02.dcm \(no ImageOrientationPatient": change([2], ImageOrientationPatient=None),
    r"02.dcm \(no PixelSpacing": change([2], PixelSpacing=None),
    r"02.dcm \(a wrong PixelSpacing": change([2], PixelSpacing=[0.0, 0.7]),
    r"02.dcm \(a wrong ImageOrientationPatient": change([2], ImageOrientationPatient=[0.0] * 6),
    r"02.dcm \(orientation 1.0.0.0.0.1, the others 1.0.0.0.1.0": change(
        [2], ImageOrientationPatient=[1, 0, 0, 0, 0, 1]
    ),
    r"02.dcm \(PixelSpacing 0.8.0.9 mm, the others 0.8.0.7": change([2], PixelSpacing=[0.8, 0.9]),
    r"02.dcm \(20 x 16 pixels, the others 16 x 20": lambda ds: transpose(ds) if ds.InstanceNumber == 3 else None,
    r"02.dcm \(damaged .12 of 64 bits": change([2], BitsAllocated=64),
}


@pytest.mark.parametrize("message", MISFITS)
def test_a_slice_unlike_the_others_is_an_error(tmp_path, message):
    save(series_datasets(STORED), tmp_path, encode=MISFITS[message])
    text = refused(tmp_path, message)
    assert "1 image of the series does not fit the other 5" in text
    assert "\n" not in text


def test_a_cut_off_last_slice_is_an_error_and_not_a_shorter_volume(tmp_path):
    save(series_datasets(STORED), tmp_path)
    path = tmp_path / "05.dcm"
    path.write_bytes(path.read_bytes()[:-100])
    refused(tmp_path, r"05.dcm \(damaged \(cut off: 540 of 640 bytes of pixels\)")


def test_damaged_files_of_no_known_series_are_warned_of(tmp_path):
    save(series_datasets(STORED), tmp_path)
    data = (tmp_path / "05.dcm").read_bytes()
    at = data.index(b"UI", data.index(b"\x08\x00\x16\x00"))
    (tmp_path / "05.dcm").write_bytes(data[:at] + b"SQ\x00\x00\xff\xff\xff\xff" + data[at + 8 :])
    refused(tmp_path, r"1 image of the series does not fit the other 5: 05.dcm \(damaged header")
    (tmp_path / "05.dcm").rename(tmp_path / "lost")  # nothing in its name says that it is a slice
    one = chosen(tmp_path)
    assert one.slices == 5
    assert "damaged header" in reasons(one.dropped)["lost"]
    assert "1 damaged file, perhaps a slice of it, was left out: lost (damaged header" in one.warnings[0]


def test_only_slices_and_slices_at_one_position(tmp_path):
    save(series_datasets(STORED[:1]), tmp_path / "lone")
    refused(tmp_path / "lone", "1 x the only slice of its series")
    save(series_datasets(STORED, spacing=0), tmp_path / "still")
    refused(tmp_path / "still", "the 6 images of its series are all at one position")


def test_nothing_to_read(tmp_path):
    refused(tmp_path, "no DICOM images .it is empty")
    (tmp_path / "notes.txt").write_text("nothing")
    refused(tmp_path, "its 1 files hold none")
    shutil.copy(PYDICOM_FILES / "MR_small.dcm", tmp_path)
    refused(tmp_path, "in its 2 files: 1 x modality MR, not CT .MR_small.dcm")


# ---- several candidates


@pytest.fixture
def two_series(tmp_path):
    save(series_datasets(STORED, description="thin"), tmp_path / "b")
    thick = series_datasets(STORED[:3], description="thick\x1b[31m", spacing=5, across=(0, 1, 0), down=(0, 0, -1))
    save(thick, tmp_path / "a")
    save(series_datasets(STORED[:1], description="lone"), tmp_path / "c")
    return tmp_path


def test_several_candidates_are_listed(two_series):
    message = refused(two_series, "2 CT volumes; choose one with --series")
    lines = message.splitlines()
    assert lines[1].split()[:3] == ["#", "slices", "rows"]
    assert lines[2].startswith("1  3       16 x 20")
    assert "5 x 0.8 x 0.7" in lines[2]
    assert "sagittal" in lines[2]
    assert "thick?[31m" in lines[2]
    assert "thin" in lines[3]
    columns, rows = candidate_rows(survey_of(two_series))
    assert {len(row) for row in rows} == {len(columns)}
    assert [row[0] for row in rows] == ["1", "2"]


def test_choosing(two_series):
    thick, thin = survey_of(two_series).candidates
    assert (thick.number, thin.number) == (1, 2)
    for asked, meant in (("1", thick), ("2", thin), (thin.series_uid, thin), (thick.series_uid[-9:], thick)):
        assert chosen(two_series, asked).series_uid == meant.series_uid
    one = chosen(two_series, "2")
    found = reasons(one.dropped)
    assert len(one.dropped) == 4
    assert found["00.dcm"] == "of series 1 (thick?[31m), which was not chosen"
    assert sum(item.reason == "the only slice of its series" for item in one.dropped) == 1


@pytest.mark.parametrize("asked", ["3", "0", "", "007", "1.2.3.4", "x", "-1"])
def test_choosing_what_is_not_there(two_series, asked):
    message = refused(two_series, "is none of its 2 CT volumes", asked)
    assert len(message.splitlines()) == 4


def test_an_ending_that_several_have(tmp_path):
    for name, start in (("a", "1.2.3"), ("b", "1.2.4")):
        save(series_datasets(STORED), tmp_path / name, encode=change(range(6), SeriesInstanceUID=f"{start}.77"))
    refused(tmp_path, "--series .77 is 2 of its 2 CT volumes", ".77")
    assert chosen(tmp_path, "4.77").number == 2


def test_one_series_of_two_orientations(tmp_path):
    uid = generate_uid()
    same = change(range(6), SeriesInstanceUID=uid)
    save(series_datasets(STORED), tmp_path / "a", encode=same)
    save(series_datasets(STORED[:3], across=(0, 1, 0), down=(0, 0, -1)), tmp_path / "b", encode=same)
    refused(tmp_path, "2 CT volumes")
    refused(tmp_path, f"--series {uid[:37]}... is 2 of its 2", uid)
    assert chosen(tmp_path, "2").plane == "sagittal"


def test_pydicoms_mixed_folder():
    folder = PYDICOM_FILES / "dicomdirtests"
    found = survey_of(folder)
    assert [(one.description, one.slices) for one in found.candidates] == [
        ("Routine Brain", 4),
        ("SmartScore - Gated 0.5 sec", 5),
    ]
    counted = {reason: count for reason, count, _ in count_reasons(found.dropped)}
    assert counted["modality MR, not CT"] == 17
    assert counted["modality CR, not CT"] == 3
    assert counted["localizer (scout)"] == 2
    files = sum(path.is_file() for path in folder.rglob("*"))
    assert sum(counted.values()) + 4 + 5 == files
    assert chosen(folder / "98892001").slices == 5


def test_real_series(data):
    one = chosen(data / "abdomen_dicom")
    assert (one.slices, one.plane) == (20, "axial")
    assert one.spacing == pytest.approx((2.0, 0.9765625, 0.9765625))
    assert chosen(data / "head_ct_tilted").plane == "axial, 18° off"


# ---- grouping, whatever the images and their order


IMAGES = st.lists(
    st.tuples(
        st.sampled_from("AB"),  # series
        st.sampled_from([(16, 20), (20, 16)]),
        st.sampled_from(["axial", "coronal"]),
        st.sampled_from([0.7, 0.8]),
        st.integers(0, 9),  # position
        st.sampled_from(["plane", "scout", "secondary"]),
    ),
    max_size=30,
)
ORIENTATIONS = {"axial": (1, 0, 0, 0, 1, 0), "coronal": (1, 0, 0, 0, 0, -1)}
TYPES = {"plane": ["ORIGINAL", "PRIMARY"], "scout": LOCALIZER, "secondary": ["DERIVED", "SECONDARY"]}


def image_of(number, kind, rng):
    uid, (rows, columns), plane, pixel, position, words = kind
    noise = rng.uniform(-2e-4, 2e-4, 8)  # decimals rounded in the files
    axis = {"axial": 2, "coronal": 1}[plane]
    header = {
        "Modality": "CT", "SeriesInstanceUID": uid, "Rows": rows, "Columns": columns, "ImageType": TYPES[words],
        "ImageOrientationPatient": list(ORIENTATIONS[plane] + noise[:6]), "PixelSpacing": list(pixel * (1 + noise[6:])),
        "ImagePositionPatient": [3.0 * position * (n == axis) for n in range(3)], "Kind": kind,
    }  # fmt: skip
    return Image(FileEntry(Path(f"{number:03}")), header, "")


@settings(deadline=None, max_examples=100)
@given(IMAGES, st.randoms(use_true_random=False))
def test_every_image_is_in_one_candidate_or_dropped(kinds, shuffler):
    rng = np.random.default_rng(0)
    images = {f"{n:03}": image_of(n, kind, rng) for n, kind in enumerate(kinds)}
    order = list(images)
    shuffler.shuffle(order)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(series_module, "read_image", lambda entry: images[entry.name])
        found = survey(Source(Path(), "folder", tuple(images[name].entry for name in order)))
    used = [image.name for one in found.candidates for image in one.images]
    assert sorted(used + [item.name for item in found.dropped]) == sorted(images)
    numbers = list(dict.fromkeys(one.number for one in found.candidates))
    assert numbers == list(range(1, len(numbers) + 1))
    alike, home = {}, {}
    for one in found.candidates:
        (group,) = {image.header["Kind"][:4] for image in one.images}
        assert home.setdefault(group, one.number) == one.number  # all that is alike is together, or in parts
        alike[group] = {image.header["Kind"][4] for image in one.images}
        assert len(alike[group]) > 1
        assert all(image.header["Kind"][5] != "scout" for image in one.images)
    for item in found.dropped:
        kind = images[item.name].header["Kind"]
        assert kind[5] != "plane" or kind[:4] not in alike


def test_grouping_many_unlike_images_is_not_slow(tmp_path):
    rng = random.Random(0)
    images = {}
    for n in range(1500):
        kind = ("A", (16, 20), "axial", 0.5 + rng.random(), n, "plane")
        images[f"{n:03}"] = image_of(n, kind, np.random.default_rng(n))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(series_module, "read_image", lambda entry: images[entry.name])
        found = survey(Source(tmp_path, "folder", tuple(image.entry for image in images.values())))
    assert sum(one.slices for one in found.candidates) + len(found.dropped) == 1500


def test_headers_survive_pydicoms_own_rewriting(tmp_path):
    save(series_datasets(STORED[:2]), tmp_path)
    for path in tmp_path.iterdir():
        dataset = pydicom.dcmread(path)
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
        dataset.save_as(path, enforce_file_format=True)
    assert [image.transfer_syntax for image in chosen(tmp_path).images] == [pydicom.uid.ImplicitVRLittleEndian] * 2


def test_slices_of_more_kinds_than_a_series_has_are_not_all_compared():
    images = []
    for number in range(limits.MAX_GROUPS + 3):
        turn = 2 * np.pi * number / (limits.MAX_GROUPS + 3)
        orientation = (np.cos(turn), np.sin(turn), 0.0, 0.0, 0.0, 1.0)
        header = {
            "Rows": 4, "Columns": 4, "PixelSpacing": (1.0, 1.0), "ImagePositionPatient": (0.0, 0.0, float(number)),
            "ImageOrientationPatient": orientation,
        }  # fmt: skip
        images.append(Image(FileEntry(Path(f"{number}.dcm")), header, "1.2"))
    groups, misfits = series_module._group(images)
    assert len(groups) == limits.MAX_GROUPS
    reason = f"one of more than {limits.MAX_GROUPS} kinds of slices in its series"
    assert [item.reason for item in misfits] == [reason] * 3
