"""Which compression encapsulated pixel data are in, by their first bytes; for files that say something else."""

from __future__ import annotations

import struct

PEEK_BYTES = 1 << 13
ITEM = b"\xfe\xff\x00\xe0"
JPEG, JPEG_LOSSLESS, JPEG_LS, JPEG_2000, RLE = "JPEG", "JPEG lossless", "JPEG-LS", "JPEG 2000", "RLE"
UID = "1.2.840.10008.1.2."
KINDS = {
    f"{UID}4.50": JPEG, f"{UID}4.51": JPEG, f"{UID}4.57": JPEG_LOSSLESS, f"{UID}4.70": JPEG_LOSSLESS,
    f"{UID}4.80": JPEG_LS, f"{UID}4.81": JPEG_LS, f"{UID}4.90": JPEG_2000, f"{UID}4.91": JPEG_2000,
    f"{UID}4.201": JPEG_2000, f"{UID}4.202": JPEG_2000, f"{UID}4.203": JPEG_2000, f"{UID}5": RLE,
}  # fmt: skip
"""The transfer syntaxes that are decoded, by what their codestreams are."""

FRAMES = {0xC0: f"{UID}4.50", 0xC1: f"{UID}4.51", 0xC3: f"{UID}4.70", 0xF7: f"{UID}4.80"}
"""What the marker of a JPEG's frame header says it is."""


def syntax_of(pixels: bytes, declared: str) -> str:
    """The transfer syntax of encapsulated pixel data: `declared`, unless its codestream is of another kind.

    pixels  the beginning of the element's value: the item of the offset table, and the first fragment
    """
    seen = _syntax(_first_fragment(pixels))
    return declared if seen is None or KINDS.get(declared) == KINDS[seen] else seen


def _first_fragment(pixels: bytes) -> bytes:
    if pixels[:4] != ITEM or len(pixels) < 8:
        return b""
    at = 8 + int(struct.unpack_from("<I", pixels, 4)[0])
    return pixels[at + 8 :] if pixels[at : at + 4] == ITEM else b""


def _syntax(data: bytes) -> str | None:
    if data[:4] == b"\xff\x4f\xff\x51" or data[4:8] == b"jP  ":
        return f"{UID}4.90"
    if len(data) >= 8 and 1 <= int.from_bytes(data[:4], "little") <= 15 and data[4:8] == b"\x40\0\0\0":
        return f"{UID}5"
    at = 2 if data[:2] == b"\xff\xd8" else len(data)
    while at + 4 <= len(data) and data[at] == 0xFF:
        if data[at + 1] in FRAMES:
            return FRAMES[data[at + 1]]
        at += 1 if data[at + 1] == 0xFF else 2 + int(struct.unpack_from(">H", data, at + 2)[0])
    return None
