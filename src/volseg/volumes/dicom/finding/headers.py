"""What the header of one file says: an image of a CT series, or the reason why it is none.

A header is believed only as far as the file bears it out: sizes, bit depths and frames are held against the length of
the pixel data before anything is sized by them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from volseg.errors import VolumeError, first_line
from volseg.volumes.audit import Dropped
from volseg.volumes.dicom import limits
from volseg.volumes.dicom.encoding import NATIVE
from volseg.volumes.dicom.finding.foreign import NOT_DICOM, Foreign, foreign
from volseg.volumes.dicom.finding.marks import DICOM_MARK, DICOM_MARK_AT, MEDIA_DIRECTORY, looks_like_dicom
from volseg.volumes.dicom.finding.parsing import PIXEL_DATA, Parsed, Pixels, parse
from volseg.volumes.dicom.image import Entry, Image, printable
from volseg.volumes.dicom.pixels.syntaxes import known_kind

KEYWORDS = (
    # what it is
    "SOPClassUID", "SOPInstanceUID", "Modality", "ImageType", "FrameType", "StudyInstanceUID", "SeriesInstanceUID",
    "SeriesNumber", "SeriesDescription", "AcquisitionNumber", "InstanceNumber", "FrameOfReferenceUID", "Manufacturer",
    "ConvolutionKernel", "LossyImageCompression", "PixelPresentation", "VolumetricProperties",
    # where it lies
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "ImagerPixelSpacing", "SliceThickness",
    "SpacingBetweenSlices", "GantryDetectorTilt", "SliceLocationVector", "GridFrameOffsetVector",
    # whose it is, and of which acquisition (see `acquisitions`)
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "PatientAge", "PatientSize", "PatientWeight",
    "StudyDate", "AccessionNumber", "SeriesDate", "SeriesTime", "AcquisitionDate",
    "AcquisitionTime", "AcquisitionDateTime", "ContentDate", "ContentTime", "TemporalPositionIdentifier",
    "TemporalPositionIndex", "NominalPercentageOfCardiacPhase", "NominalCardiacTriggerDelayTime", "TriggerTime",
    "CardiacCyclePosition", "RespiratoryCyclePosition", "NominalPercentageOfRespiratoryPhase", "StackID", "KVP",
    "MonoenergeticEnergyEquivalent", "FilterType", "ReconstructionDiameter", "ContrastBolusAgent", "ProtocolName",
    "ImageComments", "ScanOptions", "EchoNumbers", "StationName", "DeviceSerialNumber", "ManufacturerModelName",
    "InstitutionName",
    # how its pixels are stored
    "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
    # what they mean
    "RescaleSlope", "RescaleIntercept", "RescaleType", "PixelPaddingValue", "PixelPaddingRangeLimit",
    "PresentationLUTShape", "ModalityLUTSequence",
    # of an enhanced multi-frame file; pydicom Sequences, for `frames`
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "DimensionIndexSequence",
    "DimensionOrganizationSequence",
)  # fmt: skip

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT = ("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")  # the second: converted from plain slices
MODALITY = re.compile("[A-Z]{2,16}")
LONGEST_REASON = 160


@dataclass(frozen=True)
class Damaged(Dropped):
    """A DICOM file that cannot be used though it should be; of a CT slice, a hole in its series.

    series_uid  its SeriesInstanceUID, where the header still told it
    """

    series_uid: str | None = None


def read_image(entry: Entry) -> Image | Dropped:
    """The image in a file, by its header; or why there is none. Never raises for what the file holds.

    `Image.header` holds every element of KEYWORDS that the file has, as pydicom gives it (numbers as DSfloat or int,
    several as MultiValue, sequences as Sequence). A value that cannot be converted is there as text. A SOP class that
    was lost is the one of the file's meta header. Only images of CT are checked here; the others pass, for `series` to
    name.
    """
    marked = False
    try:
        with entry.open() as file:
            start = file.read(DICOM_MARK_AT + len(DICOM_MARK))
            if not looks_like_dicom(start):
                return foreign(entry.name, start, file)
            marked = start[DICOM_MARK_AT:] == DICOM_MARK
            parsed = parse(file, KEYWORDS)
    except VolumeError as error:
        return Damaged(entry.name, str(error).removeprefix(f"{entry.name}: "))
    except Exception as error:  # pydicom reports damage by many types
        reason = f"damaged header ({first_line(error)[:LONGEST_REASON]}); copy the file again"
        return Damaged(entry.name, reason) if marked else Foreign(entry.name, NOT_DICOM)
    if not marked and not any(keyword in parsed.values for keyword in ("SOPClassUID", "Modality")):
        return Foreign(entry.name, NOT_DICOM)
    return _judge(entry, parsed)


def _judge(entry: Entry, parsed: Parsed) -> Image | Dropped:
    header = dict(parsed.values)
    if not header.get("SOPClassUID") and parsed.media_class:
        header["SOPClassUID"] = parsed.media_class
    image = Image(entry, header, parsed.transfer_syntax, notes=parsed.notes)
    modality, sop_class = printable(str(image.get("Modality", ""))), str(image.get("SOPClassUID", ""))
    if parsed.media_class == MEDIA_DIRECTORY:
        return Dropped(entry.name, "a DICOMDIR, which only lists files")
    if parsed.pixels is None or "Rows" not in parsed.values:
        if sop_class in (CT_IMAGE, *ENHANCED_CT):
            elsewhere = known_kind(parsed.transfer_syntax)
            return _damaged(image, "a CT image without pixels") if elsewhere is None else _lost(image, elsewhere)
        if not (sop_class or modality or "SeriesInstanceUID" in header):
            return Damaged(entry.name, "damaged (a header that says nothing); copy the file again")
        contents = _name_contents(parsed.media_class or sop_class, modality)
        return Dropped(entry.name, f"{contents}, without an image{labels_hint(modality)}")
    if is_ct(image):
        fault = _fault(image, parsed.pixels)
        if fault is not None:
            return _damaged(image, fault)
        surplus = _surplus(image, parsed.pixels)
        if surplus > 1:  # one byte fills up an odd number
            note = f"pixel data of {surplus} bytes more than rows, columns and bits say; the last ones were left out"
            image = replace(image, notes=(*image.notes, note))
    return image


def is_ct(image: Image) -> bool:
    """Whether an image is of CT: by its modality, or where that was lost or damaged, by its SOP class."""
    modality = str(image.get("Modality", "")).strip(" \0").upper()
    lost = not MODALITY.fullmatch(modality)
    return modality == "CT" or (lost and str(image.get("SOPClassUID")) in (CT_IMAGE, *ENHANCED_CT))


def _damaged(image: Image, fault: str) -> Damaged:
    return _lost(image, f"damaged ({fault}); copy the file again")


def _lost(image: Image, reason: str) -> Damaged:
    uid = image.get("SeriesInstanceUID")
    return Damaged(image.name, reason, None if uid is None else printable(str(uid)))


def class_name(sop_class: str) -> str:
    """What DICOM calls a SOP class; "" for one it does not know."""
    from pydicom import config
    from pydicom.uid import UID

    uid = UID(sop_class, validation_mode=config.IGNORE)
    return str(uid.name) if uid.name != sop_class else ""


def labels_hint(modality: str) -> str:
    """Where labels, which are no image, belong; empty for anything else."""
    return "; labels go with their image: ingest CT --labels THIS" if modality in ("SEG", "RTSTRUCT") else ""


def _name_contents(sop_class: str, modality: str) -> str:
    return ", ".join(part for part in (modality, class_name(sop_class)) if part) or "DICOM of no known kind"


def _fault(image: Image, pixels: Pixels) -> str | None:
    """What is impossible about a CT image's description of its pixels, or None."""
    header = image.header
    try:
        rows, columns, allocated = (int(header[keyword]) for keyword in ("Rows", "Columns", "BitsAllocated"))
        samples, frames = int(image.get("SamplesPerPixel", 1)), int(image.get("NumberOfFrames", 1))
        stored, signed = int(image.get("BitsStored", allocated)), int(image.get("PixelRepresentation", 0))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        return f"no usable description of its pixels: {first_line(error)[:LONGEST_REASON]}"
    if rows < 1 or columns < 1 or rows * columns > limits.MAX_SLICE_PIXELS:
        return f"{rows} x {columns} pixels, limit {limits.MAX_SLICE_PIXELS} in all"
    if not 1 <= frames <= limits.MAX_FRAMES:
        return f"{frames} frames, limit {limits.MAX_FRAMES}"
    if allocated not in (8, 16, 32) or not 1 <= stored <= allocated or signed not in (0, 1) or samples not in (1, 3):
        return f"{stored} of {allocated} bits, sign {signed}, {samples} samples a pixel"
    if pixels.tag != PIXEL_DATA:
        return "pixels as floating-point numbers"
    frames_described = _frames_described(header)
    if frames_described is not None and frames_described != frames:
        return f"{frames} frames, but {frames_described} described"
    return _length_fault(pixels, image.transfer_syntax, rows * columns * samples * frames * allocated // 8)


def _surplus(image: Image, pixels: Pixels) -> int:
    """By how many bytes uncompressed pixels are longer than a sound header promises."""
    if image.transfer_syntax not in NATIVE or pixels.length is None:
        return 0
    rows, columns, allocated = (int(image.get(keyword)) for keyword in ("Rows", "Columns", "BitsAllocated"))
    samples, frames = int(image.get("SamplesPerPixel", 1)), int(image.get("NumberOfFrames", 1))
    return pixels.length - rows * columns * samples * frames * allocated // 8


def _frames_described(header: Mapping[str, Any]) -> int | None:
    groups = header.get("PerFrameFunctionalGroupsSequence")
    if groups is None:
        return None
    return len(groups) if not isinstance(groups, str) else 0


def _length_fault(pixels: Pixels, syntax: str, expected: int) -> str | None:
    """Whether uncompressed pixels are as many as the header promises; compressed ones are left to their decoder."""
    if syntax not in NATIVE:
        return None
    if pixels.length is None:
        return "uncompressed pixels without a length, or compressed in a way that nothing tells"
    if pixels.length < expected:
        return f"its header promises {expected} bytes of pixels, and it has {pixels.length}"
    if pixels.present is not None and pixels.present < expected:
        return f"cut off: {pixels.present} of {expected} bytes of pixels"
    return None
