"""Find the one CT series of a folder, by its files' headers alone, or say what is there instead."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from volseg.errors import VolumeError

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
TAGS = [
    "SOPClassUID", "SOPInstanceUID", "Modality", "ImageType", "SeriesInstanceUID", "SeriesDescription", "Rows",
    "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored",
    "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit", "RescaleSlope", "RescaleIntercept",
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "InstanceNumber",
]  # fmt: skip
SERIES_LISTED = 4


@dataclass(frozen=True)
class Slice:
    """One DICOM image: its file, and its header without pixels."""

    path: Path
    header: Any
    transfer_syntax: str

    def get(self, keyword: str, default: Any = None) -> Any:
        """An element's value; `default` where it is absent or empty."""
        value = self.header.get(keyword)
        return default if value is None or value == "" else value

    @property
    def kind(self) -> str:
        """The image's kind among those that do not mix: LOCALIZER, DERIVED or ORIGINAL."""
        words = [str(word).upper() for word in _several(self.get("ImageType", ()))]
        if "LOCALIZER" in words:
            return "LOCALIZER"
        return "DERIVED" if words[:1] == ["DERIVED"] else "ORIGINAL"


def find_series(folder: Path) -> list[Slice]:
    """The slices of the only series in `folder` and the folders below it, in no particular order.

    Files that are not DICOM, and DICOM files without an image (reports, contours, a DICOMDIR), are passed over.

    Raises VolumeError, with a short list of what was found, unless there is one series of CT slices of one kind.
    """
    images, others = _headers(folder)
    if not images:
        inside = f"its {others} files hold none" if others else "it is empty"
        raise VolumeError(f"{folder}: no DICOM images ({inside}); give a folder with one CT series, or a .nii.gz file")
    series: dict[str, list[Slice]] = {}
    for image in images:
        series.setdefault(str(image.get("SeriesInstanceUID", "no SeriesInstanceUID")), []).append(image)
    if len(series) > 1:
        lines = sorted((_describe(uid, slices) for uid, slices in series.items()), key=lambda pair: -pair[0])
        listed = "; ".join(line for _, line in lines[:SERIES_LISTED])
        more = f"; and {len(lines) - SERIES_LISTED} more" if len(lines) > SERIES_LISTED else ""
        raise VolumeError(f"{folder}: {len(series)} series, give a folder with one of them: {listed}{more}")
    slices = next(iter(series.values()))
    _require_ct(folder, slices)
    _require_one_kind(folder, slices)
    return slices


def name_some(slices: Iterable[Slice], most: int = 3) -> str:
    """The names of a few files, for messages."""
    names = [image.path.name for image in slices]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _headers(folder: Path) -> tuple[list[Slice], int]:
    """Every image below `folder`, and the number of other files."""
    images, others = [], 0
    for parent, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            image = _read_header(Path(parent) / name)
            if image is None:
                others += 1
            else:
                images.append(image)
    return images, others


def _read_header(path: Path) -> Slice | None:
    """The header of an image; None for any other file."""
    from pydicom import dcmread
    from pydicom.uid import ImplicitVRLittleEndian

    if not path.is_file():  # a socket, a pipe, a link to nowhere
        return None
    with path.open("rb") as file:
        start = file.read(132)
    # Old files lack the preamble and begin at once with group 2 or 8.
    if start[128:] != b"DICM" and start[:2] not in (b"\x02\x00", b"\x08\x00"):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about values that volseg does not use
            header = dcmread(path, stop_before_pixels=True, force=True, specific_tags=TAGS)
            syntax = str(header.file_meta.get("TransferSyntaxUID", ImplicitVRLittleEndian))
            # Elements are parsed when first looked at: look now, where a fault can be told.
            found = {keyword: header.get(keyword) for keyword in TAGS}
    except Exception as error:  # pydicom reports damage by many types
        if start[128:] != b"DICM":
            return None
        raise VolumeError(f"{path}: a damaged DICOM file ({error}); copy it again or remove it") from error
    if found["Rows"] is None or found["Columns"] is None:
        return None
    return Slice(path, header, syntax)


def _describe(uid: str, slices: list[Slice]) -> tuple[int, str]:
    first = slices[0]
    kinds = ", ".join(sorted({image.kind.lower() for image in slices} - {"original"}))
    words = [
        str(first.get("Modality", "?")),
        repr(str(first.get("SeriesDescription", ""))),
        f"{len(slices)} images",
        _commonest(f"{image.get('Rows')}x{image.get('Columns')}" for image in slices),
    ]
    return len(slices), " ".join(words) + (
        f" ({kinds})" if kinds else ""
    ) + f" in {first.path.parent.name}, ...{uid[-8:]}"


def _commonest(values: Iterable[str]) -> str:
    return Counter(values).most_common(1)[0][0]


def _require_ct(folder: Path, slices: list[Slice]) -> None:
    for image in slices:
        frames = int(image.get("NumberOfFrames", 1))
        if frames > 1:
            raise VolumeError(f"{image.path}: a multi-frame image of {frames} frames; volseg reads one slice a file")
        modality, kind = str(image.get("Modality", "?")), str(image.get("SOPClassUID", CT_IMAGE))
        if modality != "CT" or kind != CT_IMAGE:
            what = modality if modality != "CT" else "CT, but not of slices"
            raise VolumeError(f"{image.path}: its series is {what}; volseg reads CT slices: convert it to .nii.gz")
        colours, meaning = int(image.get("SamplesPerPixel", 1)), str(image.get("PhotometricInterpretation", ""))
        if colours != 1 or meaning != "MONOCHROME2":
            raise VolumeError(f"{image.path}: pixels are {meaning} with {colours} samples; CT must be MONOCHROME2")
    if len(slices) == 1:
        raise VolumeError(f"{slices[0].path}: the only slice of its series; a volume needs two or more")


def _require_one_kind(folder: Path, slices: list[Slice]) -> None:
    counts = Counter(image.kind for image in slices)
    if len(counts) > 1:
        rare = min(counts, key=lambda kind: (counts[kind], kind))
        some = name_some(image for image in slices if image.kind == rare)
        listed = ", ".join(f"{n} {kind.lower()}" for kind, n in counts.most_common())
        raise VolumeError(f"{folder}: {listed} images in one series; remove the {rare.lower()} ones: {some}")
    if "LOCALIZER" in counts:
        raise VolumeError(f"{folder}: its {len(slices)} images are localizers (scouts), not slices of a volume")


def _several(value: Any) -> Iterable[Any]:
    return [value] if isinstance(value, str) else value
