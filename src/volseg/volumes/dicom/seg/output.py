"""Writing a mask as a DICOM Segmentation that refers to the slices of its series.

Segments are BINARY: one bit a voxel, a frame for each slice and segment that is not empty. The younger LABELMAP (one
frame a slice, whatever the number of segments) is smaller, but few viewers and archives read it yet.

Ranks write their planes into one plain file, as for ``.nii``; the root maps that file into memory and lets highdicom
make the object. That costs the root, beside the pages of the file: the bits of the frames that are not empty, twice,
and some 45 KB of header for each such frame. Measured at 300x512x512 voxels with 7 labels in every slice (2100 frames,
a file of 66 MiB): a peak of 510 MiB, of which 207 are the process with its libraries and 75 are pages of the mask's
file, in 7.5 s. That is memory on one rank that does not fall with their number; ``.nii.gz`` and OME-Zarr need none.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from volseg.errors import VolumeError, first_line
from volseg.files import flush_to_disk
from volseg.volumes.dicom.seg.codes import property_of
from volseg.volumes.dicom.seg.source import Series, check_source, open_series
from volseg.volumes.label_table import LabelTable
from volseg.volumes.nifti.output import plane_units
from volseg.volumes.output import Unit
from volseg.volumes.shared_file import SharedFile
from volseg.volumes.volume import Space, Volume

SERIES_NUMBERS_ABOVE = 1000  # the segmentation's is the scan's and this, so that the two sort side by side
LONGEST_LABEL = 64


class SegOutput(SharedFile):
    """A Segmentation on the grid of `source`, the DICOM series as it was read, without fixes.

    Labels without voxels have no segment, and segments are numbered from 1, as DICOM wants; what value a segment had
    in the mask stands in its description. A mask that is all background becomes an object with every label of the
    table and one empty frame for each: looked for, and not found.

    Raises VolumeError where the mask does not lie on the series' own slices (see `source.check_source`).
    """

    def __init__(
        self, path: Path, space: Space, dtype: np.dtype[Any], labels: LabelTable, source: Volume | None
    ) -> None:
        super().__init__(0)
        check_source(path, source, space)
        self._path, self._space, self._labels, self._source = path, space, labels, source
        self._dtype = np.dtype("u1" if dtype.itemsize == 1 else "<u2")
        self._series: Series | None = None
        self.units = plane_units(space.shape, self._dtype, None)

    def create(self, temporary: Path) -> None:
        assert self._source is not None
        self._series = open_series(self._path, self._source, self._space)
        temporary.touch(exist_ok=False)

    def encode(self, unit: Unit, voxels: np.ndarray) -> memoryview:
        most = np.iinfo(self._dtype).max
        if voxels.size and (int(voxels.min()) < 0 or int(voxels.max()) > most):
            raise VolumeError(
                f"{self._path}: labels from {voxels.min()} to {voxels.max()}; a DICOM SEG holds 0 to {most}: write "
                ".nii.gz"
            )
        return np.ascontiguousarray(voxels, self._dtype).data.cast("B")

    def publish(self, temporary: Path, path: Path) -> None:
        assert self._series is not None
        mask = np.memmap(temporary, self._dtype, "r+", shape=self._space.shape)
        finished = temporary.with_name(temporary.name + SUFFIX)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about oddities of the source's headers
                _write(finished, mask, self._labels, self._series, path)
            flush_to_disk(finished)
            os.replace(finished, path)
            flush_to_disk(path.parent)
        finally:
            finished.unlink(missing_ok=True)
        temporary.unlink(missing_ok=True)


SUFFIX = ".dcm"


def number_segments(mask: np.ndarray, labels: LabelTable) -> list[tuple[int, str]]:
    """Replace the labels in `mask` [D, H, W], in place and slice by slice, by segment numbers from 1.

    out  (value, name) by segment: those with voxels, by value; a value that the table does not name is ``label VALUE``
    """
    counts = np.zeros(int(np.iinfo(mask.dtype).max) + 1, np.int64)
    for plane in mask:
        counts += np.bincount(plane.ravel(), minlength=len(counts))
    names = dict(labels.foreground)
    present = [int(value) for value in np.flatnonzero(counts) if value != 0]
    numbers = np.zeros(len(counts), mask.dtype)
    numbers[present] = np.arange(1, len(present) + 1)
    if present != list(range(1, len(present) + 1)):
        for plane in mask:
            plane[...] = numbers[plane]
    return [(value, names.get(value, f"label {value}")) for value in present]


def _write(target: Path, mask: np.ndarray, labels: LabelTable, series: Series, path: Path) -> None:
    segments = number_segments(mask, labels)
    planes, positions = mask, series.positions
    if not segments:
        segments = list(labels.foreground) or [(1, "label 1")]
        planes, positions = np.zeros((1, *mask.shape[1:]), np.uint8), series.positions[:1]
    try:
        segmentation = _build(planes, positions, segments, labels, series)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:  # each check has its own
        raise VolumeError(
            f"{path}: the headers of the series make no DICOM SEG ({first_line(error)}); write the mask as .nii.gz"
        ) from error
    segmentation.save_as(target)


def _build(
    planes: np.ndarray, positions: list[Any], segments: list[tuple[int, str]], labels: LabelTable, series: Series
) -> Any:
    from importlib.metadata import version

    import highdicom as hd
    from pydicom.sr.codedict import codes
    from pydicom.uid import generate_uid

    release = version("volseg")
    algorithm = hd.AlgorithmIdentificationSequence("volseg", codes.DCM.ArtificialIntelligence, release, "volseg")
    descriptions = [
        _description(number, value, name, labels, algorithm) for number, (value, name) in enumerate(segments, 1)
    ]
    plain = all(name.isascii() for _, name in segments)
    first = series.datasets[0]
    segmentation = hd.seg.Segmentation(
        source_images=series.datasets,
        pixel_array=planes,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=descriptions,
        series_instance_uid=generate_uid(),
        series_number=int(first.get("SeriesNumber") or 0) + SERIES_NUMBERS_ABOVE,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="volseg",
        manufacturer_model_name="volseg",
        software_versions=release,
        device_serial_number="none",
        content_label="SEGMENTATION",
        content_description="Mask by volseg",
        plane_positions=[
            hd.PlanePositionSequence(hd.CoordinateSystemNames.PATIENT, image_position=position)
            for position in positions
        ],
        **({} if plain else {"specific_character_set": "ISO_IR 192"}),
    )
    segmentation.SeriesDescription = f"Segmentation of {first.get('SeriesDescription') or 'scan'}"[:LONGEST_LABEL]
    return segmentation


def _description(number: int, value: int, name: str, labels: LabelTable, algorithm: Any) -> Any:
    import highdicom as hd

    coded = property_of(name)
    label = "".join(letter if letter.isprintable() and letter != "\\" else "/" for letter in name)[:LONGEST_LABEL]
    description = hd.seg.SegmentDescription(
        number,
        label or f"label {value}",
        coded.category,
        coded.type,
        hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm,
        display_color=hd.color.CIELabColor.from_rgb(*labels.colour(value)),
    )
    description.SegmentDescription = f"label {value} of the mask"
    if coded.side is not None:
        kind = description.SegmentedPropertyTypeCodeSequence[0]
        kind.SegmentedPropertyTypeModifierCodeSequence = [hd.sr.CodedConcept.from_code(coded.side)]
    return description
