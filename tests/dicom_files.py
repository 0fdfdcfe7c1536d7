"""CT series as DICOM files, made by pydicom (and compressed by it or by GDCM), for tests."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid


def stored_values(shape: tuple[int, int, int] = (6, 16, 20), bits: int = 12, seed: int = 0) -> np.ndarray:
    """Smooth unsigned values with some noise, [slices, rows, columns]."""
    rng = np.random.default_rng(seed)
    ramp = np.add.outer(np.add.outer(np.arange(shape[0]) * 31, np.arange(shape[1]) * 17), np.arange(shape[2]) * 7)
    return ((ramp + rng.integers(0, 50, shape)) % (1 << bits)).astype(np.uint16)


def series_datasets(
    stored: np.ndarray,
    *,
    across: tuple[float, ...] = (1, 0, 0),
    down: tuple[float, ...] = (0, 1, 0),
    origin: tuple[float, ...] = (-100, -120, 50),
    pixel: tuple[float, float] = (0.8, 0.7),
    spacing: float = 2.0,
    intercept: float = -1024,
    bits: int = 12,
    description: str = "test",
) -> list[Dataset]:
    """One dataset a slice of `stored` [slices, rows, columns], stacked along across x down; pixel = (rows, columns)."""
    series, study, frame = generate_uid(), generate_uid(), generate_uid()
    normal = np.cross(across, down)
    datasets = []
    for number, plane in enumerate(stored):
        ds = Dataset()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = CTImageStorage
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = generate_uid()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.SeriesInstanceUID, ds.StudyInstanceUID, ds.FrameOfReferenceUID = series, study, frame
        ds.Modality, ds.ImageType, ds.SeriesDescription = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"], description
        ds.PatientName, ds.PatientID, ds.InstanceNumber = "Test", "1", number + 1
        ds.Rows, ds.Columns = plane.shape
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, bits, bits - 1
        ds.PixelRepresentation = int(plane.dtype.kind == "i")
        ds.RescaleSlope, ds.RescaleIntercept = 1, intercept
        ds.ImageOrientationPatient = [float(n) for n in (*across, *down)]
        ds.ImagePositionPatient = [f"{n:.6f}" for n in np.asarray(origin) + number * spacing * normal]
        ds.PixelSpacing = list(pixel)
        ds.SliceThickness = 99  # a value that no geometry may use
        ds.PixelData = plane.tobytes()
        datasets.append(ds)
    return datasets


def save(
    datasets: list[Dataset],
    folder: Path,
    *,
    names: list[str] | None = None,
    encode: Callable[[Dataset], Any] | None = None,
) -> Path:
    """Write the datasets as 00.dcm, 01.dcm, ... (or `names`) below `folder`, each after `encode`."""
    for number, ds in enumerate(datasets):
        if encode is not None:
            encode(ds)
        path = folder / (names[number] if names else f"{number:02}.dcm")
        path.parent.mkdir(parents=True, exist_ok=True)
        ds.save_as(path, enforce_file_format=True)
    return folder


def recompress(folder: Path, syntax: str) -> None:
    """Store every file of `folder` in another transfer syntax of GDCM's, named as GDCM names it."""
    import gdcm

    for path in sorted(folder.iterdir()):
        reader = gdcm.ImageReader()
        reader.SetFileName(str(path))
        assert reader.Read()
        change = gdcm.ImageChangeTransferSyntax()
        change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer = gdcm.ImageWriter()
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        writer.SetFileName(str(path))
        assert writer.Write()


def enhanced(datasets: list[Dataset], order: list[int] | None = None) -> Dataset:
    """One enhanced CT data set of these slices, its frames in `order` (theirs by default), uncompressed.

    What is the same in all goes to the shared functional groups, position and rescale to each frame's.
    """
    frames = [datasets[n] for n in (order or range(len(datasets)))]
    first = frames[0]
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = EnhancedCTImageStorage
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = generate_uid()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    for keyword in (
        "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID", "Modality", "ImageType", "SeriesDescription",
        "PatientName", "PatientID", "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated",
        "BitsStored", "HighBit", "PixelRepresentation",
    ):  # fmt: skip
        setattr(ds, keyword, getattr(first, keyword))
    ds.NumberOfFrames = len(frames)
    shared = Dataset()
    shared.PlaneOrientationSequence = [_group(first, "ImageOrientationPatient")]
    shared.PixelMeasuresSequence = [_group(first, "PixelSpacing", "SliceThickness")]
    ds.SharedFunctionalGroupsSequence = [shared]
    groups = []
    for frame in frames:
        group, kind = Dataset(), Dataset()
        group.PlanePositionSequence = [_group(frame, "ImagePositionPatient")]
        group.PixelValueTransformationSequence = [_group(frame, "RescaleSlope", "RescaleIntercept")]
        kind.FrameType = frame.ImageType
        group.CTImageFrameTypeSequence = [kind]
        groups.append(group)
    ds.PerFrameFunctionalGroupsSequence = groups
    ds.PixelData = b"".join(frame.PixelData for frame in frames)
    return ds


def _group(source: Dataset, *keywords: str) -> Dataset:
    group = Dataset()
    for keyword in keywords:
        setattr(group, keyword, getattr(source, keyword))
    return group


def dcm2niix() -> str | None:
    """The program, of its wheel beside this Python or of the PATH; None where there is none."""
    beside = os.path.dirname(sys.executable)
    return shutil.which("dcm2niix", path=os.pathsep.join([beside, os.environ.get("PATH", "")]))
