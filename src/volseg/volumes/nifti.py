"""Reading NIfTI: the header by nibabel, the voxels by our own reads of a box.

``.nii`` is memory-mapped, so a box costs its own bytes. ``.nii.gz`` can only be inflated from its start: `read` and
`slabs` go through it once, plane by plane, and keep the box alone.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from volseg.errors import VolumeError
from volseg.geometry import Box, Triple
from volseg.volumes.checks import check_affine, exact_dtype
from volseg.volumes.volume import Space, Volume

SUFFIXES = (".nii", ".nii.gz", ".hdr", ".img", ".hdr.gz", ".img.gz")


def is_nifti_name(path: Path) -> bool:
    """Whether the file's name ends like NIfTI's: .nii, .nii.gz, or a .hdr + .img pair."""
    return path.name.lower().endswith(SUFFIXES)


def open_nifti(path: Path) -> Volume:
    """The NIfTI-1 or NIfTI-2 volume at `path` (for a pair, either of its files).

    The affine is nibabel's: sform, else qform, else the header's zooms. Trailing axes of length 1 are dropped.

    Raises VolumeError where the file is no NIfTI, is truncated (an uncompressed one: found here, before any voxel is
    read), is not 3-D, holds colours or complex numbers, or has no usable affine.
    """
    proxy, affine = _load(path)
    shape = _three_sides(proxy.shape, path)
    raw = np.dtype(proxy.dtype)
    if raw.kind not in "iuf":
        what = "colour (RGB)" if raw.kind == "V" else str(raw)
        raise VolumeError(f"{path}: voxels are {what}; give an image of integers or real numbers")
    check_affine(affine, path)
    file = Path(proxy.file_like)
    if not file.is_file():
        raise VolumeError(f"{path}: its other half, {file.name}, is missing; put both files into one folder")
    layout = _Layout(file, int(proxy.offset), raw, float(proxy.slope), float(proxy.inter))
    kind = _CompressedNifti if file.name.lower().endswith(".gz") else _PlainNifti
    return kind(path, Space(shape, affine), layout)


class _Layout:
    """Where the voxels of one file lie and how they are scaled."""

    def __init__(self, file: Path, offset: int, raw: np.dtype[Any], slope: float, intercept: float) -> None:
        self.file, self.offset, self.raw = file, offset, raw
        self.slope, self.intercept = slope, intercept
        if raw.kind == "f":
            self.dtype = np.dtype(np.float32)
        elif slope == 1 and intercept == 0:
            self.dtype = raw.newbyteorder("=")
        else:
            self.dtype = exact_dtype((int(np.iinfo(raw).min), int(np.iinfo(raw).max)), slope, intercept)

    def rescale(self, raw: np.ndarray, out: np.ndarray) -> None:
        """Scaled voxels of `raw` into `out`."""
        if self.slope == 1 and self.intercept == 0:
            with np.errstate(over="ignore"):  # a float64 beyond float32 becomes inf, which every reader checks for
                out[...] = raw
        elif self.dtype.kind == "i":
            out[...] = raw.astype(np.int64) * int(self.slope) + int(self.intercept)
        else:
            out[...] = raw.astype(np.float64) * self.slope + self.intercept


class _Nifti(Volume):
    def __init__(self, path: Path, space: Space, layout: _Layout) -> None:
        self.path, self.space, self.dtype, self.layout = path, space, layout.dtype, layout
        _, h, w = space.shape
        self.plane_bytes = h * w * layout.raw.itemsize


class _PlainNifti(_Nifti):
    """An uncompressed file, memory-mapped."""

    format = "NIfTI"

    def __init__(self, path: Path, space: Space, layout: _Layout) -> None:
        super().__init__(path, space, layout)
        size, need = layout.file.stat().st_size, layout.offset + space.shape[0] * self.plane_bytes
        if size < need:
            raise VolumeError(
                f"{layout.file}: truncated: {size} bytes, its header promises {need}; copy or download it again"
            )

    def read(self, box: Box) -> np.ndarray:
        out = np.empty(box.shape, self.dtype)
        if out.size:
            stored = np.memmap(self.layout.file, self.layout.raw, "r", self.layout.offset, self.shape)
            self.layout.rescale(stored[box.slices], out)
        return out


class _CompressedNifti(_Nifti):
    """A gzip file. Its stream stays where the last read left it, so that reads going forward inflate it once.

    One thread at a time may read it.
    """

    format = "NIfTI, gzip"
    whole_slices = True

    def __init__(self, path: Path, space: Space, layout: _Layout) -> None:
        super().__init__(path, space, layout)
        self._stream: gzip.GzipFile | None = None
        self._next = 0

    def read(self, box: Box) -> np.ndarray:
        out = np.empty(box.shape, self.dtype)
        if not out.size:
            return out
        with self._faults():
            self._seek(box.start[0])
            for index in range(box.shape[0]):
                self.layout.rescale(self._plane()[box.slices[1:]], out[index])
            if box.stop[0] == self.shape[0]:
                self._finish()
        return out

    def _seek(self, plane: int) -> None:
        if self._stream is None or self._next > plane:
            self.close()
            self._stream = gzip.GzipFile(self.layout.file, "rb")
            self._take(bytearray(self.layout.offset))
            self._next = 0
        while self._next < plane:
            self._plane()

    def _plane(self) -> np.ndarray:
        buffer = bytearray(self.plane_bytes)
        self._take(buffer)
        self._next += 1
        return np.frombuffer(buffer, self.layout.raw).reshape(self.shape[1:])

    def _take(self, buffer: bytearray) -> None:
        assert self._stream is not None
        view, filled = memoryview(buffer), 0
        while filled < len(buffer):
            count = self._stream.readinto(view[filled:])
            if not count:
                raise EOFError("the stream ends early")
            filled += count

    def _finish(self) -> None:
        """Read to the end of the stream, past trailing padding, so that gzip checks length and checksum."""
        assert self._stream is not None
        while self._stream.read(1 << 20):
            pass
        self.close()

    def close(self) -> None:
        """Let go of the stream; the next read opens it again."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except EOFError:
            where = f"after {self._next} of {self.shape[0]} slices"
            self.close()
            raise VolumeError(f"{self.layout.file}: truncated {where}; copy or download it again") from None
        except (OSError, zlib.error) as error:
            self.close()
            raise VolumeError(f"{self.layout.file}: damaged ({error}); copy or download it again") from error


