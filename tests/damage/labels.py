"""Real DICOM SEG and RTSTRUCT files, moved onto the fuzzed CT series, with bytes and nested elements damaged."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.pixels import pack_bits

from damage.dicom import FRAME_OF_REFERENCE, dataset_bytes
from damage.flips import Random, damage_bytes

SLICES, SIDE, SPACING, PIXEL = 5, 16, 2.0, 0.7  # of the series in `damage.dicom`
ODD: tuple[Any, ...] = ("", "x", "nan", "1e30", "-1", "99999999999", "1\\2\\3", "0", "\\" * 50, "é" * 300, "1e400")
ODD_COUNTS = (0, 1, 2, 255, 65535)


@cache
def segmentation() -> bytes:
    """A real SEG of a liver, cut to 16 x 16 pixels, a frame for each of three slices."""
    ds = pydicom.dcmread(str(get_testdata_file("liver_1frame.dcm")))
    ds.Rows = ds.Columns = SIDE
    ds.NumberOfFrames, ds.FrameOfReferenceUID = 3, FRAME_OF_REFERENCE
    blob = np.zeros((3, SIDE, SIDE), "u1")
    blob[:, 4:11, 5:12] = 1
    ds.PixelData = pack_bits(blob)
    ds.ReferencedSeriesSequence[0].SeriesInstanceUID = "1.2.3"
    measures = ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    measures.PixelSpacing, measures.SpacingBetweenSlices = [PIXEL, PIXEL], SPACING
    ds.PerFrameFunctionalGroupsSequence = ds.PerFrameFunctionalGroupsSequence[:3]
    for number, frame in enumerate(ds.PerFrameFunctionalGroupsSequence):
        frame.PlanePositionSequence[0].ImagePositionPatient = [0, 0, SPACING * number]
        for source in frame.DerivationImageSequence[0].SourceImageSequence:
            source.ReferencedSOPInstanceUID = f"1.2.3.{number}"
    return dataset_bytes(ds)


@cache
def structures() -> bytes:
    """A real RTSTRUCT, its contours on two slices."""
    ds = pydicom.dcmread(str(get_testdata_file("rtstruct.dcm")), force=True)
    ds.ReferencedFrameOfReferenceSequence[0].FrameOfReferenceUID = FRAME_OF_REFERENCE
    for roi in ds.StructureSetROISequence:
        roi.ReferencedFrameOfReferenceUID = FRAME_OF_REFERENCE
    for number, contour in enumerate(ds.ROIContourSequence[0].ContourSequence):
        z = SPACING * (number % 2)
        corners = [(1, 1), (9, 1 + number), (9, 9), (2, 9)]
        contour.ContourData = [value for x, y in corners for value in (x, y, z)]
        contour.NumberOfContourPoints = len(corners)
    return dataset_bytes(ds)


def labels_bytes(rng: Random, folder: Path) -> Path:
    """A SEG or RTSTRUCT with bytes damaged."""
    return _file(folder, damage_bytes(rng, _either(rng)))


def labels_values(rng: Random, folder: Path) -> Path:
    """A SEG or RTSTRUCT with elements at any depth lost, doubled or made absurd."""
    data = _either(rng)
    ds = pydicom.dcmread(io.BytesIO(data), force=True)
    for _ in range(int(rng.integers(1, 4))):
        places = list(_elements(ds))
        parent, tag = places[int(rng.integers(len(places)))]
        _damage(rng, parent, tag)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _file(folder, dataset_bytes(ds))
        except Exception:  # a value that pydicom cannot write makes no file
            return _file(folder, damage_bytes(rng, data))


def _either(rng: Random) -> bytes:
    return segmentation() if rng.random() < 0.5 else structures()


def _file(folder: Path, data: bytes) -> Path:
    path = folder / "labels.dcm"
    path.write_bytes(data)
    return path


def _elements(ds: Dataset) -> Iterator[tuple[Dataset, Any]]:
    for element in ds:
        yield ds, element.tag
        if element.VR == "SQ":
            for item in element.value:
                yield from _elements(item)


def _damage(rng: Random, parent: Dataset, tag: Any) -> None:
    if rng.random() < 0.25:
        del parent[tag]
        return
    element = parent[tag]
    if element.VR == "SQ":
        times = int(rng.choice([0, 2, 3, 40]))
        element.value = [copy.copy(item) for item in list(element.value)[:1] for _ in range(times)]
    elif element.VR == "US":
        element.value = int(rng.choice(ODD_COUNTS))
    elif element.VR in ("OB", "OW", "UL", "AT"):
        del parent[tag]
    else:
        parent[tag] = pydicom.DataElement(tag, "LO", str(ODD[int(rng.integers(len(ODD)))]), validation_mode=0)
