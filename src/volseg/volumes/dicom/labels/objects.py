"""DICOM files that carry labels, found and read with care: segmentations (SEG) and structure sets (RTSTRUCT)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from volseg.errors import VolumeError, first_line
from volseg.volumes.dicom import limits
from volseg.volumes.dicom.finding.marks import looks_like_dicom
from volseg.volumes.dicom.finding.sources import open_source
from volseg.volumes.dicom.numbers import numbers

SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
LABEL_MAP = "1.2.840.10008.5.1.4.1.1.66.7"
STRUCTURES = "1.2.840.10008.5.1.4.1.1.481.3"
DEFLATED = b"1.2.840.10008.1.2.1.99"
NAMES = {SEGMENTATION: "SEG", LABEL_MAP: "SEG (label map)", STRUCTURES: "RTSTRUCT"}
ITEM = b"\xfe\xff\x00\xe0"
READ_BYTES = 1 << 20


def find_label_object(path: Path) -> tuple[Path, str]:
    """The one SEG or RTSTRUCT at `path` (a file, a DICOMDIR, or a folder with other files beside it), and its class.

    Raises VolumeError where there is none, or several.
    """
    source = open_source(path)
    if source.kind == "zip":
        raise VolumeError(f"{path}: labels in a zip archive; unpack it and give the SEG or RTSTRUCT file")
    found, others = [], set()
    for entry in source:
        kind, what = _class_of(entry.file)
        if kind in NAMES:
            found.append((entry.file, kind))
        elif what:
            others.add(what)
    if len(found) == 1:
        return found[0]
    if found:
        some = ", ".join(f"{file.name} ({NAMES[kind]})" for file, kind in found[:4])
        raise VolumeError(f"{path}: {len(found)} files of labels, give one of them: {some}")
    holds = f"it holds {', '.join(sorted(others)[:3])}" if others else "no DICOM file in it"
    raise VolumeError(f"{path}: no labels ({holds}); give a NIfTI mask, a .zarr, or a DICOM SEG or RTSTRUCT")


def check_bounds(path: Path, largest: int) -> None:
    """Raise VolumeError where reading `path` would take more memory than labels ever need.

    pydicom makes about 2 KB of each item of a sequence, which may take 8 bytes in the file, and inflates a deflated
    file whole: so items are counted before anything is parsed, and deflated files are refused.
    """
    if path.stat().st_size > largest:
        raise VolumeError(f"{path}: larger than {largest >> 20} MiB; volseg reads no labels of that size")
    items, before = 0, b""
    with path.open("rb") as file:
        while piece := file.read(READ_BYTES):
            items += (before[-len(ITEM) + 1 :] + piece).count(ITEM)
            if DEFLATED in before + piece:  # the UID, which stands nowhere but in a deflated file's first elements
                raise VolumeError(f"{path}: a deflated file; store it uncompressed, for instance with dcmconv +te")
            before = piece[-len(DEFLATED) + 1 :]
    if items > limits.MAX_SEQUENCE_ITEMS:
        raise VolumeError(f"{path}: {items} items in its sequences, limit {limits.MAX_SEQUENCE_ITEMS}; is it damaged?")


@contextmanager
def damage(path: Path) -> Iterator[None]:
    """Turn whatever pydicom and highdicom raise over a malformed file into a VolumeError; no warnings meanwhile."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about oddities of values that volseg does not use
            yield
    except (VolumeError, MemoryError):
        raise
    except Exception as error:
        raise VolumeError(f"{path}: a damaged or incomplete DICOM file ({first_line(error)}); copy it again") from error


def decimals(dataset: Any, keyword: str, notes: dict[str, None]) -> tuple[float, ...]:
    """The numbers of an element that is text (DS), none where it is empty or missing. A decimal comma goes to `notes`.

    Parsed at once where it is still text: pydicom makes an object of each number. Raises ValueError where it is none.
    """
    element = dataset.get_item(keyword)
    value = None if element is None else element.value
    if isinstance(value, bytes):
        if b"," in value:
            notes[f"{keyword} has a decimal comma, read as a point"] = None
        value = value.strip(b" \0")
    return numbers(value) if value or value == 0 else ()


def frame_of_reference_warning(image: Any, dataset_uid: str) -> list[str]:
    """A warning where the image, a DICOM series, has another frame of reference than the labels."""
    images = getattr(image, "images", ())
    uid = str(images[0].get("FrameOfReferenceUID", "")) if images else ""
    if not uid or not dataset_uid or uid == dataset_uid:
        return []
    return [
        f"the labels' frame of reference ...{dataset_uid[-8:]} is not the image's, ...{uid[-8:]}: check the overlay"
    ]


def _class_of(file: Path) -> tuple[str, str]:
    """(SOP class UID, modality) of a DICOM file; empty for any other file, or one too damaged to say."""
    from pydicom import dcmread

    with file.open("rb") as stream:
        if not looks_like_dicom(stream.read(132)):
            return "", ""
    try:
        with damage(file):
            header = dcmread(file, stop_before_pixels=True, force=True, specific_tags=["SOPClassUID", "Modality"])
            return str(header.get("SOPClassUID", "")), str(header.get("Modality", ""))
    except VolumeError:
        return "", ""
