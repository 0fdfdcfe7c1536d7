"""DICOM headers parsed by pydicom on a leash: pixels never read, and bytes, items and inflation bounded by `limits`.

pydicom trusts the lengths in a file: it reads what an element claims to hold, inflates a deflated data set whole, and
makes an object of some kilobytes of every eight bytes that say "item".
"""

from __future__ import annotations

import io
import os
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from volseg.volumes.dicom import limits
from volseg.volumes.dicom.image import printable
from volseg.volumes.dicom.numbers import with_points

DEFLATED = "1.2.840.10008.1.2.1.99"
UNCOMPRESSED = {
    (True, True): "1.2.840.10008.1.2",
    (False, True): "1.2.840.10008.1.2.1",
    (False, False): "1.2.840.10008.1.2.2",
}
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
    are), and the bytes that follow in the file (None where that is not known, in a deflated data set)."""

    tag: int
    length: int | None
    present: int | None


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
    from pydicom.filereader import read_partial

    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    plain, size_known = _inflated(file, most)
    guarded = _Guarded(plain, most)
    seen: dict[str, Pixels] = {}

    def at_pixels(tag: int, vr: str | None, length: int) -> bool:
        if tag in PIXEL_TAGS:
            present = max(0, size - guarded.tell()) if size_known else None
            seen["pixels"] = Pixels(int(tag), None if length == UNDEFINED_LENGTH else length, present)
        return tag >= PIXEL_TAGS[1]  # what follows pixels is padding and signatures

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about values that volseg does not use
        tags = [tag_for_keyword(keyword) for keyword in keywords]
        dataset = read_partial(cast(BinaryIO, guarded), at_pixels, force=True, specific_tags=cast(Any, tags))
        values, notes = with_points({keyword: _value(dataset, keyword) for keyword in keywords if keyword in dataset})
        meta = dataset.file_meta
        if size_known:
            syntax = str(meta.get("TransferSyntaxUID") or UNCOMPRESSED.get(dataset.original_encoding, "unknown"))
        else:
            syntax = DEFLATED
        return Parsed(values, syntax, str(meta.get("MediaStorageSOPClassUID", "")), seen.get("pixels"), notes)


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


def _inflated(file: BinaryIO, most: int) -> tuple[BinaryIO, bool]:
    """The file itself; or where its data set is deflated, the beginning of it inflated, without preamble and meta."""
    from pydicom.filereader import read_dataset

    start = file.read(1 << 13)
    file.seek(0)
    if DEFLATED.encode() not in start or start[128:132] != b"DICM":
        return file, True
    guarded = _Guarded(file, most)
    guarded.seek(132)
    meta = read_dataset(cast(BinaryIO, guarded), False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
    if str(meta.get("TransferSyntaxUID")) != DEFLATED:
        file.seek(0)
        return file, True
    deflated = file.read(most)
    return io.BytesIO(zlib.decompressobj(-zlib.MAX_WBITS).decompress(deflated, most)), False


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
