"""Several scans in one series: told apart where that makes volumes, and only there."""

import numpy as np
import pytest
from pydicom.uid import generate_uid

from dicom_files import enhanced, save, series_datasets, stored_values
from volseg.errors import VolumeError
from volseg.geometry import Box
from volseg.volumes.dicom.finding.candidates import candidate_rows
from volseg.volumes.dicom.finding.series import survey
from volseg.volumes.dicom.finding.sources import open_source
from volseg.volumes.dicom.options import DicomOptions
from volseg.volumes.dicom.volume import open_dicom

STORED = stored_values((6, 4, 5))
OTHER = STORED + 100


def scan(stored, first=None, start=50.0, step=4.0, across=(1, 0, 0), **elements):
    """A series; one with `first` is of its study, series and frame of reference."""
    datasets = series_datasets(stored, origin=(-100, -120, start), spacing=step)
    for number, ds in enumerate(datasets):
        if first is not None:
            for keyword in ("SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID"):
                setattr(ds, keyword, getattr(first[0], keyword))
        for keyword, value in elements.items():
            setattr(ds, keyword, value(number) if callable(value) else value)
    return datasets


def parts(folder):
    """(label, what differs, heights) of each candidate."""
    found = survey(open_source(folder)).candidates
    return [(c.label, c.differs, sorted(float(i.get("ImagePositionPatient")[2]) for i in c.images)) for c in found]


def heights(start=50.0, step=4.0, count=6):
    return [start + step * n for n in range(count)]


def hu(folder, series):
    volume = open_dicom(folder, DicomOptions(series))
    return volume, volume.read(Box.whole(volume.shape))


# ---- what divides


