"""Text headers of image files, before the voxels or in a file of their own, read within bounds."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from volseg.errors import VolumeError, first_line
from volseg.geometry import Triple, format_triple
from volseg.volumes.contents import kind_of
from volseg.volumes.formats.format import Format

MOST_HEADER_BYTES = 16 << 20


class BadHeader(Exception):
    """What a header says makes no sense; the message says what."""


def header_lines(path: Path, ends: bytes) -> tuple[list[str], int]:
    """The lines of the header at the beginning of `path`, and how many bytes it takes.

    ends  how its last line begins, in any case; empty: the last line is an empty one

    A header in a file of its own may end with the file. Raises BadHeader where it is longer than `MOST_HEADER_BYTES`.
    """
    lines: list[str] = []
    size = 0
    with path.open("rb") as file:
        while size < MOST_HEADER_BYTES:
            line = file.readline(MOST_HEADER_BYTES)
            size += len(line)
            text = line.strip()
            if not line or (not ends and not text):
                return lines, size
            letters = text.decode("utf-8", "replace").replace("\t", " ")
            lines.append("".join(letter if letter.isprintable() else "?" for letter in letters))
            if ends and text.lower().startswith(ends):
                return lines, size
    raise BadHeader(f"a header of more than {MOST_HEADER_BYTES >> 20} MiB")


def unreadable(path: Path, format: Format, error: BaseException) -> VolumeError:
    """What is to be raised of a file that its own format's reader cannot make out."""
    kind = kind_of(path)
    if kind is not None and kind.read_as is not format:
        return VolumeError(f"{path}: not a readable {format.noun} but {kind}")
    return VolumeError(f"{path}: not a readable {format.noun} ({first_line(error)}); copy or download it again")


def numbers(text: str, count: int, field: str) -> list[float]:
    """`count` finite numbers with blanks between them. Raises BadHeader."""
    try:
        values = [float(word) for word in text.split()]
    except ValueError:
        raise BadHeader(f"{field} is {text[:60]!r}, which are no numbers") from None
    if len(values) != count or not np.isfinite(values).all():
        raise BadHeader(f"{field} is {text[:60]!r}; {count} numbers are expected")
    return values


def whole_numbers(text: str, count: int, field: str) -> list[int]:
    """`count` whole numbers with blanks between them. Raises BadHeader."""
    words = text.split()
    if len(words) != count or not all(word.lstrip("-").isdecimal() and len(word) < 19 for word in words):
        raise BadHeader(f"{field} is {text[:60]!r}; {count} whole numbers are expected")
    return [int(word) for word in words]


def data_file(path: Path, name: str, field: str) -> Path:
    """The file beside the header `path` that holds the voxels. Raises VolumeError where it is no file."""
    if name.split()[0].upper() == "LIST" or "%" in name:
        raise VolumeError(
            f"{path}: its voxels lie in several files ({field} {name[:60]}); volseg reads them from one: join them, "
            "with 3D Slicer or SimpleITK"
        )
    file = path.parent / name
    if not file.is_file():
        raise VolumeError(f"{path}: its voxels should lie in {file}, which is missing; put both files into one folder")
    return file


def pick_channel(path: Path, sides: Triple, channels: int, channel: int | None) -> int:
    """Which of the channels of a file is read. Raises VolumeError where it has not the one asked for, or several."""
    if channel is None and channels > 1:
        raise VolumeError(
            f"{path}: {channels} channels of {format_triple(sides)} voxels; volseg reads one volume a file: split it "
            "first. Several channels of a data set may lie in one file"
        )
    if channel is not None and not 0 <= channel < channels:
        raise VolumeError(f"{path}: has no channel {channel}, but {channels} of them")
    return channel or 0
