"""The series that a DICOM Segmentation refers to: whether it can, and its headers as highdicom wants them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable
from weakref import WeakKeyDictionary

import numpy as np

from volseg.errors import VolumeError, first_line
from volseg.volumes.dicom.image import Image
from volseg.volumes.dicom.seg.headers import Remarks, admissible, is_uid, parts_of
from volseg.volumes.tolerance import OFF_SLICE
from volseg.volumes.volume import Space, Volume

NEEDED = {"SOPClassUID": "MediaStorageSOPClassUID", "SOPInstanceUID": "MediaStorageSOPInstanceUID"}  # in the file meta
DERIVED = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
# The standard lets them be empty, and highdicom wants them to be there.
MAY_BE_EMPTY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
    "StudyTime", "ReferringPhysicianName",
)  # fmt: skip
SHARED = ("PlaneOrientationSequence", "PixelMeasuresSequence")
OF_EACH = (
    *NEEDED, *DERIVED, "Modality", "Rows", "Columns", "NumberOfFrames", "ImagePositionPatient",
    "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
)  # fmt: skip


@runtime_checkable
class DicomSource(Protocol):
    """What `dicom.volume.DicomVolume` offers beside being a volume."""

    @property
    def images(self) -> Sequence[Image]:
        """The slices, in order."""
        ...

    @property
    def corrected(self) -> bool:
        """Whether the grid is another than the slices'."""
        ...

    def source_datasets(self) -> list[Any]:
        """Headers without pixels, in slice order."""
        ...


@dataclass(frozen=True)
class Series:
    """A series as the source of a Segmentation.

    datasets   headers, of what a Segmentation repeats: one a slice in slice order, or one of a multi-frame image
    positions  (x, y, z) of each slice's first voxel, LPS millimetres
    remarks    what the user should know of values that DICOM does not allow, one line each
    """

    datasets: list[Any]
    positions: list[list[float]]
    remarks: tuple[str, ...] = ()


_SERIES: WeakKeyDictionary[Volume, Series] = WeakKeyDictionary()
"""Of volumes that are in use. Headers are read before the work, when their files are there, and never again."""


def check_source(path: Path, source: Volume | None, space: Space) -> Volume:
    """`source`; raise VolumeError unless a mask on `space` lies on the slices of that DICOM series. Reads no file."""
    if source is None or not isinstance(source, DicomSource):
        what = "there is none" if source is None else f"{source.path} is read as {source.format or 'something else'}"
        raise VolumeError(f"{path}: a DICOM SEG refers to the slices of a DICOM series, and {what}; write .nii.gz")
    if source.corrected:
        fixes = "; ".join(source.audit.fixes) or "its grid was corrected"
        raise VolumeError(f"{path}: the mask does not lie on the series' own slices ({fixes}); write it as .nii.gz")
    if not source.space.matches(space):
        raise VolumeError(f"{path}: the mask lies on another grid than the series {source.path}; write it as .nii.gz")
    return source


def open_series(path: Path, source: Volume, space: Space) -> Series:
    """The headers of `source`, which `check_source` has passed; read once for each volume.

    Values are those that DICOM allows (`headers.admissible`). Where an anonymiser has emptied the UIDs of an image,
    those of its file's meta header are taken; and where it has emptied those of study, series or frame of reference, or
    written text there, new ones are derived from the images' (always the same). UIDs with leading zeros stay, for by
    them the Segmentation is found with its scan.

    Raises VolumeError where the slices do not lie where `space` has them, or where an image has no UID.
    """
    if source not in _SERIES:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about oddities of the source's headers
            _SERIES[source] = _open_series(path, cast(DicomSource, source), source.path, space)
    return _SERIES[source]


