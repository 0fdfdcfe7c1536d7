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

import io
import math
import os
import warnings
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np

from volseg.errors import VolumeError, first_line
from volseg.files import flush_to_disk, replacing
from volseg.machine import gibibytes
from volseg.volumes.dicom.seg.codes import property_of
from volseg.volumes.dicom.seg.headers import number_of, text_of
from volseg.volumes.dicom.seg.overlapping import overlapping_planes, region_segments
from volseg.volumes.dicom.seg.source import Series, check_source, open_series
from volseg.volumes.label_table import LabelTable
from volseg.volumes.nifti.output import NiftiOutput
from volseg.volumes.output import Content, Unit
from volseg.volumes.planes_output import plane_units
from volseg.volumes.shared_file import SharedFile
from volseg.volumes.volume import Volume

SERIES_NUMBERS_ABOVE = 1000  # the segmentation's is the scan's and this, so that the two sort side by side
LONGEST_LABEL = 64
LARGEST_NUMBER = 2**31 - 1


class SegOutput(SharedFile):
    """A Segmentation on the grid of `source`, the DICOM series as it was read, without fixes.

    Labels without voxels have no segment, and segments are numbered from 1, as DICOM wants; what value a segment had
    in the mask stands in its description. A mask that is all background becomes an object with every label of the
    table and one empty frame for each: looked for, and not found. Where labels make up regions, the regions are the
    segments, and overlap as they do.

    Raises VolumeError where the mask does not lie on the series' own slices (see `source.check_source`).
    """

    def __init__(self, path: Path, content: Content, source: Volume | None) -> None:
        super().__init__(0)
        space, dtype = content.space, content.dtype
        self._source = check_source(path, source, space)
        self._path, self._space, self._labels = path, space, content.labels or LabelTable({})
        self._dtype = np.dtype("u1" if dtype.itemsize == 1 else "<u2")
        self.units = plane_units(space.shape, self._dtype, None)

    @property
    def least_bytes(self) -> int:
        voxels = math.prod(self._space.shape)
        return voxels * self._dtype.itemsize + voxels // 8  # the planes as ranks leave them, and one segment's bits

    def rehearse(self) -> tuple[str, ...]:
        """Build a Segmentation of the first slices, with every label, from the very headers, in memory."""
        series = open_series(self._path, self._source, self._space)
        segments = _all_segments(self._labels)
        positions = series.positions[:2]
        planes = np.zeros((len(positions), *self._space.shape[1:]), self._dtype)
        planes[:, 0, 0] = np.arange(len(positions)) % len(segments) + 1
        trial = _built(planes, positions, segments, self._labels, series, self._path)
        _save(trial, io.BytesIO(), self._path)
        _PROVEN.add(self._source)
        bits = math.prod(self._space.shape) * len(segments)
        if bits // 8 <= MOST_BYTES:
            return series.remarks
        most = f"{gibibytes(bits / 8)} if each of its {len(segments)} labels is in every slice"
        return (*series.remarks, f"a DICOM SEG holds 4 GiB, and this one may need {most}; .nii.gz has no such limit")

    def create(self, temporary: Path) -> None:
        if self._source not in _PROVEN:
            self.rehearse()
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
        mask: np.ndarray = np.memmap(temporary, self._dtype, "r+", shape=self._space.shape)
        finished, apart = (temporary.with_name(temporary.name + end) for end in (SUFFIX, ".regions"))
        planes, values = mask, list(range(1, int(np.iinfo(self._dtype).max) + 1))
        series = open_series(self._path, self._source, self._space)
        try:
            if self._labels.regions:
                planes, present, frames = overlapping_planes(mask, self._labels.regions, apart)
                segments = region_segments(present)
            else:
                segments, frames = number_segments(mask, self._labels)
                values = [value for value, _ in segments]
            _check_size(path, frames, len(segments), mask)
            _write(finished, planes, segments, self._labels, series, path)
            flush_to_disk(finished)
            os.replace(finished, path)
            flush_to_disk(path.parent)
        except VolumeError as error:
            kept = self._keep(mask, values, path)
            raise VolumeError(f"{error}. The mask itself is in {kept}") from error
        finally:
            finished.unlink(missing_ok=True)
            apart.unlink(missing_ok=True)
        temporary.unlink(missing_ok=True)

    def _keep(self, mask: np.ndarray, values: list[int], path: Path) -> Path:
        """Write the mask as NIfTI beside `path`, where it makes no Segmentation: nothing computed is thrown away.

        mask    numbers from 1, of which `values` are the labels
        """
        stem = path.name[: -len(SUFFIX)]
        names = (path.with_name(f"{stem}{end}.nii.gz") for end in ("", *(f"_{n}" for n in range(1, 1000))))
        kept = next(name for name in names if not name.exists())
        output = NiftiOutput(Content(self._space, self._dtype, labels=self._labels), compress=True)
        by_number = np.array([0, *values], self._dtype)
        with replacing(kept) as temporary, temporary.open("wb") as file:
            file.write(output.header)
            for unit in output.units:
                file.write(output.encode(unit, by_number[mask[unit.box.slices]]))
        return kept


