"""Label names and colours inside a NIfTI file: the header extension of Connectome Workbench, as others write it too.

The extension (code 30, NIFTI_ECODE_CARET) holds the XML of a Workbench label volume. TotalSegmentator writes the same
XML under code 0, and readers take either.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from volseg.volumes.label_table import Colour, LabelTable, table_of

CARET = 30
UNKNOWN = 0
MOST_XML_BYTES = 16 << 20


def caret_extension(labels: LabelTable) -> bytes:
    """The extension's content, UTF-8. It holds no date, so the same labels are always the same bytes."""
    rows = sorted((value, name) for name, value in labels.names.items())
    items = [_item(value, name, labels.colour(value)) for value, name in rows]
    table = "\n".join(["<LabelTable>", *items, "</LabelTable>"])
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<CaretExtension>\n<VolumeInformation Index="0">\n'
        f"{table}\n<StudyMetaDataLinkSet></StudyMetaDataLinkSet>\n<VolumeType>Label</VolumeType>\n"
        "</VolumeInformation>\n</CaretExtension>\n"
    ).encode()


def table_in(extensions: Iterable[tuple[int, bytes]]) -> LabelTable | None:
    """The label table in the header extensions of a NIfTI file, given as (code, content); None where there is none.

    XML that is damaged, or that declares entities, counts as none: a mask is still a mask without its names.
    """
    for code, content in extensions:
        if code in (CARET, UNKNOWN) and b"<CaretExtension" in content[:4096] and len(content) <= MOST_XML_BYTES:
            table = _parse(content.rstrip(b"\0"))
            if table is not None:
                return table
    return None


def table_of_nifti(path: Path) -> LabelTable | None:
    """The label table of the single-file NIfTI at `path`, None where it has none or is no NIfTI.

    Only the bytes before the voxels are read, and of extensions at most `MOST_XML_BYTES`.
    """
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            file: Any = gzip.GzipFile(fileobj=raw) if packed else raw
            return table_in(_extensions(file.read))
    except (EOFError, zlib.error, gzip.BadGzipFile, struct.error, ValueError, OverflowError):
        return None


def _item(value: int, name: str, colour: Colour) -> str:
    red, green, blue = (f"{part / 255:.6g}" for part in colour)
    alpha = 0 if value == 0 else 1
    # A name may hold anything; control characters are not XML at all.
    text = escape("".join(letter if letter.isprintable() else " " for letter in name))
    return f'<Label Key="{value}" Red="{red}" Green="{green}" Blue="{blue}" Alpha="{alpha}">{text}</Label>'


def _parse(content: bytes) -> LabelTable | None:
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content:  # nobody writes them; entities can grow without bound
        return None
    try:
        items = [item for item in ElementTree.fromstring(content).iter("Label") if item.text]
        rows = [(int(item.attrib["Key"]), str(item.text).strip(), _colour(item.attrib)) for item in items]
    except (ElementTree.ParseError, KeyError, ValueError):
        return None
    return table_of(rows) if rows else None


def _colour(attributes: dict[str, str]) -> Colour | None:
    try:
        parts = [float(attributes[name]) for name in ("Red", "Green", "Blue")]
        red, green, blue = (round(255 * min(max(part, 0.0), 1.0)) for part in parts)
    except (KeyError, ValueError):  # NaN cannot be rounded: a ValueError
        return None
    return red, green, blue


def _extensions(read: Any) -> list[tuple[int, bytes]]:
    """(code, content) of each header extension. Layout: https://nifti.nimh.nih.gov/nifti-1, nifti1.h, nifti2.h."""
    start = read(540)
    for order in "<>":
        size = struct.unpack(order + "i", start[:4])[0]
        if size in (348, 540):
            break
    else:
        return []
    if size == 348:
        end = int(struct.unpack(order + "f", start[108:112])[0])
    else:
        end = int(struct.unpack(order + "q", start[168:176])[0])
    end = min(end, size + 4 + MOST_XML_BYTES)
    start = (start + read(max(0, end - len(start))))[:end]
    found, position = [], size + 4
    if start[size : size + 1] in (b"", b"\0"):
        return []
    while position + 8 <= len(start):
        length, code = struct.unpack(order + "ii", start[position : position + 8])
        if length < 16 or position + length > len(start):
            break
        found.append((code, start[position + 8 : position + length]))
        position += length
    return found
