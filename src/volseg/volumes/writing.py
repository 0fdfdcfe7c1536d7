"""Writing a volume from many ranks at once, into one file that is the same on any number of them.

The volume is cut into units whose boxes depend on its shape and type alone. Units go to ranks in rounds, and nobody
ever holds more than one. What appears under the output's name is whole: all is written under a temporary name in the
same folder, flushed to disk, and renamed.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from volseg.distributed.communicator import Communicator, portable
from volseg.errors import VolumeError
from volseg.files import DISK_FAULTS
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
    produce_communicates: bool = False,
) -> None:
    """Write a volume on `space` to `path` (.nii, .nii.gz or .zarr). Collective.

    In round t rank r owns unit t * size + r. Every rank calls ``produce(units)`` once a round, with the units of all
    ranks (None past the end), and gets back its own unit's voxels, of the unit's shape, or None where it has none. So
    a producer may communicate, or just compute ``units[communicator.rank]``.

    channels  K makes a volume of K channels: classes last in NIfTI (i, j, k, c), first in zarr (c, z, y, x)
    names     of the channels, kept in the file
    produce_communicates  `produce` exchanges data with other ranks. Where it fails on one rank, the others may wait in
              it for ever, so the error is raised there at once: the program must then end the job, and so the others

    Raises VolumeError, on all ranks, before any work where the output cannot be (see `check_output`), and OSError
    where the disk is full. Where a `produce` that does not communicate raises on one rank, that error is raised on all.
    Nothing is left behind.
    """
    path, size = Path(path), communicator.size
    output = _output(path, space, np.dtype(dtype), channels, tuple(names))
    error: Exception | None = None
    # Not the process's number: in containers a killed run and the next one often have the same.
    temporary = path.with_name(communicator.broadcast(f".{path.name}.{secrets.token_hex(4)}.part"))
    if communicator.is_root:
        try:
            check_output(path, overwrite)
            with _faults(path):
                output.create(temporary)
        except Exception as raised:
            error = raised
    try:
        communicator.raise_together(error)
        error = _attempt(path, lambda: output.open(temporary))  # shared in the first round
        for first in range(0, len(output.units), size):
            units: list[Unit | None] = list(output.units[first : first + size])
            units += [None] * (size - len(units))
            error = _round(path, output, units, produce, communicator, error, produce_communicates)
        communicator.raise_together(error or _attempt(path, output.finish))
        error = None
        if communicator.is_root:
            error = _attempt(path, lambda: output.publish(temporary, path))
        communicator.raise_together(error)
    except BaseException:
        output.abandon()
        if communicator.is_root or produce_communicates:  # where it does, the root may never get here
            _remove(temporary)
        raise


def check_output(path: str | Path, overwrite: bool = False) -> None:
    """Raise VolumeError unless a volume can be written to `path`: its suffix, its folder, and what is there already."""
    path = Path(path)
    suffix = volume_suffix(path)
    _check_folder(path)
    if not path.exists() and not path.is_symlink():
        return
    if not overwrite:
        raise VolumeError(f"{path}: exists already; give --overwrite, or another name")
    from volseg.volumes.reading import is_zarr_store

    if suffix == ".zarr" and not is_zarr_store(path):
        raise VolumeError(f"{path}: exists and is no zarr store, so it is not overwritten; give another name")
    if suffix != ".zarr" and path.is_dir():
        raise VolumeError(f"{path}: exists and is a folder; give another name")


def check_small_output(path: Path, overwrite: bool = False) -> None:
    """Raise VolumeError unless a small file, such as a report, can be written to `path`."""
    _check_folder(path)
    if path.is_dir():
        raise VolumeError(f"{path}: exists and is a folder; give another name")
    if path.exists() and not overwrite:
        raise VolumeError(f"{path}: exists already; give --overwrite, or another name")


def _check_folder(path: Path) -> None:
    folder = path.parent
    if not folder.is_dir():
        raise VolumeError(f"{path}: no folder {folder}; make it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise VolumeError(f"{path}: the folder {folder} is not writable; choose another")


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
    produce_communicates: bool,
) -> Exception | None:
    """One round. An error of storing is returned and shared in the next round, where all ranks meet anyway."""
    mine = units[communicator.rank]
    error = earlier
    piece: Any = b""
    voxels = produce(units) if produce_communicates else None
    try:
        if not produce_communicates:
            voxels = produce(units)
        if mine is not None and error is None:
            piece = output.encode(mine, _checked(mine, voxels))
    except Exception as raised:
        error = error or raised
    outcomes = communicator.gather_all((None if error is None else portable(error), len(piece)))
    first = next((rank for rank, (e, _) in enumerate(outcomes) if e is not None), None)
    if first is not None:
        raise error if error is not None and first == communicator.rank else outcomes[first][0]
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
        if error.errno in DISK_FAULTS:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise VolumeError(f"{path}: cannot be written ({error.strerror or error}); choose another folder") from error


def _remove(temporary: Path) -> None:
    with suppress(OSError):
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
