"""Open a volume, whatever its format."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from volseg.config.stored_run import is_run_folder
from volseg.errors import VolumeError
from volseg.volumes.dicom.options import DicomOptions
from volseg.volumes.file_names import ending_of, names_in, stem_of
from volseg.volumes.signs import ANNEX_MARK
from volseg.volumes.volume import Volume


def open_volume(
    path: str | Path, dicom: DicomOptions = DicomOptions(), channel: int | None = None  # noqa: B008  (frozen)
) -> Volume:  # fmt: skip
    """The volume at `path`: a NIfTI file (.nii, .nii.gz, .hdr + .img), a .zarr folder, or DICOM: a folder, a zip, a
    DICOMDIR, a multi-frame file.

    dicom    which series, and what may be mended
    channel  which volume of a 4-D NIfTI file, counted from 0; None: the file must hold one

    Only headers are read. Each format's library is imported when a file of it is met.

    Raises VolumeError where there is nothing, or nothing that can be read faithfully, or where `dicom` asks for
    something of another format.
    """
    path = Path(path)
    try:
        if not path.exists():
            raise VolumeError(f"{path}: {missing(path)}")
        kind = format_of(path)
        if channel is not None and kind != "nifti":
            raise VolumeError(f"{path}: no NIfTI file; of other formats each channel must be a volume of its own")
        if kind == "zarr":
            _refuse_options(path, dicom)
            from volseg.volumes.zarr.reading import open_zarr

            return open_zarr(path)
        if kind == "nifti":
            _refuse_options(path, dicom)
            from volseg.volumes.nifti.reading import open_nifti

            return open_nifti(path, channel)
        _refuse_volseg_folder(path)
        from volseg.volumes.dicom.volume import open_dicom

        try:
            return open_dicom(path, dicom)
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


def format_of(path: Path) -> Literal["zarr", "nifti", "dicom"]:
    """What a path must be if it is a volume or labels at all, by its name and by what kind of thing it is.

    Raises VolumeError for a file of another format, with what brings it in.
    """
    from volseg.volumes.nifti.reading import is_nifti_name

    if path.is_dir() and (path.suffix.lower() == ".zarr" or is_zarr_store(path)):
        return "zarr"
    if not path.is_file():
        return "dicom"
    if is_nifti_name(path):
        return "nifti"
    from volseg.volumes.contents import kind_of

    kind = kind_of(path)
    if kind is not None and not (kind.is_nifti or kind.archive or kind.vague):
        raise VolumeError(f"{path}: {kind}")
    return "nifti" if kind is not None and kind.is_nifti else "dicom"


def is_zarr_store(path: Path) -> bool:
    """Whether a folder holds zarr metadata, or has nothing but the name."""
    if not path.is_dir():
        return False
    metadata = any((path / name).is_file() for name in ("zarr.json", ".zgroup", ".zarray"))
    return metadata or (path.suffix.lower() == ".zarr" and not any(path.iterdir()))


def _refuse_options(path: Path, dicom: DicomOptions) -> None:
    if dicom != DicomOptions():
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
    from volseg.volumes.dataset import DESCRIPTION, IMAGES  # which reads volumes itself

    if (path / DESCRIPTION).is_file():
        raise VolumeError(f"{path}: a data set folder; give one image of it, from {path / IMAGES}")
    if is_run_folder(path):
        raise VolumeError(f"{path}: a run folder, not a volume; give a NIfTI file, a .zarr or a DICOM folder")
