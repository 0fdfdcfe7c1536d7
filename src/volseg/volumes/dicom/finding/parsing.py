"""DICOM headers parsed by pydicom on a leash: pixels never read, and bytes, items and inflation bounded by `limits`.

pydicom trusts the lengths in a file: it reads what an element claims to hold, inflates a deflated data set whole, and
makes an object of some kilobytes of every eight bytes that say "item".
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from volseg.volumes.dicom import limits
from volseg.volumes.dicom.codestream import ITEM, KINDS, PEEK_BYTES, syntax_of
from volseg.volumes.dicom.encoding import DEFLATED, UNCOMPRESSED, DataSet, contradiction, enter
from volseg.volumes.dicom.image import printable
from volseg.volumes.dicom.numbers import with_points

PIXEL_DATA = 0x7FE00010
PIXEL_TAGS = (PIXEL_DATA, 0x7FE00008, 0x7FE00009)  # the others are pixels as floats, as doubles
UNDEFINED_LENGTH = 0xFFFFFFFF
ITEM_MARKS = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")
TEXT_OF_BAD_VALUES = 40  # characters


class HeaderError(Exception):
    """A header that breaks a limit, or whose parts contradict each other."""


@dataclass(frozen=True)
class Pixels:
    """The element that holds an image's pixels: its tag, the length it claims (None: in pieces, as compressed pixels
    are), the bytes that follow in the file (None where that is not known, in a deflated data set), and where they
    begin."""

    tag: int
    length: int | None
    present: int | None
    at: int


@dataclass(frozen=True)
class Parsed:
    """A header.

    values  elements by keyword; one that pydicom cannot convert is there as the text of its bytes
    notes   what of it is not as DICOM has it, and how it was read
    """

    values: dict[str, Any]
    transfer_syntax: str
    media_class: str
    pixels: Pixels | None
    notes: tuple[str, ...] = ()


def parse(file: BinaryIO, keywords: Sequence[str], most: int = limits.MAX_HEADER_BYTES) -> Parsed:
    """The elements of these keywords, from an open DICOM file with or without preamble; at most `most` bytes are read.

    Raises whatever pydicom does for a damaged file (it has many types), and HeaderError beyond the limits.
    """
    from pydicom.datadict import tag_for_keyword
    from pydicom.filereader import read_dataset

    size = file.seek(0, os.SEEK_END)
    seen: dict[str, Pixels] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about values that volseg does not use
        data = enter(file, most, lambda file: _Guarded(file, most))
        guarded = _Guarded(data.file, most)

        def at_pixels(tag: int, vr: str | None, length: int) -> bool:
            if tag in PIXEL_TAGS:
                at = guarded.tell()
                present = max(0, size - at) if data.syntax != DEFLATED else None
                seen["pixels"] = Pixels(int(tag), None if length == UNDEFINED_LENGTH else length, present, at)
            return tag >= PIXEL_TAGS[1]  # what follows pixels is padding and signatures

        tags = [tag_for_keyword(keyword) for keyword in keywords]
        dataset = read_dataset(
            cast(BinaryIO, guarded), data.implicit, data.little, stop_when=at_pixels, specific_tags=cast(Any, tags)
        )
        values, notes = with_points({keyword: _value(dataset, keyword) for keyword in keywords if keyword in dataset})
        pixels = seen.get("pixels")
        syntax = data.syntax if pixels is None else _syntax_of_pixels(data, pixels)
    note = contradiction(str(data.meta.get("TransferSyntaxUID") or ""), syntax)
    notes = (note, *notes) if note else notes
    return Parsed(values, syntax, str(data.meta.get("MediaStorageSOPClassUID", "")), pixels, notes)


def _syntax_of_pixels(data: DataSet, pixels: Pixels) -> str:
    """The data set's transfer syntax, unless its pixels are native or compressed against it."""
    data.file.seek(pixels.at)
    start = data.file.read(PEEK_BYTES)
    if pixels.length is None or (data.syntax in KINDS and start[:4] == ITEM):
        return syntax_of(start, data.syntax)
    return UNCOMPRESSED.get((data.implicit, data.little), data.syntax) if data.syntax in KINDS else data.syntax


def _value(dataset: Any, keyword: str) -> Any:
    raw = dataset.get_item(keyword)
    stored = getattr(raw, "value", None)
    if isinstance(stored, bytes) and len(stored) < (getattr(raw, "length", None) or 0) != UNDEFINED_LENGTH:
        raise HeaderError(f"the file ends within {keyword}")
    if isinstance(stored, bytes) and len(stored) > limits.MAX_VALUE_BYTES and not keyword.endswith("Sequence"):
        raise HeaderError(f"{keyword} of {len(stored)} bytes, limit {limits.MAX_VALUE_BYTES}")
    try:
        return dataset.get(keyword)
    except Exception:  # a number that is none, a length that is odd; whoever needs the value names it
        text = bytes(stored[:TEXT_OF_BAD_VALUES]).decode("latin-1") if isinstance(stored, bytes) else "unreadable"
        return printable(text) or "unreadable"


class _Guarded:
    """A file that refuses to be read beyond `most` bytes, and counts what becomes objects: elements, items, values."""

    def __init__(self, file: BinaryIO, most: int) -> None:
        self._file, self._left = file, most
        self._reads, self._items, self._values = 0, 0, 0
        self.tell = file.tell
        self.seek = file.seek

    def read(self, size: int = -1) -> bytes:
        if size > self._left or size < 0:
            raise HeaderError("a header that claims to be longer than the limit")
        found = self._file.read(size)
        self._left -= len(found)
        self._items += sum(map(found.count, ITEM_MARKS))
        self._values += found.count(b"\\")
        if self._items > limits.MAX_SEQUENCE_ITEMS or self._values > limits.MAX_SEQUENCE_VALUES:
            most = f"{limits.MAX_SEQUENCE_ITEMS} items or {limits.MAX_SEQUENCE_VALUES} values"
            raise HeaderError(f"a header with more than {most}")
        self._reads += 1
        if self._reads > limits.MAX_HEADER_READS + limits.READS_PER_ITEM * self._items:
            raise HeaderError(f"a header of more than {limits.MAX_HEADER_READS // 3} elements")
        return found
