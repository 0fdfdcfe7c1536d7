"""A series opened: copies, phases, what is decoded when, the audit, and the same voxels as other readers."""

import shutil
import subprocess
import zipfile

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid

from dicom_files import dcm2niix, enhanced, save, series_datasets, stored_values
from volseg.errors import VolumeError
from volseg.geometry import Box
from volseg.volumes.audit import Dropped
from volseg.volumes.canonical import Orientation, in_order_of
from volseg.volumes.dicom.options import DicomOptions
from volseg.volumes.dicom.pixels import stack as stacks
from volseg.volumes.dicom.volume import open_dicom
from volseg.volumes.reading import open_volume
from volseg.volumes.volume import Space

STORED = stored_values()
HU = STORED.astype(np.int16) - 1024


def read(path, options=DicomOptions()):  # noqa: B008  (frozen)
    volume = open_dicom(path, options)
    array = volume.read(Box.whole(volume.shape))
    assert array.dtype == volume.dtype
    return volume, array


@pytest.fixture
def decoded(monkeypatch):
    """The names of the slices that are decoded, in order."""
    names = []
    real = stacks.hounsfield
    monkeypatch.setattr(stacks, "hounsfield", lambda *given: names.append(given[0].short_name) or real(*given))
    return names


def test_only_the_slices_of_the_box_are_decoded(tmp_path, decoded):
    volume = open_dicom(save(series_datasets(STORED), tmp_path))
    assert decoded == []
    box = Box((2, 3, 4), (4, 10, 20))
    np.testing.assert_array_equal(volume.read(box), HU[box.slices])
    assert decoded == ["02.dcm", "03.dcm"]
    volume.read(Box((3, 0, 0), (4, 5, 5)))
    assert decoded == ["02.dcm", "03.dcm"]


def test_few_slices_are_remembered(tmp_path, decoded):
    volume = open_dicom(save(series_datasets(STORED), tmp_path))
    volume.read(Box.whole(volume.shape))
    assert len(volume._stack._remembered) == stacks.SLICES_REMEMBERED < 6
    volume.read(Box((0, 0, 0), (1, 1, 1)))
    assert decoded[6:] == ["00.dcm"]


def test_what_is_read_may_be_written_to(tmp_path):
    volume, array = read(save(series_datasets(STORED), tmp_path))
    array[:] = 0
    np.testing.assert_array_equal(volume.read(Box.whole(volume.shape)), HU)


def test_a_box_of_nothing(tmp_path):
    volume = open_dicom(save(series_datasets(STORED), tmp_path))
    assert volume.read(Box((2, 2, 2), (2, 5, 5))).shape == (0, 3, 3)


def test_a_closed_volume_reads_again(tmp_path):
    volume, _ = read(save(series_datasets(STORED), tmp_path))
    volume.close()
    volume.close()
    np.testing.assert_array_equal(volume.read(Box.whole(volume.shape)), HU)


def test_a_zip_is_read_as_its_folder(tmp_path):
    folder = save(series_datasets(STORED), tmp_path / "a")
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in folder.iterdir():
            archive.write(path, f"a/{path.name}")
    volume, array = read(tmp_path / "a.zip")
    np.testing.assert_array_equal(array, HU)
    assert volume.audit.inputs == (tmp_path / "a.zip",)
    assert len(volume.audit.used) == 6
    assert len(volume.source_datasets()) == 6


# ---- two images at one position


def again(folder, number, name, change=None):
    ds = pydicom.dcmread(folder / f"{number:02}.dcm")
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    if change is not None:
        change(ds)
    ds.save_as(folder / name)


@pytest.mark.parametrize("packed", [False, True])
def test_exact_copies_are_dropped(tmp_path, packed):
    save(series_datasets(STORED), tmp_path)
    pack = (lambda ds: ds.compress(pydicom.uid.RLELossless, generate_instance_uid=False)) if packed else None
    for number, name in ((2, "copy.dcm"), (2, "another.dcm"), (5, "last.dcm")):
        again(tmp_path, number, name, pack)
    volume, array = read(tmp_path)
    np.testing.assert_array_equal(array, HU)
    copies = [("another.dcm", "02.dcm"), ("copy.dcm", "02.dcm"), ("last.dcm", "05.dcm")]
    expected = {Dropped(str(tmp_path / name), f"exact copy of {of}") for name, of in copies}
    assert set(volume.audit.dropped) == expected
    assert len(volume.audit.used) == 6


def test_the_same_values_stored_otherwise_are_a_copy(tmp_path):
    def shift(ds):
        ds.RescaleIntercept = -1025
        ds.PixelData = (STORED[2] + 1).astype(np.uint16).tobytes()

    save(series_datasets(STORED), tmp_path)
    again(tmp_path, 2, "copy.dcm", shift)
    assert read(tmp_path)[0].audit.dropped == (Dropped(str(tmp_path / "copy.dcm"), "exact copy of 02.dcm"),)


def test_other_pixels_at_one_position_are_an_error(tmp_path):
    def noise(ds):
        ds.PixelData = (STORED[2] + (np.indices(STORED[2].shape).sum(axis=0) == 9)).astype(np.uint16).tobytes()

    save(series_datasets(STORED), tmp_path)
    again(tmp_path, 2, "other.dcm", noise)
    with pytest.raises(
        VolumeError, match=r"02\.dcm at \(-100, -120, 54\) and other\.dcm lie at one position and differ"
    ):
        open_dicom(tmp_path)


