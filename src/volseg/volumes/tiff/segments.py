"""A box of one page of a TIFF file: only the strips or tiles are read, and decoded, in which it lies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from volseg.errors import VolumeError
from volseg.volumes.tiff.library import tifffile
from volseg.volumes.tiff.lzw import LZW, decoded, lzw_refusal

BITS = (1, 8, 16, 32, 64)
DENSEST = 1 << 14
"""Bytes of an image that a byte of a compressed file may stand for; a header that promises more is damaged."""

Decode = Callable[[bytes, int], np.ndarray | None]


@dataclass(frozen=True)
class Tiling:
    """How a page is cut: strips are tiles as wide as the page.

    height, width  of a tile
    across         tiles beside each other
    """

    height: int
    width: int
    across: int

    def indices(self, rows: slice, columns: slice) -> Iterator[tuple[int, int, int]]:
        """(index, first row, first column) of the tiles in which these rows and columns lie."""
        for down in range(rows.start // self.height, (rows.stop - 1) // self.height + 1):
            for beside in range(columns.start // self.width, (columns.stop - 1) // self.width + 1):
                yield down * self.across + beside, down * self.height, beside * self.width


def tiling_of(page: Any) -> Tiling:
    """The cut of a page, which is tifffile's."""
    if page.is_tiled:
        return Tiling(page.tilelength, page.tilewidth, -(-page.imagewidth // page.tilewidth))
    return Tiling(min(page.rowsperstrip, page.imagelength), page.imagewidth, 1)


def check_page(page: Any, path: Path) -> None:
    """Raise VolumeError unless volseg reads the voxels of tifffile's `page` of the file at `path`."""
    height, width, bits = int(page.imagelength), int(page.imagewidth), int(page.bitspersample)
    if height < 1 or width < 1:
        raise VolumeError(f"{path}: an empty image ({height}x{width})")
    if page.samplesperpixel != 1 or page.imagedepth != 1:
        raise VolumeError(
            f"{path}: colour, or {page.samplesperpixel} values a pixel; give grey images, for instance by Image > Type "
            "> 16-bit in Fiji"
        )
    if page.dtype is None or np.dtype(page.dtype).kind not in "biuf" or bits not in BITS:
        raise VolumeError(f"{path}: voxels of {bits} bits that are not read; write it again with 8, 16 or 32 bits")
    if _decoder(page) is None:
        raise VolumeError(f"{path}: {_missing(page)}")
    promised = height * width * max(1, bits // 8)
    if promised > path.stat().st_size * DENSEST or max(tiling_of(page).height, tiling_of(page).width) > 1 << 20:
        raise VolumeError(f"{path}: truncated: {path.stat().st_size} bytes for {height}x{width} pixels; copy it again")


def read_part(page: Any, keyframe: Any, file: Any, rows: slice, columns: slice) -> np.ndarray:
    """The pixels [rows, columns] of a page.

    page      tifffile's, or its frame, which knows offsets alone
    keyframe  the page that knows all else
    file      tifffile's file handle

    Raises EOFError where they are not there, and what decoders raise.
    """
    decode = _decoder(keyframe)
    assert decode is not None
    tiling = tiling_of(keyframe)
    out = np.zeros((rows.stop - rows.start, columns.stop - columns.start), keyframe.dtype)
    for index, top, left in tiling.indices(rows, columns):
        if index >= len(page.dataoffsets) or index >= len(page.databytecounts):
            raise EOFError(f"strip or tile {index} is not there")
        count = page.databytecounts[index]
        if count == 0:  # a tile that is not stored holds nothing
            continue
        file.seek(page.dataoffsets[index])
        packed = file.read(count)
        if len(packed) < count:
            raise EOFError("the file ends early")
        tile = decode(packed, index)
        if tile is None:
            continue
        r0, r1 = max(rows.start, top), min(rows.stop, top + tile.shape[0])
        c0, c1 = max(columns.start, left), min(columns.stop, left + tile.shape[1])
        if (r1, c1) != (min(rows.stop, top + tiling.height), min(columns.stop, left + tiling.width)):
            raise EOFError(f"strip or tile {index} is too short")
        out[r0 - rows.start : r1 - rows.start, c0 - columns.start : c1 - columns.start] = tile[
            r0 - top : r1 - top, c0 - left : c1 - left
        ]
    return out


def _decoder(page: Any) -> Decode | None:
    """What decodes a strip or tile of a page into [rows, columns]; None where the codec is not there."""
    if page.compression != 1 and not _has_codec(page.compression):
        if page.compression != LZW or lzw_refusal(page):
            return None
        tiling = tiling_of(page)
        return lambda packed, index: decoded(packed, page, tiling.height, tiling.width, index // tiling.across)

    def decode(packed: bytes, index: int) -> np.ndarray | None:
        tile = page.decode(packed, index)[0]
        return None if tile is None else tile[0, :, :, 0]

    return decode


def _has_codec(compression: int) -> bool:
    decompressors = tifffile().TIFF.DECOMPRESSORS
    try:
        decompressors[compression](b"")
    except (ImportError, KeyError):  # some codecs are there and only say that they are not
        return False
    except Exception:  # nothing is no stream
        return True
    return True


def _missing(page: Any) -> str:
    name = getattr(page.compression, "name", page.compression)
    more = lzw_refusal(page) if page.compression == LZW else ""
    return (
        f"compressed by {name}{more}, for which a library is missing; install it (pip install imagecodecs), or write "
        "the file again without compression"
    )
