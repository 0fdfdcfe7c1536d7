"""How files begin: the one table of what is known by its first bytes, whatever a file's name."""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum, auto
from typing import Literal

from volseg.volumes.dicom.finding.marks import DICOM_MARK, DICOM_MARK_AT

HEAD = 1024
"""Bytes from a file's beginning that are looked at."""
ANNEX_MARK = "/annex/objects/"
"""In the text of git-annex's pointers, and in the targets of its links."""
NIFTI_MAGIC = {348: (b"n+1\0", b"ni1\0"), 540: (b"n+2\0", b"ni2\0")}


class Form(Enum):
    """What a file is by its first bytes."""

    EMPTY = auto()
    NIFTI = auto()
    DICOM = auto()
    GZIP = auto()
    ZIP = auto()
    LFS_POINTER = auto()
    ANNEX_POINTER = auto()
    WEB_PAGE = auto()
    XML = auto()
    JSON_ERROR = auto()
    NRRD = auto()
    METAIMAGE = auto()
    MGH = auto()
    BZIP2 = auto()
    XZ = auto()
    ZSTANDARD = auto()
    LZ4 = auto()
    SEVEN_ZIP = auto()
    RAR = auto()
    TAR = auto()
    HDF5 = auto()
    NUMPY = auto()
    TIFF = auto()
    PICTURE = auto()
    ZEROS = auto()
    TEXT = auto()


def form_of(head: bytes) -> Form | None:
    """What a file is; None where its beginning says nothing.

    head  its first `HEAD` bytes, or all of a shorter file
    """
    return next((form for form, matches in _SIGNS.items() if matches(head)), None)


def _is_nifti(head: bytes) -> bool:
    """A header's size, in either byte order, and its magic at the place of that version."""
    orders: tuple[Literal["little", "big"], ...] = ("little", "big")
    for order in orders:
        size = int.from_bytes(head[:4], order)
        if size in NIFTI_MAGIC:
            place = 4 if size == 540 else 344
            return head[place : place + 4] in NIFTI_MAGIC[size]
    return False


def _is_mgh(head: bytes) -> bool:
    """Version 1, then width, height, depth, frames and one of its four types."""
    numbers = [int.from_bytes(head[n : n + 4], "big") for n in range(0, 24, 4)]
    return numbers[0] == 1 and all(0 < number < 65536 for number in numbers[1:5]) and numbers[5] in (0, 1, 3, 4)


def _is_text(head: bytes) -> bool:
    return bool(head.strip()) and all(byte in b"\t\r\n\f" or 32 <= byte < 127 for byte in head)


def _begins(*signs: bytes) -> Callable[[bytes], bool]:
    return lambda head: head.startswith(signs)


def _says(pattern: bytes) -> Callable[[bytes], bool]:
    """Text, after blanks and a byte order mark."""
    return lambda head: re.match(rb"(\xef\xbb\xbf)?\s*(?:" + pattern + rb")", head, re.IGNORECASE) is not None


_SIGNS: dict[Form, Callable[[bytes], bool]] = {
    Form.EMPTY: lambda head: not head,
    Form.NIFTI: _is_nifti,
    Form.DICOM: lambda head: head[DICOM_MARK_AT : DICOM_MARK_AT + len(DICOM_MARK)] == DICOM_MARK,
    Form.GZIP: _begins(b"\x1f\x8b"),
    Form.ZIP: _begins(b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08"),
    Form.LFS_POINTER: _begins(b"version https://git-lfs"),
    Form.ANNEX_POINTER: _says(rb"(\.\./)*(\.git)?" + ANNEX_MARK.encode()),
    Form.WEB_PAGE: _says(rb"<!doctype html|<html|<head|<!--.*<html"),
    Form.XML: _says(rb"<\?xml|<error"),
    Form.JSON_ERROR: _says(rb'\{"(error|message)'),
    Form.NRRD: _begins(b"NRRD0"),
    Form.METAIMAGE: _says(rb"[a-z]\w* *= *[^\n]*\n(?s:.*)\bNDims *=|NDims *=|ObjectType *="),
    Form.MGH: _is_mgh,
    Form.BZIP2: _begins(b"BZh"),
    Form.XZ: _begins(b"\xfd7zXZ\0"),
    Form.ZSTANDARD: _begins(b"\x28\xb5\x2f\xfd"),
    Form.LZ4: _begins(b"\x04\x22\x4d\x18"),
    Form.SEVEN_ZIP: _begins(b"7z\xbc\xaf\x27\x1c"),
    Form.RAR: _begins(b"Rar!"),
    Form.TAR: lambda head: head[257:262] == b"ustar",
    Form.HDF5: _begins(b"\x89HDF", b"CDF\x01", b"CDF\x02"),
    Form.NUMPY: _begins(b"\x93NUMPY"),
    Form.TIFF: _begins(b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    Form.PICTURE: _begins(b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"%PDF"),
    Form.TEXT: _is_text,
    Form.ZEROS: lambda head: not any(head),
}
"""The first that matches counts."""
