"""Voxels that lie in a file one after the other, W the fastest, plain or packed: read a box at a time.

A plain file is memory-mapped, so a box costs its own bytes. Contents of gzip or zlib can only be inflated from their
start: `inflate` keeps places to start from, so that reads in any order cost little more than the slices they need.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from volseg.errors import VolumeError
from volseg.geometry import Box, Triple
from volseg.volumes.audit import Audit
from volseg.volumes.inflate import DENSEST, DamagedGzip, SeekableGzip
from volseg.volumes.nifti.forms import Forms
from volseg.volumes.volume import Space, Volume


@dataclass(frozen=True, kw_only=True)
class Stored:
    """Where the voxels of one volume lie in a file, and what they mean.

    data       the file
    shape      (D, H, W)
    offset     bytes before its first voxel; of packed voxels in their contents
    end        where the last voxel of all the file's channels ends, counted in the same way
    raw        their type as stored, byte order included
    dtype      the type that they are read as
    slope, intercept  value = stored * slope + intercept
    beside     how many channels lie beside each other in every voxel, and `part` which of them is read
    packed     whether gzip or zlib packs them, and `start` how many bytes of the file lie before that
    """

    data: Path
    shape: Triple
    offset: int
    end: int
    raw: np.dtype[Any]
    dtype: np.dtype[Any]
    slope: float = 1.0
    intercept: float = 0.0
    beside: int = 1
    part: int = 0
    packed: bool = False
    start: int = 0


def open_stored(
    stored: Stored, path: Path, space: Space, format: str, audit: Audit, forms: Forms | None = None
) -> Volume:  # fmt: skip
    """The volume that `stored` describes.

    path    the file that the user named, which may hold the header alone
    format  its file format in words

    Raises VolumeError where the file is too short for all its voxels, before any is read or memory taken.
    """
    volume = (PackedVolume if stored.packed else PlainVolume)(stored)
    volume.path, volume.space, volume.audit, volume.forms = path, space, audit, forms
    volume.format = f"{format}, gzip" if stored.packed else format
    return volume


class _StoredVolume(Volume):
    def __init__(self, stored: Stored) -> None:
        self.stored, self.dtype = stored, stored.dtype

    def _rescale(self, raw: np.ndarray, out: np.ndarray) -> None:
        """Scaled voxels of `raw` into `out`."""
        slope, intercept = self.stored.slope, self.stored.intercept
        if slope == 1 and intercept == 0:
            with np.errstate(over="ignore"):  # a float64 beyond float32 becomes inf, which every reader checks for
                out[...] = raw
        elif self.dtype.kind == "i":
            out[...] = raw.astype(np.int64) * int(slope) + int(intercept)
        else:
            with np.errstate(over="ignore", invalid="ignore"):
                out[...] = raw.astype(np.float64) * slope + intercept

    def _require(self, most: int) -> None:
        """Raise VolumeError where the voxels end behind byte `most`."""
        file, end = self.stored.data, self.stored.end
        if most < end:
            size = file.stat().st_size - self.stored.start
            raise VolumeError(
                f"{file}: truncated: {size} bytes, its header promises {end}; copy or download it again"
            )  # fmt: skip


class PlainVolume(_StoredVolume):
    """Voxels that nothing packs, memory-mapped."""

    def __init__(self, stored: Stored) -> None:
        super().__init__(stored)
        self._require(stored.data.stat().st_size)

    def read(self, box: Box) -> np.ndarray:
        out, stored = np.empty(box.shape, self.dtype), self.stored
        if out.size:
            sides = stored.shape if stored.beside == 1 else (*stored.shape, stored.beside)
            mapped = np.memmap(stored.data, stored.raw, "r", stored.offset, sides)
            self._rescale(mapped[box.slices] if stored.beside == 1 else mapped[(*box.slices, stored.part)], out)
        return out


class PackedVolume(_StoredVolume):
    """Voxels that gzip or zlib packs. One thread at a time may read them."""

    whole_slices = True

    def __init__(self, stored: Stored) -> None:
        super().__init__(stored)
        # No deflated data of this size can hold more.
        self._require((stored.data.stat().st_size - stored.start) * DENSEST)
        self.contents = SeekableGzip(stored.data, stored.end, stored.start)
        self._row_bytes = stored.shape[2] * stored.beside * stored.raw.itemsize
        self._plane_bytes = stored.shape[1] * self._row_bytes

    def read(self, box: Box) -> np.ndarray:
        out = np.empty(box.shape, self.dtype)
        if not out.size:
            return out
        stored, (_, h0, w0), (d1, h1, w1) = self.stored, box.start, box.stop
        rows = bytearray((h1 - h0) * self._row_bytes)
        for index in range(box.shape[0]):
            plane = box.start[0] + index
            with self._faults(plane):
                self.contents.read(stored.offset + plane * self._plane_bytes + h0 * self._row_bytes, rows)
            raw = np.frombuffer(rows, stored.raw).reshape(h1 - h0, stored.shape[2], stored.beside)
            self._rescale(raw[:, w0:w1, stored.part], out[index])
        if stored.offset + d1 * self._plane_bytes == stored.end:
            with self._faults(d1):
                self.contents.check_end()
        return out

    def close(self) -> None:
        """Let go of the file; the next read opens it again and inflates it from its start."""
        self.contents.close()

    @contextmanager
    def _faults(self, plane: int) -> Iterator[None]:
        file = self.stored.data
        try:
            yield
        except EOFError:
            self.close()
            where = f"after {plane} of {self.stored.shape[0]} slices"
            raise VolumeError(f"{file}: truncated {where}; copy or download it again") from None
        except (OSError, DamagedGzip) as error:
            self.close()
            raise VolumeError(f"{file}: damaged ({error}); copy or download it again") from error


def stored_as(
    *, data: Path, shape: Triple, offset: int, raw: np.dtype[Any], channels: int = 1, part: int = 0,
    beside: bool = False, packed: bool = False, start: int = 0,
) -> Stored:  # fmt: skip
    """Channel `part` of `channels` volumes that nothing scales, integers as they are and all else as float32.

    offset  bytes before the first of them; of packed voxels in their contents, which begin after `start` bytes
    beside  the channels lie beside each other in every voxel, else one volume after the other
    """
    volume_bytes = math.prod(shape) * raw.itemsize
    return Stored(
        data=data, shape=shape, raw=raw, offset=offset + (0 if beside else part * volume_bytes),
        end=offset + channels * volume_bytes,
        dtype=np.dtype(np.float32) if raw.kind == "f" else raw.newbyteorder("="), beside=channels if beside else 1,
        part=part if beside else 0, packed=packed, start=start,
    )  # fmt: skip