PASSES = {  # what the first pass and the second have, and how the parts are told apart
    "acquisitions": ({"AcquisitionNumber": 3}, {"AcquisitionNumber": 4}, "AcquisitionNumber 3"),
    "another acquisition in each slice": (
        {"AcquisitionNumber": lambda n: n + 1}, {"AcquisitionNumber": lambda n: n + 7}, "AcquisitionNumber 1 to 6",
    ),
    "acquisitions by stretches": (
        {"AcquisitionNumber": lambda n: 1 + n // 3}, {"AcquisitionNumber": lambda n: 3 + n // 3},
        "AcquisitionNumber 1 to 2",
    ),
    "temporal position": (
        {"TemporalPositionIdentifier": 1}, {"TemporalPositionIdentifier": 2}, "TemporalPositionIdentifier 1",
    ),
    "cardiac phase": (
        {"NominalPercentageOfCardiacPhase": 40}, {"NominalPercentageOfCardiacPhase": 75},
        "NominalPercentageOfCardiacPhase 40",
    ),
    "tube voltage": ({"KVP": 80}, {"KVP": 140}, "KVP 80"),
    "kernel": ({"ConvolutionKernel": ["Br38f", "3"]}, {"ConvolutionKernel": ["Br59f", "3"]}, "ConvolutionKernel Br38f"),
    "contrast": ({}, {"ContrastBolusAgent": "APPLIED"}, "ContrastBolusAgent (absent)"),
    "acquisition time": ({"AcquisitionTime": "101500"}, {"AcquisitionTime": "101600.5"}, "AcquisitionTime 101500"),
    "a time in each slice": (
        {"ContentTime": lambda n: f"1015{n:02}.25"}, {"ContentTime": lambda n: f"1016{n:02}.25"},
        "ContentTime 101500.25",
    ),
    "study": ({}, {"StudyInstanceUID": "1.2.3.4"}, "StudyInstanceUID ..."),
    "table moved": ({}, {"FrameOfReferenceUID": "1.2.3.4"}, "FrameOfReferenceUID ..."),
    "patient": ({}, {"PatientID": "2"}, "PatientID #1"),
    "date": ({"StudyDate": "20200101"}, {"StudyDate": "20230101"}, "StudyDate 20200101"),
}  # fmt: skip


@pytest.mark.parametrize("start", [52.0, 51.5, 50.0])
@pytest.mark.parametrize("kind", PASSES)
def test_a_second_pass_is_a_volume_of_its_own(tmp_path, kind, start):
    """Half a step further on, unevenly further on, and at the same positions."""
    one, two, differs = PASSES[kind]
    first = scan(STORED, **one)
    save(first, tmp_path)
    save(scan(OTHER, first, start, **two), tmp_path, names=[f"x{n}" for n in range(6)])
    found = parts(tmp_path)
    assert [(label, where) for label, _, where in found] == [("1.1", heights()), ("1.2", heights(start))]
    assert found[0][1].startswith(differs)
    with pytest.raises(VolumeError, match=r"2 CT volumes, in one series .*--series 1\.1") as caught:
        open_dicom(tmp_path, DicomOptions(resample_gaps=True))
    assert "told apart by" in str(caught.value)
    assert "resample-gaps" not in str(caught.value)
    volume, values = hu(tmp_path, "1.2")
    np.testing.assert_array_equal(values, OTHER.astype(int) - 1024)
    assert volume.space.spacing[0] == pytest.approx(4)
    assert dict(volume.audit.facts)["part of its series"].startswith("1.2: ")
    assert len(volume.audit.dropped) == 6


@pytest.mark.parametrize("kind", ["type", "description", "folder", "number", "file names"])
def test_lesser_evidence_divides_what_is_no_regular_stack(tmp_path, kind):
    first = scan(STORED, ImageType=["ORIGINAL", "PRIMARY", "AXIAL"])
    second = scan(OTHER, first)
    for number, ds in enumerate(second):
        if kind == "type":
            ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL", "MONO_40KEV"]
        elif kind == "description":
            ds.SeriesDescription = "lung"
        elif kind == "number":
            ds.InstanceNumber = 7 + number
    between = [f"{'b/' if kind == 'folder' else ''}{n:02}{'z' if kind != 'file names' else ''}" for n in range(6)]
    if kind == "file names":
        between = [f"{n + 50}.dcm" for n in range(6)]
    save(first, tmp_path / "a")
    save(second, tmp_path / "a" if kind != "folder" else tmp_path, names=between)
    assert [(label, where) for label, _, where in parts(tmp_path)] == [("1.1", heights()), ("1.2", heights())]
    np.testing.assert_array_equal(hu(tmp_path, "1.2")[1], OTHER.astype(int) - 1024)


def test_phases_by_two_kernels_are_four_volumes(tmp_path):
    first = scan(STORED, AcquisitionNumber=1, ConvolutionKernel="A")
    save(first, tmp_path, names=[f"0{n}" for n in range(6)])
    for number, (acquisition, kernel) in enumerate([(1, "B"), (2, "A"), (2, "B")], 1):
        others = scan(STORED + number, first, AcquisitionNumber=acquisition, ConvolutionKernel=kernel)
        save(others, tmp_path, names=[f"{number}{n}" for n in range(6)])
    found = parts(tmp_path)
    assert [where for _, _, where in found] == [heights()] * 4
    assert {differs for _, differs, _ in found} == {
        f"AcquisitionNumber {n}, ConvolutionKernel {k}" for n in (1, 2) for k in "AB"
    }


def test_a_phase_that_lacks_a_slice_is_refused_as_such(tmp_path):
    first = scan(STORED, AcquisitionNumber=1)
    save(first, tmp_path, names=[f"a{n}" for n in range(6)])
    second = scan(OTHER, first, AcquisitionNumber=2)
    del second[3]
    save(second, tmp_path, names=[f"b{n}" for n in range(5)])
    assert hu(tmp_path, "1.1")[1].shape[0] == 6
    with pytest.raises(VolumeError, match=r"8 mm between .*\(1 missing\)"):
        open_dicom(tmp_path, DicomOptions("1.2"))


def test_neck_and_abdomen_apart_are_two_volumes(tmp_path):
    first = scan(STORED, AcquisitionNumber=1)
    save([*first, *scan(OTHER, first, 400.0, AcquisitionNumber=2)], tmp_path)
    assert [where for _, _, where in parts(tmp_path)] == [heights(), heights(400.0)]


def test_a_table_moved_sideways_divides(tmp_path):
    first = scan(STORED, InstanceNumber=lambda n: n + 1)
    second = scan(OTHER, first, 74.0, InstanceNumber=lambda n: n + 7)
    for ds in second:
        ds.ImagePositionPatient[0] = -80
    save([*first, *second], tmp_path)
    assert [where for _, _, where in parts(tmp_path)] == [heights(), heights(74.0)]


def test_two_patients_without_uids(tmp_path):
    first, second = scan(STORED), scan(OTHER, start=74.0, PatientID="2")
    for ds in (*first, *second):
        del ds.SeriesInstanceUID, ds.StudyInstanceUID, ds.FrameOfReferenceUID
    save([*first, *second], tmp_path)
    found = parts(tmp_path)
    assert [where for _, _, where in found] == [heights(), heights(74.0)]
    assert [differs for _, differs, _ in found] == ["PatientID #1", "PatientID #2"]  # not who they are


def test_two_series_without_uid(tmp_path):
    first, second = scan(STORED, SeriesNumber=2), scan(OTHER, start=74.0, SeriesNumber=3)
    for ds in (*first, *second):
        del ds.SeriesInstanceUID
        ds.StudyInstanceUID, ds.FrameOfReferenceUID = "1.2", "1.3"
    save([*first, *second], tmp_path)
    assert [differs for _, differs, _ in parts(tmp_path)] == ["SeriesNumber 2", "SeriesNumber 3"]


def test_a_slice_of_another_patient_is_an_error(tmp_path):
    datasets = scan(STORED)
    datasets[-1].PatientID = "2"
    save(datasets, tmp_path)
    with pytest.raises(VolumeError, match=r"05\.dcm \(another PatientID than the others, and the only slice of it\)"):
        open_dicom(tmp_path)


# ---- what does not


WHOLE = {
    "a time in each slice": {"AcquisitionTime": lambda n: f"1015{n:02}", "ContentTime": lambda n: f"1016{59 - n:02}"},
    "times out of order": {"ContentTime": lambda n: f"1016{(5 * n) % 7:02}"},
    "two lots of slices computed at once": {
        "ContentTime": lambda n: f"1016{n % 2:02}",
        "InstanceNumber": lambda n: n + 1,
    },
    "an acquisition for each slice": {"AcquisitionNumber": lambda n: n + 1},
    "step and shoot": {"AcquisitionNumber": lambda n: 1 + n // 2},
    "step and shoot, triggered": {
        "AcquisitionNumber": lambda n: 1 + n // 3,
        "TriggerTime": lambda n: 700 - 50 * (n // 3),
    },
    "an absent frame of reference": {"FrameOfReferenceUID": lambda n: "" if n == 2 else "1.2"},
    "a name cased otherwise": {"PatientName": lambda n: "DOE^JANE" if n < 3 else "Doe^Jane^^"},
}


@pytest.mark.parametrize("kind", WHOLE)
def test_one_volume_stays_one(tmp_path, kind):
    save(scan(STORED, **WHOLE[kind]), tmp_path)
    volume, values = hu(tmp_path, None)
    np.testing.assert_array_equal(values, STORED.astype(int) - 1024)
    assert volume.audit.warnings == ("SliceThickness is 99 mm, but slices lie 4 mm apart; their positions were used",)


@pytest.mark.parametrize("kind", WHOLE)
def test_a_missing_slice_of_one_volume_is_still_that(tmp_path, kind):
    datasets = scan(stored_values((9, 4, 5)), **WHOLE[kind])
    del datasets[4]
    save(datasets, tmp_path)
    with pytest.raises(VolumeError, match=r"\(1 missing\).*--resample-gaps"):
        open_dicom(tmp_path)


@pytest.mark.parametrize("keyword", ["FrameOfReferenceUID", "StudyInstanceUID", "PatientID", "StudyDate"])
def test_what_an_anonymiser_drew_for_each_slice_is_not_heeded(tmp_path, keyword):
    save(scan(STORED, **{keyword: lambda n: f"2020010{n + 1}" if keyword == "StudyDate" else f"1.2.{n}"}), tmp_path)
    volume = open_dicom(tmp_path)
    assert volume.shape[0] == 6
    assert volume.audit.warnings[0] == f"{keyword} differs from slice to slice (6 values); it was not heeded"


def test_kernels_that_follow_one_another_are_merged_with_a_word(tmp_path):
    save(scan(STORED, ConvolutionKernel=lambda n: "B" if n < 3 else "C"), tmp_path)
    volume = open_dicom(tmp_path)
    assert volume.shape[0] == 6
    assert (
        volume.audit.warnings[0] == "slices of ConvolutionKernel b, c follow one another, and were taken as one volume"
    )


def test_acquisitions_that_follow_one_another_stand_in_the_audit(tmp_path):
    save(scan(STORED, AcquisitionNumber=lambda n: 4 + n // 3), tmp_path)
    assert dict(open_dicom(tmp_path).audit.facts)["acquisition"] == "4, 5"


def test_a_series_exported_twice_is_no_two_volumes(tmp_path):
    first = scan(STORED, ContentTime="101500")
    save(first, tmp_path, names=[f"a/{n}" for n in range(6)])
    for ds in first:
        ds.ContentTime = "111500"
    save(first, tmp_path, names=[f"b/{n}" for n in range(6)])  # the same images
    for ds in first:
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    save(first, tmp_path, names=[f"c/{n}" for n in range(6)])  # the same pixels
    volume = open_dicom(tmp_path)
    assert volume.shape[0] == 6
    assert [item.reason for item in volume.audit.dropped] == [f"exact copy of {n}" for n in range(6) for _ in "bc"]


def test_gaps_between_acquisitions_in_turn_are_not_bridged(tmp_path):
    """Each acquisition is uneven itself, so that nothing can be divided."""
    datasets = series_datasets(stored_values((8, 4, 5)))
    for ds, height, acquisition in zip(datasets, [0, 2, 3, 5, 9, 10, 11.3, 12], [1, 2, 1, 1, 2, 1, 2, 2], strict=True):
        ds.ImagePositionPatient[2], ds.AcquisitionNumber = height, acquisition
    save(datasets, tmp_path)
    for resample in (False, True):
        with pytest.raises(VolumeError, match=r"of several acquisitions in turn \(AcquisitionNumber 1, 2\)") as caught:
            open_dicom(tmp_path, DicomOptions(resample_gaps=resample))
        assert "--resample-gaps" not in str(caught.value)


def test_what_cannot_be_told_apart_is_named_by_what_differs(tmp_path):
    first, other = scan(STORED), scan(OTHER)[2]
    other.SeriesInstanceUID, other.StudyInstanceUID = first[0].SeriesInstanceUID, first[0].StudyInstanceUID
    other.FrameOfReferenceUID, other.KVP = first[0].FrameOfReferenceUID, 80
    save([*first, other], tmp_path)
    with pytest.raises(VolumeError, match=r"lie at one position and differ .* \(KVP \(absent\) \| 80"):
        open_dicom(tmp_path)


# ---- enhanced


@pytest.mark.parametrize(
    ("keyword", "values"),
    [
        ("TemporalPositionIndex", (1, 2)),
        ("FrameAcquisitionNumber", (1, 2)),
        ("CardiacCyclePosition", ("END_SYSTOLE", "END_DIASTOLE")),
        ("StackID", ("1", "2")),
        ("DimensionIndexValues", ([1, 1], [1, 2])),
        (None, (None, None)),
    ],
)
def test_frames_of_two_phases(tmp_path, keyword, values):
    first = scan(STORED)
    ds = enhanced([*first, *scan(OTHER, first)])
    for number, group in enumerate(ds.PerFrameFunctionalGroupsSequence):
        content = type(group)()
        if keyword:
            setattr(content, keyword, values[number // 6])
        group.FrameContentSequence = [content]
    save([ds], tmp_path)
    found = parts(tmp_path)
    assert [(label, where) for label, _, where in found] == [("1.1", heights()), ("1.2", heights())]
    assert found[0][1].startswith({None: "files", "FrameAcquisitionNumber": "AcquisitionNumber"}.get(keyword, keyword))
    np.testing.assert_array_equal(hu(tmp_path, "1.2")[1], OTHER.astype(int) - 1024)


def test_stacks_that_follow_one_another_are_merged_with_a_word(tmp_path):
    first = scan(STORED)
    ds = enhanced([*first, *scan(OTHER, first, 74.0)])
    for number, group in enumerate(ds.PerFrameFunctionalGroupsSequence):
        content = type(group)()
        content.StackID = str(1 + number // 6)
        group.FrameContentSequence = [content]
    save([ds], tmp_path)
    assert open_dicom(tmp_path).audit.warnings[0].startswith("slices of StackID 1, 2 follow one another")


# ---- choosing


def test_numbers_of_parts(tmp_path):
    first = scan(STORED, AcquisitionNumber=1)
    save(first, tmp_path, names=[f"b{n}" for n in range(6)])
    save(scan(OTHER, first, AcquisitionNumber=2), tmp_path, names=[f"c{n}" for n in range(6)])
    save(scan(STORED), tmp_path, names=[f"a{n}" for n in range(6)])
    found = survey(open_source(tmp_path))
    assert [one.label for one in found.candidates] == ["1", "2.1", "2.2"]
    columns, rows = candidate_rows(found)
    assert columns[-1] == "told apart by"
    assert [row[-1] for row in rows] == ["", "AcquisitionNumber 1", "AcquisitionNumber 2"]
    with pytest.raises(VolumeError, match="3 CT volumes, some in one series"):
        open_dicom(tmp_path)
    with pytest.raises(VolumeError, match="--series 2 is 2 of its 3 CT volumes"):
        open_dicom(tmp_path, DicomOptions("2"))
    for asked in ("2.3", "1.1", "3"):
        with pytest.raises(VolumeError, match=f"--series {asked} is none of its 3 CT volumes"):
            open_dicom(tmp_path, DicomOptions(asked))
    np.testing.assert_array_equal(hu(tmp_path, "2.2")[1], OTHER.astype(int) - 1024)


def test_slices_of_a_wide_scan_and_of_a_thin_one_are_two_volumes(tmp_path):
    first = scan(STORED, AcquisitionNumber=1)
    save([*first, *scan(OTHER, first, 74.0, step=2.0, AcquisitionNumber=2)], tmp_path)
    assert [where for _, _, where in parts(tmp_path)] == [heights(), heights(74.0, 2.0)]


@pytest.mark.parametrize(
    ("keyword", "values", "divided"),
    [
        ("PatientSex", "MF", True),
        ("PatientAge", ["045Y", "061Y"], True),
        ("AcquisitionDate", ["20201231", "20210301"], True),
        ("AcquisitionDate", ["20201231", "20210101"], False),  # at midnight
    ],
)
def test_scans_that_go_on_from_each_other_by_chance(tmp_path, keyword, values, divided):
    save(scan(STORED, **{keyword: lambda n: values[n // 3]}), tmp_path)
    assert len(parts(tmp_path)) == 1 + divided


@pytest.mark.parametrize("keyword", ["StationName", "SeriesDate"])
def test_images_without_series_of_two_scanners(tmp_path, keyword):
    datasets = scan(STORED, **{keyword: lambda n: "20200101" if n < 3 else "20210101"})
    for ds in datasets:
        del ds.SeriesInstanceUID
    save(datasets, tmp_path)
    assert [where for _, _, where in parts(tmp_path)] == [heights(count=3), heights(62.0, count=3)]


def test_slices_numbered_as_two_passes_are_doubted(tmp_path):
    stored = stored_values((8, 4, 5))
    save(scan(stored, InstanceNumber=lambda n: 1 + n // 2 + 4 * (n % 2)), tmp_path)
    (warning, _) = open_dicom(tmp_path).audit.warnings
    assert warning == "its slices alternate between runs of InstanceNumber (1 to 4 | 5 to 8): perhaps 2 scans in one"
