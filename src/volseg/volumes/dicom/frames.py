"""Multi-frame CT: one Image a frame, as if each were a file.

An enhanced image (also a legacy converted one) keeps what differs from frame to frame in functional groups: some shared
by all frames, some for each (PS3.3 C.7.6.16). A frame's own group counts before the shared one, and both before the
elements of the file. Merged, they read like the header of a plain slice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from volseg.errors import VolumeError
from volseg.volumes.dicom.image import Image
from volseg.volumes.dicom.numbers import with_points

LAID_OUT_BY = "FramesLaidOutBy"
"""Beside the elements of a frame's header: by which element its position was found, where it has none of its own."""

CUBE_TOLERANCE = 0.01
SHARED, PER_FRAME = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"
GROUPS = {
    "PlanePositionSequence": ("ImagePositionPatient",),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "PixelMeasuresSequence": ("PixelSpacing", "SliceThickness", "SpacingBetweenSlices"),
    "PixelValueTransformationSequence": ("RescaleSlope", "RescaleIntercept", "RescaleType"),
    "CTImageFrameTypeSequence": ("FrameType", "PixelPresentation", "VolumetricProperties"),
    "UnassignedPerFrameConvertedAttributesSequence": (
        "AcquisitionNumber", "AcquisitionTime", "ContentTime", "TemporalPositionIdentifier", "TriggerTime", "KVP",
        "ConvolutionKernel", "InstanceNumber",
    ),
    "FrameContentSequence": (
        "FrameAcquisitionNumber", "FrameAcquisitionDateTime", "TemporalPositionIndex", "StackID",
        "CardiacCyclePosition", "RespiratoryCyclePosition", "DimensionIndexValues",
    ),
    "TemporalPositionSequence": ("TemporalPositionTimeOffset",),
    "CardiacSynchronizationSequence": ("NominalPercentageOfCardiacPhase", "NominalCardiacTriggerDelayTime"),
    "RespiratorySynchronizationSequence": ("NominalPercentageOfRespiratoryPhase",),
    "CTReconstructionSequence": ("ConvolutionKernel", "FilterType"),
    "CTAcquisitionDetailsSequence": ("GantryDetectorTilt",),
    "CTXRayDetailsSequence": ("KVP",),
}  # fmt: skip
"""Where the elements of a plain slice are kept in functional groups."""
PLAIN_NAMES = {
    "FrameType": "ImageType",
    "FrameAcquisitionNumber": "AcquisitionNumber",
    "FrameAcquisitionDateTime": "AcquisitionDateTime",
}
"""What a frame calls otherwise than a plain slice does."""


def expand(image: Image) -> list[Image]:
    """The frames of `image` in stored order, functional groups merged into their headers; a plain slice is itself.

    A frame's FrameType stands as its ImageType too, so that a localizer is known as one. Frames that do not say where
    they lie are laid out from the first on, where the file says how far apart they are (`_offsets`).

    Raises VolumeError for frames of which nothing says where they lie, and where the groups are damaged.
    """
    per_frame = image.get(PER_FRAME)
    try:
        count = int(image.get("NumberOfFrames", 1))
    except (TypeError, ValueError):
        raise VolumeError(f"{image.name}: NumberOfFrames {image.get('NumberOfFrames')} is no number") from None
    if per_frame is None and count == 1:
        return [image]
    if per_frame is not None and (not _is_sequence(per_frame) or len(per_frame) != count):
        raise VolumeError(f"{image.name}: {count} frames, but not as many functional groups; copy the file again")
    common = {keyword: value for keyword, value in image.header.items() if keyword not in (SHARED, PER_FRAME)}
    shared = image.get(SHARED)
    try:
        if _is_sequence(shared) and len(shared):
            common.update(_elements(shared[0]))
        if per_frame is None or (count > 1 and not any("PlanePositionSequence" in groups for groups in per_frame)):
            places = _laid_out(image, common, count)
        else:
            places = [{}] * count
        groups = per_frame or [{}] * count
        return [
            _frame(image, {**common, **place}, group, number)
            for number, (place, group) in enumerate(zip(places, groups, strict=True))
        ]
    except VolumeError:
        raise
    except Exception as error:  # pydicom converts values when they are asked for, with errors of many types
        raise VolumeError(f"{image.name}: damaged functional groups ({error}); copy the file again") from error


def _laid_out(image: Image, common: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """The position of each frame, along the normal from the first one's; and by which element, for a warning.

    Cone-beam scanners and old software write volumes as frames of one plain image. There the first frame's position is
    the file's, and the next ones lie along the normal, as is the rule of nuclear medicine (PS3.3 C.8.4.15).
    """
    position, orientation = _floats(common.get("ImagePositionPatient")), _floats(common.get("ImageOrientationPatient"))
    offsets, source = _offsets(common, count)
    if len(position) != 3 or len(orientation) != 6 or offsets is None:
        lacking = [
            name
            for name, there in (
                ("ImagePositionPatient", len(position) == 3),
                ("ImageOrientationPatient", len(orientation) == 6),
                ("SpacingBetweenSlices", offsets is not None),
            )
            if not there
        ]
        raise VolumeError(
            f"{image.name}: {count} frames without functional groups, and without {', '.join(lacking)}, so nothing "
            "says where each lies; export the series as single slices or as enhanced CT"
        )
    normal = np.cross(*np.reshape(orientation, (2, 3)))
    return [
        {"ImagePositionPatient": [float(n) for n in position + offset * normal], LAID_OUT_BY: source}
        for offset in offsets
    ]


def _offsets(common: Mapping[str, Any], count: int) -> tuple[np.ndarray | None, str]:
    """mm of each frame from the first, along the normal; and by which element. None where nothing settles it.

    A thickness is a distance only where voxels are cubes, as cone-beam scanners make them.
    """
    for keyword in ("GridFrameOffsetVector", "SliceLocationVector"):
        places = _floats(common.get(keyword))
        if len(places) == count:
            return np.subtract(places, places[0]), keyword
    spacing, pixels = _floats(common.get("SpacingBetweenSlices")), _floats(common.get("PixelSpacing"))
    if len(spacing) == 1 and spacing[0] != 0:
        return np.arange(count) * spacing[0], "SpacingBetweenSlices"
    thickness = _floats(common.get("SliceThickness"))
    if len(thickness) == 1 and len(pixels) == 2 and np.allclose(thickness[0], pixels, rtol=CUBE_TOLERANCE):
        return np.arange(count) * thickness[0], "SliceThickness"
    return None, ""


def _floats(value: Any) -> list[float]:
    """Finite numbers, none for anything else."""
    parts = value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else [value]
    try:
        numbers = [float(part) for part in parts]
    except (TypeError, ValueError):
        return []
    return numbers if np.isfinite(numbers).all() else []


def _frame(image: Image, common: Mapping[str, Any], groups: Any, number: int) -> Image:
    header = {**common, **dict(_elements(groups))}
    for own, plain in PLAIN_NAMES.items():
        if own in header:
            header[plain] = header[own]
    header, notes = with_points(header)
    return Image(image.entry, header, image.transfer_syntax, number, (*image.notes, *notes))


def _elements(groups: Any) -> Iterator[tuple[str, Any]]:
    for sequence, keywords in GROUPS.items():
        items = groups.get(sequence)
        if not _is_sequence(items) or not len(items):
            continue
        for keyword in keywords:
            value = items[0].get(keyword)
            if value is not None:
                yield keyword, value


def _is_sequence(value: Any) -> bool:
    from pydicom.sequence import Sequence

    return isinstance(value, Sequence)
