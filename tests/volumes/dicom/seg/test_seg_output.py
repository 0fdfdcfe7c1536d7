"""DICOM SEG: read back by highdicom it lies on the source's slices, with its labels' names, codes and colours."""

import os
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, generate_uid

from volseg.distributed.communicator import SerialCommunicator
from volseg.errors import VolumeError
from volseg.geometry import Box
from volseg.volumes.audit import Audit
from volseg.volumes.canonical import in_order_of
from volseg.volumes.dicom.image import Image
from volseg.volumes.dicom.seg import output as seg_output
from volseg.volumes.dicom.seg.codes import FINDINGS, ORGANS, property_of
from volseg.volumes.label_files import label_table_of
from volseg.volumes.label_table import LabelTable
from volseg.volumes.reading import open_volume
from volseg.volumes.regions import Region, value_names
from volseg.volumes.volume import Space, Volume
from volseg.volumes.writing import check_output, write_volume

SHAPE = (6, 12, 10)
SERIAL = SerialCommunicator()
NAMES = {"background": 0, "liver": 2, "kidney_left": 3, "spleen": 5, "weird \\ thing": 7}
LABELS = LabelTable(NAMES, {2: (200, 30, 40)})


class Series(Volume):
    """A series as `open_dicom` gives it, without files: oblique slices, of one file each or one for all."""

    format = "DICOM"
    dtype = np.dtype("i2")

    def __init__(self, multi_frame=False, corrected=False, **changed):
        self.path, self.corrected = Path("series"), corrected
        self.audit = Audit(fixes=("gantry tilt of 9 degrees sheared back",) if corrected else ())
        turn = np.array([[0.96, -0.28, 0], [0.28, 0.96, 0], [0, 0, 1.0]])
        step = turn @ np.diag([0.7, 0.8, 2.5])
        origin = np.array([-30.0, 12.5, 700.0])
        lps = np.eye(4)
        lps[:3, :3], lps[:3, 3] = step, origin
        self.space = Space(SHAPE, np.diag([-1.0, -1, 1, 1]) @ lps)
        self.positions = [origin + k * step[:, 2] for k in range(SHAPE[0])]
        self.orientation = [*turn[:, 0], *turn[:, 1]]
        self.datasets = [self._enhanced()] if multi_frame else [self._slice(k) for k in range(SHAPE[0])]
        for dataset in self.datasets:
            for keyword, value in changed.items():
                setattr(dataset, keyword, value)
        self.frames = list(range(SHAPE[0]))[::-1] if multi_frame else [None] * SHAPE[0]
        self.images = tuple(Image(None, {}, "", frame) for frame in self.frames)

    def read(self, box):
        return np.zeros(box.shape, self.dtype)

    def source_datasets(self):
        return self.datasets

    def _common(self, sop_class):
        dataset = Dataset()
        dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, generate_uid()
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.3", "1.2.3.4"
        dataset.FrameOfReferenceUID, dataset.Modality = "1.2.3.5", "CT"
        dataset.PatientName, dataset.PatientID = "Doe^Jane", "17"
        dataset.Rows, dataset.Columns, dataset.SeriesNumber = SHAPE[1], SHAPE[2], 4
        return dataset

    def _slice(self, k):
        dataset = self._common(CTImageStorage)
        dataset.ImagePositionPatient = [round(x, 6) for x in self.positions[k].tolist()]
        dataset.ImageOrientationPatient = self.orientation
        dataset.PixelSpacing, dataset.SliceThickness, dataset.SpacingBetweenSlices = [0.8, 0.7], 5, 99
        return dataset

    def _enhanced(self):
        """Frames from the last slice to the first; orientation and spacing with each frame."""
        dataset = self._common(EnhancedCTImageStorage)
        dataset.NumberOfFrames = SHAPE[0]
        dataset.SharedFunctionalGroupsSequence = [Dataset()]
        groups = []
        for position in reversed(self.positions):
            plane, orientation, measures, group = Dataset(), Dataset(), Dataset(), Dataset()
            plane.ImagePositionPatient = [round(x, 6) for x in position.tolist()]
            orientation.ImageOrientationPatient = self.orientation
            measures.PixelSpacing, measures.SliceThickness = [0.8, 0.7], 2.5
            group.PlanePositionSequence, group.PlaneOrientationSequence = [plane], [orientation]
            group.PixelMeasuresSequence = [measures]
            groups.append(group)
        dataset.PerFrameFunctionalGroupsSequence = groups
        return dataset


