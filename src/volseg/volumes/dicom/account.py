"""What a series has to account for: the files it is made of, and what its reader should know."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from volseg.volumes.audit import Audit, Dropped
from volseg.volumes.dicom.finding.candidates import Candidate
from volseg.volumes.dicom.finding.screening import shown
from volseg.volumes.dicom.frames import LAID_OUT_BY
from volseg.volumes.dicom.geometry import Placement, describe_rounding
from volseg.volumes.dicom.image import Image
from volseg.volumes.dicom.pixels.hounsfield import is_inverted

THICKNESS_TOLERANCE = 0.05
FACTS = (
    ("modality", "Modality"),
    ("study UID", "StudyInstanceUID"),
    ("series UID", "SeriesInstanceUID"),
    ("series number", "SeriesNumber"),
    ("series description", "SeriesDescription"),
    ("acquisition", "AcquisitionNumber"),
    ("manufacturer", "Manufacturer"),
    ("convolution kernel", "ConvolutionKernel"),
)


def account(placement: Placement, chosen: Candidate, copies: Iterable[Dropped], fixes: tuple[str, ...]) -> Audit:
    """The audit of a series whose slices lie as `placement` says."""
    images = placement.images
    return Audit(
        used=tuple(image.name for image in images),
        inputs=tuple(dict.fromkeys(image.entry.file for image in images)),
        dropped=(*chosen.dropped, *copies),
        fixes=fixes,
        warnings=(*chosen.warnings, *_warnings(placement)),
        facts=tuple(_facts(images))
        + ((("part of its series", f"{chosen.label}: {chosen.differs}"),) if chosen.part else ()),
    )


def _facts(images: Sequence[Image]) -> Iterator[tuple[str, str]]:
    from pydicom.uid import UID

    for name, keyword in FACTS:
        values = {_text(image.get(keyword)): None for image in images}
        listed = ", ".join(text for text in values if text)
        if listed:
            yield name, shown(listed) if keyword not in ("StudyInstanceUID", "SeriesInstanceUID") else listed
    syntaxes = Counter(image.transfer_syntax for image in images)
    yield "transfer syntax", ", ".join(f"{UID(uid).name} ({count} slices)" for uid, count in syntaxes.most_common())


def _warnings(placement: Placement) -> Iterator[str]:
    images = placement.images
    for note, count in Counter(note for image in images for note in image.notes).items():
        yield f"{count} slices: {note}"
    laid_out = next((image.get(LAID_OUT_BY) for image in images if image.get(LAID_OUT_BY)), None)
    if laid_out:
        yield f"its frames do not say where they lie: laid out by {laid_out}, from the first along the normal"
    thickness, spacing = _number(images[0].get("SliceThickness")), float(np.median(placement.gaps))
    if placement.is_rounded:
        yield describe_rounding(placement)
        spacing = float(np.mean(placement.gaps))
    if thickness is not None and abs(thickness - spacing) > THICKNESS_TOLERANCE * spacing:
        yield f"SliceThickness is {thickness:g} mm, but slices lie {spacing:.4g} mm apart; their positions were used"
    reversed_for_display = [image for image in images if image.get("PhotometricInterpretation") == "MONOCHROME1"]
    inverted = [image for image in reversed_for_display if is_inverted(image)]
    if inverted:
        yield f"{len(inverted)} slices are MONOCHROME1 without RescaleType HU: their stored values were inverted"
    if len(reversed_for_display) > len(inverted):
        count = len(reversed_for_display) - len(inverted)
        yield f"{count} slices are MONOCHROME1 with RescaleType HU: their values were taken as they are"
    units = {str(image.get("RescaleType", "HU")).strip().upper() for image in images} - {"HU"}
    if units:
        yield f"values are of RescaleType {', '.join(sorted(map(shown, units)))}, perhaps not Hounsfield units"
    lossy = sum(str(image.get("LossyImageCompression", "")) == "01" for image in images)
    if lossy:
        yield f"{lossy} slices were compressed with loss"


def _text(value: object) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, str) or not isinstance(value, Sequence) else "\\".join(map(str, value))


def _number(value: object) -> float | None:
    try:
        number = float(str(value))
    except ValueError:
        return None
    return number if np.isfinite(number) else None