_PROVEN: WeakSet[Volume] = WeakSet()
"""Scans of whose headers a Segmentation has been built."""
SUFFIX = ".dcm"
MOST_BYTES = 2**32 - 2  # of one element's value


def _all_segments(labels: LabelTable) -> list[tuple[int, str]]:
    """(value, name) of every segment that there may be; one at least."""
    return region_segments(labels.regions) or list(labels.foreground) or [(1, "label 1")]


def number_segments(mask: np.ndarray, labels: LabelTable) -> tuple[list[tuple[int, str]], int]:
    """Replace the labels in `mask` [D, H, W], in place and slice by slice, by segment numbers from 1.

    out  (value, name) by segment: those with voxels, by value; a value that the table does not name is ``label VALUE``.
         And how many frames they take: one for each segment in each slice that it is in
    """
    slices = np.zeros(int(np.iinfo(mask.dtype).max) + 1, np.int64)  # in which a value is
    for plane in mask:
        slices += np.bincount(plane.ravel(), minlength=len(slices)) > 0
    names = dict(labels.foreground)
    present = [int(value) for value in np.flatnonzero(slices) if value != 0]
    numbers = np.zeros(len(slices), mask.dtype)
    numbers[present] = np.arange(1, len(present) + 1)
    if present != list(range(1, len(present) + 1)):
        for plane in mask:
            plane[...] = numbers[plane]
    return [(value, names.get(value, f"label {value}")) for value in present], int(slices[1:].sum())


def _check_size(path: Path, frames: int, segments: int, mask: np.ndarray) -> None:
    size = frames * mask[0].size // 8
    if size > MOST_BYTES:
        raise VolumeError(
            f"{path}: {frames} frames of {segments} segments take {gibibytes(size)}, and a DICOM SEG holds 4 GiB"
        )


def _write(
    target: Path, planes: np.ndarray, segments: list[tuple[int, str]], labels: LabelTable, series: Series, path: Path
) -> None:
    """Write the object.

    planes  [D, H, W] segment numbers from 1, or [D, H, W, segments] 1 in each
    """
    positions = series.positions
    if not segments:
        segments = _all_segments(labels)
        planes, positions = np.zeros((1, *planes.shape[1:3]), np.uint8), series.positions[:1]
    _save(_built(planes, positions, segments, labels, series, path), target, path)


def _save(segmentation: Any, target: Path | io.BytesIO, path: Path) -> None:
    """Write the object. Raises VolumeError where an element cannot be written, OSError where the disk fails."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about oddities of the source's headers
        try:
            segmentation.save_as(target)
        except OSError:
            raise
        except Exception as error:  # pydicom reports what it cannot write by many types
            raise _refused(path, error) from error


def _built(
    planes: np.ndarray, positions: list[Any], segments: list[tuple[int, str]], labels: LabelTable, series: Series,
    path: Path,
) -> Any:  # fmt: skip
    """The object, by highdicom. Raises VolumeError, with the reason, where it makes none of these headers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about oddities of the source's headers
        try:
            return _build(planes, positions, segments, labels, series)
        except MemoryError as error:
            raise VolumeError(f"{path}: {len(segments)} segments on {len(planes)} slices need more memory") from error
        except Exception as error:  # each check has its own
            raise _refused(path, error) from error


def _refused(path: Path, error: Exception) -> VolumeError:
    return VolumeError(
        f"{path}: the headers of the series make no DICOM SEG ({first_line(error)}); write the mask as .nii.gz"
    )


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
    first = series.datasets[0]
    number = number_of(first, "SeriesNumber")
    segmentation = hd.seg.Segmentation(
        source_images=series.datasets,
        pixel_array=planes,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=descriptions,
        series_instance_uid=generate_uid(),
        series_number=SERIES_NUMBERS_ABOVE + (number if number < LARGEST_NUMBER - SERIES_NUMBERS_ABOVE else 0),
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
        specific_character_set="ISO_IR 192",
    )
    segmentation.SeriesDescription = f"Segmentation of {text_of(first, 'SeriesDescription', 'scan')}"[:LONGEST_LABEL]
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
    description.SegmentDescription = _of_mask(value, name, labels)
    if coded.side is not None:
        kind = description.SegmentedPropertyTypeCodeSequence[0]
        kind.SegmentedPropertyTypeModifierCodeSequence = [hd.sr.CodedConcept.from_code(coded.side)]
    return description


def _of_mask(value: int, name: str, labels: LabelTable) -> str:
    """What a segment is in a mask of one value a voxel."""
    values = next((region.values for region in labels.regions if region.name == name), (value,))
    return f"label{'s' if len(values) > 1 else ''} {', '.join(map(str, values))} of the mask"