def labelled():
    mask = np.zeros(SHAPE, np.uint8)
    mask[1:3, 2:6, 2:9] = 2
    mask[2:5, 7:11, 1:4] = 3
    mask[4, 0:2, 5:9] = 7
    return mask


def write(path, mask, source, communicator=SERIAL, **named):
    def produce(units):
        mine = units[communicator.rank]
        return None if mine is None else mask[mine.box.slices]

    named = {"labels": LABELS} | named
    write_volume(path, source.space, mask.dtype, produce, communicator, source=source, **named)
    return hd.seg.segread(path) if communicator.is_root and path.suffix == ".dcm" else None


def values_by_place(segmentation, space):
    """The mask as an independent reader sees it: [D, H, W] on `space`, by where highdicom says the voxels lie."""
    volume = segmentation.get_volume(combine_segments=True)
    found = np.zeros(space.shape, int)
    values = {n: int(segmentation.get_segment_description(n).SegmentDescription.split()[1])
              for n in segmentation.segment_numbers}  # fmt: skip
    index = np.argwhere(volume.array)
    lps = volume.affine @ np.c_[index, np.ones(len(index))].T
    own = np.linalg.inv(np.diag([-1.0, -1, 1, 1]) @ space.affine) @ lps
    assert np.abs(own - np.rint(own)).max() * max(space.spacing) < 1e-3
    i, j, k = np.rint(own[:3]).astype(int)
    found[k, j, i] = [values[n] for n in volume.array[tuple(index.T)]]
    return found


@pytest.mark.parametrize("multi_frame", [False, True])
@pytest.mark.parametrize("dtype", ["u1", "u2", "i2", "i4"])
def test_highdicom_finds_every_voxel_at_its_place(tmp_path, multi_frame, dtype):
    source = Series(multi_frame)
    segmentation = write(tmp_path / "mask.dcm", labelled().astype(dtype), source)
    np.testing.assert_array_equal(values_by_place(segmentation, source.space), labelled())
    assert segmentation.SegmentationType == "BINARY"
    assert segmentation.NumberOfFrames == 2 + 3 + 1  # none that is empty
    assert [file.name for file in tmp_path.iterdir()] == ["mask.dcm"]


REGIONS = (Region("whole tumour", (2, 3, 7), 2), Region("tumour core", (3, 7), 3), Region("cyst", (9,), 9))


@pytest.mark.parametrize("multi_frame", [False, True])
@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_regions_are_segments_that_overlap(tmp_path, multi_frame, dtype):
    source, mask = Series(multi_frame), labelled().astype(dtype)
    table = LabelTable(value_names(REGIONS), regions=REGIONS)
    segmentation = write(tmp_path / "mask.dcm", mask, source, labels=table)
    assert (segmentation.SegmentationType, segmentation.SegmentsOverlap) == ("BINARY", "YES")
    assert segmentation[0x0062, 0x0013].value == "YES"
    described = [segmentation.get_segment_description(n) for n in segmentation.segment_numbers]
    assert [(one.SegmentLabel, one.SegmentDescription) for one in described] == [
        ("whole tumour", "labels 2, 3, 7 of the mask"), ("tumour core", "labels 3, 7 of the mask"),
    ]  # fmt: skip
    volume = segmentation.get_volume(combine_segments=False)
    for number, region in enumerate(REGIONS[:2]):
        index = np.argwhere(volume.array[..., number])
        lps = volume.affine @ np.c_[index, np.ones(len(index))].T
        i, j, k = np.rint((np.linalg.inv(np.diag([-1.0, -1, 1, 1]) @ source.space.affine) @ lps)[:3]).astype(int)
        there = np.zeros(SHAPE, bool)
        there[k, j, i] = True
        np.testing.assert_array_equal(there, np.isin(mask, region.values))
    assert [file.name for file in tmp_path.iterdir()] == ["mask.dcm"]


