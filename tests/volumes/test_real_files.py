"""Real files, read or refused as docs/ingestion.md says (`benchmarks/ingestion_peers.py` compares with other readers).

A digest is of the voxels as they are read (bytes of a C-contiguous little-endian array). They were equal to dcm2niix's
when they were written down, and are compared here with SimpleITK's (of NIfTI files, with nibabel's); of head_ct_tilted,
interpolated, only the grid is checked.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest

from volseg.errors import VolumeError
from volseg.geometry import Box
from volseg.volumes.dicom.options import DicomOptions
from volseg.volumes.open_options import OpenOptions
from volseg.volumes.reading import open_volume

BOTH = DicomOptions(fix_tilt=True, resample_gaps=True)
DISCS = "pydicom:dicomdirtests"
ONLY_SLICE = "the only slice of its series"


def located(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """``shared:ct``, ``pydicom:x.dcm``, ...: the path to open; a single DICOM file is put into a folder of its own."""
    origin, inside = name.split(":")
    if origin == "shared":
        return request.getfixturevalue("data") / inside
    folders = {
        "pydicom": Path(pydicom.__file__).parent / "data" / "test_files",
        "nibabel": Path(nib.__file__).parent / "tests" / "data",
    }
    if origin == "pydicom-data":
        spec = find_spec("data_store")
        if spec is None or spec.origin is None:
            pytest.skip("the package pydicom-data is not installed")
        folders[origin] = Path(spec.origin).parent / "data"
    path = folders[origin] / inside
    if path.suffix == ".dcm" and path.is_file():
        shutil.copy(path, tmp_path)
        return tmp_path
    return path


READ = {  # options, shape, spacing, digest
    "shared:abdomen_ct/ct.nii.gz": (None, (112, 101, 122), (3, 3, 3), "7fc9e1b8361fe920"),
    "shared:abdomen_ct/labels.nii.gz": (None, (112, 101, 122), (3, 3, 3), "3a941d6caaa47efa"),
    "shared:abdomen_dicom/labels_117.nii.gz": (None, (20, 512, 512), (2, 0.976562, 0.976562), "b9de240c6fa33687"),
    "shared:abdomen_dicom/series": (None, (20, 512, 512), (2, 0.976562, 0.976562), "0d9f62d8433a424e"),
    "shared:head_ct_tilted": (BOTH, (37, 611, 512), (4.002453, 0.488281, 0.488281), None),
    f"{DISCS}/98892001/CT5N": (None, (5, 16, 16), (2.5, 0.488281, 0.488281), "d7fef67dbb991a92"),
    "pydicom-data:eCT_Supplemental.dcm": (None, (2, 512, 512), (10, 0.388672, 0.388672), "94b43b51a08d5554"),
    "nibabel:anatomical.nii": (None, (25, 41, 33), (2, 2, 2), "9fd5b46df2ca0617"),
    "nibabel:reoriented_anat_moved.nii": (None, (22, 26, 21), (4, 4, 4), "eb44bfa9c00d851f"),
    "nibabel:resampled_anat_moved.nii": (None, (3, 21, 17), (8, 4, 4), "6fbc2d03c21dfd61"),
    "nibabel:standard.nii.gz": (None, (7, 5, 4), (2, 3, 1), "1077a96d75abfcc8"),
}

REFUSED = {
    "shared:head_ct_tilted": r"gantry tilt of 18\.5 degrees.*uneven slices.*--fix-tilt.*--resample-gaps",
    f"{DISCS}": r"2 CT volumes; choose one with --series",
    f"{DISCS}/DICOMDIR": r"2 CT volumes; choose one with --series",
    f"{DISCS}/DICOMDIR-bigEnd": r"2 CT volumes; choose one with --series",
    f"{DISCS}/TINY_ALPHA/DICOMDIR": r"50 x damaged \(a CT image without pixels\)",
    f"{DISCS}/77654033/CT2": r"202\.5 mm between 17106 .* and 17136 .*161 missing.*give one side of the widest gap",
    f"{DISCS}/98892001/CT2N": r"2 x localizer \(scout\)",
    f"{DISCS}/77654033/CR1": "modality CR, not CT",
    f"{DISCS}/98892003/MR2": "7 x modality MR, not CT",
    "pydicom:CT_small.dcm": ONLY_SLICE,
    "pydicom:693_J2KI.dcm": ONLY_SLICE,
    "pydicom:J2K_pixelrep_mismatch.dcm": ONLY_SLICE,
    "pydicom:MR_small.dcm": "modality MR, not CT",
    "pydicom:MR_truncated.dcm": "modality MR, not CT",
    "pydicom:badVR.dcm": "modality RTDOSE, not CT",
    "pydicom:liver_1frame.dcm": "modality SEG, not CT",
    "pydicom:rtstruct.dcm": "RTSTRUCT, RT Structure Set Storage, without an image",
    "pydicom:UN_sequence.dcm": "a CT image without pixels",
    "pydicom:image_dfl.dcm": "secondary capture",
    "pydicom:SC_rgb_jpeg.dcm": "secondary capture",
    "pydicom:no_meta.dcm": "no DICOM images",
    "pydicom-data:bad_sequence.dcm": ONLY_SLICE,
    "pydicom-data:explicit_VR-UN.dcm": ONLY_SLICE,
    "pydicom-data:liver.dcm": "modality SEG, not CT",
    "pydicom-data:emri_small_jpeg_2k_lossless_too_short.dcm": "modality MR, not CT",
    "nibabel:analyze.hdr": "Analyze 7.5 image, not NIfTI; it cannot say which side is left",
    "nibabel:example4d.nii.gz": r"4-D image \(128x96x24x2\) of 2 volumes",
    "nibabel:example_nifti2.nii.gz": r"4-D image \(32x20x12x2\) of 2 volumes",
    "nibabel:functional.nii": r"4-D image \(17x21x3x20\) of 20 volumes",
    "nibabel:nifti1.hdr": r"its other half, nifti1\.img, is missing",
    "nibabel:row_major.dconn.nii": "CIFTI-2 file",
}


@pytest.mark.parametrize("name", READ)
def test_is_read(name, request, tmp_path):
    options, shape, spacing, digest = READ[name]
    volume = open_volume(located(name, request, tmp_path), OpenOptions(options or DicomOptions()))
    assert volume.shape == shape
    np.testing.assert_allclose(volume.space.spacing, spacing, atol=2e-6)
    assert bool(volume.audit.fixes) == (options is not None)
    if digest is not None:
        voxels = volume.read(Box.whole(volume.shape))
        little = voxels.byteswap() if sys.byteorder == "big" else voxels
        assert hashlib.sha256(little.tobytes()).hexdigest()[:16] == digest


@pytest.mark.parametrize("name", [name for name, expected in READ.items() if expected[-1] is not None])
def test_voxels_and_affine_are_those_of_other_readers(name, request, tmp_path):
    path = located(name, request, tmp_path)
    volume = open_volume(path)
    voxels, affine = by_simpleitk(path) if path.is_dir() else by_nibabel(path)
    ours, our_affine = canonical(volume.read(Box.whole(volume.shape)), volume.space.affine)
    theirs, their_affine = canonical(voxels, affine)
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_allclose(our_affine, their_affine, atol=1e-5)  # ITK's directions are made orthonormal


def canonical(voxels: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Voxels (i, j, k) and affine in the nearest RAS+ order: readers may run through the slices from either end."""
    turn = nib.io_orientation(affine)
    return nib.apply_orientation(voxels.T, turn), affine @ nib.orientations.inv_ornt_aff(turn, voxels.T.shape)


def by_nibabel(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Voxels [D, H, W] and affine of a NIfTI file."""
    image = nib.load(path)
    return np.asanyarray(image.dataobj).T, image.affine


def by_simpleitk(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Voxels [D, H, W] and affine (RAS+) of the one series in a folder; an enhanced file is read as one image."""
    sitk = pytest.importorskip("SimpleITK")
    files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
    image = sitk.ReadImage(files if len(files) > 1 else files[0])
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image), np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


@pytest.mark.parametrize("name", REFUSED)
def test_is_refused_in_words(name, request, tmp_path):
    path = located(name, request, tmp_path)
    with pytest.raises(VolumeError, match=REFUSED[name]) as caught:
        open_volume(path)
    text = str(caught.value)
    assert text.startswith(str(path))  # where
    assert any(mark in text for mark in ("give ", "--", "convert", "split it", "put both"))  # the remedy


def test_a_gap_of_a_hand_s_breadth_is_not_bridged(request, tmp_path):
    with pytest.raises(VolumeError, match=r"202\.5 mm .* too wide to interpolate across, limit 5\.25 mm"):
        open_volume(located(f"{DISCS}/77654033/CT2", request, tmp_path), OpenOptions(DicomOptions(resample_gaps=True)))
