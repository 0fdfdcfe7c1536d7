"""One file that all ranks write, each its pieces at their own place, without MPI-IO: POSIX positioned writes."""

from __future__ import annotations

import os
from pathlib import Path

from volseg.volumes.output import Output, Unit


class SharedFile(Output):
    """An output whose pieces follow each other in one file, in the order of the units, from `offset` bytes on."""

    def __init__(self, offset: int) -> None:
        self._offset = offset
        self._descriptor = -1

    def open(self, temporary: Path) -> None:
        self._descriptor = os.open(temporary, os.O_WRONLY)

    def store(self, unit: Unit | None, piece: bytes | memoryview, before: int, total: int) -> None:
        # Units are in file order and ranks in unit order, so a rank writes behind those below it.
        position = self._offset + before
        self._offset += total
        view = memoryview(piece)
        while view:
            written = os.pwrite(self._descriptor, view, position)
            view, position = view[written:], position + written

    def finish(self) -> None:
        os.fsync(self._descriptor)
        self.abandon()

    def abandon(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