def test_a_mask_without_regions_has_an_empty_segment_for_each(tmp_path):
    table = LabelTable(value_names(REGIONS), regions=REGIONS)
    segmentation = write(tmp_path / "mask.dcm", np.zeros(SHAPE, np.uint8), Series(), labels=table)
    labels = [segmentation.get_segment_description(n).SegmentLabel for n in segmentation.segment_numbers]
    assert labels == ["whole tumour", "tumour core", "cyst"]
    assert not segmentation.pixel_array.any()


@pytest.mark.parametrize("multi_frame", [False, True])
def test_it_refers_to_each_slice_under_its_segment(tmp_path, multi_frame):
    source = Series(multi_frame)
    segmentation = write(tmp_path / "mask.dcm", labelled(), source)
    assert segmentation.StudyInstanceUID == "1.2.3"
    assert segmentation.ReferencedSeriesSequence[0].SeriesInstanceUID == "1.2.3.4"
    assert segmentation.FrameOfReferenceUID == "1.2.3.5"
    assert (segmentation.PatientID, str(segmentation.PatientName)) == ("17", "Doe^Jane")
    assert segmentation.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices == 2.5
    for group in segmentation.PerFrameFunctionalGroupsSequence:
        position = [float(x) for x in group.PlanePositionSequence[0].ImagePositionPatient]
        reference = group.DerivationImageSequence[0].SourceImageSequence[0]
        k = int(np.argmin([np.linalg.norm(position - place) for place in source.positions]))
        np.testing.assert_allclose(position, source.positions[k], atol=1e-5)
        if multi_frame:
            assert reference.ReferencedFrameNumber == source.frames[k] + 1
        else:
            assert reference.ReferencedSOPInstanceUID == source.datasets[k].SOPInstanceUID


def test_segments_have_names_codes_and_colours(tmp_path):
    segmentation = write(tmp_path / "mask.dcm", labelled(), Series())
    liver, kidney, weird = (segmentation.get_segment_description(n) for n in (1, 2, 3))
    assert [s.segment_label for s in (liver, kidney, weird)] == ["liver", "kidney_left", "weird / thing"]
    assert liver.segmented_property_type.value == "10200004"
    assert kidney.segmented_property_type.value == "64033007"
    modifier = kidney.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence[0]
    assert modifier.CodeValue == "7771000"
    assert weird.segmented_property_type.meaning == "Tissue"
    red = hd.color.CIELabColor.from_rgb(200, 30, 40)
    assert list(liver.RecommendedDisplayCIELabValue) == list(red.value)
    assert liver.algorithm_identification.name == "volseg"


def test_a_name_beyond_ascii_survives(tmp_path):
    labels = LabelTable({"Leber größer 肝": 2, "kidney_left": 3, "x" * 100: 7})
    segmentation = write(tmp_path / "mask.dcm", labelled(), Series(SpecificCharacterSet="ISO_IR 100"), labels=labels)
    assert segmentation.get_segment_description(1).segment_label == "Leber größer 肝"
    assert segmentation.get_segment_description(3).segment_label == "x" * 64


def test_a_value_without_a_name_is_kept(tmp_path):
    segmentation = write(tmp_path / "mask.dcm", labelled(), Series(), labels=LabelTable({}))
    assert [segmentation.get_segment_description(n).segment_label for n in (1, 2)] == ["label 2", "label 3"]


def test_a_mask_of_nothing_says_what_was_looked_for(tmp_path):
    segmentation = write(tmp_path / "mask.dcm", np.zeros(SHAPE, np.uint8), Series())
    assert segmentation.number_of_segments == len(LABELS.foreground)
    assert not segmentation.pixel_array.any()
    assert len(segmentation.SourceImageSequence) == SHAPE[0]


