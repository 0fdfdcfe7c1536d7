"""What there is to know of a file format before its library is imported: one record, from which all lists follow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from volseg.volumes.label_table import LabelTable
from volseg.volumes.open_options import OpenOptions
from volseg.volumes.output import Content, Output
from volseg.volumes.signs import Form
from volseg.volumes.volume import Volume


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be written, and where.

    suffix  the ending of the output's name, in lower case, of those that its format writes
    source  the scan that a mask is of
    """

    path: Path
    suffix: str
    content: Content
    source: Volume | None


@dataclass(frozen=True, kw_only=True)
class Format:
    """A file format. Its functions import what they need when they are called.

    name         one word
    noun         what a file of it is called in messages
    suffixes     endings of names of its files or folders, lower case
    is_at        whether a path that exists is one, by its name and by what kind of thing it is
    forms        how its files begin, for those under other names
    open         the volume at a path, of the channel asked for; only headers are read
    channels     how many channels a file holds; None: a file holds one
    label_table  names and colours of labels that a mask carries; None: it carries none
    file_of      the file on disk of a path that may go on inside a file
    listed       the suffixes that are taken from a folder of volumes or of masks
    written      the suffixes that a volume can be written with
    masks_only   the suffixes that only a mask can be written with
    output       the writer of a volume; None where nothing is written
    own_size     whether its files say how large their voxels are, so that nobody else may
    takes_channels  whether a volume of several channels can be written
    """

    name: str
    noun: str
    suffixes: tuple[str, ...]
    is_at: Callable[[Path], bool]
    forms: tuple[Form, ...]
    open: Callable[[Path, OpenOptions, int | None], Volume]
    channels: Callable[[Path], int] | None = None
    label_table: Callable[[Path], LabelTable | None] | None = None
    file_of: Callable[[Path], Path] = lambda path: path
    listed: tuple[str, ...] = ()
    written: tuple[str, ...] = ()
    masks_only: tuple[str, ...] = ()
    output: Callable[[Request], Output] | None = None
    own_size: bool = True
    takes_channels: bool = True


def named(suffixes: tuple[str, ...]) -> Callable[[Path], bool]:
    """A test for files whose names end so, in any case."""
    return lambda path: path.name.lower().endswith(suffixes) and path.is_file()
