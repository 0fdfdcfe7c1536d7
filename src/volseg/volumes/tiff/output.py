"""Writing TIFF from many ranks: a page a slice, not packed, the pages of all slices before the voxels.

What a voxel measures stands where ImageJ, Fiji and tifffile look for it; TIFF knows no patient, so the affine is kept
beside it in a line of its own. BigTIFF where the file has 4 GiB and more.
"""

from __future__ import annotations

import json
import struct
from fractions import Fraction

import numpy as np

from volseg.errors import VolumeError
from volseg.volumes.metaimage.output import names_are_lost
from volseg.volumes.output import Content
from volseg.volumes.planes_output import PlanesOutput
from volseg.volumes.tiff.metadata import AFFINE

LARGEST_CLASSIC = (1 << 32) - 1
ALIGNED = 16
SAMPLE_FORMATS = {"u": 1, "i": 2, "f": 3}
SHORT, LONG, RATIONAL, ASCII, LONG8 = 3, 4, 5, 2, 16
LETTERS = {SHORT: "H", LONG: "I", LONG8: "Q"}
Entry = tuple[int, int, int, bytes]


class TiffOutput(PlanesOutput):
    """A ``.tif`` of a page a slice. The names of labels are not kept."""

    def __init__(self, content: Content) -> None:
        super().__init__(content, header_bytes(content))

    def rehearse(self) -> tuple[str, ...]:
        return names_are_lost(self.content, ".tif")


def header_bytes(content: Content, largest: int = LARGEST_CLASSIC) -> bytes:
    """All that comes before the voxels.

    largest  file size above which it is a BigTIFF

    Raises VolumeError where it holds channels, or a type that TIFF has not.
    """
    if content.channels is not None or content.dtype.kind not in SAMPLE_FORMATS or content.dtype.itemsize > 8:
        raise VolumeError("a TIFF file of volseg's holds one channel of integers or real numbers; write .nii.gz")
    d, h, w = content.space.shape
    voxels = d * h * w * content.dtype.itemsize
    classic = _pages(content, big=False)
    return classic if len(classic) + voxels <= largest else _pages(content, big=True)


def _pages(content: Content, *, big: bool) -> bytes:
    """The header and the tags of all pages."""
    d, h, w = content.space.shape
    page_bytes = h * w * content.dtype.itemsize
    number = LONG8 if big else LONG
    shared, first_only = _entries(content, number), _description(content)
    head = 16 if big else 8
    first = _page_size([*shared, first_only], big)
    each = _page_size(shared, big)
    begin = head + first + (d - 1) * each
    begin += -begin % ALIGNED
    parts = [struct.pack("<2sHHHQ", b"II", 43, 8, 0, 16) if big else struct.pack("<2sHI", b"II", 42, 8)]
    place = head
    for index in range(d):
        offset = begin + index * page_bytes
        strip = (273, number, 1, _packed(number, offset if big else offset & LARGEST_CLASSIC))
        entries = sorted([*shared, strip, *([first_only] if index == 0 else [])])
        size = first if index == 0 else each
        parts.append(_page(entries, place, place + size if index < d - 1 else 0, big))
        place += size
    return b"".join(parts).ljust(begin, b"\0")


def _entries(content: Content, number: int) -> list[Entry]:
    """The tags that all pages have, but for the place of the voxels."""
    _, h, w = content.space.shape
    _, y, x = content.space.spacing
    bits = content.dtype.itemsize * 8
    return [
        (256, LONG, 1, _packed(LONG, w)), (257, LONG, 1, _packed(LONG, h)), (258, SHORT, 1, _packed(SHORT, bits)),
        (259, SHORT, 1, _packed(SHORT, 1)), (262, SHORT, 1, _packed(SHORT, 1)), (277, SHORT, 1, _packed(SHORT, 1)),
        (278, LONG, 1, _packed(LONG, h)), (279, number, 1, _packed(number, h * w * content.dtype.itemsize)),
        (282, RATIONAL, 1, _rational(1 / x)), (283, RATIONAL, 1, _rational(1 / y)),
        (296, SHORT, 1, _packed(SHORT, 1)),
        (339, SHORT, 1, _packed(SHORT, SAMPLE_FORMATS[content.dtype.kind])),
    ]  # fmt: skip


def _description(content: Content) -> Entry:
    d = content.space.shape[0]
    affine = json.dumps(np.asarray(content.space.affine, dtype=np.float64).tolist())
    lines = [
        "ImageJ=1.54f", f"images={d}", f"slices={d}", "unit=mm", f"spacing={content.space.spacing[0]!r}", "loop=false",
        f"{AFFINE}{affine}",
    ]  # fmt: skip
    text = "\n".join(lines).encode() + b"\n\0"
    return 270, ASCII, len(text), text


def _packed(kind: int, value: int) -> bytes:
    return struct.pack(f"<{LETTERS[kind]}", value)


def _rational(value: float) -> bytes:
    """The nearest fraction of two 32-bit numbers."""
    most = LARGEST_CLASSIC
    fraction = Fraction(value).limit_denominator(max(1, min(10**6, int(most / max(value, 1.0)))))
    if fraction.numerator < 1 or fraction.numerator > most:  # nanometres, or metres, a voxel
        fraction = Fraction(1, min(most, max(1, round(1 / value)))) if value < 1 else Fraction(most)
    return struct.pack("<II", fraction.numerator, fraction.denominator)


def _page_size(entries: list[Entry], big: bool) -> int:
    """Bytes of a page's tags, with the one of its place, and of what does not fit into them."""
    inline = 8 if big else 4
    spilled = sum(len(data) + len(data) % 2 for _, _, _, data in entries if len(data) > inline)
    count = len(entries) + 1
    return (8 + count * 20 + 8 if big else 2 + count * 12 + 4) + spilled


def _page(entries: list[Entry], place: int, following: int, big: bool) -> bytes:
    """The tags of the page at byte `place`."""
    inline, entry, pointer = (8, "<HHQ", "<Q") if big else (4, "<HHI", "<I")
    spill = place + (8 + len(entries) * 20 + 8 if big else 2 + len(entries) * 12 + 4)
    head, tail = struct.pack("<Q" if big else "<H", len(entries)), b""
    for tag, kind, count, data in entries:
        head += struct.pack(entry, tag, kind, count)
        if len(data) <= inline:
            head += data.ljust(inline, b"\0")
        else:
            head += struct.pack(pointer, spill + len(tail))
            tail += data + b"\0" * (len(data) % 2)
    return head + struct.pack(pointer, following) + tail
