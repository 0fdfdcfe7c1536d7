"""The files that a DICOMDIR names. It may name none outside its own folder."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from volseg.errors import VolumeError
from volseg.volumes.audit import Dropped
from volseg.volumes.dicom import limits
from volseg.volumes.dicom.finding.marks import MEDIA_DIRECTORY
from volseg.volumes.dicom.finding.parsing import parse
from volseg.volumes.dicom.image import printable

MISSING = "named in the DICOMDIR, but missing"
MAX_DIRECTORY_BYTES = limits.MAX_FILES * 512  # a record takes some 200 to 400


def is_directory(file: BinaryIO) -> bool:
    """Whether an open file, which carries DICM, is a DICOMDIR."""
    try:
        return parse(file, ("SOPClassUID",)).media_class == MEDIA_DIRECTORY
    except Exception:  # pydicom reports damage by many types; whoever reads the file will tell
        return False


def referenced_files(path: Path) -> tuple[list[Path], list[Dropped]]:
    """The files that the DICOMDIR at `path` names, each once, in its order; and the references not followed.

    Names are looked up in the DICOMDIR's own folder, case-insensitively, as its media need. Offsets between records
    are not used: the records' flat order already names every file, and cannot loop.

    Raises VolumeError where the file cannot be read as a DICOMDIR.
    """
    root = path.parent.resolve()
    found: dict[Path, None] = {}
    dropped: dict[Dropped, None] = {}
    for parts in _references(path):
        target = None if _unsafe(parts) else _look_up(path.parent, parts)
        if target is not None and not target.resolve().is_relative_to(root):
            target, reason = None, "named in the DICOMDIR, but outside its folder; not opened"
        elif _unsafe(parts):
            reason = "named in the DICOMDIR by a path that may leave its folder; not opened"
        else:
            reason = MISSING
        if target is None:
            dropped[Dropped(f"{path}!{printable('/'.join(parts))}", reason)] = None
        else:
            found[target] = None
    _listing.cache_clear()
    return list(found), list(dropped)


def unlisted_beside(path: Path, listed: Iterable[Path]) -> list[Path]:
    """Files in the folders of those that the DICOMDIR at `path` names which it does not name itself, by their names."""
    named = [path, *listed]
    folders = sorted({file.parent for file in named[1:]})
    known = {(file.parent, file.name) for file in named}
    beside = (file for folder in folders for file in sorted(folder.iterdir()))
    return [file for file in beside if (file.parent, file.name) not in known and file.is_file()][: limits.MAX_FILES]


def _references(path: Path) -> list[list[str]]:
    try:
        with path.open("rb") as file:
            records: Any = parse(file, ("DirectoryRecordSequence",), MAX_DIRECTORY_BYTES).values.get(
                "DirectoryRecordSequence"
            )
        listed = [record.get("ReferencedFileID") for record in records or ()]
    except Exception as error:  # pydicom reports damage by many types
        raise VolumeError(f"{path}: a damaged DICOMDIR ({error}); give the folder itself") from error
    return [[name] if isinstance(name, str) else [str(part) for part in name] for name in listed if name]


def _unsafe(parts: list[str]) -> bool:
    return any(part in ("", ".", "..") or any(sign in part for sign in "/\\:\0") for part in parts)


def _look_up(folder: Path, parts: list[str]) -> Path | None:
    """The file of these names below `folder`, whatever their case, and with or without ISO 9660's version (``;1``)."""
    try:
        for part in parts:
            child = folder / part
            folder = child if child.exists() else _listing(folder)[_plain(part)]
        return folder if folder.is_file() else None
    except (KeyError, OSError):  # no such name; one that no file can have
        return None


def _plain(name: str) -> str:
    return name.split(";")[0].rstrip(".").casefold()


@cache
def _listing(folder: Path) -> dict[str, Path]:
    try:
        return {_plain(child.name): child for child in sorted(folder.iterdir(), reverse=True)}
    except OSError:  # no folder, or not ours to read
        return {}
