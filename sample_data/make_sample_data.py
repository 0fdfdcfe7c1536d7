"""Make everything in this folder again: ``python sample_data/make_sample_data.py``. The same bytes each time.

ellipsoids/                     a small synthetic data set (volseg generate)
phantom/                        CT-like phantoms as an nnU-Net data set, for training
phantom_dicom/                  one more phantom, never trained on, as a DICOM CT series
phantom_dicom_labels.nii.gz     its true labels, on the series' grid
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pydicom
from phantom import LABELS, SHAPE, SPACING, make_phantom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, JPEGLSLossless, generate_uid

from volseg.distributed.communicator import SerialCommunicator
from volseg.volumes.dataset import IMAGES, image_name, write_dataset_json
from volseg.volumes.dataset import LABELS as LABELS_FOLDER
from volseg.volumes.generation import Recipe, generate_dataset
from volseg.volumes.volume import Space
from volseg.volumes.writing import write_volume

HERE = Path(__file__).resolve().parent
TRAINING_SEEDS = (0, 1, 2, 3)
HELD_OUT_SEED = 4
INTERCEPT = -1024
ENDING = ".nii.gz"

# The centre of the first voxel in DICOM's patient axes (x left, y back, z head), mm.
ORIGIN = tuple(-(n - 1) / 2 * step for n, step in zip(SHAPE[::-1], SPACING[::-1], strict=True))
# DICOM's axes point left and to the back, NIfTI's right and to the front: x and y change sign.
AFFINE = np.array(
    [
        [-SPACING[2], 0, 0, -ORIGIN[0]],
        [0, -SPACING[1], 0, -ORIGIN[1]],
        [0, 0, SPACING[0], ORIGIN[2]],
        [0, 0, 0, 1],
    ]
)


def main() -> None:
    """Replace the four parts."""
    for name in ("ellipsoids", "phantom", "phantom_dicom"):
        shutil.rmtree(HERE / name, ignore_errors=True)
    generate_dataset(HERE / "ellipsoids", Recipe(shape=(48, 48, 48), cases=4), SerialCommunicator())
    make_training_set(HERE / "phantom")
    image, labels = make_phantom(HELD_OUT_SEED)
    write_series(HERE / "phantom_dicom", image)
    save(HERE / "phantom_dicom_labels.nii.gz", labels)


def make_training_set(folder: Path) -> None:
    """The phantoms of `TRAINING_SEEDS` in nnU-Net's layout."""
    for part in (IMAGES, LABELS_FOLDER):
        (folder / part).mkdir(parents=True)
    for seed in TRAINING_SEEDS:
        image, labels = make_phantom(seed)
        save(folder / IMAGES / image_name(f"phantom_{seed:03d}", 0, ENDING), image)
        save(folder / LABELS_FOLDER / f"phantom_{seed:03d}{ENDING}", labels)
    write_dataset_json(folder, channel_names=("CT",), labels=LABELS, cases=len(TRAINING_SEEDS), file_ending=ENDING)


def save(path: Path, array: np.ndarray) -> None:
    """A D x H x W array as NIfTI on the phantom's grid."""
    write_volume(
        path,
        Space(SHAPE, AFFINE),
        array.dtype,
        lambda units: None if units[0] is None else array[units[0].box.slices],
        SerialCommunicator(),
        overwrite=True,
    )


def write_series(folder: Path, image: np.ndarray) -> None:
    """An axial CT series, one JPEG-LS file (lossless) a slice, feet first."""
    folder.mkdir()
    for number in range(SHAPE[0]):
        slice_ = ct_slice(number, image[number])
        slice_.compress(JPEGLSLossless, generate_instance_uid=False)
        slice_.save_as(folder / f"slice_{number + 1:03d}.dcm", enforce_file_format=True)


def uid(*what: object) -> str:
    """A UID that is the same every time, by what it names."""
    return generate_uid(entropy_srcs=["volseg sample data", *(str(w) for w in what)])


def ct_slice(number: int, hu: np.ndarray) -> FileDataset:
    """Slice `number` as CT Image Storage; `hu` int16 [rows, columns]."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = uid("slice", number)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    d = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    describe_study(d)
    d.SOPClassUID = CTImageStorage
    d.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    d.InstanceNumber = number + 1
    z = ORIGIN[2] + number * SPACING[0]
    d.ImagePositionPatient = [ORIGIN[0], ORIGIN[1], z]
    d.SliceLocation = z
    d.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    d.PixelSpacing = [SPACING[1], SPACING[2]]
    d.SliceThickness = SPACING[0]
    d.Rows, d.Columns = hu.shape
    d.SamplesPerPixel, d.PhotometricInterpretation = 1, "MONOCHROME2"
    d.BitsAllocated, d.BitsStored, d.HighBit, d.PixelRepresentation = 16, 12, 11, 0
    d.RescaleSlope, d.RescaleIntercept, d.RescaleType = 1, INTERCEPT, "HU"
    d.WindowCenter, d.WindowWidth = 40, 400
    d.PixelData = (hu.astype(np.int32) - INTERCEPT).astype("<u2").tobytes()
    return d


def describe_study(d: Dataset) -> None:
    """What all slices share; nobody was scanned."""
    d.SpecificCharacterSet = "ISO_IR 100"
    d.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]
    d.StudyDate = d.SeriesDate = d.ContentDate = "20240101"
    d.StudyTime = d.SeriesTime = d.ContentTime = "120000"
    d.AccessionNumber = d.ReferringPhysicianName = d.PatientBirthDate = ""
    d.Modality, d.Manufacturer = "CT", "volseg"
    d.StudyDescription, d.SeriesDescription = "Synthetic phantom", "CT-like phantom"
    d.PatientName, d.PatientID, d.PatientSex = "Phantom^Volseg", "PHANTOM", "O"
    d.BodyPartExamined, d.PatientPosition = "CHEST", "HFS"
    d.KVP, d.ConvolutionKernel, d.AcquisitionNumber = 120, "SYNTHETIC", 1
    d.StudyInstanceUID, d.SeriesInstanceUID = uid("study"), uid("series")
    d.FrameOfReferenceUID, d.PositionReferenceIndicator = uid("frame of reference"), ""
    d.StudyID, d.SeriesNumber = "1", 1


if __name__ == "__main__":
    pydicom.config.settings.writing_validation_mode = pydicom.config.RAISE
    main()
