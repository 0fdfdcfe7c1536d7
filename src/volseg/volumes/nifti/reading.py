"""Reading NIfTI, a box at a time.

``.nii`` is memory-mapped, so a box costs its own bytes. ``.nii.gz`` can only be inflated from its start: `inflate`
keeps places to start from, so that reads in any order cost little more than the slices they need.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from volseg.errors import VolumeError
from volseg.geometry import Box
from volseg.volumes.audit import Audit
from volseg.volumes.checks import exact_dtype
from volseg.volumes.nifti.header import NiftiHeader, read_header
from volseg.volumes.nifti.inflate import DENSEST, DamagedGzip, SeekableGzip
from volseg.volumes.volume import Volume

FLOAT32_BITS = 24  # of precision


def open_nifti(path: Path, channel: int | None = None) -> Volume:
    """The NIfTI-1 or NIfTI-2 volume at `path` (for a pair, either of its files).

    channel  which volume of a 4-D image, counted from 0; None: the file must hold one

    Integers stay what they are, and scaled ones stay integers where slope and intercept are whole numbers. All else
    is read as float32: of float64 its first 24 bits. Where the grid comes from is told in `nifti_header`, and what is
    doubtful about it in ``audit.warnings``. Trailing axes of length 1 are dropped.

    Raises VolumeError where the file is no NIfTI (Analyze 7.5 included), is too short for what its header promises
    (found before any voxel is read, or memory taken), has not the axes asked for, holds colours or complex numbers,
    or has no usable affine.
    """
    header = read_header(path, channel)
    kind = _CompressedNifti if header.packed else _PlainNifti
    return kind(header)


class _Nifti(Volume):
    def __init__(self, header: NiftiHeader) -> None:
        self.path, self.space, self.header = header.path, header.space, header
        self.dtype, self.forms = _dtype(header), header.forms
        _, h, w = header.space.shape
        self.row_bytes = w * header.raw.itemsize
        self.plane_bytes = h * self.row_bytes
        self.end = header.end
        self.audit = Audit(
            used=(header.path.name,), inputs=header.files, warnings=(*header.warnings, *_precision(header, self.dtype)),
            facts=(*header.facts, ("read as", self.dtype.name)),
        )  # fmt: skip

    def _rescale(self, raw: np.ndarray, out: np.ndarray) -> None:
        """Scaled voxels of `raw` into `out`."""
        slope, intercept = self.header.slope, self.header.intercept
        if slope == 1 and intercept == 0:
            with np.errstate(over="ignore"):  # a float64 beyond float32 becomes inf, which every reader checks for
                out[...] = raw
        elif self.dtype.kind == "i":
            out[...] = raw.astype(np.int64) * int(slope) + int(intercept)
        else:
            with np.errstate(over="ignore", invalid="ignore"):
                out[...] = raw.astype(np.float64) * slope + intercept

    def _promise(self) -> str:
        size = self.header.data.stat().st_size
        return f"{self.header.data}: truncated: {size} bytes, its header promises {self.end}; copy or download it again"


class _PlainNifti(_Nifti):
    """An uncompressed file, memory-mapped."""

    format = "NIfTI"

    def __init__(self, header: NiftiHeader) -> None:
        super().__init__(header)
        if header.data.stat().st_size < self.end:
            raise VolumeError(self._promise())

    def read(self, box: Box) -> np.ndarray:
        out = np.empty(box.shape, self.dtype)
        if out.size:
            stored = np.memmap(self.header.data, self.header.raw, "r", self.header.offset, self.shape)
            self._rescale(stored[box.slices], out)
        return out


class _CompressedNifti(_Nifti):
    """A gzip file. One thread at a time may read it."""

    format = "NIfTI, gzip"
    whole_slices = True

    def __init__(self, header: NiftiHeader) -> None:
        super().__init__(header)
        if header.data.stat().st_size * DENSEST < self.end:  # no gzip file of this size can hold that much
            raise VolumeError(self._promise())
        self.contents = SeekableGzip(header.data, self.end)

    def read(self, box: Box) -> np.ndarray:
        out = np.empty(box.shape, self.dtype)
        if not out.size:
            return out
        header, (_, h0, w0), (d1, h1, w1) = self.header, box.start, box.stop
        rows = bytearray((h1 - h0) * self.row_bytes)
        for index in range(box.shape[0]):
            plane = box.start[0] + index
            with self._faults(plane):
                self.contents.read(header.offset + plane * self.plane_bytes + h0 * self.row_bytes, rows)
            self._rescale(np.frombuffer(rows, header.raw).reshape(h1 - h0, self.shape[2])[:, w0:w1], out[index])
        if header.offset + d1 * self.plane_bytes == self.end:
            with self._faults(d1):
                self.contents.check_end()
        return out

    def close(self) -> None:
        """Let go of the file; the next read opens it again and inflates it from its start."""
        self.contents.close()

    @contextmanager
    def _faults(self, plane: int) -> Iterator[None]:
        file = self.header.data
        try:
            yield
        except EOFError:
            self.close()
            where = f"after {plane} of {self.shape[0]} slices"
            raise VolumeError(f"{file}: truncated {where}; copy or download it again") from None
        except (OSError, DamagedGzip) as error:
            self.close()
            raise VolumeError(f"{file}: damaged ({error}); copy or download it again") from error


def _dtype(header: NiftiHeader) -> np.dtype[Any]:
    """What is read: the stored integers where nothing scales them, wider ones where that is exact, else float32."""
    if header.raw.kind == "f":
        return np.dtype(np.float32)
    if header.slope == 1 and header.intercept == 0:
        return header.raw.newbyteorder("=")
    limits = np.iinfo(header.raw)
    return exact_dtype((int(limits.min), int(limits.max)), header.slope, header.intercept)


def _precision(header: NiftiHeader, dtype: np.dtype[Any]) -> list[str]:
    """A warning where integers of more digits than float32 holds are read as float32."""
    if header.raw.kind == "f" or dtype.kind != "f" or header.raw.itemsize * 8 <= FLOAT32_BITS:
        return []
    return [f"{header.raw.name} voxels are scaled by fractions and read as float32, which holds {FLOAT32_BITS} bits"]
