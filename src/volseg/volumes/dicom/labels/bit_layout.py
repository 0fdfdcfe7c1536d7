"""Where each frame begins among the bits of a native BINARY segmentation.

The standard packs frames without a gap, so most begin within a byte (PS3.5 8.1.1 and A.51 of PS3.3). Older dcmqi and
dcmjs began each frame, or each segment, on a byte of its own. Only the length tells, and the bits
that fill up the last byte: where they fit one layout alone, that is taken, and where they fit several, the standard's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby, pairwise
from pathlib import Path

import numpy as np

from volseg.errors import VolumeError

STANDARD = "frames that follow one another"
BY_FRAME = "frames that each begin on a byte"
BY_SEGMENT = "segments that each begin on a byte"


def frame_starts(
    path: Path, segments: Sequence[int], pixels: int, length: int, is_clear: Callable[[int], bool]
) -> tuple[np.ndarray, list[str]]:
    """The bit at which each frame begins, and warnings.

    segments  of each frame, in the order of the file
    pixels    of a frame
    length    bytes of pixel data
    is_clear  whether the bits from this one to the end of its byte are 0

    Raises VolumeError where `length` fits no layout.
    """
    count = len(segments)
    layouts = {STANDARD: np.arange(count + 1) * pixels}
    if pixels % 8 and count > 1:
        layouts[BY_FRAME] = np.arange(count + 1) * _whole_bytes(pixels)
        runs = [len(list(run)) for _, run in groupby(segments)]
        if 1 < len(runs) == len(set(segments)):
            ends = np.cumsum([0, *(_whole_bytes(run * pixels) for run in runs)])
            parts = [first + np.arange(run) * pixels for (first, _), run in zip(pairwise(ends), runs, strict=True)]
            layouts[BY_SEGMENT] = np.concatenate([*parts, ends[-1:]])
    fits = {
        name: starts for name, starts in layouts.items() if _fits(int(starts[-1]), length) and is_clear(int(starts[-1]))
    }
    if len(layouts) == 1:
        fits = layouts  # frames begin on bytes whatever follows them
    if not fits:
        needs = ", or ".join(f"{_bytes(int(starts[-1]))} for {name}" for name, starts in layouts.items())
        raise VolumeError(
            f"{path}: {length} bytes of one bit a pixel, where its frames take {needs}: which bits are whose is not "
            "known; write the SEG again, with a current release of the software"
        )
    name = next(iter(fits))
    starts = fits[name][:-1]
    if name != STANDARD:
        return starts, [f"bits packed as {name}, against the standard; read so, as the length of the pixel data says"]
    if BY_FRAME in fits:
        return starts, [f"the length of its pixel data fits {STANDARD}, as read here, and {BY_FRAME}; look at the mask"]
    return starts, []


def _whole_bytes(bits: int) -> int:
    return _bytes(bits) * 8


def _bytes(bits: int) -> int:
    return -(-bits // 8)


def _fits(bits: int, length: int) -> bool:
    """Whether pixel data of `length` bytes hold that many: DICOM makes lengths even, by a byte that may be anything."""
    return length in (_bytes(bits), _bytes(bits) + _bytes(bits) % 2)
