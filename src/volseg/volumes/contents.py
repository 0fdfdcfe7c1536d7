"""What a file is that is no volume volseg reads, told by its first bytes whatever its name, and what brings it in."""

from __future__ import annotations

import re
import shlex
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from volseg.volumes.formats.dicom import DICOM
from volseg.volumes.formats.format import Format
from volseg.volumes.formats.hdf5 import HDF5
from volseg.volumes.formats.metaimage import METAIMAGE
from volseg.volumes.formats.nifti import NIFTI
from volseg.volumes.formats.nrrd import NRRD
from volseg.volumes.formats.registry import SUFFIXES
from volseg.volumes.formats.tiff import TIFF
from volseg.volumes.signs import HEAD, Form, form_of

ANOTHER = "copy or download it again"
PACKINGS = (".gz", ".bz2", ".xz", ".zst", ".tar", ".tgz", ".mgz", ".mgh", ".mnc", ".gipl", ".seg")
"""Endings, beside those of the formats that are read, that a name loses when the file gets another."""


class Kind(NamedTuple):
    """What a file is, in words, and what to do: a command where there is one.

    read_as  the format as which it can be read under a name that fits; None where volseg reads no such files
    vague    its first bytes say little, and its name may say more
    """

    what: str
    remedy: str
    read_as: Format | None = None
    vague: bool = False

    def __str__(self) -> str:
        return f"{self.what}; {self.remedy}"


def kind_of(path: Path) -> Kind | None:
    """What the file at `path` is; None where its beginning says nothing, or it cannot be read."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError:
        return None
    form = form_of(head)
    if form is not Form.GZIP:
        return _WORDS[form](path, head) if form is not None else None
    contents = _inflated(head)
    form = form_of(contents)
    if form is Form.GZIP:
        return Kind("gzip within gzip", f"unpack it once: gzip -dc < {_quoted(path)} > {_other(path, '.nii.gz')}")
    if form is Form.EMPTY:
        return Kind(f"gzip of {size} bytes without any contents" if len(head) == size else "damaged gzip", ANOTHER)
    kind = _WORDS[form](path, contents) if form is not None else None
    if kind is None or kind.read_as in (NIFTI, DICOM) or "nib-convert" in kind.remedy:
        return kind
    return Kind(f"gzip of what is {kind.what}", f"unpack it, then: {kind.remedy}")


def _inflated(head: bytes) -> bytes:
    """The beginning of a gzip file's contents, as far as it goes."""
    try:
        return zlib.decompressobj(16 + zlib.MAX_WBITS).decompress(head, HEAD)
    except zlib.error:
        return b""


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def _other(path: Path, ending: str) -> str:
    """A name beside `path`, another one than its own, quoted."""
    stem = path.name
    while any(stem.lower().endswith(known) and len(stem) > len(known) for known in (*SUFFIXES, *PACKINGS)):
        stem = stem[: stem.rindex(".")]
    other = path.with_name(stem + ending)
    return _quoted(path.with_name(f"{stem}_1{ending}") if other == path or other.exists() else other)


def _fixed(what: str, remedy: str) -> Callable[[Path, bytes], Kind]:
    return lambda path, head: Kind(what, remedy)


def _unpacked(what: str, program: str) -> Callable[[Path, bytes], Kind]:
    return lambda path, head: Kind(what, f"unpack it: {program} -dc < {_quoted(path)} > {_other(path, '.nii')}")


def _renamed(what: str, ending: str, format: Format) -> Callable[[Path, bytes], Kind]:
    return lambda path, head: Kind(what, f"give it its name: mv {_quoted(path)} {_other(path, ending)}", format)


def _pointer(path: Path, head: bytes) -> Kind:
    size = re.search(rb"\nsize (\d+)", head)
    real = f" to a file of {int(size[1]):,} bytes" if size else ""
    return Kind(f"a Git LFS pointer{real}", f"fetch the file itself: git lfs pull --include={_quoted(Path(path.name))}")


def _annex(path: Path, head: bytes) -> Kind:
    return Kind("a git-annex pointer", f"fetch the file itself: git annex get {_quoted(path)}")


def _archive(path: Path, head: bytes) -> Kind:
    return Kind("a zip archive", f"unpack it: unzip {_quoted(path)}", DICOM)


def _dicom(path: Path, head: bytes) -> Kind:
    return Kind(
        "a DICOM file", f"give the folder of its series, or a multi-frame file as {_other(path, '.dcm')}", DICOM
    )


def _mgh(path: Path, head: bytes) -> Kind:
    return Kind("a FreeSurfer volume (MGH)", f"convert it: nib-convert {_quoted(path)} {_other(path, '.nii.gz')}")


def _hdf5(path: Path, head: bytes) -> Kind:
    minc = f"convert MINC with: mnc2nii {_quoted(path)}"
    if head.startswith(b"CDF"):
        return Kind("netCDF (MINC?)", minc)
    return Kind("HDF5", f"give it its name: mv {_quoted(path)} {_other(path, '.h5')}; {minc}", HDF5)


def _text(path: Path, head: bytes) -> Kind:
    line = head.decode("ascii", "replace").strip().splitlines()[0][:60]
    return Kind(f"text, which begins {line!r}", ANOTHER, vague=True)


_WORDS: dict[Form, Callable[[Path, bytes], Kind]] = {
    Form.NIFTI: lambda path, head: Kind("NIfTI", "", NIFTI),
    Form.DICOM: _dicom,
    Form.ZIP: _archive,
    Form.LFS_POINTER: _pointer,
    Form.ANNEX_POINTER: _annex,
    Form.WEB_PAGE: _fixed("a web page, saved in the file's place",
                          "download the file again (where it asks for a login, with it)"),
    Form.XML: _fixed("an XML text, perhaps a server's answer", "download the file again"),
    Form.JSON_ERROR: _text,
    Form.NRRD: _renamed("a NRRD image", ".nrrd", NRRD),
    Form.METAIMAGE: _renamed("a MetaImage", ".mha", METAIMAGE),
    Form.TIFF: _renamed("a TIFF image", ".tif", TIFF),
    Form.MGH: _mgh,
    Form.BZIP2: _unpacked("bzip2", "bzip2"),
    Form.XZ: _unpacked("xz", "xz"),
    Form.ZSTANDARD: _unpacked("Zstandard", "zstd"),
    Form.LZ4: _unpacked("LZ4", "lz4"),
    Form.SEVEN_ZIP: lambda path, head: Kind("a 7z archive", f"unpack it: 7z x {_quoted(path)}"),
    Form.RAR: lambda path, head: Kind("a RAR archive", f"unpack it: unrar x {_quoted(path)}"),
    Form.TAR: lambda path, head: Kind("a tar archive", f"unpack it: tar -xf {_quoted(path)}"),
    Form.HDF5: _hdf5,
    Form.NUMPY: _fixed("a NumPy array, which knows no spacing", "save it as NIfTI, with nibabel"),
    Form.PICTURE: _fixed("a picture or document, no volume in space", "give .nii, .nii.gz or DICOM of what it shows"),
    Form.TEXT: _text,
    Form.ZEROS: _fixed("zeros at its beginning, as an unfinished copy leaves", ANOTHER),
    Form.EMPTY: _fixed("empty (0 bytes)", ANOTHER),
}  # fmt: skip