def _open_series(path: Path, source: DicomSource, where: Path, space: Space) -> Series:
    remarks = Remarks()
    try:
        headers = source.source_datasets()
        datasets = [_essential(header) for header in headers]
        for element in admissible(headers[0], remarks):
            if element.keyword not in datasets[0]:
                datasets[0].add(element)
        for keyword in MAY_BE_EMPTY:
            if keyword not in datasets[0]:
                setattr(datasets[0], keyword, "")
    except VolumeError:
        raise
    except Exception as error:  # pydicom reports damage by many types
        raise _no_source(path, where, first_line(error)) from error
    if not all(dataset.get(keyword) for dataset in datasets for keyword in NEEDED):
        raise VolumeError(f"{path}: {where} has images without UID to refer to; write the mask as .nii.gz")
    files = len(datasets)
    datasets = list({dataset.SOPInstanceUID: dataset for dataset in datasets}.values())
    if len(datasets) < files:
        raise VolumeError(
            f"{path}: {files} images of {where} share {len(datasets)} UIDs, so that a DICOM SEG cannot say which slice "
            "it means; write the mask as .nii.gz"
        )
    lines = (*remarks.lines(), *_mend_uids(datasets))
    if len(datasets) == 1 and "PerFrameFunctionalGroupsSequence" in datasets[0]:
        frames = [image.frame or 0 for image in source.images]
        positions = _multi_frame(path, where, datasets[0], frames, space)
    elif len(datasets) == space.shape[0]:
        positions = _single_frames(datasets, space)
    else:
        raise VolumeError(
            f"{path}: {space.shape[0]} slices of {len(datasets)} multi-frame images; a DICOM SEG can refer to one: "
            "write the mask as .nii.gz"
        )
    series = Series(datasets, positions, lines)
    _check_positions(path, series, space)
    return series


def _no_source(path: Path, where: Path, why: str) -> VolumeError:
    return VolumeError(f"{path}: the headers of {where} make no DICOM SEG ({why}); write the mask as .nii.gz")


def _single_frames(datasets: list[Any], space: Space) -> list[list[float]]:
    """Give the slices one geometry, as highdicom asks for; the positions of each."""
    right, down, pixel = _plane(space)
    orientation = _floats(datasets[0].get("ImageOrientationPatient")) or [*right, *down]
    for dataset in datasets:
        # Equal to what was checked on reading, but not always to the last digit.
        _set(dataset, "ImageOrientationPatient", _decimals(orientation))
        _set(dataset, "PixelSpacing", _decimals(_floats(dataset.get("PixelSpacing")) or pixel))
        _set(dataset, "SpacingBetweenSlices", _decimals([space.spacing[0]])[0])  # the header's is often another
        thickness = _floats(dataset.get("SliceThickness"))
        if len(thickness) != 1 or not thickness[0] > 0:
            thickness = [space.spacing[0]]
        _set(dataset, "SliceThickness", _decimals(thickness)[0])
    return [_floats(dataset.get("ImagePositionPatient")) for dataset in datasets]


def _multi_frame(path: Path, where: Path, dataset: Any, frames: list[int], space: Space) -> list[list[float]]:
    """Bring what all frames share to where it is looked for; the position of each frame."""
    try:
        groups, shared = dataset.PerFrameFunctionalGroupsSequence, deepcopy(dataset.SharedFunctionalGroupsSequence)
        for keyword in SHARED:  # the same in all frames of one volume, but some scanners write it with each
            if keyword not in shared[0] and keyword in groups[frames[0]]:
                setattr(shared[0], keyword, groups[frames[0]][keyword].value)
        # highdicom would write there what it finds in the frames that it is given.
        _set(shared[0].PixelMeasuresSequence[0], "SpacingBetweenSlices", _decimals([space.spacing[0]])[0])
        _set(dataset, "SharedFunctionalGroupsSequence", shared)
        return [_floats(groups[n].PlanePositionSequence[0].ImagePositionPatient) for n in frames]
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise _no_source(path, where, first_line(error)) from error


