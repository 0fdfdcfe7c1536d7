"""Writing a volume from many ranks at once, into one file that is the same on any number of them.

The volume is cut into units whose boxes depend on its shape and type alone. Units go to ranks in rounds, and nobody
ever holds more than one. What appears under the output's name is whole: all is written under a temporary name in the
same folder, flushed to disk, and renamed.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from volseg.distributed.communicator import Communicator
from volseg.errors import VolumeError
from volseg.volumes.output import Output, Unit
from volseg.volumes.volume import Space

SUFFIXES = (".nii.gz", ".nii", ".zarr")
Produce = Callable[[list[Unit | None]], np.ndarray | None]


def write_volume(
    path: str | Path,
    space: Space,
    dtype: npt.DTypeLike,
    produce: Produce,
    communicator: Communicator,
    *,
    channels: int | None = None,
    overwrite: bool = False,
    names: Sequence[str] = (),
) -> None:
    """Write a volume on `space` to `path` (.nii, .nii.gz or .zarr). Collective.

    In round t rank r owns unit t * size + r. Every rank calls ``produce(units)`` once a round, with the units of all
    ranks (None past the end), and gets back its own unit's voxels, of the unit's shape, or None where it has none. So
    a producer may communicate, or just compute ``units[communicator.rank]``.

    channels  K makes a volume of K channels: classes last in NIfTI (i, j, k, c), first in zarr (c, z, y, x)
    names     of the channels, kept in the file

    Raises VolumeError, on all ranks, before any work where the output cannot be (see `check_output`), and OSError
    where the disk is full. Where `produce` raises on one rank, that error is raised on all and nothing is left behind.
    """
    path, size = Path(path), communicator.size
    output = _output(path, space, np.dtype(dtype), channels, tuple(names))
    error: Exception | None = None
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    if communicator.is_root:
        try:
            check_output(path, overwrite)
            with _faults(path):
                output.create(temporary)
        except Exception as raised:
            error = raised
    try:
        communicator.raise_together(error)
        temporary = communicator.broadcast(temporary)
        error = _attempt(path, lambda: output.open(temporary))  # shared in the first round
        for first in range(0, len(output.units), size):
            units: list[Unit | None] = list(output.units[first : first + size])
            units += [None] * (size - len(units))
            error = _round(path, output, units, produce, communicator, error)
        communicator.raise_together(error or _attempt(path, output.finish))
        error = None
        if communicator.is_root:
            error = _attempt(path, lambda: output.publish(temporary, path))
        communicator.raise_together(error)
    except BaseException:
        output.abandon()
        if communicator.is_root:
            _remove(temporary)
        raise


def check_output(path: str | Path, overwrite: bool = False) -> None:
    """Raise VolumeError unless a volume can be written to `path`: its suffix, its folder, and what is there already."""
    path = Path(path)
    suffix = volume_suffix(path)
    folder = path.parent
    if not folder.is_dir():
        raise VolumeError(f"{path}: no folder {folder}; make it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise VolumeError(f"{path}: the folder {folder} is not writable; choose another")
    if not path.exists() and not path.is_symlink():
        return
    if not overwrite:
        raise VolumeError(f"{path}: exists already; give --overwrite, or another name")
    from volseg.volumes.reading import is_zarr_store

    if suffix == ".zarr" and not is_zarr_store(path):
        raise VolumeError(f"{path}: exists and is no zarr store, so it is not overwritten; give another name")
    if suffix != ".zarr" and path.is_dir():
        raise VolumeError(f"{path}: exists and is a folder; give another name")


def volume_suffix(path: Path) -> str:
    """``.nii.gz``, ``.nii`` or ``.zarr``. Raises VolumeError for any other name."""
    for suffix in SUFFIXES:
        if path.name.lower().endswith(suffix) and len(path.name) > len(suffix):
            return suffix
    raise VolumeError(f"{path}: cannot write that format; let the name end in .nii.gz, .nii or .zarr")


def _output(path: Path, space: Space, dtype: np.dtype[Any], channels: int | None, names: tuple[str, ...]) -> Output:
    suffix = volume_suffix(path)
    stored = np.dtype(np.uint8) if dtype.kind == "b" else dtype
    if suffix == ".zarr":
        from volseg.volumes.zarr_output import ZarrOutput

        return ZarrOutput(space, stored, channels, names)
    from volseg.volumes.nifti_output import NiftiOutput

    return NiftiOutput(space, stored, channels, names, compress=suffix == ".nii.gz")


def _round(
    path: Path,
    output: Output,
    units: list[Unit | None],
    produce: Produce,
    communicator: Communicator,
    earlier: Exception | None,
) -> Exception | None:
    """One round. An error of storing is returned and shared in the next round, where all ranks meet anyway."""
    mine = units[communicator.rank]
    error = earlier
    piece: Any = b""
    try:
        voxels = produce(units)
        if mine is not None and error is None:
            piece = output.encode(mine, _checked(mine, voxels))
    except Exception as raised:
        error = error or raised
    outcomes = communicator.gather_all((error, len(piece)))
    errors = [e for e, _ in outcomes if e is not None]
    if errors:
        raise errors[0]
    sizes = [size for _, size in outcomes]
    return _attempt(path, lambda: output.store(mine, piece, sum(sizes[: communicator.rank]), sum(sizes)))


def _checked(unit: Unit, voxels: np.ndarray | None) -> np.ndarray:
    if voxels is None or voxels.shape != unit.box.shape:
        raise AssertionError(f"produced {None if voxels is None else voxels.shape} for a unit of {unit.box.shape}")
    return voxels


def _attempt(path: Path, step: Callable[[], None]) -> Exception | None:
    try:
        with _faults(path):
            step()
    except Exception as error:
        return error
    return None


@contextmanager
def _faults(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):  # no fault of the user's input
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise VolumeError(f"{path}: cannot be written ({error.strerror or error}); choose another folder") from error


def _remove(temporary: Path) -> None:
    with suppress(OSError):
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
