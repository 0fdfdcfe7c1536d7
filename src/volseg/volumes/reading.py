"""Open a volume, whatever its format."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from volseg.config.stored_run import is_run_folder
from volseg.errors import VolumeError
from volseg.volumes.contents import kind_of
from volseg.volumes.dicom.options import DicomOptions
from volseg.volumes.file_names import DESCRIPTION, IMAGES, ending_of, names_in, stem_of
from volseg.volumes.formats.dicom import DICOM
from volseg.volumes.formats.format import Format
from volseg.volumes.formats.raw import RAW
from volseg.volumes.formats.registry import file_of, format_at
from volseg.volumes.open_options import OpenOptions
from volseg.volumes.signs import ANNEX_MARK
from volseg.volumes.volume import Volume


def open_volume(
    path: str | Path, options: OpenOptions = OpenOptions(), channel: int | None = None  # noqa: B008  (frozen)
) -> Volume:  # fmt: skip
    """The volume at `path`, of any format in `formats.registry`.

    options  which series of DICOM, what may be mended, what a file does not say itself
    channel  which volume of a file of several channels, counted from 0; None: the file must hold one

    Only headers are read. Each format's library is imported when a file of it is met.

    Raises VolumeError where there is nothing, or nothing that can be read faithfully, or where `options` ask for
    something of another format.
    """
    path = Path(path)
    try:
        if not file_of(path).exists():
            raise VolumeError(f"{path}: {missing(path)}")
        format = RAW if options.shape is not None and format_at(path) is None else format_of(path)
        if channel is not None and format.channels is None:
            raise VolumeError(f"{path}: no NIfTI file; of other formats each channel must be a volume of its own")
        _refuse_options(path, format, options)
        if format is not DICOM:
            return format.open(path, options, channel)
        _refuse_volseg_folder(path)
        try:
            return format.open(path, options, channel)
        except VolumeError:
            scans = sorted(names_in(path).values())
            if scans and not _holds_dicom(path):
                raise VolumeError(_one_at_a_time(path, scans)) from None
            raise
    except OSError as error:
        raise VolumeError(f"{path}: cannot be read ({error.strerror or error})") from error


def missing(path: Path) -> str:
    """What to say of a path at which there is nothing."""
    if not path.is_symlink():
        return "no such file or folder"
    target = os.readlink(path)
    remedy = f"fetch it: git annex get {path}" if ANNEX_MARK in target else "give the file itself"
    return f"a link to {target}, which is not there; {remedy}"


def format_of(path: Path) -> Format:
    """What a path must be if it is a volume or labels at all, by its name, by what kind of thing it is, and by how it
    begins.

    Raises VolumeError for a file of a format that is not read, with what brings it in.
    """
    format = format_at(path)
    if format is not None or not path.is_file():
        return format or DICOM
    kind = kind_of(path)
    if kind is None:
        return DICOM
    if kind.read_as is None and not kind.vague:
        raise VolumeError(f"{path}: {kind}")
    return kind.read_as or DICOM


def _refuse_options(path: Path, format: Format, options: OpenOptions) -> None:
    if format is not RAW and (options.shape is not None or options.dtype is not None):
        raise VolumeError(f"{path}: {format.noun}; --shape and --dtype are for raw voxels, which have no header")
    if format.own_size and options.voxel_size is not None:
        raise VolumeError(f"{path}: {format.noun}, which says how large its voxels are; --voxel-size is for others")
    if format is not DICOM and options.dicom != DicomOptions():
        raise VolumeError(f"{path}: no DICOM; --series, --fix-tilt and --resample-gaps are for DICOM series")


def _holds_dicom(folder: Path) -> bool:
    from volseg.volumes.dicom.finding.marks import looks_like_dicom

    for path in folder.iterdir():
        if path.is_file() and not ending_of(path.name):
            with path.open("rb") as file:
                if looks_like_dicom(file.read(512)):
                    return True
    return False


def _one_at_a_time(folder: Path, scans: Sequence[Path]) -> str:
    """What is said of a folder of scans, such as imagesTs, where one is wanted; the loop is for a shell."""
    first = [path for path in scans if stem_of(path.name).endswith("_0000")]
    files = f"{shlex.quote(str(folder))}/*{'_0000' if len(first) > 1 else ''}{ending_of(scans[0].name)}"
    return (
        f"{folder}: a folder of {len(scans)} volumes, such as {scans[0].name}; give one, or one after the other: "
        f'for f in {files}; do volseg segment "$f" --model RUN; done'
    )


def _refuse_volseg_folder(path: Path) -> None:
    if (path / DESCRIPTION).is_file():
        raise VolumeError(f"{path}: a data set folder; give one image of it, from {path / IMAGES}")
    if is_run_folder(path):
        raise VolumeError(f"{path}: a run folder, not a volume; give a NIfTI file, a .zarr or a DICOM folder")
