"""The stored bytes of one frame: found in its file, and read without the frames around it.

pydicom reads the header. The pixels are found here, because a frame of a file of thousands must cost no more than the
frame, and because every length in the file must be checked against the file before it is believed.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, BinaryIO

from volseg.errors import VolumeError, first_line
from volseg.volumes.dicom import limits
from volseg.volumes.dicom.image import Entry

PIXEL_ELEMENTS = [
    "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored",
    "HighBit", "PixelRepresentation", "ExtendedOffsetTable",
]  # fmt: skip
OVERLAY_BIT_POSITIONS = [0x60000102 + (group << 17) for group in range(16)]
PIXEL_DATA, FLOAT_PIXEL_DATA, DOUBLE_PIXEL_DATA = 0x7FE00010, 0x7FE00008, 0x7FE00009
ITEM, END_OF_ITEMS = 0xFFFEE000, 0xFFFEE0DD
UNDEFINED = 0xFFFFFFFF
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
        if self.syntax.is_encapsulated != (length == UNDEFINED):
            raise self._wrong(f"pixel data do not have the form of their transfer syntax, {self.syntax.name}")
        self._pieces = self._encapsulated() if length == UNDEFINED else self._native(length)

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
        from pydicom import dcmread
        from pydicom.filereader import read_dataset
        from pydicom.uid import DeflatedExplicitVRLittleEndian

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about values that say nothing of the pixels
            if self.syntax == DeflatedExplicitVRLittleEndian:
                with file:
                    inflated = self._inflate(file)
                return inflated, read_dataset(inflated, False, True, stop_when=_at_pixel_data)
            tags = [*PIXEL_ELEMENTS, *OVERLAY_BIT_POSITIONS]
            return file, dcmread(file, stop_before_pixels=True, force=True, specific_tags=tags)

    def _inflate(self, file: BinaryIO) -> BinaryIO:
        """The inflated data set of a deflated file, of no more than limits.MAX_MEMBER_BYTES."""
        data = file.read()
        if data[128:132] != b"DICM" or data[132:136] != b"\x02\x00\x00\x00":
            raise self._wrong("deflated, without the file meta information that says where")
        start = 144 + struct.unpack_from("<I", data, 140)[0]
        limit = limits.MAX_MEMBER_BYTES
        engine = zlib.decompressobj(-zlib.MAX_WBITS)
        inflated = engine.decompress(data[start:], limit)
        if engine.unconsumed_tail:
            raise self._wrong(f"inflates to more than {limit >> 20} MiB; store it uncompressed")
        return io.BytesIO(inflated)

    def _enter_pixel_data(self) -> tuple[bool, int]:
        """Read the head of the pixel data's element: whether it holds words, and its length."""
        order = "<" if self.syntax.is_little_endian else ">"
        head = self._file.read(8)
        if len(head) < 8:
            raise self._wrong("no pixel data; the file ends before them")
        group, element = struct.unpack(f"{order}HH", head[:4])
        if (group << 16 | element) != PIXEL_DATA:
            raise self._wrong("no pixel data in whole numbers (PixelData)")
        if self.syntax.is_implicit_VR:
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
        if not (allocated in (8, 16, 32) or one_bit) or not 0 < stored <= allocated or high != stored - 1:
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
        offsets = self._offset_table(table_at, table_length)
        if not offsets:
            if len(fragments) != self.frames:
                raise self._wrong(f"{len(fragments)} fragments, {self.frames} frames, and no table to tell them apart")
            return [[fragment] for fragment in fragments]
        first = fragments[0][0] - 8 if fragments else 0  # offsets count from the first fragment's own head
        starts = {offset - 8 - first: number for number, (offset, _) in enumerate(fragments)}
        if len(offsets) != self.frames or any(offset not in starts for offset in offsets):
            raise self._wrong("its table of frames does not fit its pixel data; copy it again")
        begins = [starts[offset] for offset in offsets]  # frames need not be stored in order
        ends = dict(pairwise([*sorted(begins), len(fragments)]))
        return [fragments[begin : ends[begin]] for begin in begins]

    def _items(self) -> list[tuple[int, int]]:
        """(offset, length) of every item: the basic offset table, then the fragments."""
        items: list[tuple[int, int]] = []
        at = self._start
        while len(items) <= MOST_FRAGMENTS:
            self._file.seek(at)
            head = self._file.read(8)
            group, element, length = struct.unpack("<HHI", head) if len(head) == 8 else (0, 0, 0)
            tag = group << 16 | element
            if tag == END_OF_ITEMS and len(items) > 1:
                return items
            if len(head) < 8 or (tag == ITEM and at + 8 + length > self._end):
                raise self._wrong("truncated: the file ends within its compressed pixel data; copy it again")
            if tag != ITEM:
                raise self._wrong("compressed pixel data without fragments, or with something between them")
            items.append((at + 8, length))
            at += 8 + length
        raise self._wrong(f"more than {MOST_FRAGMENTS} fragments of pixel data")

    def _offset_table(self, at: int, length: int) -> list[int]:
        extended = self.header.get("ExtendedOffsetTable")
        if extended:
            return list(struct.unpack(f"<{len(extended) // 8}Q", extended[: len(extended) // 8 * 8]))
        self._file.seek(at)
        return list(struct.unpack(f"<{length // 4}I", self._file.read(length // 4 * 4)))


def _at_pixel_data(tag: Any, _vr: Any, _length: int) -> bool:
    return tag in (PIXEL_DATA, FLOAT_PIXEL_DATA, DOUBLE_PIXEL_DATA)