def _plane(space: Space) -> tuple[list[float], list[float], list[float]]:
    """Directions of rows and columns in LPS, and the sides (rows, columns) of a pixel in mm."""
    axes = np.diag([-1.0, -1.0, 1.0]) @ np.asarray(space.affine, dtype=np.float64)[:3, :2]
    sides = np.sqrt((axes**2).sum(axis=0))
    right, down = (axes / sides).T.tolist()
    return right, down, [float(sides[1]), float(sides[0])]


def _essential(header: Any) -> Any:
    """A new data set of what is needed of every image: UIDs, size, place. Empty UIDs are taken from the file meta."""
    from pydicom.dataset import Dataset

    dataset = Dataset()
    for keyword in OF_EACH:
        if keyword in header:
            try:
                dataset.add(header[keyword])
            except (TypeError, ValueError):  # text where a number should be
                _add_numbers(dataset, keyword, header)
    meta = getattr(header, "file_meta", None) or {}
    for keyword, twin in NEEDED.items():
        if not dataset.get(keyword) and meta.get(twin):
            _set(dataset, keyword, meta.get(twin))
    return dataset


def _add_numbers(dataset: Any, keyword: str, header: Any) -> None:
    """Numbers with a decimal comma; nothing where they are none even so."""
    value = header.get_item(keyword).value
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)
    try:
        numbers = [float(part.replace(",", ".")) for part in text.strip(" \0").split("\\")]
    except ValueError:
        return
    setattr(dataset, keyword, _decimals(numbers) if len(numbers) > 1 else _decimals(numbers)[0])


def _set(copy: Any, keyword: str, value: Any) -> None:
    """Assign an element anew: its object is the original's, which assigning to the attribute would change."""
    if keyword in copy:
        del copy[keyword]
    setattr(copy, keyword, value)


def _mend_uids(datasets: list[Any]) -> list[str]:
    """Give study, series and frame of reference UIDs where there are none; remarks on what stood there."""
    from pydicom.uid import generate_uid

    kept, made = [], []
    for keyword in ("SOPInstanceUID", *DERIVED):
        values = {str(dataset.get(keyword) or "") for dataset in datasets}
        if all(is_uid(value) for value in values):
            continue
        shown = f"{keyword} {min(values)!r}"
        if keyword == "SOPInstanceUID" or all(is_uid(value, zeros=True) for value in values):
            kept.append(shown)
            continue
        if values != {""}:
            made.append(shown)
        uid = generate_uid(entropy_srcs=[keyword, *sorted(dataset.SOPInstanceUID for dataset in datasets)])
        for dataset in datasets:
            _set(dataset, keyword, uid)
    lines = (
        [f"no UIDs that DICOM allows, kept so that the mask is found with its scan: {', '.join(kept)}"] if kept else []
    )
    return lines + ([f"no UIDs, replaced by new ones: {', '.join(made)}"] if made else [])


def _floats(values: Any) -> list[float]:
    """The numbers of an element; none where it has none, or holds text."""
    try:
        return [float(value) for value in parts_of(values)]
    except (TypeError, ValueError):
        return []


def _decimals(values: Sequence[float]) -> list[str]:
    """Numbers in the 16 letters that an element of them has."""
    from pydicom.valuerep import format_number_as_ds

    return [format_number_as_ds(float(value)) for value in values]


def _check_positions(path: Path, series: Series, space: Space) -> None:
    depth = space.shape[0]
    to_lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.asarray(space.affine, dtype=np.float64)
    expected = (to_lps @ np.array([[0.0, 0.0, k, 1.0] for k in range(depth)]).T)[:3].T
    if len(series.positions) != depth or any(len(position) != 3 for position in series.positions):
        raise VolumeError(f"{path}: not every slice of the series has its position; write the mask as .nii.gz")
    apart, limit = float(np.abs(np.array(series.positions) - expected).max()), OFF_SLICE * space.spacing[0]
    if not apart <= limit:
        raise VolumeError(
            f"{path}: slices lie up to {apart:.3g} mm from the mask's (limit {limit:.3g} mm); write it as .nii.gz"
        )
