"""Reading a data set of an HDF5 file, box by box: h5py reads the chunks in which a box lies.

The size of voxels is that of ``element_size_um``, in micrometres along z, y, x, as ilastik and ImageJ's HDF5 plugins
write it. h5py is no dependency: it brings the HDF5 library of 17 MB along.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from volseg.errors import VolumeError, first_few, first_line
from volseg.geometry import Box, format_triple
from volseg.volumes.audit import Audit
from volseg.volumes.formats.hdf5 import HDF5, split
from volseg.volumes.header_text import unreadable
from volseg.volumes.open_options import OpenOptions
from volseg.volumes.placing import Size, lps_affine, voxel_size
from volseg.volumes.volume import Space, Volume

ELEMENT_SIZE = "element_size_um"
MOST_NAMES = 4096


def open_hdf5(path: Path, options: OpenOptions) -> Volume:
    """The data set at `path`: ``FILE.h5:/path/in/file``, or the only one of three axes in the file.

    Axes of length 1 beside them are dropped. Integers stay what they are, all else is read as float32.

    Raises VolumeError where h5py is missing, where there is no such data set, or several, and where nobody says how
    large the voxels are.
    """
    file, inside = split(path)
    with _opened(file) as opened:
        data = _data_set(opened, file, inside)
        kept = [axis for axis, side in enumerate(data.shape) if side != 1 or data.ndim == 3]
        if len(kept) != 3:
            raise VolumeError(f"{path}: an array of {format_triple(data.shape)}; volseg reads one volume of 3 axes")
        if data.dtype.kind not in "biuf":
            raise VolumeError(f"{path}: voxels are {data.dtype}; give an array of integers or real numbers")
        if data.external is not None or data.is_virtual:
            raise VolumeError(f"{path}: its voxels lie in other files; copy them into one, with h5repack")
        d, h, w = (int(data.shape[axis]) for axis in kept)
        if min(d, h, w) < 1:
            raise VolumeError(f"{path}: an empty array, {format_triple((d, h, w))}")
        size, warnings = voxel_size(path, _stated(data, kept), options)
        space = Space((d, h, w), lps_affine(path, size))
        packing = f", {data.compression}" if data.compression else ""
        audit = Audit(
            used=(f"{file.name}:{data.name}",), inputs=(file,), warnings=tuple(warnings),
            facts=(("data set", data.name), ("stored as", f"{data.dtype.name}{packing}")),
        )  # fmt: skip
        return _Hdf5Volume(path, file, data, kept, space, audit)


class _Hdf5Volume(Volume):
    """A data set, whose file is opened at the first read. One thread at a time."""

    format = "HDF5"

    def __init__(self, path: Path, file: Path, data: Any, kept: list[int], space: Space, audit: Audit) -> None:
        self.path, self.space, self.audit = path, space, audit
        stored = np.dtype(data.dtype)
        self.dtype = np.dtype({"f": np.float32, "b": np.uint8}.get(stored.kind, stored.newbyteorder("=")))
        chunks = data.chunks
        self.whole_slices = bool(chunks) and all(chunks[axis] >= data.shape[axis] for axis in kept[1:])
        self._file, self._name, self._kept, self._axes = file, str(data.name), kept, data.ndim
        self._open: Any = None

    def read(self, box: Box) -> np.ndarray:
        where: list[Any] = [0] * self._axes
        for axis, cut in zip(self._kept, box.slices, strict=True):
            where[axis] = cut
        try:
            if self._open is None:
                self._open = _h5py(self._file).File(self._file, "r")
            values = self._open[self._name][tuple(where)]
        except (MemoryError, VolumeError):
            raise
        except Exception as error:  # h5py tells the library's errors by several types
            self.close()
            raise VolumeError(f"{self.path}: damaged at {box} ({first_line(error)}); copy it again") from error
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(values, dtype=self.dtype)

    def close(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """An HDF5 file, open. What h5py raises of it, by several types, becomes a VolumeError."""
    h5py = _h5py(file)
    try:
        with h5py.File(file, "r") as opened:
            yield opened
    except (VolumeError, MemoryError):
        raise
    except Exception as error:
        raise unreadable(file, HDF5, error) from error


def _h5py(path: Path) -> Any:
    try:
        import h5py
    except ImportError:
        raise VolumeError(f"{path}: HDF5 needs h5py, which is not installed: pip install 'volseg[hdf5]'") from None
    return h5py


def _data_set(opened: Any, file: Path, inside: str) -> Any:
    """The array that is named, or the only one that may be a volume."""
    h5py = _h5py(file)
    names: list[str] = []
    if "minc-2.0" in opened:
        raise VolumeError(f"{file}: MINC, whose grid volseg does not read; convert it with: mnc2nii {file}")

    def visit(name: str, item: Any) -> bool | None:
        if isinstance(item, h5py.Dataset) and item.ndim >= 3:
            names.append(f"/{name}")
        return True if len(names) >= MOST_NAMES else None

    if inside:
        item = opened.get(inside)
        if isinstance(item, h5py.Dataset):
            return item
    opened.visititems(visit)
    choices = first_few([f"{file}:{name}" for name in names])
    if inside:
        raise VolumeError(f"{file}: holds no array {inside}" + (f"; give one of {choices}" if names else ""))
    if len(names) == 1:
        return opened[names[0]]
    if not names:
        raise VolumeError(f"{file}: holds no array of three axes")
    raise VolumeError(f"{file}: holds {len(names)} arrays; give one of {choices}")


def _stated(data: Any, kept: list[int]) -> Size | None:
    """Millimetres along the three axes by the data set's attribute; None where it has none that makes sense."""
    try:
        sides = [float(side) / 1000 for side in np.ravel(data.attrs[ELEMENT_SIZE])]
    except (KeyError, TypeError, ValueError, OSError):
        return None
    if len(sides) == data.ndim:
        sides = [sides[axis] for axis in kept]
    return (sides[0], sides[1], sides[2]) if len(sides) == 3 else None
