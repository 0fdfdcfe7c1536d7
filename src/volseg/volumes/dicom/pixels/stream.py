"""The stored bytes of one frame: found in its file, and read without the frames around it.

pydicom reads the header. The pixels are found here, because a frame of a file of thousands must cost no more than the
frame, and because every length in the file must be checked against the file before it is believed.
"""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, BinaryIO

from volseg.errors import VolumeError, first_line
from volseg.volumes.dicom import limits
from volseg.volumes.dicom.encoding import enter
from volseg.volumes.dicom.image import Entry

PIXEL_ELEMENTS = [
    "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored",
    "HighBit", "PixelRepresentation", "ExtendedOffsetTable",
]  # fmt: skip
OVERLAY_BIT_POSITIONS = [0x60000102 + (group << 17) for group in range(16)]
PIXEL_DATA, FLOAT_PIXEL_DATA, DOUBLE_PIXEL_DATA = 0x7FE00010, 0x7FE00008, 0x7FE00009
FIRST_ITEM_TAG = 0xFFFE0000
RLE = "1.2.840.10008.1.2.5"
ITEM, END_OF_ITEMS = 0xFFFEE000, 0xFFFEE0DD
ITEM_HEAD = b"\xfe\xff\x00\xe0"
UNDEFINED = 0xFFFFFFFF
CODESTREAM_HEADS = (b"\xff\xd8", b"\xff\x4f")  # of JPEG and JPEG-LS; of JPEG 2000
GREY = ("MONOCHROME1", "MONOCHROME2")
MOST_FRAGMENTS = 1_000_000


