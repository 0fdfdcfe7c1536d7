"""Label values as their files mean them: some tools leave 0.99998 or 1.0000001 where a label is 1."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from volseg.geometry import Box
from volseg.volumes.volume import Volume

TOLERANCE = 1e-3
"""How far a stored label may be from a whole number: what a float header's slope, or arithmetic, makes of it."""


def rounded(values: np.ndarray) -> np.ndarray:
    """`values` with those that are whole but for `TOLERANCE` made whole; fractions, NaN and infinity stay."""
    if values.dtype.kind != "f":
        return values
    whole = np.rint(values)
    with np.errstate(invalid="ignore"):  # inf - inf
        near = np.abs(values - whole) <= TOLERANCE
    return np.where(near, whole, values)


def with_whole_labels(mask: Volume) -> Volume:
    """A mask whose labels are read as `rounded` says; itself where it stores integers."""
    return mask if mask.dtype.kind != "f" else _Rounded(mask)


class _Rounded(Volume):
    def __init__(self, mask: Volume) -> None:
        self.path, self.space, self.format, self.audit = mask.path, mask.space, mask.format, mask.audit
        self.dtype, self.whole_slices, self.rising_slices = mask.dtype, mask.whole_slices, mask.rising_slices
        self._mask = mask

    def read(self, box: Box) -> np.ndarray:
        return rounded(self._mask.read(box))

    def slabs(self, depth: int = 16) -> Iterator[tuple[Box, np.ndarray]]:
        """As the mask's own, in the order of its file."""
        for box, values in self._mask.slabs(depth):
            yield box, rounded(values)

    def close(self) -> None:
        self._mask.close()
