"""Volumes by the names of their files: endings count in any case, as Windows and scanners write them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from volseg.volumes.formats.raw import RAW
from volseg.volumes.formats.registry import FORMATS, LISTED

FILE_ENDINGS = LISTED
DESCRIPTION = "dataset.json"
IMAGES, LABELS = "imagesTr", "labelsTr"
"""What a data set's folder holds, in nnU-Net's layout."""

DICOM_ENDINGS = (".dcm", ".dicom", ".ima")
NOT_READ = (
    ".nii.bz2", ".nii.xz", ".nii.zst", ".nii.zip", ".nii.gz.gz", ".mgz", ".mgh", ".mnc", ".mnc.gz", ".gipl", ".gipl.gz",
    ".vti",
)  # fmt: skip
"""Endings of images and labels that volseg reads nowhere."""
INGESTED_ALONE = tuple(
    suffix
    for format in FORMATS
    if format is not RAW  # which may be the voxels of a header beside it
    for suffix in format.suffixes
    if suffix not in (*LISTED, ".zip")
)
"""Endings of images and labels that are read, but not taken from a folder of volumes."""
FOREIGN_ENDINGS = (*NOT_READ, *INGESTED_ALONE, *DICOM_ENDINGS)

LOOKED_INTO = 32  # files of a folder that may tell that it is a DICOM series
NAMED = 3


def ending_of(name: str, endings: Sequence[str] = FILE_ENDINGS) -> str:
    """The ending of a file's name as it is written there, ``.NII.GZ`` too; empty where it has none of `endings`."""
    lower = name.lower()
    length = max((len(ending) for ending in endings if lower.endswith(ending)), default=0)
    return name[len(name) - length :]


def stem_of(name: str, endings: Sequence[str] = FILE_ENDINGS) -> str:
    """A file's name without its ending."""
    return name[: len(name) - len(ending_of(name, endings))]


def volumes_in(folder: Path, endings: Sequence[str] = FILE_ENDINGS) -> dict[str, list[Path]]:
    """Volumes by name without ending; hidden files (as macOS leaves beside each) are none. Of no folder: nothing.

    A name has several paths where they differ in their ending alone (``a.nii.gz``, ``a.NII.GZ``, ``a.zarr``).
    """
    there: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        ending = ending_of(path.name)
        if ending and ending.lower() in endings and not path.name.startswith("."):
            there[stem_of(path.name)].append(path)
    return dict(there)


def names_in(folder: Path, endings: Sequence[str] = FILE_ENDINGS) -> dict[str, Path]:
    """As `volumes_in`, one path a name: the one whose ending comes first in `endings`."""

    def place(path: Path) -> tuple[int, str]:
        return endings.index(ending_of(path.name).lower()), path.name.swapcase()  # of a.nii.gz and a.NII.GZ the first

    return {name: min(paths, key=place) for name, paths in volumes_in(folder, endings).items()}


def foreign_in(folder: Path) -> list[Path]:
    """Images or labels of formats that are passed over in a folder of volumes, by name; DICOM series below it too."""
    if not folder.is_dir():
        return []
    return [path for path in sorted(folder.iterdir()) if not path.name.startswith(".") and _is_foreign(path)]


def foreign_text(folder: Path, foreign: Sequence[Path]) -> str:
    """What is said of them."""
    named = ", ".join(path.name for path in foreign[:NAMED])
    more = f" and {len(foreign) - NAMED} more" if len(foreign) > NAMED else ""
    read = all(path.is_dir() or not path.name.lower().endswith(NOT_READ) for path in foreign)
    remedy = f"volseg ingest {foreign[0].name} -o CASE.nii.gz brings one in" if read else "convert them to .nii.gz"
    return f"{folder}: passed over, as a folder of volumes holds {', '.join(FILE_ENDINGS)}: {named}{more}; {remedy}"


def _is_foreign(path: Path) -> bool:
    if ending_of(path.name):
        return False
    return _holds_dicom(path) if path.is_dir() else bool(ending_of(path.name, FOREIGN_ENDINGS))


def _holds_dicom(folder: Path) -> bool:
    try:
        return any(file.name.lower().endswith(DICOM_ENDINGS) for file in islice(folder.iterdir(), LOOKED_INTO))
    except OSError:
        return False
