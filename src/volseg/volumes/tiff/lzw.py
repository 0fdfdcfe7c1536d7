"""LZW, the commonest compression of TIFF files that tifffile cannot decode by itself: libtiff in Pillow does.

Pillow is handed each strip or tile as a TIFF file of its own that holds bytes, so that it need know nothing of the
voxels' type. TIFF 6.0, sections 13 (LZW) and 14 (differencing predictor).
"""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np

LZW = 5
HORIZONTAL = 2


def lzw_refusal(page: Any) -> str:
    """Why tifffile's `page` is not decoded here; empty where it is."""
    if page.predictor not in (1, HORIZONTAL):
        return " with a predictor of floats"
    if page.predictor == HORIZONTAL and np.dtype(page.dtype).kind not in "iu":
        return " with a predictor"
    return " of single bits" if page.bitspersample == 1 else ""


def decoded(packed: bytes, page: Any, height: int, width: int, down: int) -> np.ndarray:
    """The pixels of a strip or tile.

    height, width  of it, in pixels
    down           how many of them lie above it; the last strip is cut off at the end of the page

    Raises EOFError, OSError or ValueError where it is damaged.
    """
    from PIL import Image

    rows = height if page.is_tiled else min(height, page.imagelength - down * height)
    stored = np.dtype(page.dtype).newbyteorder(page.parent.byteorder)
    line = width * stored.itemsize
    with Image.open(io.BytesIO(_as_file(packed, rows, line)), formats=("TIFF",)) as image:
        content = image.tobytes()
    pixels = np.frombuffer(content, stored, rows * width).reshape(rows, width)
    if page.predictor == HORIZONTAL:
        native = stored.newbyteorder("=")
        summed: np.ndarray = np.cumsum(pixels.astype(native), axis=1, dtype=native)
        return summed
    return pixels


def _as_file(packed: bytes, rows: int, line: int) -> bytes:
    """A TIFF file of one strip of `rows` lines of `line` bytes."""
    tags = (
        (256, 4, line), (257, 4, rows), (258, 3, 8), (259, 3, LZW), (262, 3, 1), (273, 4, 8), (277, 3, 1),
        (278, 4, rows), (279, 4, len(packed)),
    )  # fmt: skip
    end = 8 + len(packed) + len(packed) % 2
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    head = b"II*\0" + struct.pack("<I", end)
    return head + packed.ljust(end - 8, b"\0") + struct.pack("<H", len(tags)) + entries + bytes(4)
