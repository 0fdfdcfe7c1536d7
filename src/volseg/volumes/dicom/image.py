"""One two-dimensional image of a series: where its bytes are, and what its header says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from volseg.errors import first_few


class Entry(Protocol):
    """A file of a folder, or a member of an archive (see `sources`).

    name   for messages and reports: the path, or ``scans.zip!CT/001.dcm``
    file   the file on disk: the path itself, or the archive
    """

    @property
    def name(self) -> str: ...

    @property
    def file(self) -> Path: ...

    def open(self) -> BinaryIO:
        """Its bytes, seekable, decompressed, within the limits of `sources`. Raises VolumeError."""
        ...


@dataclass(frozen=True)
class Image:
    """One slice: a file of one frame, or one frame of a multi-frame file.

    entry            where its bytes are
    header           elements by keyword (see `headers.KEYWORDS`); of a frame, its functional groups already merged in
    transfer_syntax  UID
    frame            number from 0 within a multi-frame file, else None
    notes            what the file says otherwise than it means, and how it was read; a warning to whoever uses it
    """

    entry: Entry
    header: Mapping[str, Any]
    transfer_syntax: str
    frame: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """How messages call it: ``.../014.dcm``, or ``.../enhanced.dcm frame 15`` (frames counted from 1)."""
        return self.entry.name if self.frame is None else f"{self.entry.name} frame {self.frame + 1}"

    @property
    def short_name(self) -> str:
        """`name` without its folders."""
        return without_folders(self.name)

    def get(self, keyword: str, default: Any = None) -> Any:
        """An element's value; `default` where it is absent or empty."""
        value = self.header.get(keyword)
        return default if value is None or value == "" else value


def printable(text: str) -> str:
    """Text out of a file, or a name of one, for messages and reports: control characters and broken bytes as "?"."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def without_folders(name: str) -> str:
    """The last part of a path, of this or another system."""
    return name.replace("\\", "/").rsplit("/", 1)[-1]


def name_some(images: Iterable[Image], most: int = 3) -> str:
    """The names of a few images, for messages."""
    return first_few([image.short_name for image in images], most)