class PixelStream:
    """The pixel data of one open file, whose photometric interpretation must be one of `meanings`.

    header   the elements that describe the pixels (PIXEL_ELEMENTS), as a pydicom Dataset
    syntax   transfer syntax, a pydicom UID
    overlays  whether the bits above the stored ones hold drawings, as old scanners put them there
    words    whether native pixel data are stored as 16-bit words (value representation OW)

    Raises VolumeError, naming the file, where there are no pixel data, or their lengths cannot be true.
    """

    def __init__(self, entry: Entry, transfer_syntax: str, meanings: Sequence[str] = GREY) -> None:
        from pydicom.uid import UID

        self._name, self._meanings = entry.name, meanings
        self.syntax = UID(transfer_syntax)
        self._file = entry.open()
        try:
            self._survey()
        except (VolumeError, MemoryError):
            self.close()
            raise
        except Exception as error:  # pydicom reports damage by many types
            self.close()
            raise self._wrong(f"a damaged DICOM file ({first_line(error)}); copy it again") from error

    def _survey(self) -> None:
        """Find out where the frames are, and that they can be there."""
        self._file, self.header = self._read_header(self._file)
        self.words, length = self._enter_pixel_data()
        self._start = self._file.tell()
        self._end = self._file.seek(0, io.SEEK_END)
        self.frames = max(1, int(self.header.get("NumberOfFrames") or 1))
        self.frame_bytes = self._native_frame_bytes()
        self.overlays = any(self.header[tag].value for tag in OVERLAY_BIT_POSITIONS if tag in self.header)
        self._file.seek(self._start)
        in_items = length == UNDEFINED or (self.syntax.is_encapsulated and self._file.read(4) == ITEM_HEAD)
        if self.syntax.is_encapsulated != in_items:
            raise self._wrong(f"pixel data do not have the form of their transfer syntax, {self.syntax.name}")
        if length != UNDEFINED:
            self._end = min(self._end, self._start + length)
        self._pieces = self._encapsulated() if in_items else self._native(length)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def frame(self, index: int) -> bytes:
        """The bytes of frame `index` (from 0), encoded as they are stored."""
        if not 0 <= index < self.frames:
            raise self._wrong(f"no frame {index + 1}; it holds {self.frames}")
        parts = []
        for offset, length in self._pieces[index]:
            self._file.seek(offset)
            parts.append(self._file.read(length))
            if len(parts[-1]) != length:
                raise self._wrong("truncated: the file ends within its pixel data; copy it again")
        return b"".join(parts)

    def _wrong(self, what: str) -> VolumeError:
        return VolumeError(f"{self._name}: {what}")

    def _read_header(self, file: BinaryIO) -> tuple[BinaryIO, Any]:
        """The file (inflated where it is deflated), standing at its pixel data, and the header."""
        from pydicom.filereader import read_dataset
        from pydicom.tag import Tag

        limit = limits.MAX_MEMBER_BYTES
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about values that say nothing of the pixels
            data = enter(file, limit)
            if data.file is not file:
                file.close()
            if data.cut:
                raise self._wrong(f"inflates to more than {limit >> 20} MiB; store it uncompressed")
            self._implicit, self._order = data.implicit, "<" if data.little else ">"
            tags = [*map(Tag, PIXEL_ELEMENTS), *map(Tag, OVERLAY_BIT_POSITIONS)]
            header = read_dataset(
                data.file, data.implicit, data.little, stop_when=_at_pixel_data, specific_tags=list(tags)
            )
        return data.file, header

    def _enter_pixel_data(self) -> tuple[bool, int]:
        """Read the head of the pixel data's element: whether it holds words, and its length."""
        order = self._order
        head = self._file.read(8)
        if len(head) < 8:
            raise self._wrong("no pixel data; the file ends before them")
        group, element = struct.unpack(f"{order}HH", head[:4])
        if (group << 16 | element) != PIXEL_DATA:
            raise self._wrong("no pixel data in whole numbers (PixelData)")
        if self._implicit:
            return True, struct.unpack(f"{order}I", head[4:])[0]
        if head[4:6] not in (b"OB", b"OW", b"UN"):
            raise self._wrong(f"pixel data of value representation {head[4:6]!r}; DICOM allows OB and OW")
        long_length = self._file.read(4)
        if len(long_length) < 4:
            raise self._wrong("no pixel data; the file ends before them")
        return head[4:6] == b"OW", struct.unpack(f"{order}I", long_length)[0]

    def _native_frame_bytes(self) -> int:
        """Bytes of one frame when uncompressed; checks the elements it follows from."""
        numbers = {}
        for keyword in ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit"):
            value = self.header.get(keyword)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise self._wrong(f"{keyword} is {value}; its pixels cannot be read")
            numbers[keyword] = value
        rows, columns, allocated, stored, high = numbers.values()
        if rows * columns == 0 or rows * columns > limits.MAX_SLICE_PIXELS:
            raise self._wrong(
                f"{rows} x {columns} pixels; volseg reads slices of 1 to {limits.MAX_SLICE_PIXELS} pixels"
            )
        one_bit = allocated == 1 and self.syntax.is_encapsulated  # of a segmentation
        shifted = high != stored - 1 and self.syntax.is_encapsulated and self.syntax != RLE
        known = allocated in (8, 16, 32) or one_bit
        if not known or not 0 < stored <= high + 1 <= allocated or shifted:
            raise self._wrong(f"{allocated} bits allocated, {stored} stored, high bit {high}: no layout that is read")
        samples, meaning = self.header.get("SamplesPerPixel", 1), self.header.get("PhotometricInterpretation")
        if samples != 1 or meaning not in self._meanings:
            raise self._wrong(f"pixels are {meaning} with {samples} samples; CT must be MONOCHROME2 or MONOCHROME1")
        if allocated == 8 and rows * columns % 2 and self.words and not self.syntax.is_little_endian:
            raise self._wrong("an odd number of bytes in big-endian words; store it in little endian")
        return rows * columns * allocated // 8

    def _native(self, length: int) -> list[list[tuple[int, int]]]:
        """(offset, length) of each frame of uncompressed pixels."""
        needed = self.frames * self.frame_bytes
        found = min(length, self._end - self._start)
        if found < needed:
            raise self._wrong(f"truncated pixel data: {found} bytes, its header promises {needed}; copy it again")
        return [[(self._start + n * self.frame_bytes, self.frame_bytes)] for n in range(self.frames)]

    def _encapsulated(self) -> list[list[tuple[int, int]]]:
        """(offset, length) of the pieces of each compressed frame."""
        (table_at, table_length), *fragments = self._items()
        if self.frames == 1:
            return [fragments]
        if len(fragments) == self.frames:  # so many tables are wrong that one that is not needed is not believed
            ordered = self._begins(fragments, self._offset_table(table_at, table_length))
            return [[fragments[n]] for n in ordered or range(self.frames)]
        begins = self._begins(fragments, self._offset_table(table_at, table_length)) or self._heads(fragments)
        if len(begins) != self.frames:
            raise self._wrong(f"{len(fragments)} fragments, {self.frames} frames, and no table to tell them apart")
        ends = dict(pairwise([*sorted(begins), len(fragments)]))
        return [fragments[begin : ends[begin]] for begin in begins]

    def _begins(self, fragments: list[tuple[int, int]], offsets: list[int]) -> list[int]:
        """The first fragment of each frame by a table of offsets; empty where that is no true table of all frames."""
        first = fragments[0][0] - 8 if fragments else 0  # offsets count from the first fragment's own head
        starts = {offset - 8 - first: number for number, (offset, _) in enumerate(fragments)}
        begins = [starts.get(offset, -1) for offset in offsets]  # frames need not be stored in order
        true = len(set(begins)) == len(begins) == self.frames and min(begins, default=-1) == 0
        return begins if true else []

    def _heads(self, fragments: list[tuple[int, int]]) -> list[int]:
        """The fragments that begin a codestream."""
        heads = []
        for number, (offset, _) in enumerate(fragments):
            self._file.seek(offset)
            if self._file.read(2) in CODESTREAM_HEADS:
                heads.append(number)
        return heads

    def _items(self) -> list[tuple[int, int]]:
        """(offset, length) of every item: the basic offset table, then the fragments.

        Their end is marked. The mark may be missing where the data set ends too, be zeros, or the next element stand in
        its place, as some archives leave it (DCMTK#118): what tells is that all fragments are whole. A fragment of odd
        length may be followed by the byte that it should have counted.
        """
        items: list[tuple[int, int]] = []
        at = self._start
        while len(items) <= MOST_FRAGMENTS:
            tag, length = self._item_head(at)
            if tag != ITEM and items and items[-1][1] % 2 and self._item_head(at + 1)[0] in (ITEM, END_OF_ITEMS):
                at += 1
                tag, length = self._item_head(at)
            ends = tag in (END_OF_ITEMS, None) or tag == length == 0 or PIXEL_DATA < (tag or 0) < FIRST_ITEM_TAG
            if ends and len(items) > 1:
                return items
            if tag is None or (tag == ITEM and at + 8 + length > self._end):
                raise self._wrong("truncated: the file ends within its compressed pixel data; copy it again")
            if tag != ITEM:
                raise self._wrong("compressed pixel data without fragments, or with something between them")
            items.append((at + 8, length))
            at += 8 + length
        raise self._wrong(f"more than {MOST_FRAGMENTS} fragments of pixel data")

    def _item_head(self, at: int) -> tuple[int | None, int]:
        """(tag, length) of what begins there; (None, 0) where nothing does."""
        self._file.seek(at)
        head = self._file.read(min(8, max(0, self._end - at)))
        if len(head) < 8:
            return None, 0
        group, element, length = struct.unpack("<HHI", head)
        return group << 16 | element, length

    def _offset_table(self, at: int, length: int) -> list[int]:
        extended = self.header.get("ExtendedOffsetTable")
        if extended:
            return list(struct.unpack(f"<{len(extended) // 8}Q", extended[: len(extended) // 8 * 8]))
        self._file.seek(at)
        return list(struct.unpack(f"<{length // 4}I", self._file.read(length // 4 * 4)))


def _at_pixel_data(tag: Any, _vr: Any, _length: int) -> bool:
    return tag in (PIXEL_DATA, FLOAT_PIXEL_DATA, DOUBLE_PIXEL_DATA)
