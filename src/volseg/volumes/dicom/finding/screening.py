"""Why an image is no slice of a CT volume, and where it lies if it is one. One image at a time, by its header alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from volseg.volumes.dicom.finding.headers import CT_IMAGE, ENHANCED_CT, class_name, is_ct, labels_hint
from volseg.volumes.dicom.image import Image, printable
from volseg.volumes.dicom.numbers import as_written, numbers

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"  # and its multi-frame kin, below it
SEVERAL_GREY_WORDS = "1.2.840.10008.5.1.4.1.1.7.3"  # frames of 9 to 16 bits, as cone-beam CT is stored too
DICOMS_OWN = "1.2.840.10008."
SCOUT_WORDS = {"LOCALIZER", "SCOUT", "TOPOGRAM", "SCANOGRAM", "SURVIEW"}
SCREEN_WORDS = {"SCREEN SAVE", "SCREEN", "SCREENSAVE", "DOSE_INFO", "DOSE REPORT"}
SAME_DIRECTION = 1e-3  # of each of the six numbers of an orientation: 0.06 degrees
SAME_PIXEL = 1e-3  # relative
UNIT_LENGTH_TOLERANCE = 0.1  # of a direction that is one at all; `geometry` is stricter
TEXT_SHOWN = 40


@dataclass(frozen=True)
class Place:
    """Where a slice lies: position [3] mm, directions along a row and down a column [6], (rows, columns) spacing mm."""

    position: tuple[float, ...]
    orientation: tuple[float, ...]
    spacing: tuple[float, ...]


def why_not_a_slice(image: Image) -> str | None:
    """Why an image of whatever kind cannot be a slice of a CT volume, in words; None for one that can."""
    modality, sop_class = shown(image.get("Modality", "unknown")), str(image.get("SOPClassUID", CT_IMAGE))
    captured = sop_class.startswith(SECONDARY_CAPTURE)
    if captured and not (is_ct(image) and sop_class == SEVERAL_GREY_WORDS and isinstance(place_of(image), Place)):
        return "secondary capture (a screen), not a slice"
    if not is_ct(image):
        return f"modality {modality}, not CT" + labels_hint(modality)
    if sop_class not in (CT_IMAGE, SEVERAL_GREY_WORDS, *ENHANCED_CT) and not _may_be_ct(image, sop_class):
        return f"CT, but {class_name(sop_class) or 'of an unknown class'}, not CT Image Storage or Enhanced CT"
    words = image_type(image)
    if SCOUT_WORDS.intersection(words):
        return "localizer (scout)"
    if SCREEN_WORDS.intersection(words):
        return "a screen, not a slice"
    if "PROJECTION IMAGE" in words:
        return "a projection, not a slice"
    meaning = str(image.get("PhotometricInterpretation", "MONOCHROME2"))
    if str(image.get("SamplesPerPixel", 1)) != "1" or not meaning.startswith("MONOCHROME"):
        return f"pixels are {shown(meaning)}, not CT values (a screen)"
    return None


def is_known_class(image: Image) -> bool:
    """Whether the SOP class of an image is one of CT's own."""
    return str(image.get("SOPClassUID", "")) in (CT_IMAGE, *ENHANCED_CT)


def _may_be_ct(image: Image, sop_class: str) -> bool:
    """Whether an image of no class that DICOM knows lies in the patient as a slice does."""
    return not (sop_class.startswith(DICOMS_OWN) and class_name(sop_class)) and isinstance(place_of(image), Place)


def image_type(image: Image) -> list[str]:
    """The words of ImageType (of a frame: FrameType), in capitals."""
    value = image.get("FrameType") or image.get("ImageType", ())
    words: Iterable[Any] = [value] if isinstance(value, str) else value
    return [str(word).strip().upper() for word in words]


def is_secondary(image: Image) -> bool:
    """Whether an image was made after the examination: DERIVED\\SECONDARY."""
    return image_type(image)[:2] == ["DERIVED", "SECONDARY"]


def place_of(image: Image) -> Place | str:
    """Where an image lies in the patient; or which element it lacks for that."""
    found = []
    for keyword, count in (("ImagePositionPatient", 3), ("ImageOrientationPatient", 6), ("PixelSpacing", 2)):
        value = image.get(keyword)
        if value is None and keyword == "PixelSpacing" and (detector := image.get("ImagerPixelSpacing")) is not None:
            return f"no PixelSpacing (ImagerPixelSpacing {as_written(detector)} is of the detector, not of the patient)"
        read = _numbers(value)
        if len(read) != count:
            return f"no {keyword}" if value is None else f"a wrong {keyword} ({as_written(value)})"
        found.append(read)
    position, orientation, spacing = found
    lengths = np.linalg.norm(np.reshape(orientation, (2, 3)), axis=1)
    if np.abs(lengths - 1).max() > UNIT_LENGTH_TOLERANCE:
        return f"a wrong ImageOrientationPatient ({as_written(image.get('ImageOrientationPatient'))})"
    if min(spacing) <= 0:
        return f"a wrong PixelSpacing ({as_written(image.get('PixelSpacing'))})"
    return Place(position, orientation, spacing)


def same_kind(one: Place, other: Place) -> bool:
    """Whether two images have the same orientation and pixel spacing, to the tolerances."""
    directions = np.abs(np.subtract(one.orientation, other.orientation)).max()
    pixels = np.abs(np.divide(one.spacing, other.spacing) - 1).max()
    return bool(directions <= SAME_DIRECTION and pixels <= SAME_PIXEL)


def shown(value: Any) -> str:
    """A value of a header for a message: printable, and not long."""
    text = printable(str(value))
    return text if len(text) <= TEXT_SHOWN else text[: TEXT_SHOWN - 3] + "..."


def _numbers(value: Any) -> tuple[float, ...]:
    """Finite numbers, none for anything else."""
    try:
        read = numbers(value)
    except ValueError:
        return ()
    return read if np.isfinite(read).all() else ()
