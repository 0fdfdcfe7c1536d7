"""Where DICOM images come from: a folder, a zip, the files of a DICOMDIR, or one file.

A source only lists what may be an image, and what it passed over and why; `headers` looks inside.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from volseg.errors import VolumeError
from volseg.volumes.audit import Dropped
from volseg.volumes.dicom import limits
from volseg.volumes.dicom.finding.foreign import Foreign, foreign, packing
from volseg.volumes.dicom.finding.marks import DICOM_MARK, DICOM_MARK_AT, looks_like_dicom
from volseg.volumes.dicom.image import Entry, printable
from volseg.volumes.signs import ANNEX_MARK, HEAD, Form, form_of


@dataclass(frozen=True)
class FileEntry:
    """A file on disk (an `image.Entry`)."""

    file: Path

    @property
    def name(self) -> str:
        return printable(str(self.file))

    def open(self) -> BinaryIO:
        """The open file. Raises VolumeError where it cannot be opened."""
        try:
            return self.file.open("rb")
        except OSError as error:
            raise VolumeError(f"{self.file}: cannot be read ({error.strerror or error})") from error


@dataclass(frozen=True)
class Source:
    """What was found at a path.

    kind     "folder", "zip", "DICOMDIR" or "file"
    entries  files that may be images, in the order of their names (of a DICOMDIR: in its own)
    dropped  what was passed over unopened, and why
    beside   files that a DICOMDIR does not name, in the folders of those that it does
    """

    path: Path
    kind: str
    entries: tuple[Entry, ...]
    dropped: tuple[Dropped, ...] = ()
    beside: tuple[Entry, ...] = ()

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)


def open_source(path: str | Path) -> Source:
    """List the files of a folder (and the folders below it), the members of a zip, or the files that a DICOMDIR names.

    Links to files are followed, links to folders are not (they may loop, or lead anywhere). No name within an archive
    or DICOMDIR is trusted (see `archive`, `directory`).

    Raises VolumeError where `path` is nothing of the kind, and beyond the limits of `limits`.
    """
    path = Path(path)
    try:
        if path.is_dir():
            return _folder(path)
        if not path.is_file():
            what = "neither a file nor a folder" if path.exists() else "no such file or folder"
            raise VolumeError(f"{path}: {what}")
        return _file(path)
    except OSError as error:
        raise VolumeError(f"{path}: cannot be read ({error.strerror or error})") from error
    except RecursionError as error:  # os.walk descends by recursion
        raise VolumeError(f"{path}: folders nested too deep; give the folder of one study or series") from error


def _folder(path: Path) -> Source:
    entries: list[Entry] = []
    dropped: list[Dropped] = []

    def unreadable(error: OSError) -> None:
        dropped.append(Foreign(printable(str(error.filename)), f"cannot be read ({error.strerror or error})"))

    for parent, folders, files in os.walk(path, onerror=unreadable):
        folders.sort()
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        dropped += [
            Dropped(printable(os.path.join(parent, name)), "a link to a folder; not followed") for name in links
        ]
        for name in sorted(files):
            file = Path(parent) / name
            if file.is_file():
                entries.append(FileEntry(file))
            else:  # opening a pipe would wait for ever
                reason = "a link to nowhere, a pipe or a device; not opened"
                dropped.append(Foreign(printable(str(file)), reason, _annexed(file)))
        if len(entries) + len(dropped) > limits.MAX_FILES:
            raise VolumeError(f"{path}: more than {limits.MAX_FILES} files; give the folder of one study or series")
    return Source(path, "folder", tuple(entries), tuple(dropped))


def _annexed(file: Path) -> str:
    """What to do about a link of git-annex (so of DataLad) whose file was not fetched; "" for any other."""
    target = os.readlink(file) if file.is_symlink() else ""
    annexed = ANNEX_MARK in target.replace(os.sep, "/")
    return "a link of git-annex whose file is not here; git annex get fetches it" if annexed else ""


def _file(path: Path) -> Source:
    with path.open("rb") as file:
        start = file.read(HEAD)
        if looks_like_dicom(start):
            from volseg.volumes.dicom.finding.directory import is_directory, referenced_files, unlisted_beside

            if start[DICOM_MARK_AT : DICOM_MARK_AT + 4] == DICOM_MARK and is_directory(file):
                found, lost = referenced_files(path)
                beside = tuple(FileEntry(name) for name in unlisted_beside(path, found))
                return Source(path, "DICOMDIR", tuple(FileEntry(name) for name in found), tuple(lost), beside)
            return Source(path, "file", (FileEntry(path),))
    if form_of(start) is Form.ZIP:
        from volseg.volumes.dicom.finding.archive import read_archive

        members, passed = read_archive(path)
        return Source(path, "zip", tuple(members), tuple(passed))
    packed = packing(path.name, start)
    if packed is not None:
        what, command = packed
        raise VolumeError(
            f"{path}: {what}; volseg reads zip and .nii.gz: unpack it ({command} {path.name}), and give that"
        )
    what = foreign(path.name, start, io.BytesIO()).what
    if what:
        raise VolumeError(f"{path}: {what}")
    raise VolumeError(
        f"{path}: of no format that volseg reads; give .nii, .nii.gz, a .zarr folder, a DICOM folder, zip or DICOMDIR"
    )
