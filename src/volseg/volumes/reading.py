"""Open a volume, whatever its format."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from volseg.errors import VolumeError
from volseg.volumes.volume import Volume


def open_volume(path: str | Path) -> Volume:
    """The volume at `path`: a NIfTI file (.nii, .nii.gz, .hdr + .img), a .zarr folder, or a folder of one DICOM series.

    Only headers are read. Each format's library is imported when a file of it is met.

    Raises VolumeError where there is nothing, or nothing that can be read faithfully.
    """
    from volseg.volumes.nifti import is_nifti_name

    path = Path(path)
    try:
        if path.is_dir():
            return _open_folder(path)
        if not path.exists():
            raise VolumeError(f"{path}: no such file or folder")
        if is_nifti_name(path):
            from volseg.volumes.nifti import open_nifti

            return open_nifti(path)
        _refuse_file(path)
    except OSError as error:
        raise VolumeError(f"{path}: cannot be read ({error.strerror or error})") from error


def is_zarr_store(path: Path) -> bool:
    """Whether a folder holds zarr metadata, or has nothing but the name."""
    if not path.is_dir():
        return False
    metadata = any((path / name).is_file() for name in ("zarr.json", ".zgroup", ".zarray"))
    return metadata or (path.suffix.lower() == ".zarr" and not any(path.iterdir()))


def _open_folder(path: Path) -> Volume:
    if path.suffix.lower() == ".zarr" or is_zarr_store(path):
        from volseg.volumes.zarr_store import open_zarr

        return open_zarr(path)
    if (path / "dataset.json").is_file():
        raise VolumeError(f"{path}: a data set folder; give one image of it, from {path / 'imagesTr'}")
    if (path / "config.toml").is_file():
        raise VolumeError(f"{path}: a run folder, not a volume; give a NIfTI file, a .zarr or a DICOM folder")
    from volseg.volumes.dicom import open_dicom

    return open_dicom(path)


def _refuse_file(path: Path) -> NoReturn:
    with path.open("rb") as file:
        start = file.read(132)
    if start[128:] == b"DICM":
        what = "a DICOMDIR" if path.name.upper().startswith("DICOMDIR") else "one DICOM file"
        raise VolumeError(f"{path}: {what}; give the folder that holds its series, such as {path.parent}")
    if start[:4] == b"PK\x03\x04":
        raise VolumeError(f"{path}: a zip archive; unpack it and give the folder of one series")
    raise VolumeError(f"{path}: of no format that volseg reads; give .nii, .nii.gz, a .zarr folder or a DICOM folder")