def _load(path: Path) -> tuple[Any, np.ndarray]:
    """nibabel's array proxy (shape, dtype, offset, slope, inter; nothing read) and its affine."""
    import nibabel as nib
    from nibabel.imageglobals import LoggingOutputSuppressor

    if not path.is_file():
        raise VolumeError(f"{path}: no such file")
    try:
        with LoggingOutputSuppressor():
            image = nib.load(path)
            affine = np.asarray(image.affine, dtype=np.float64)
    except Exception as error:  # nibabel reports a bad header by a dozen types, ValueError and struct.error among them
        raise VolumeError(f"{path}: not a readable NIfTI file ({_first_line(error)})") from error
    if not isinstance(image, nib.Nifti1Pair):
        raise VolumeError(f"{path}: {type(image).__name__}, not NIfTI; convert it to .nii.gz")
    proxy: Any = image.dataobj
    return proxy, affine


def _three_sides(shape: tuple[int, ...], path: Path) -> Triple:
    """(D, H, W) from NIfTI's (i, j, k, 1, ...)."""
    text = "x".join(str(n) for n in shape)
    sides = tuple(int(n) for n in shape)
    while len(sides) > 3 and sides[-1] == 1:
        sides = sides[:-1]
    if len(sides) != 3:
        raise VolumeError(f"{path}: a {len(sides)}-D image ({text}); volseg reads 3-D volumes: give one volume of it")
    if min(sides) < 1:
        raise VolumeError(f"{path}: an empty image ({text})")
    i, j, k = sides
    return k, j, i


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
