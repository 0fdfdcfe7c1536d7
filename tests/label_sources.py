"""Images in memory, and the DICOM objects that label them, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid

from volseg.geometry import Box
from volseg.volumes.volume import Space, Volume

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


class Image(Volume):
    """An image of which only the grid matters."""

    def __init__(self, space: Space) -> None:
        self.path, self.space, self.dtype = Path("image.nii"), space, np.dtype(np.int16)

    def read(self, box: Box) -> np.ndarray:
        raise AssertionError("labels need no voxel of the image")


def image_of(datasets: list[Dataset], spacing: float = 2.0) -> Image:
    """The volume that a series of `dicom_files.series_datasets` is, slices in the order of the list."""
    first = datasets[0]
    turn = np.array(first.ImageOrientationPatient, dtype=float).reshape(2, 3)
    rows, columns = (float(n) for n in first.PixelSpacing)
    affine = np.eye(4)
    affine[:3, :3] = np.column_stack([turn[0] * columns, turn[1] * rows, np.cross(*turn) * spacing])
    affine[:3, 3] = np.array(first.ImagePositionPatient, dtype=float)
    return Image(Space((len(datasets), first.Rows, first.Columns), LPS_TO_RAS @ affine))


def reordered(image: Image, *flips: int) -> Image:
    """The same voxels, stored (k, i, j) for (i, j, k) and with the given axes (of i, j, k) backwards."""
    d, h, w = image.shape
    change = np.eye(4)
    for axis, side in zip(flips, ((w, h, d)[axis] for axis in flips), strict=True):
        change[axis, axis], change[axis, 3] = -1, side - 1
    cycle = np.eye(4)[[1, 2, 0, 3]]  # new (a, b, c) = old (c, a, b)
    return Image(Space((h, w, d), image.space.affine @ change @ cycle))


def own_array(volume: Volume, space: Space) -> np.ndarray:
    """The volume's voxels put where their centres are in `space`, voxel by voxel: slow, and by no code of volseg's."""
    values = volume.read(Box.whole(volume.shape))
    out = np.zeros(space.shape, values.dtype)
    d, h, w = np.meshgrid(*(np.arange(n) for n in volume.shape), indexing="ij")
    there = np.stack([w, h, d, np.ones_like(d)]).reshape(4, -1)
    i, j, k, _ = np.rint(np.linalg.inv(space.affine) @ volume.space.affine @ there).astype(int)
    out[k, j, i] = values.ravel()
    return out


def segmentation(datasets: list[Dataset], mask: np.ndarray, names: list[str], kind: str = "BINARY", **more: Any) -> Any:
    """A SEG by highdicom; mask [slices, rows, columns] of labels, or [..., segments]."""
    colours = [(255, 0, 0), (0, 128, 255), (240, 240, 20)]
    descriptions = [
        hd.seg.SegmentDescription(
            number, name, codes.SCT.Organ, codes.SCT.Liver, "MANUAL",
            display_color=hd.color.CIELabColor.from_rgb(*colours[number % 3]),
        )
        for number, name in enumerate(names, 1)
    ]  # fmt: skip
    return hd.seg.Segmentation(
        datasets, mask, kind, descriptions, generate_uid(), 1, generate_uid(), 1, "test", "test", "1", "1", **more
    )


def full_datasets(datasets: list[Dataset]) -> list[Dataset]:
    """The datasets with what highdicom asks of a source."""
    for dataset in datasets:
        dataset.PatientBirthDate = dataset.PatientSex = dataset.StudyDate = dataset.StudyTime = ""
        dataset.AccessionNumber = dataset.StudyID = dataset.ReferringPhysicianName = ""
    return datasets


def structures(rois: list[tuple[str, list[np.ndarray]]], path: Path, kind: str = "CLOSED_PLANAR") -> Path:
    """An RTSTRUCT of (name, contours); a contour is [points, 3], LPS mm."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = RTStructureSetStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
    dataset.Modality = "RTSTRUCT"
    dataset.StructureSetROISequence, dataset.ROIContourSequence = [], []
    for number, (name, contours) in enumerate(rois, 11):
        roi, drawn = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName = number, name
        drawn.ReferencedROINumber, drawn.ROIDisplayColor = number, [number, 2, 3]
        drawn.ContourSequence = []
        for points in contours:
            item = Dataset()
            item.ContourGeometricType, item.NumberOfContourPoints = kind, len(points)
            item.ContourData = [f"{n:.4f}" for n in np.asarray(points).ravel()]
            drawn.ContourSequence.append(item)
        dataset.StructureSetROISequence.append(roi)
        dataset.ROIContourSequence.insert(0, drawn)  # the order of this list means nothing
    dataset.save_as(path, enforce_file_format=True)
    return path
