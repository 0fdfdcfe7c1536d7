"""The pixels of a DICOM segmentation, a frame at a time.

One bit a pixel is read here: frames follow one another without a gap, so most begin within a byte. (highdicom 0.28's
`ImageFileReader` reads one byte too few of such a frame.) All else is read as the pixels of an image are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from volseg.errors import VolumeError
from volseg.volumes.dicom import limits
from volseg.volumes.dicom.encoding import enter
from volseg.volumes.dicom.finding.sources import FileEntry
from volseg.volumes.dicom.labels.objects import damage
from volseg.volumes.dicom.pixels.decoding import stored_values
from volseg.volumes.dicom.pixels.stream import PixelStream

BACKGROUND = 0
NATIVE = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1")  # little-endian, implicit and explicit
TAG_BYTES, UNDEFINED = 4, 0xFFFFFFFF


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
        if self._bits == 1:
            self._check_bits()

    def labels(self, index: int, label: int) -> np.ndarray:
        """Labels [rows, columns] of frame `index` (from 0), which shows `label` (of a label map: its own values)."""
        pixels = self._bit_frame(index) if self._bits == 1 else self._frame(index)
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

    def close(self) -> None:
        """Let go of the file; the next frame opens it again."""
        if self._file is not None:
            self._file.close()
        if self._stream is not None:
            self._stream.close()
        self._file = self._stream = None

    def _check_bits(self) -> None:
        """Find where the bits begin, and that they are all there."""
        if self._syntax not in NATIVE:
            from pydicom.uid import UID

            raise VolumeError(f"{self.path}: one bit a pixel in {UID(self._syntax).name}; store it uncompressed")
        head = 8 if self._syntax == NATIVE[0] else 12  # tag and length, or tag, representation, two zeros, length
        with self.path.open("rb") as file:
            file.seek(self._pixels_at)
            start = file.read(head)
            size = file.seek(0, 2) - self._pixels_at - head
        if start[:TAG_BYTES] != b"\xe0\x7f\x10\x00" or int.from_bytes(start[-4:], "little") == UNDEFINED:
            raise VolumeError(f"{self.path}: no pixel data where its header ends; the file is damaged")
        need = -(-self.count * self.rows * self.columns // 8)
        if min(size, int.from_bytes(start[-4:], "little")) < need:
            raise VolumeError(f"{self.path}: truncated: {size} bytes of pixels, its header promises {need}")
        self._pixels_at += head

    def _bit_frame(self, index: int) -> np.ndarray:
        if self._file is None:
            self._file = self.path.open("rb")
        pixels = self.rows * self.columns
        first, offset = divmod(index * pixels, 8)
        self._file.seek(self._pixels_at + first)
        packed = np.frombuffer(self._file.read(-(-(offset + pixels) // 8)), np.uint8)
        if packed.size * 8 < offset + pixels:
            raise VolumeError(f"{self.path}: truncated while it was read")
        bits = np.unpackbits(packed, bitorder="little")[offset : offset + pixels]
        return bits.reshape(self.rows, self.columns)

    def _frame(self, index: int) -> np.ndarray:
        if self._stream is None:
            self._stream = PixelStream(FileEntry(self.path), self._syntax)
        return stored_values(self._stream, index, f"{self.path} frame {index + 1}")
