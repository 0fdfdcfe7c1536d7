"""What a file is that is no DICOM, where that tells how to get the image that it stands for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import BinaryIO

from volseg.volumes.audit import Dropped
from volseg.volumes.signs import HEAD, Form, form_of

NOT_DICOM = "not DICOM"
SHORTEST_DICOM = 132  # bytes
PACKED = {
    Form.GZIP: ("gzip-compressed", "gunzip"),
    Form.BZIP2: ("bzip2-compressed", "bunzip2"),
    Form.XZ: ("xz-compressed", "unxz"),
    Form.ZSTANDARD: ("zstd-compressed", "unzstd"),
    Form.SEVEN_ZIP: ("a 7z archive", "7z x"),
    Form.RAR: ("a rar archive", "unrar x"),
    Form.ZIP: ("a zip archive", "unzip"),
    Form.TAR: ("a tar archive", "tar xf"),
}
"""What a packed file is, and the command that unpacks it where it lies."""
PACKED_TARS = (".tgz", ".tar.gz", ".tbz2", ".tar.bz2", ".txz", ".tar.xz", ".tar.zst")
VOLUMES = (".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd", ".raw.gz")  # whose own compression is no packing


@dataclass(frozen=True)
class Foreign(Dropped):
    """A file that is no DICOM, or was not opened.

    what  what it is instead, with a remedy, where that says more than the reason; else ""
    """

    what: str = ""


def foreign(name: str, start: bytes, file: BinaryIO) -> Foreign:
    """What a file is that does not begin as DICOM does.

    start  its first bytes, after which `file` stands
    """
    start += file.read(max(0, HEAD - len(start)))
    return Foreign(name, NOT_DICOM, _what(name, start, whole=len(start) < HEAD))


def packing(name: str, start: bytes) -> tuple[str, str] | None:
    """What kind of compressed file or archive begins so, and the command that unpacks it; None for any other."""
    if name.lower().endswith(VOLUMES):
        return None
    form = form_of(start)
    if form not in PACKED:
        return None
    return ("a compressed tar archive", "tar xf") if name.lower().endswith(PACKED_TARS) else PACKED[form]


def _what(name: str, start: bytes, *, whole: bool) -> str:
    packed, form = packing(name, start), form_of(start)
    if packed is not None:
        return f"{packed[0]}; unpack it: {packed[1]} FILE"
    if form is Form.EMPTY:
        return "empty, 0 bytes; copy it again"
    if form is Form.ZEROS:
        return f"nothing but zeros{f', {len(start)} bytes' if whole else ''}; copy it again"
    if form is Form.LFS_POINTER:
        return "a pointer of git LFS and not the file itself; git lfs pull fetches it"
    if form is Form.ANNEX_POINTER:
        return "a pointer of git-annex and not the file itself; git annex get fetches it"
    if name.lower().endswith(".icloud"):
        return "a placeholder of iCloud; have the file downloaded first"
    if form in (Form.WEB_PAGE, Form.XML, Form.JSON_ERROR):
        return "a web page or an error message in place of the file; download it again"
    if whole and len(start) < SHORTEST_DICOM and not start.isascii():
        return f"cut off or overwritten, {len(start)} bytes; copy it again"
    return ""
