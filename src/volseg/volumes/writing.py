"""Writing a volume from many ranks at once, into one file that is the same on any number of them.

The volume is cut into units whose boxes depend on its shape and type alone. Units go to ranks in rounds, and nobody
ever holds more than one. What appears under the output's name is whole: all is written under a temporary name in the
same folder, flushed to disk, and renamed.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec

import numpy as np
import numpy.typing as npt

from volseg.distributed.communicator import Communicator, portable
from volseg.errors import VolumeError
from volseg.files import DISK_FAULTS
from volseg.volumes.file_names import ending_of
from volseg.volumes.formats.format import Request
from volseg.volumes.formats.registry import MASKS, WRITTEN, writer_of
from volseg.volumes.formats.zarr import is_zarr_store
from volseg.volumes.label_table import LabelTable
from volseg.volumes.output import Content, Output, Unit
from volseg.volumes.trial import check_room, try_place
from volseg.volumes.volume import Space, Volume
from volseg.volumes.zarr.label_image import LABELS, check_grid, check_store, foreign_entries, label_images, store_of

_P = ParamSpec("_P")
Produce = Callable[[list[Unit | None]], np.ndarray | None]


class Unpublished:
    """A volume written whole under a temporary name; `publish` gives it its own."""

    def __init__(
        self, path: Path, output: Output, temporary: Path, communicator: Communicator, everywhere: bool
    ) -> None:
        self.path, self._output, self._temporary = path, output, temporary
        self._communicator, self._everywhere = communicator, everywhere

    def publish(self) -> None:
        """Give the volume its name. Collective. Where that fails, nothing is left."""

        def name() -> None:
            with _faults(self.path):
                self._output.publish(self._temporary, self.path)

        try:
            self._communicator.on_root(name)
        except BaseException:
            self.discard()
            raise

    def discard(self) -> None:
        """Remove what was written; nothing where it was published. On any rank, by itself."""
        self._output.abandon()
        if self._communicator.is_root or self._everywhere:
            remove(self._temporary)


@contextmanager
def all_or_none() -> Iterator[list[Unpublished]]:
    """Volumes that are put into the list get their names at the end, in its order; after an error before that, none."""
    volumes: list[Unpublished] = []
    try:
        yield volumes
        for volume in volumes:
            volume.publish()
    except BaseException:
        for volume in volumes:
            volume.discard()
        raise


def prepare_volume(
    path: str | Path,
    space: Space,
    dtype: npt.DTypeLike,
    produce: Produce,
    communicator: Communicator,
    *,
    channels: int | None = None,
    overwrite: bool = False,
    names: Sequence[str] = (),
    labels: LabelTable | None = None,
    source: Volume | None = None,
    fixes: Sequence[str] = (),
    produce_communicates: bool = False,
) -> Unpublished:
    """Write a volume on `space` for `path`, of an ending in `formats.registry`; a mask also for STORE.zarr/labels/NAME.

    Collective.

    In round t rank r owns unit t * size + r. Every rank calls ``produce(units)`` once a round, with the units of all
    ranks (None past the end), and gets back its own unit's voxels, of the unit's shape, or None where it has none. So
    a producer may communicate, or just compute ``units[communicator.rank]``.

    channels  K makes a volume of K channels: classes last in NIfTI (i, j, k, c), first in zarr (c, z, y, x)
    names     of the channels, kept in the file
    labels    says that this is a mask: names and colours, kept in the file
    source    the scan that this is of, on whose grid it lies: a DICOM SEG (.dcm) refers to its slices, and a NIfTI file
              says where its voxels lie as the scan's own header says it (`nifti.forms`)
    fixes     what was mended in the data on the way here (`Audit.fixes`), kept in the file
    produce_communicates  `produce` exchanges data with other ranks. Where it fails on one rank, the others may wait in
              it for ever, so the error is raised there at once: the program must then end the job, and so the others

    Raises VolumeError, on all ranks, before any work where the output cannot be (see `check_output`), and OSError
    where the disk is full. Where a `produce` that does not communicate raises on one rank, that error is raised on all.
    Nothing is left behind.
    """
    path, size = Path(path), communicator.size
    stored = np.dtype(np.uint8) if np.dtype(dtype).kind == "b" else np.dtype(dtype)
    content = Content(
        space=space, dtype=stored, channels=channels, names=tuple(names), labels=labels, fixes=tuple(fixes)
    )
    output = _output(path, content, source)
    # Not the process's number: in containers a killed run and the next one often have the same.
    # A label is made beside the folder of the labels, so that a store without any is left without that folder.
    folder = store_of(path) or path.parent
    temporary = folder / communicator.on_root(lambda: f".{path.name}.{secrets.token_hex(4)}.part")
    # Where a producer communicates and fails, the root may never get to remove it.
    written = Unpublished(path, output, temporary, communicator, everywhere=produce_communicates)

    def create() -> None:
        _check_place(path, content, overwrite)
        with _faults(path):
            output.create(temporary)

    try:
        communicator.on_root(create)
        error = _attempt(path, lambda: output.open(temporary))  # shared in the first round
        for first in range(0, len(output.units), size):
            units: list[Unit | None] = list(output.units[first : first + size])
            units += [None] * (size - len(units))
            error = _round(path, output, units, produce, communicator, error, produce_communicates)
        communicator.raise_together(error or _attempt(path, output.finish))
    except BaseException:
        written.discard()
        raise
    return written


def _publishing(prepare: Callable[_P, Unpublished]) -> Callable[_P, None]:
    def write_volume(*arguments: _P.args, **options: _P.kwargs) -> None:
        """Write a volume, whole or not at all: `prepare_volume`, published at once. Collective; raises as it does."""
        prepare(*arguments, **options).publish()

    return write_volume


write_volume = _publishing(prepare_volume)


@dataclass(frozen=True)
class Intended:
    """A volume that is to be written: what `prepare_volume` will be given."""

    path: Path
    content: Content
    source: Volume | None = None


def rehearse(volumes: Sequence[Intended], overwrite: bool, beside: Mapping[Path, int] | None = None) -> list[str]:
    """Try, before the voxels are there, all that can refuse these volumes when they are. On the root rank.

    beside  bytes of other files that will be there at the same time
    out     what the user should know of them, one line each

    Raises VolumeError as `prepare_volume` does, and where a disk has too little room for all of them.
    """
    needs, remarks, formats = dict(beside or {}), [], set()
    for volume in volumes:
        path, content = volume.path, volume.content
        output = _output(path, content, volume.source)
        _check_place(path, content, overwrite)
        needs[path] = output.least_bytes
        suffix = volume_suffix(path, mask=content.labels is not None)
        if suffix not in ("", ".zarr"):
            try_place(path, output.least_bytes)
        if suffix not in formats:  # what one of them has to say, all have
            remarks += [f"{path}: {line}" for line in output.rehearse()]
        formats.add(suffix)
    check_room(needs)
    return remarks


def _check_place(path: Path, content: Content, overwrite: bool) -> None:
    check_output(path, overwrite, mask=content.labels is not None)
    store = store_of(path)
    if content.labels is not None and store is not None:
        check_grid(store, path, content.space)


def check_output(path: str | Path, overwrite: bool = False, *, mask: bool = False) -> None:
    """Raise VolumeError unless a volume can be written to `path`: its suffix, its folder, and what is there already.

    A file is made there for a moment (`trial.try_place`).

    mask  it is to be a mask, which may also go into an OME-Zarr (STORE.zarr/labels/NAME) or a DICOM SEG (.dcm; see
          `dicom.seg.source.check_source` for what that asks of the scan)
    """
    path = Path(path)
    suffix = volume_suffix(path, mask=mask)
    store = store_of(path) if suffix == "" else None
    if store is not None:
        check_store(store, path)
    _check_folder(path if store is None else store / LABELS)
    if store is not None and (store / LABELS).exists():
        _check_folder(path)
    if not path.exists() and not path.is_symlink():
        return
    if not overwrite:
        raise VolumeError(f"{path}: exists already; give --overwrite, or another name")
    folder = store is not None or suffix == ".zarr"
    if folder and not is_zarr_store(path):
        raise VolumeError(f"{path}: exists and is no zarr store, so it is not overwritten; give another name")
    held = label_images(path) if folder and store is None else []
    if held:
        some = ", ".join(held[:3]) + (", ..." if len(held) > 3 else "")
        raise VolumeError(
            f"{path}: holds label images ({some}), which would go with it; move or remove them, or give another name"
        )
    foreign = foreign_entries(path) if folder else []
    if foreign:
        some = ", ".join(foreign[:3]) + (", ..." if len(foreign) > 3 else "")
        raise VolumeError(
            f"{path}: holds {some}, which is no part of a zarr store, so it is not overwritten; move it away"
        )
    if not folder and path.is_dir():
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
    try_place(path)


def volume_suffix(path: Path, *, mask: bool = False) -> str:
    """The ending of a volume's name, in lower case, of those that are written (`formats.registry.WRITTEN`); of a `mask`
    also of `MASKS`, and nothing for STORE.zarr/labels/NAME.

    Raises VolumeError for any other name.
    """
    name = path.name.lower()
    suffix = ending_of(name, MASKS if mask else WRITTEN)
    if mask and store_of(path) is not None and suffix in ("", ".zarr"):
        return ""
    if suffix and len(name) > len(suffix):
        return suffix
    masks_only = [ending for ending in MASKS if ending not in WRITTEN]
    more = (
        f", or a mask's in {' or '.join(masks_only)}, or be that of a label, SCAN.zarr/labels/NAME, or of a folder "
        "that is there"
        if mask
        else ""
    )
    listed = f"{', '.join(WRITTEN[:-1])} or {WRITTEN[-1]}"
    raise VolumeError(f"{path}: cannot write that format; let the name end in {listed}{more}")


def _output(path: Path, content: Content, source: Volume | None) -> Output:
    labels, stored = content.labels, content.dtype
    suffix = volume_suffix(path, mask=labels is not None)
    if labels is not None and (stored.kind not in "iu" or content.channels is not None):
        raise VolumeError(f"{path}: labels must be whole numbers of one channel, not {stored}; write them as a volume")
    writer = writer_of(suffix)
    assert writer.output is not None
    return writer.output(Request(path=path, suffix=suffix, content=content, source=source))


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
    outcomes = communicator.gather_all((None if error is None else portable(error), len(piece), output.note(piece)))
    first = next((rank for rank, (e, _, _) in enumerate(outcomes) if e is not None), None)
    if first is not None:
        raise error if error is not None and first == communicator.rank else outcomes[first][0]
    sizes = [size for _, size, _ in outcomes]
    output.hear([note for _, _, note in outcomes if note is not None])
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


def remove(temporary: Path) -> None:
    """Delete a file or folder that is no result; a failure to do so is no second error."""
    with suppress(OSError):
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