@pytest.mark.parametrize(
    ("source", "word"),
    [
        (None, "there is none"),
        (Series(corrected=True), "tilt of 9 degrees"),
        (Series(SOPInstanceUID=""), "images without UID"),
        (Series(ImagePositionPatient=[0, 0, 0]), "slices lie up to"),
        (Series(ImagePositionPatient=None), "not every slice .* position"),
    ],
)
def test_a_series_that_it_cannot_lie_on(tmp_path, source, word):
    space = Series().space
    with pytest.raises(VolumeError, match=word) as raised:
        write_volume(tmp_path / "m.dcm", space, "u1", lambda units: pytest.fail("work"), SERIAL, labels=LABELS,
                     source=source)  # fmt: skip
    assert ".nii.gz" in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_a_mask_on_another_grid_is_refused(tmp_path):
    source = Series()
    moved = source.space.affine.copy()
    moved[2, 3] += 0.1
    with pytest.raises(VolumeError, match="another grid"):
        write_volume(tmp_path / "m.dcm", Space(SHAPE, moved), "u1", lambda units: pytest.fail("work"), SERIAL,
                     labels=LABELS, source=source)  # fmt: skip


def test_uids_that_an_anonymiser_emptied_are_derived_from_the_images(tmp_path):
    source = Series(StudyInstanceUID="", SeriesInstanceUID="", FrameOfReferenceUID="")
    for dataset in source.datasets:
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        del dataset.SOPInstanceUID
    first, again = (write(tmp_path / f"{n}.dcm", labelled(), source) for n in "ab")
    assert first.StudyInstanceUID == again.StudyInstanceUID != ""
    assert first.SOPInstanceUID != again.SOPInstanceUID
    assert all(dataset.SpacingBetweenSlices == 99 for dataset in source.datasets)
    references = {item.ReferencedSOPInstanceUID for item in first.SourceImageSequence}
    assert references == {dataset.file_meta.MediaStorageSOPInstanceUID for dataset in source.datasets}
    assert "SOPInstanceUID" not in source.datasets[0]  # the source's headers stay as they were


def test_labels_that_are_no_segments(tmp_path):
    with pytest.raises(VolumeError, match="labels from -1 to 0"):
        write(tmp_path / "m.dcm", -np.ones(SHAPE, "i2") * (labelled() == 2), Series())
    with pytest.raises(VolumeError, match="whole numbers"):
        write(tmp_path / "m.dcm", labelled().astype("f4"), Series())
    with pytest.raises(VolumeError, match="cannot write that format"):
        check_output(tmp_path / "m.dcm")
    check_output(tmp_path / "m.dcm", mask=True)
    assert list(tmp_path.iterdir()) == []


def test_headers_that_highdicom_refuses_are_told_in_one_line(tmp_path):
    source = Series()
    for dataset in source.datasets:
        del dataset.Rows
    with pytest.raises(VolumeError, match=r"make no DICOM SEG .*Rows.*nii.gz"):
        write(tmp_path / "m.dcm", labelled(), source)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_at_the_end_leaves_the_former_mask(tmp_path, monkeypatch):
    write(tmp_path / "m.dcm", labelled(), Series())
    before = (tmp_path / "m.dcm").read_bytes()

    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(seg_output, "flush_to_disk", full)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "m.dcm", labelled(), Series(), overwrite=True)
    assert [file.name for file in tmp_path.iterdir()] == ["m.dcm"]
    assert (tmp_path / "m.dcm").read_bytes() == before


@pytest.mark.parametrize("when", ["writing", "publishing"])
def test_a_killed_writer_leaves_nothing_under_the_name(tmp_path, when, monkeypatch):
    def end(*arguments):
        os._exit(9)

    child = os.fork()
    if child == 0:
        monkeypatch.setattr(seg_output.SegOutput, "encode", end) if when == "writing" else None
        monkeypatch.setattr(seg_output, "flush_to_disk", end)
        write(tmp_path / "m.dcm", labelled(), Series())
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert [file.name for file in tmp_path.iterdir() if not file.name.startswith(".")] == []
    write(tmp_path / "m.dcm", labelled(), Series())


