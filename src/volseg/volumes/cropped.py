"""A box of a volume, as a volume."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from volseg.geometry import Box, format_triple
from volseg.volumes.volume import Space, Volume


def cropped(volume: Volume, box: Box, which: str = "around those other than zero") -> Volume:
    """The voxels of `box` alone, read lazily; `volume` itself where that is all of it.

    which  voxels these are, for the record of what was done to the volume
    """
    return volume if box == Box.whole(volume.shape) else _CroppedView(volume, box, which)


def cropped_space(space: Space, box: Box) -> Space:
    """The grid of the voxels of `box` alone."""
    if box == Box.whole(space.shape):
        return space
    moved = np.eye(4)
    moved[:3, 3] = box.start[::-1]
    return Space(box.shape, np.asarray(space.affine, dtype=np.float64) @ moved)


class _CroppedView(Volume):
    def __init__(self, volume: Volume, box: Box, which: str) -> None:
        self.path, self.format, self.dtype = volume.path, volume.format, volume.dtype
        self.whole_slices, self.rising_slices = volume.whole_slices, volume.rising_slices
        self.space = cropped_space(volume.space, box)
        what = f"cropped to the {format_triple(box.shape)} voxels {which}"
        self.audit = replace(volume.audit, fixes=(*volume.audit.fixes, what))
        self._volume, self._first = volume, box.start

    def close(self) -> None:
        self._volume.close()

    def read(self, box: Box) -> np.ndarray:
        return self._volume.read(box.shift(self._first))
