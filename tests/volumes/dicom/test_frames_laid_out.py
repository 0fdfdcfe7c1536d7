"""Volumes in one multi-frame file that does not say where its frames lie; and images whose kind was lost."""

import numpy as np
import pytest
from pydicom.uid import MultiFrameGrayscaleByteSecondaryCaptureImageStorage as ByteCapture
from pydicom.uid import MultiFrameGrayscaleWordSecondaryCaptureImageStorage as WordCapture

from dicom_files import enhanced, save, series_datasets, stored_values
from volseg.errors import VolumeError
from volseg.geometry import Box
from volseg.volumes.dicom.volume import open_dicom

STORED = stored_values((6, 4, 5))
HU = STORED.astype(np.int16) - 1024


def cone_beam(kind, **elements):
    """One data set of six frames 2 mm apart."""
    slices = series_datasets(
        STORED, pixel=(2.0, 2.0) if kind == "cubes" else (0.8, 0.7), across=(0, 1, 0), down=(0, 0, -1)
    )
    if kind.startswith("enhanced"):
        ds = enhanced(slices)
        ds.ImagePositionPatient, ds.SpacingBetweenSlices = slices[0].ImagePositionPatient, 2
        if kind == "enhanced without frames":
            del ds.PerFrameFunctionalGroupsSequence
            ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
        for group in ds.get("PerFrameFunctionalGroupsSequence", ()):
            del group.PlanePositionSequence
        return ds
    ds = slices[0]
    ds.NumberOfFrames, ds.PixelData, ds.SliceThickness = 6, STORED.tobytes(), 2
    if kind == "offsets":
        ds.GridFrameOffsetVector = [0, 2, 4, 6, 8, 10]
    elif kind == "locations":
        ds.SliceLocationVector = [31, 33, 35, 37, 39, 41]
    elif kind != "cubes":
        ds.SpacingBetweenSlices = -2 if kind == "backwards" else 2
    if kind in ("word capture", "byte capture"):
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = WordCapture if kind == "word capture" else ByteCapture
    for keyword, value in elements.items():
        setattr(ds, keyword, value)
    return ds


KINDS = {
    "plain": "SpacingBetweenSlices", "backwards": "SpacingBetweenSlices", "offsets": "GridFrameOffsetVector",
    "locations": "SliceLocationVector", "cubes": "SliceThickness", "word capture": "SpacingBetweenSlices",
    "enhanced without frames": "SpacingBetweenSlices", "enhanced without positions": "SpacingBetweenSlices",
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_frames_lie_along_the_normal(tmp_path, kind):
    volume = open_dicom(save([cone_beam(kind)], tmp_path) / "00.dcm")
    backwards = kind == "backwards"
    np.testing.assert_array_equal(volume.read(Box.whole(volume.shape)), HU[::-1] if backwards else HU)
    normal = np.cross((0, 1, 0), (0, 0, -1))
    first = np.array([-100, -120, 50]) - (10 * normal if backwards else 0)
    np.testing.assert_allclose(volume.space.affine[:3, 3], first * [-1, -1, 1])
    np.testing.assert_allclose(volume.space.affine[:3, 2], 2 * normal * [-1, -1, 1])
    warning = f"its frames do not say where they lie: laid out by {KINDS[kind]}, from the first along the normal"
    assert warning in volume.audit.warnings


@pytest.mark.parametrize(
    ("kind", "elements", "message"),
    [
        ("plain", {"SpacingBetweenSlices": None}, "6 frames .* without SpacingBetweenSlices, so nothing says where"),
        ("plain", {"ImagePositionPatient": None}, "without ImagePositionPatient, so nothing"),
        ("plain", {"ImageOrientationPatient": None}, "without ImageOrientationPatient, so nothing"),
        ("byte capture", {}, "secondary capture"),
        ("word capture", {"Modality": "OT"}, "secondary capture"),
        ("word capture", {"SpacingBetweenSlices": None}, "secondary capture|so nothing says where"),
    ],
)
def test_what_nothing_settles_is_refused(tmp_path, kind, elements, message):
    with pytest.raises(VolumeError, match=message):
        open_dicom(save([cone_beam(kind, **elements)], tmp_path))


LOST = {
    "modality": ({"Modality": None}, "6 of 6 images have no Modality; taken for CT by their SOP class"),
    "empty modality": ({"Modality": ""}, "6 of 6 images have no Modality; taken for CT by their SOP class"),
    "modality in small letters": ({"Modality": "ct"}, None),
    "class": ({"SOPClassUID": None}, None),  # the meta header has it
    "private class": ({"SOPClassUID": "1.3.12.2.1107.5.9.1"}, "SOP class 1.3.12.2.1107.5.9.1; taken for CT"),
    "damaged modality": ({"Modality": "C?"}, "6 of 6 images have a damaged Modality (C?); taken for CT"),
    "damaged class": ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.x"}, "SOP class 1.2.840.10008.5.1.4.1.1.x; taken for"),
}


@pytest.mark.parametrize("lost", LOST)
@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_images_whose_kind_was_lost(tmp_path, lost):
    elements, warning = LOST[lost]
    datasets = series_datasets(STORED, spacing=99)
    save(datasets, tmp_path, encode=lambda ds: [setattr(ds, *element) for element in elements.items()])
    volume = open_dicom(tmp_path)
    np.testing.assert_array_equal(volume.read(Box.whole(volume.shape)), HU)
    assert len(volume.audit.warnings) == (warning is not None)
    assert warning is None or warning in volume.audit.warnings[0]