@pytest.mark.parallel([1, 2, 4])
def test_ranks_write_one_segmentation_together(tmp_path, communicator, monkeypatch):
    from volseg.volumes import planes_output

    monkeypatch.setattr(planes_output, "UNIT_BYTES", 120)  # a plane
    folder = Path(communicator.broadcast(str(tmp_path)))
    source = Series()
    segmentation = write(folder / "mask.dcm", labelled(), source, communicator)
    if communicator.is_root:
        np.testing.assert_array_equal(values_by_place(segmentation, source.space), labelled())
        assert [file.name for file in folder.iterdir()] == ["mask.dcm"]
    communicator.barrier()


@pytest.mark.parametrize("name", sorted({*ORGANS, *FINDINGS}))
def test_every_name_of_the_table_has_a_code(name):
    assert property_of(name).type.scheme_designator == "SCT"


@pytest.mark.parametrize(
    ("name", "meaning", "side"),
    [("Left Kidney", "Kidney", "Left"), ("lung_upper_lobe_right", "Upper lobe of lung", "Right"),
     ("vertebrae_L1", "L1 vertebra", None), ("rib_left_5", "Rib", "Left"), ("gizzard", "Tissue", None),
     ("", "Tissue", None), ("left_right_kidney", "Kidney", None)],
)  # fmt: skip
def test_codes_of_names(name, meaning, side):
    found = property_of(name)
    assert found.type.meaning == meaning
    assert (None if found.side is None else found.side.meaning) == side


@pytest.fixture
def abdomen(data):
    folder = data / "abdomen_dicom"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    return folder


def test_real_masks_lie_where_their_slices_lie(abdomen, tmp_path):
    """NIfTI and SEG of the real series, opened with SimpleITK and highdicom, against ImagePositionPatient."""
    from pydicom import dcmread

    series = open_volume(abdomen / "series")
    given = in_order_of(open_volume(abdomen / "labels_117.nii.gz"), series.space)
    labels = label_table_of(abdomen / "labels_117.nii.gz")
    mask = given.read(Box.whole(given.shape)).astype(np.uint8)
    segmentation = write(tmp_path / "mask.dcm", mask, series, labels=labels)
    np.testing.assert_array_equal(values_by_place(segmentation, series.space), mask)
    names = dict(labels.foreground)
    for n in segmentation.segment_numbers:
        segment = segmentation.get_segment_description(n)
        assert segment.segment_label == names[int(segment.SegmentDescription.split()[1])]
    write(tmp_path / "mask.nii.gz", mask, series, labels=labels)
    image = sitk.ReadImage(str(tmp_path / "mask.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), mask)

    headers = [dcmread(file, stop_before_pixels=True) for file in (abdomen / "series").iterdir()]
    headers.sort(key=lambda header: header.ImagePositionPatient[2])
    worst_nifti = worst_seg = 0.0
    places = {tuple(group.PlanePositionSequence[0].ImagePositionPatient): group
              for group in segmentation.PerFrameFunctionalGroupsSequence}  # fmt: skip
    volume = segmentation.get_volume(combine_segments=True)
    for k, header in enumerate(headers):
        x, y = np.array(header.ImageOrientationPatient, float).reshape(2, 3)
        down, right = (float(side) for side in header.PixelSpacing)
        for row, column in ((0, 0), (0, 511), (511, 0), (200, 300)):
            there = np.array(header.ImagePositionPatient, float) + x * right * column + y * down * row
            found = image.TransformIndexToPhysicalPoint((column, row, k))
            worst_nifti = max(worst_nifti, float(np.abs(found - there).max()))
            index = np.rint(np.linalg.inv(volume.affine) @ [*there, 1])
            worst_seg = max(worst_seg, float(np.abs((volume.affine @ index)[:3] - there).max()))
            value = volume.array[tuple(index[:3].astype(int))]
            assert bool(value) == bool(mask[k, row, column])
        assert tuple(header.ImagePositionPatient) in places
    print(f"voxel centres apart, at most: NIfTI {worst_nifti:.2g} mm, SEG {worst_seg:.2g} mm")
    assert max(worst_nifti, worst_seg) < 1e-3
