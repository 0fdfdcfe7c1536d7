"""The chain of a TIFF file's pages, gone through to its end: a file that was cut must not pass for a shorter volume.

tifffile leaves the chain where it breaks, with no more than a line in its log. TIFF 6.0, section 2; BigTIFF:
https://www.awaresystems.be/imaging/tiff/bigtiff.html
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO, Literal

from volseg.errors import VolumeError

MOST_PAGES = 1 << 22
Order = Literal["little", "big"]


def check_chain(path: Path) -> None:
    """Raise VolumeError unless the chain of pages of the TIFF file at `path` ends in that file, and ends at all."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(16)
        order: Order = "big" if head[:2] == b"MM" else "little"
        big = int.from_bytes(head[2:4], order) == 43
        place = int.from_bytes(head[8:16] if big else head[4:8], order)
        seen: set[int] = set()
        while place and len(seen) < MOST_PAGES:
            if place >= size:
                raise VolumeError(
                    f"{path}: truncated: {size} bytes, page {len(seen)} would begin at byte {place}; copy or download "
                    "it again"
                )
            if place in seen:
                raise VolumeError(f"{path}: damaged: page {len(seen)} is an earlier one again; copy it again")
            seen.add(place)
            place = _next(file, place, order, big, path)
    if place:
        raise VolumeError(f"{path}: more than {MOST_PAGES} pages; is it damaged?")


def _next(file: BinaryIO, place: int, order: Order, big: bool, path: Path) -> int:
    """Where the page after the one at byte `place` begins; 0 behind the last."""
    count_bytes, entry_bytes, pointer_bytes = (8, 20, 8) if big else (2, 12, 4)
    file.seek(place)
    count = int.from_bytes(file.read(count_bytes), order)
    file.seek(place + count_bytes + count * entry_bytes)
    pointer = file.read(pointer_bytes)
    if len(pointer) < pointer_bytes or count == 0:
        raise VolumeError(f"{path}: truncated within the tags of a page at byte {place}; copy or download it again")
    return int.from_bytes(pointer, order)
