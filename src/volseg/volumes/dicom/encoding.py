"""How a file's data set is written: by what its first element looks like, not only by what the file meta says.

Tools that change the TransferSyntaxUID alone leave files whose data are written otherwise than they say (pydicom#1943,
#796). pydicom reads the header of some of them all the same; then the pixels lie four bytes from where the UID has
them, and none of it is noticed. So here both are told apart once, and everybody else asks.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, BinaryIO

DEFLATED = "1.2.840.10008.1.2.1.99"
IMPLICIT, EXPLICIT, BIG_ENDIAN = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
UNCOMPRESSED = {(True, True): IMPLICIT, (False, True): EXPLICIT, (False, False): BIG_ENDIAN}
NATIVE = (*UNCOMPRESSED.values(), DEFLATED)
MARK, MARK_AT = b"DICM", 128
HIGHEST_FIRST_GROUP = 0x0100  # of a data set; nearly all begin with group 8
LONGEST_FIRST_ELEMENT = 1 << 16
PEEK_BYTES = 1 << 12


@dataclass(frozen=True)
class DataSet:
    """The data set of an open file.

    file      stands at its first element; of a deflated one, what it inflates to, as far as that was wished for
    cut       whether it inflates to more
    meta      the file meta, a pydicom Dataset; empty where there is none
    syntax    transfer syntax that the data are in: the file meta's, unless they contradict it; "" where nothing tells
    implicit, little  how elements are written
    """

    file: BinaryIO
    cut: bool
    meta: Any
    syntax: str
    implicit: bool
    little: bool


def enter(file: BinaryIO, most: int, guard: Callable[[BinaryIO], Any] = lambda file: file) -> DataSet:
    """Find the data set of a DICOM file, with or without preamble and file meta.

    most   bytes that a deflated data set is inflated to
    guard  what pydicom reads the file meta through

    Raises what pydicom does for a damaged file meta, and zlib.error where a deflated data set does not inflate.
    """
    meta = _read_meta(file, guard)
    at = file.tell()
    written = _written(file.read(8))
    file.seek(at)
    declared = str(meta.get("TransferSyntaxUID") or "")
    inflated, cut = None, False
    if written is None and (declared == DEFLATED or (declared in NATIVE and _inflates(file, at))):
        inflated, cut = _inflate(file.read(most), most)
        written = _written(inflated[:8])
    implicit, little = written or (declared == IMPLICIT, declared != BIG_ENDIAN)
    syntax = DEFLATED if inflated is not None else declared
    if inflated is None and (declared in NATIVE or not declared):
        syntax = UNCOMPRESSED.get((implicit, little), declared)
    source = file if inflated is None else io.BytesIO(inflated)
    return DataSet(file=source, cut=cut, meta=meta, syntax=syntax, implicit=implicit, little=little)


def contradiction(declared: str, syntax: str) -> str:
    """A note for the reader where a file is in another transfer syntax than it says; "" where it is not."""
    if not declared or declared == syntax:
        return ""
    return f"the file meta says {_name(declared)}, the data are {_name(syntax)}; read as they are"


def _read_meta(file: BinaryIO, guard: Callable[[BinaryIO], Any]) -> Any:
    from pydicom.dataset import Dataset
    from pydicom.filereader import read_dataset

    file.seek(0)
    start = file.read(MARK_AT + len(MARK) + 2)
    at = MARK_AT + len(MARK) if start[MARK_AT : MARK_AT + len(MARK)] == MARK else 0
    file.seek(at)
    if start[at : at + 2] != b"\x02\x00":
        return Dataset()
    return read_dataset(guard(file), False, True, stop_when=lambda tag, _vr, _length: tag >> 16 != 2)


def _written(head: bytes) -> tuple[bool, bool] | None:
    """(implicit, little-endian), by the first element; None where that is none."""
    if len(head) < 8:
        return None
    little, big = (struct.unpack(f"{order}H", head[:2])[0] for order in "<>")
    if head[4:6] in _representations():
        return (False, little <= big) if min(little, big) <= HIGHEST_FIRST_GROUP else None
    (length,) = struct.unpack("<I", head[4:8])
    sensible = little <= HIGHEST_FIRST_GROUP and length < LONGEST_FIRST_ELEMENT
    return (True, True) if sensible else None


@cache
def _representations() -> frozenset[bytes]:
    from pydicom.valuerep import VR

    return frozenset(kind.value.encode() for kind in VR)


def _inflates(file: BinaryIO, at: int) -> bool:
    """Whether what begins at `at` is a deflated data set. The file stands there again afterwards."""
    head = file.read(PEEK_BYTES)
    file.seek(at)
    try:
        return _written(_inflate(head, PEEK_BYTES)[0]) is not None
    except zlib.error:
        return False


def _inflate(data: bytes, most: int) -> tuple[bytes, bool]:
    """What bytes inflate to, at most so much of it, and whether there is more. Bare, or with zlib's own two bytes."""
    try:
        engine = zlib.decompressobj(-zlib.MAX_WBITS)
        inflated = engine.decompress(data, most)
    except zlib.error:
        engine = zlib.decompressobj()
        inflated = engine.decompress(data, most)
    return inflated, bool(engine.unconsumed_tail)


def _name(syntax: str) -> str:
    from pydicom.uid import UID

    return str(UID(syntax).name)
