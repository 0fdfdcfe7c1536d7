"""The series that a DICOM Segmentation refers to: whether it can, and its headers as highdicom wants them."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np

from volseg.errors import VolumeError
from volseg.volumes.dicom.image import Image
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

    datasets   headers: one a slice in slice order, or one of a multi-frame image
    positions  (x, y, z) of each slice's first voxel, LPS millimetres
    """

    datasets: list[Any]
    positions: list[list[float]]


def check_source(path: Path, source: Volume | None, space: Space) -> None:
    """Raise VolumeError unless a mask on `space` lies on the slices of the DICOM series `source`. Reads no file."""
    if source is None or not isinstance(source, DicomSource):
        what = "there is none" if source is None else f"{source.path} is read as {source.format or 'something else'}"
        raise VolumeError(f"{path}: a DICOM SEG refers to the slices of a DICOM series, and {what}; write .nii.gz")
    if source.corrected:
        fixes = "; ".join(source.audit.fixes) or "its grid was corrected"
        raise VolumeError(f"{path}: the mask does not lie on the series' own slices ({fixes}); write it as .nii.gz")
    if not source.space.matches(space):
        raise VolumeError(f"{path}: the mask lies on another grid than the series {source.path}; write it as .nii.gz")


def open_series(path: Path, source: Volume, space: Space) -> Series:
    """The headers of `source`, which `check_source` has passed.

    Where an anonymiser has emptied the UIDs of an image, those of its file's meta header are taken; and where it has
    emptied those of study, series or frame of reference, new ones are derived from the images' (always the same).

    Raises VolumeError where the slices do not lie where `space` has them, or where an image has no UID.
    """
    given = cast(DicomSource, source)
    datasets = [_copy(dataset) for dataset in given.source_datasets()]
    if not all(dataset.get(keyword) for dataset in datasets for keyword in NEEDED):
        raise VolumeError(f"{path}: {source.path} has images without UID to refer to; write the mask as .nii.gz")
    datasets = list({dataset.SOPInstanceUID: dataset for dataset in datasets}.values())
    _fill_uids(datasets)
    if len(datasets) == 1 and "PerFrameFunctionalGroupsSequence" in datasets[0]:
        frames = [image.frame or 0 for image in given.images]
        series = _multi_frame(datasets[0], frames)
    elif len(datasets) == space.shape[0]:
        series = _single_frames(datasets, space)
    else:
        raise VolumeError(
            f"{path}: {space.shape[0]} slices of {len(datasets)} multi-frame images; a DICOM SEG can refer to one: "
            "write the mask as .nii.gz"
        )
    _check_positions(path, series, space)
    return series


def _single_frames(datasets: list[Any], space: Space) -> Series:
    for dataset in datasets:
        # Equal to what was checked on reading, but not always to the last digit, which highdicom asks for.
        _set(dataset, "ImageOrientationPatient", datasets[0].get("ImageOrientationPatient"))
        _set(dataset, "SpacingBetweenSlices", space.spacing[0])  # the header's is often not the distance of the slices
        if not dataset.get("SliceThickness"):
            _set(dataset, "SliceThickness", space.spacing[0])
    return Series(datasets, [_floats(dataset.get("ImagePositionPatient")) for dataset in datasets])


def _multi_frame(dataset: Any, frames: list[int]) -> Series:
    groups, shared = dataset.PerFrameFunctionalGroupsSequence, deepcopy(dataset.SharedFunctionalGroupsSequence)
    for keyword in SHARED:  # the same in all frames of one volume, but some scanners write it with each
        if keyword not in shared[0] and keyword in groups[frames[0]]:
            setattr(shared[0], keyword, groups[frames[0]][keyword].value)
    _set(dataset, "SharedFunctionalGroupsSequence", shared)
    return Series([dataset], [_floats(groups[n].PlanePositionSequence[0].ImagePositionPatient) for n in frames])


def _copy(dataset: Any) -> Any:
    """A shallow copy that may be changed, with the elements that may be empty."""
    from pydicom.dataset import Dataset

    copy = Dataset()
    copy.update(dataset)
    for keyword in MAY_BE_EMPTY:
        if keyword not in copy:
            _set(copy, keyword, "")
    meta = getattr(dataset, "file_meta", None) or {}
    for keyword, twin in NEEDED.items():
        if not copy.get(keyword) and meta.get(twin):
            _set(copy, keyword, meta.get(twin))
    return copy


def _set(copy: Any, keyword: str, value: Any) -> None:
    """Assign an element anew: its object is the original's, which assigning to the attribute would change."""
    if keyword in copy:
        del copy[keyword]
    setattr(copy, keyword, value)


def _fill_uids(datasets: list[Any]) -> None:
    from pydicom.uid import generate_uid

    for keyword in DERIVED:
        if all(dataset.get(keyword) for dataset in datasets):
            continue
        uid = generate_uid(entropy_srcs=[keyword, *sorted(dataset.SOPInstanceUID for dataset in datasets)])
        for dataset in datasets:
            _set(dataset, keyword, uid)


def _floats(values: Any) -> list[float]:
    return [] if values is None else [float(value) for value in values]


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
