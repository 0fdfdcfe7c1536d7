"""The pixels of a DICOM segmentation, a frame at a time.

One bit a pixel is read here (see `bit_layout`): frames may begin within a byte. (highdicom 0.28's `ImageFileReader`
reads one byte too few of such a frame.) All else is read as the pixels of an image are; where frames of one bit are
compressed, what the decoder makes of them has a byte a pixel, or eight pixels a byte.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from volseg.errors import VolumeError
from volseg.volumes.dicom import limits
from volseg.volumes.dicom.encoding import enter
from volseg.volumes.dicom.finding.sources import FileEntry
from volseg.volumes.dicom.labels.bit_layout import frame_starts
from volseg.volumes.dicom.labels.objects import damage
from volseg.volumes.dicom.pixels.decoding import RLE, require_decoder, stored_values
from volseg.volumes.dicom.pixels.stream import GREY, PixelStream

BACKGROUND = 0
NATIVE = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1")  # little-endian, implicit and explicit
JPEG_2000 = "1.2.840.10008.1.2.4.90"
DEFLATED_FRAMES = "1.2.840.10008.1.2.8.1"  # Deflated Image Frame Compression, Supplement 244
TAG_BYTES, UNDEFINED = 4, 0xFFFFFFFF
RLE_HEADER = 64
MEANINGS = (*GREY, "PALETTE COLOR")  # a label map may have colours, whose numbers are its labels


class SegmentFrames:
    """The frames of one SEG file, and what their pixels mean.

    header        all of the file but its pixels
    rows, columns, count  of the frames
    kind          SegmentationType: BINARY, FRACTIONAL or LABELMAP

    Raises VolumeError where the file is damaged, is shorter than its frames, or is of another kind.
    """

    def __init__(self, path: Path) -> None:
        from pydicom import dcmread

        self.path = path
        with path.open("rb") as file, damage(path):
            self._syntax = enter(file, 0).syntax
            file.seek(0)
            self.header: Any = dcmread(file, stop_before_pixels=True, force=True)
            self._pixels_at = file.tell()
            self.rows, self.columns = int(self.header.Rows), int(self.header.Columns)
            self.count = int(self.header.get("NumberOfFrames") or 1)
            self.kind = str(self.header.get("SegmentationType", "BINARY"))
            self._most = int(self.header.get("MaximumFractionalValue", 1)) if self.kind == "FRACTIONAL" else 1
            padding = self.header.get("PixelPaddingValue")
            self._padding = padding if isinstance(padding, int) else BACKGROUND
            self._bits = int(self.header.BitsAllocated)
            described = len(self.header.PerFrameFunctionalGroupsSequence)
        if self.kind not in ("BINARY", "FRACTIONAL", "LABELMAP"):
            raise VolumeError(f"{path}: SegmentationType {self.kind!r}; volseg reads BINARY and LABELMAP")
        if not 0 < self.rows * self.columns <= limits.MAX_SLICE_PIXELS or self.count > limits.MAX_FRAMES:
            what = f"{self.count} frames of {self.rows} x {self.columns} pixels"
            raise VolumeError(f"{path}: {what}; is its header damaged?")
        if described != self.count:
            raise VolumeError(f"{path}: {self.count} frames of pixels, but {described} described; the file is damaged")
        self._file: BinaryIO | None = None
        self._stream: PixelStream | None = None
        self._native_bits = self._bits == 1 and self._syntax in NATIVE
        self._length, self._starts = 0, np.arange(self.count) * (self.rows * self.columns)
        if self._native_bits:
            self._check_bits()
        elif self._bits == 1 and self._syntax != DEFLATED_FRAMES:
            require_decoder(self._syntax, str(path))

    def settle(self, segments: Sequence[int]) -> list[str]:
        """Find out where the frames, which show `segments`, begin. Returns warnings.

        Raises VolumeError where that cannot be known.
        """
        if not self._native_bits:
            return []
        pixels = self.rows * self.columns
        self._starts, notes = frame_starts(self.path, segments, pixels, self._length, self._is_clear)
        self.close()
        return notes

    def labels(self, index: int, label: int) -> np.ndarray:
        """Labels [rows, columns] of frame `index` (from 0), which shows `label` (of a label map: its own values)."""
        pixels = self._pixels(index)
        if self.kind == "LABELMAP":
            return np.where(pixels == self._padding, BACKGROUND, pixels) if self._padding else pixels
        marked = pixels != 0
        if self.kind == "FRACTIONAL" and (pixels[marked] != self._most).any():
            part = int(pixels[marked & (pixels != self._most)][0])
            raise VolumeError(
                f"{self.path}: a fractional segmentation, with {part} of {self._most} in frame {index + 1}; store it "
                "as BINARY, with the threshold you choose"
            )
        return np.where(marked, np.uint16(label), np.uint16(BACKGROUND))

    def marked(self, index: int) -> np.ndarray:
        """Which pixels of frame `index` are marked, eight to a byte, the first in the lowest bit; the last ones 0."""
        start, pixels = int(self._starts[index]), self.rows * self.columns
        if self._native_bits and start % 8 == pixels % 8 == 0:
            return self._packed(start // 8, pixels // 8)
        return np.packbits(self.labels(index, 1).ravel() != BACKGROUND, bitorder="little")

    def close(self) -> None:
        """Let go of the file; the next frame opens it again."""
        if self._file is not None:
            self._file.close()
        if self._stream is not None:
            self._stream.close()
        self._file = self._stream = None

    def _check_bits(self) -> None:
        """Find where the bits begin, and that they are all there."""
        head = 8 if self._syntax == NATIVE[0] else 12  # tag and length, or tag, representation, two zeros, length
        with self.path.open("rb") as file:
            file.seek(self._pixels_at)
            start = file.read(head)
            size = file.seek(0, 2) - self._pixels_at - head
        self._length = int.from_bytes(start[-4:], "little")
        if start[:TAG_BYTES] != b"\xe0\x7f\x10\x00" or self._length == UNDEFINED:
            raise VolumeError(f"{self.path}: no pixel data where its header ends; the file is damaged")
        need = max(-(-self.count * self.rows * self.columns // 8), self._length)
        if min(size, self._length) < need:
            raise VolumeError(f"{self.path}: truncated: {size} bytes of pixels, its header promises {need}")
        self._pixels_at += head

    def _is_clear(self, bit: int) -> bool:
        """Whether the bits from this one to the end of its byte are 0."""
        return bit % 8 == 0 or int(self._packed(bit // 8, 1)[0]) >> bit % 8 == 0

    def _pixels(self, index: int) -> np.ndarray:
        if self._bits != 1:
            return stored_values(self._open_stream(self._syntax), index, f"{self.path} frame {index + 1}")
        return self._bit_frame(index) if self._native_bits else self._compressed_bits(index)

    def _bit_frame(self, index: int) -> np.ndarray:
        pixels = self.rows * self.columns
        first, offset = divmod(int(self._starts[index]), 8)
        packed = self._packed(first, -(-(offset + pixels) // 8))
        bits = np.unpackbits(packed, bitorder="little")[offset : offset + pixels]
        return bits.reshape(self.rows, self.columns)

    def _packed(self, first: int, count: int) -> np.ndarray:
        if self._file is None:
            self._file = self.path.open("rb")
        self._file.seek(self._pixels_at + first)
        packed = np.frombuffer(self._file.read(count), np.uint8)
        if packed.size < count:
            raise VolumeError(f"{self.path}: truncated while it was read")
        return packed

    def _compressed_bits(self, index: int) -> np.ndarray:
        """A compressed frame of one bit a pixel."""
        pixels = self.rows * self.columns
        deflated = self._syntax == DEFLATED_FRAMES
        stream = self._open_stream(JPEG_2000 if deflated else self._syntax)  # the form of all that is encapsulated
        if not deflated and self._syntax != RLE:
            stream.header.BitsAllocated = stream.header.BitsStored = 8
            stream.header.HighBit, stream.frame_bytes = 7, pixels
            return stored_values(stream, index, f"{self.path} frame {index + 1}")
        data = stream.frame(index)
        try:
            content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, pixels) if deflated else _from_rle(data)
        except (zlib.error, IndexError) as error:
            raise VolumeError(f"{self.path}: frame {index + 1} is damaged ({error}); copy the file again") from error
        values = np.frombuffer(content, np.uint8)
        if values.size < pixels:  # eight pixels a byte
            values = np.unpackbits(values, bitorder="little")
        if values.size < pixels:
            raise VolumeError(f"{self.path}: frame {index + 1} is damaged: too few pixels in it; copy the file again")
        return values[:pixels].reshape(self.rows, self.columns)

    def _open_stream(self, syntax: str) -> PixelStream:
        if self._stream is None:
            self._stream = PixelStream(FileEntry(self.path), syntax, MEANINGS)
        return self._stream


def _from_rle(data: bytes) -> bytes:
    """One segment of run-length code (PS3.5 annex G). Raises IndexError where it ends early."""
    out, at = bytearray(), max(RLE_HEADER, int.from_bytes(data[4:8], "little"))
    while at < len(data):
        code = data[at]
        if code < 128:
            out += data[at + 1 : at + 2 + code]
            at += 2 + code
        elif code > 128:
            out += data[at + 1 : at + 2] * (257 - code)
            at += 2
        else:
            at += 1
    return bytes(out)
