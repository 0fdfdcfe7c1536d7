"""Multi-frame CT: one Image a frame, as if each were a file.

An enhanced image (also a legacy converted one) keeps what differs from frame to frame in functional groups: some shared
by all frames, some for each (PS3.3 C.7.6.16). A frame's own group counts before the shared one, and both before the
elements of the file. Merged, they read like the header of a plain slice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from volseg.errors import VolumeError
from volseg.volumes.dicom.image import Image
from volseg.volumes.dicom.numbers import with_points

SHARED, PER_FRAME = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"
GROUPS = {
    "PlanePositionSequence": ("ImagePositionPatient",),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "PixelMeasuresSequence": ("PixelSpacing", "SliceThickness", "SpacingBetweenSlices"),
    "PixelValueTransformationSequence": ("RescaleSlope", "RescaleIntercept", "RescaleType"),
    "CTImageFrameTypeSequence": ("FrameType", "PixelPresentation", "VolumetricProperties"),
    "FrameContentSequence": ("TemporalPositionIndex",),
    "CTReconstructionSequence": ("ConvolutionKernel",),
    "CTAcquisitionDetailsSequence": ("GantryDetectorTilt",),
}
"""Where the elements of a plain slice are kept in functional groups."""


def expand(image: Image) -> list[Image]:
    """The frames of `image` in stored order, functional groups merged into their headers; a plain slice is itself.

    A frame's FrameType stands as its ImageType too, so that a localizer is known as one.

    Raises VolumeError for frames without functional groups (old multi-frame files do not say where frames lie), and
    where the groups are damaged.
    """
    per_frame = image.get(PER_FRAME)
    try:
        count = int(image.get("NumberOfFrames", 1))
    except (TypeError, ValueError):
        raise VolumeError(f"{image.name}: NumberOfFrames {image.get('NumberOfFrames')} is no number") from None
    if per_frame is None:
        if count > 1:
            raise VolumeError(
                f"{image.name}: {count} frames without functional groups, so nothing says where each lies; "
                "export the series as single slices or as enhanced CT"
            )
        return [image]
    if not _is_sequence(per_frame) or len(per_frame) != count:
        raise VolumeError(f"{image.name}: {count} frames, but not as many functional groups; copy the file again")
    common = {keyword: value for keyword, value in image.header.items() if keyword not in (SHARED, PER_FRAME)}
    shared = image.get(SHARED)
    try:
        if _is_sequence(shared) and len(shared):
            common.update(_elements(shared[0]))
        return [_frame(image, common, groups, number) for number, groups in enumerate(per_frame)]
    except VolumeError:
        raise
    except Exception as error:  # pydicom converts values when they are asked for, with errors of many types
        raise VolumeError(f"{image.name}: damaged functional groups ({error}); copy the file again") from error


def _frame(image: Image, common: Mapping[str, Any], groups: Any, number: int) -> Image:
    header = {**common, **dict(_elements(groups))}
    if "FrameType" in header:
        header["ImageType"] = header["FrameType"]
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