def test_two_phases_in_one_series(tmp_path):
    first, second = series_datasets(STORED), series_datasets(STORED[::-1].copy())
    for ds in second:
        ds.SeriesInstanceUID = first[0].SeriesInstanceUID
        ds.StudyInstanceUID, ds.FrameOfReferenceUID = first[0].StudyInstanceUID, first[0].FrameOfReferenceUID
    save([ds for both in zip(first, second, strict=True) for ds in both], tmp_path)  # nothing tells them apart
    with pytest.raises(VolumeError, match=r"differ in their pixels \(6 such positions\): several phases"):
        open_dicom(tmp_path)


# ---- audit


def test_the_audit(tmp_path):
    datasets = series_datasets(STORED, description="Thorax")
    for ds in datasets:
        ds.Manufacturer, ds.SliceThickness, ds.SeriesNumber = "Acme", 3, 7
    save(datasets, tmp_path, names=[f"{5 - n}.dcm" for n in range(6)])
    (tmp_path / "notes.txt").write_text("nothing")
    volume = open_dicom(tmp_path)
    audit = volume.audit
    assert audit.used == tuple(str(tmp_path / f"{5 - n}.dcm") for n in range(6))
    assert audit.inputs == tuple(tmp_path / f"{5 - n}.dcm" for n in range(6))
    assert [item.name for item in audit.dropped] == [str(tmp_path / "notes.txt")]
    assert audit.fixes == ()
    assert audit.warnings == ("SliceThickness is 3 mm, but slices lie 2 mm apart; their positions were used",)
    facts = dict(audit.facts)
    assert facts["series UID"] == datasets[0].SeriesInstanceUID
    assert (facts["modality"], facts["series description"], facts["manufacturer"]) == ("CT", "Thorax", "Acme")
    assert facts["series number"] == "7"
    assert facts["transfer syntax"] == "Explicit VR Little Endian (6 slices)"
    assert "Test" not in str(facts)  # the patient's name


def test_the_audit_of_lossy_pixels(tmp_path):
    def encode(ds):
        ds.LossyImageCompression = "01" if ds.InstanceNumber < 3 else "00"

    save(series_datasets(STORED, spacing=99), tmp_path, encode=encode)
    assert open_dicom(tmp_path).audit.warnings == ("2 slices were compressed with loss",)


def test_source_datasets_are_whole_headers_in_order(tmp_path):
    datasets = series_datasets(STORED)
    for number, ds in enumerate(datasets):
        ds.PatientComments = f"slice {number}"
    save(datasets, tmp_path, names=[f"{5 - n}.dcm" for n in range(6)])
    headers = open_dicom(tmp_path).source_datasets()
    assert [ds.PatientComments for ds in headers] == [f"slice {n}" for n in range(6)]
    assert all("PixelData" not in ds for ds in headers)
    assert headers[0].file_meta.TransferSyntaxUID == datasets[0].file_meta.TransferSyntaxUID


def test_frames_and_plain_slices_of_one_series(tmp_path):
    datasets = series_datasets(STORED)
    whole = enhanced(datasets[:4])
    save([whole, *datasets[4:]], tmp_path)
    volume, array = read(tmp_path)
    np.testing.assert_array_equal(array, HU)
    assert [ds.SOPInstanceUID for ds in volume.source_datasets()] == [
        whole.SOPInstanceUID,
        datasets[4].SOPInstanceUID,
        datasets[5].SOPInstanceUID,
    ]


# ---- other readers


def test_a_real_series_agrees_with_simpleitk_and_its_mask(data):
    folder = data / "abdomen_dicom" / "series"
    volume, array = read(folder)
    mask = open_volume(data / "abdomen_dicom" / "labels_117.nii.gz")
    assert volume.space.spacing == pytest.approx((2.0, 0.9765625, 0.9765625))  # not SliceThickness, 3 mm
    ours, theirs = (Orientation.of(v.space).canonical_space(v.space) for v in (volume, mask))
    assert ours.matches(theirs)
    assert (volume.dtype, array.min(), array.max()) == (np.int16, -1024, 1839)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    np.testing.assert_array_equal(array, sitk.GetArrayFromImage(image))
    directions = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    np.testing.assert_array_equal(volume.space.affine[:3, :3], np.diag([-1, -1, 1]) @ directions)
    np.testing.assert_array_equal(volume.space.affine[:3, 3], np.array([-1, -1, 1]) * image.GetOrigin())
    assert volume.audit.warnings == ("SliceThickness is 3 mm, but slices lie 2 mm apart; their positions were used",)


@pytest.mark.parametrize("source", ["abdomen", "enhanced"])
def test_real_series_agree_with_dcm2niix_bit_for_bit(source, tmp_path, request):
    program = dcm2niix()
    if program is None:
        pytest.skip("no dcm2niix beside this Python, nor on the PATH")
    if source == "abdomen":
        folder = request.getfixturevalue("data") / "abdomen_dicom" / "series"
    else:
        folder = tmp_path / "in"
        folder.mkdir()
        shutil.copy(get_testdata_file("eCT_Supplemental.dcm"), folder)
    subprocess.run([program, "-o", tmp_path, "-f", "out", folder], check=True, stdout=subprocess.DEVNULL, timeout=60)
    image = nibabel.load(tmp_path / "out.nii")
    theirs = np.asarray(image.dataobj).T
    ours = in_order_of(open_dicom(folder), Space(theirs.shape, image.affine))
    np.testing.assert_array_equal(ours.read(Box.whole(ours.shape)), theirs)
    np.testing.assert_array_equal(ours.space.affine.astype(np.float32), image.affine.astype(np.float32))
