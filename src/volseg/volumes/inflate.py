"""Any part of the contents of a file of gzip or zlib, without inflating what lies before it over and over.

Deflate has no index: to know byte n one must inflate all before it. On its way forward `SeekableGzip` therefore keeps
copies of the decompressor's state (its 32 KiB window and some bookkeeping), evenly spread over the contents; a later
read starts at the nearest copy before it. The idea is zran.c's, from zlib's examples.
"""

from __future__ import annotations

import zlib
from bisect import bisect_right
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

CHECKPOINT_BYTES = 4 << 20  # of contents between checkpoints, at least
MOST_CHECKPOINTS = 128  # about 64 KiB each, so 8 MiB
PIECE = 16 << 10  # of the file, read at a time; a checkpoint keeps at most one of it
STEP = 1 << 20  # of contents passed over at a time
DENSEST = 1032  # bytes that a byte of deflate can stand for, at most
SPARE = 16 << 20  # bytes that may follow the promised contents


class DamagedGzip(Exception):
    """The file is no gzip, or its checksum, length or code is wrong."""


class SeekableGzip:
    """The contents of a gzip file of one or several members, or of a zlib stream, read by offset.

    start     bytes of the file before them
    size      bytes of the contents that the caller will ask for; what follows them is only checked
    inflated  bytes inflated so far, for whoever counts

    Reads that go forward inflate the file once; one that goes back costs at most the way from the nearest checkpoint.
    One thread at a time may read.
    """

    def __init__(self, path: Path, size: int, start: int = 0) -> None:
        self.path, self.inflated, self._start = path, 0, start
        self._every = max(CHECKPOINT_BYTES, -(-size // MOST_CHECKPOINTS))
        self._file: BinaryIO | None = None
        self._state: _State = _fresh(self._start)
        self._checkpoints: list[_State] = []
        self._sound = False

    def read(self, offset: int, buffer: bytearray | memoryview) -> None:
        """Fill `buffer` with the contents from `offset` on.

        Raises EOFError where the contents end before that, DamagedGzip where they cannot be trusted.
        """
        self._go_to(offset)
        view = memoryview(buffer)
        while view:
            piece = self._inflate(len(view))
            view[: len(piece)] = piece
            view = view[len(piece) :]

    def check_end(self) -> None:
        """Inflate from where the last read ended to the end of the file, so that gzip's checksums are checked. Once.

        Raises as `read` does, and DamagedGzip where more than `SPARE` bytes are left, which are not read.
        """
        if self._sound:
            return
        left = SPARE
        while left > 0:
            try:
                left -= len(self._inflate(min(STEP, left)))
            except EOFError:
                if not self._state.between_members:
                    raise
                self._sound = True
                return
        raise DamagedGzip(f"it goes on for more than {SPARE >> 20} MiB after the voxels that its header promises")

    def close(self) -> None:
        """Let go of the file and of the checkpoints; a later read starts anew."""
        if self._file is not None:
            self._file.close()
        self._file, self._state, self._checkpoints = None, _fresh(self._start), []

    def _go_to(self, offset: int) -> None:
        if self._file is None:
            self._file = self.path.open("rb")
            self._state, self._checkpoints = _fresh(self._start), [_fresh(self._start)]
        nearest = self._checkpoints[bisect_right(self._checkpoints, offset, key=lambda state: state.contents) - 1]
        if not nearest.contents <= self._state.contents <= offset:
            self._state = nearest.copy()
        while self._state.contents < offset:
            self._inflate(min(STEP, offset - self._state.contents))

    def _inflate(self, most: int) -> bytes:
        """The next bytes of the contents, 1 to `most` of them."""
        while True:
            packed = self._packed()
            state = self._state
            try:
                piece: bytes = state.decompressor.decompress(packed, min(most, self._every))
            except zlib.error as error:
                raise DamagedGzip(str(error)) from error
            if not packed and not piece and not state.decompressor.eof:
                raise EOFError("the file ends early")
            ended = state.decompressor.eof
            left = state.decompressor.unused_data if ended else state.decompressor.unconsumed_tail
            self._state = _State(
                state.contents + len(piece), state.taken + len(packed) - len(left), _decompressor() if ended
                else state.decompressor, ended,
            )  # fmt: skip
            self.inflated += len(piece)
            if self._state.contents >= self._checkpoints[-1].contents + self._every:
                self._checkpoints.append(self._state.copy())
            if piece:
                return piece

    def _packed(self) -> bytes:
        """The next bytes of the file; between members zeros, with which tapes were padded, are passed over."""
        assert self._file is not None
        self._file.seek(self._state.taken)
        packed = self._file.read(PIECE)
        while self._state.between_members:
            kept = packed.lstrip(b"\0")
            self._state = self._state._replace(taken=self._state.taken + len(packed) - len(kept))
            if kept:
                return kept
            packed = self._file.read(PIECE)
            if not packed:
                raise EOFError("the file ends")
        return packed


class _State(NamedTuple):
    """Where inflation stands: bytes of contents made, bytes of the file taken for them, and the decompressor."""

    contents: int
    taken: int
    decompressor: Any
    between_members: bool

    def copy(self) -> _State:
        return self._replace(decompressor=self.decompressor.copy())


def _decompressor() -> Any:
    return zlib.decompressobj(32 + zlib.MAX_WBITS)  # which tells gzip from zlib by its first bytes


def _fresh(start: int) -> _State:
    return _State(0, start, _decompressor(), False)
