"""What a file is that is no DICOM, where that tells how to get the image that it stands for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import BinaryIO

from volseg.volumes.audit import Dropped

NOT_DICOM = "not DICOM"
LOOKED_AT = 1024  # bytes
SHORTEST_DICOM = 132
LFS_MARK = b"version https://git-lfs"
ANNEX_MARK = b"/annex/objects/"
PAGE_MARKS = (b"<!doctype", b"<html", b"<?xml", b'{"error', b'{"message', b"<error")
PACKED = (  # (offset, bytes, what it is, the command that unpacks one file)
    (0, b"\x1f\x8b", "gzip-compressed", "gunzip"),
    (0, b"BZh", "bzip2-compressed", "bunzip2"),
    (0, b"\xfd7zXZ\x00", "xz-compressed", "unxz"),
    (0, b"\x28\xb5\x2f\xfd", "zstd-compressed", "unzstd"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", "7z x"),
    (0, b"Rar!", "a rar archive", "unrar x"),
    (0, b"PK\x03\x04", "a zip archive", "unzip"),
    (257, b"ustar", "a tar archive", "tar xf"),
)
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
    start += file.read(max(0, LOOKED_AT - len(start)))
    return Foreign(name, NOT_DICOM, _what(name, start, whole=len(start) < LOOKED_AT))


def packing(name: str, start: bytes) -> tuple[str, str] | None:
    """What kind of compressed file or archive begins so, and the command that unpacks it; None for any other."""
    if name.lower().endswith(VOLUMES):
        return None
    for offset, mark, what, command in PACKED:
        if start[offset : offset + len(mark)] == mark:
            return ("a compressed tar archive", "tar xf") if name.lower().endswith(PACKED_TARS) else (what, command)
    return None


def _what(name: str, start: bytes, *, whole: bool) -> str:
    packed = packing(name, start)
    if packed is not None:
        return f"{packed[0]}; unpack it: {packed[1]} FILE"
    if not start:
        return "empty, 0 bytes; copy it again"
    if not start.strip(b"\0"):
        return f"nothing but zeros{f', {len(start)} bytes' if whole else ''}; copy it again"
    if start.startswith(LFS_MARK):
        return "a pointer of git LFS and not the file itself; git lfs pull fetches it"
    if ANNEX_MARK in start[:LOOKED_AT] and whole:
        return "a pointer of git-annex and not the file itself; git annex get fetches it"
    if name.lower().endswith(".icloud"):
        return "a placeholder of iCloud; have the file downloaded first"
    if start.lstrip()[:16].lower().startswith(PAGE_MARKS):
        return "a web page or an error message in place of the file; download it again"
    if whole and len(start) < SHORTEST_DICOM and not start.isascii():
        return f"cut off or overwritten, {len(start)} bytes; copy it again"
    return ""
