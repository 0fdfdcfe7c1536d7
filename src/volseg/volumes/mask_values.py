"""What a mask's values are taken for: whole numbers, though a file may hold them as floats or with a scale factor.

nibabel saves floats into an integer header with a scale factor, which makes 3 into 2.9999999993 or 1.00023; resampling
tools leave NaN outside the field of view. Both are mended, as nilearn does with NaN, and said once a file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from volseg.errors import VolumeError, first_few
from volseg.geometry import Box
from volseg.volumes.volume import Volume

NEAR = 1e-3
ROUNDED = f"labels that a scale factor left within {NEAR:g} of whole numbers are rounded"
NOT_NUMBERS = "voxels that are NaN are taken as background"

Remark = Callable[[str], None]
"""Takes what reading a mask brings up, the same words any number of times."""


def no_remark(_text: str) -> None:
    """Takes remarks that nobody is to hear."""


def tidied(values: np.ndarray, remark: Remark = no_remark) -> np.ndarray:
    """The values of a mask with NaN as 0, and with whole numbers where they are nearly so; all else as it is."""
    if values.dtype.kind != "f":
        return values
    missing = np.isnan(values)
    if missing.any():
        values = np.where(missing, 0, values).astype(values.dtype)
        remark(NOT_NUMBERS)
    whole = np.rint(values)
    if np.array_equal(whole, values):
        return values
    with np.errstate(invalid="ignore"):  # infinity less itself
        near = np.abs(values - whole) <= NEAR
    if (near & (whole != values)).any():
        remark(ROUNDED)
    return np.where(near, whole, values)


def check_bounded(values: np.ndarray, path: Path) -> None:
    """Raise VolumeError where a mask holds infinity."""
    if values.dtype.kind == "f" and np.isinf(values).any():
        count = int(np.isinf(values).sum())
        raise VolumeError(
            f"{path}: {count} voxel{'s are' if count != 1 else ' is'} infinite in a mask; set them to 0, the background"
        )


def together(remarks: Iterable[str]) -> list[str]:
    """Remarks in order; of many that differ only in what follows their last colon, the first few in one line."""
    by_start: dict[str, list[str]] = {}
    for remark in sorted(set(remarks)):
        start, colon, name = remark.rpartition(": ")
        by_start.setdefault(start + colon, []).append(name)
    lines = by_start.pop("", [])
    for start, names in by_start.items():
        lines.append(f"{start}{first_few(names)}")
    return lines


class Tidied(Volume):
    """A mask whose values are `tidied` as they are read; what else is wrong with them is for the reader to see."""

    def __init__(self, mask: Volume, remark: Remark = no_remark) -> None:
        self.path, self.space, self.dtype, self.audit = mask.path, mask.space, mask.dtype, mask.audit
        self.format, self.whole_slices, self.rising_slices = mask.format, mask.whole_slices, mask.rising_slices
        self._mask, self._remark = mask, remark

    def read(self, box: Box) -> np.ndarray:
        return tidied(self._mask.read(box), self._remark)

    def slabs(self, depth: int = 16) -> Iterator[tuple[Box, np.ndarray]]:
        """As the mask's own, in the order of its file."""
        for box, values in self._mask.slabs(depth):
            yield box, tidied(values, self._remark)

    def close(self) -> None:
        self._mask.close()
