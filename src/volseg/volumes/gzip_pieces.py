"""One gzip stream, with one checksum, from pieces that several ranks compressed by themselves.

A piece of raw deflate that ends with a full flush may be followed by any other, as in Mark Adler's pigz
(https://zlib.net/pigz); checksums are joined as zlib's `crc32_combine` does, by multiplying polynomials over GF(2).
"""

from __future__ import annotations

import struct
import zlib

HEAD = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
"""Of a stream without name and time, so that the same contents are always the same bytes."""
POLYNOMIAL = 0xEDB88320


class Piece(bytes):
    """A piece of the stream, with the checksum and the length of what it holds."""

    crc: int
    contents: int


def packed(raw: bytes | memoryview, level: int) -> Piece:
    """`raw` as a piece."""
    packer = zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS)
    piece = Piece(packer.compress(raw) + packer.flush(zlib.Z_FULL_FLUSH))
    piece.crc, piece.contents = zlib.crc32(raw), len(raw)
    return piece


def tail(crc: int, contents: int) -> bytes:
    """What ends the stream: an empty last block, checksum and length."""
    return b"\x03\0" + struct.pack("<II", crc, contents & 0xFFFFFFFF)


def joined_crc(first: int, second: int, length: int) -> int:
    """The checksum of contents of checksum `first` with `length` bytes of checksum `second` behind them."""
    shift, power = 1 << 31, 1 << 23  # 1, and x to the 8: a byte
    while length:
        if length & 1:
            shift = _product(power, shift)
        power = _product(power, power)
        length >>= 1
    return _product(shift, first) ^ second


def _product(a: int, b: int) -> int:
    """a * b modulo the polynomial; bit 31 is the coefficient of x to the 0."""
    product = 0
    for place in range(31, -1, -1):
        if a >> place & 1:
            product ^= b
        b = b >> 1 ^ (POLYNOMIAL if b & 1 else 0)
    return product
