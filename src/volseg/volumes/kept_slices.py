"""The slices of a compressed volume that were read last, for the boxes that share them."""

from __future__ import annotations

import numpy as np

from volseg.geometry import Box
from volseg.volumes.volume import Volume


class SliceKeeper:
    """Reads boxes of a volume. Of a compressed one it keeps slices, so that boxes beside each other, or runs of planes
    that overlap, cost one inflation or decoding of them, for the memory they take.
    """

    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        self._start = 0
        self._slices: np.ndarray | None = None

    def read(self, box: Box, *, keep: bool = True) -> np.ndarray:
        """The voxels of `box`; with `keep` whole slices are read, and kept for the next box."""
        if not (keep and self.volume.whole_slices):
            return self.volume.read(box)
        first, last = box.start[0], box.stop[0]
        _, h, w = self.volume.shape
        kept = None
        if self._slices is not None and self._start <= first < self._start + len(self._slices):
            kept = self._slices[first - self._start :]
        begin = first if kept is None else first + len(kept)
        if begin < last:
            new = self.volume.read(Box((begin, 0, 0), (last, h, w)))
            kept = new if kept is None else np.concatenate([kept, new])
        assert kept is not None
        self._start, self._slices = first, kept
        return kept[: last - first, box.start[1] : box.stop[1], box.start[2] : box.stop[2]]

    def close(self) -> None:
        """Let go of the slices and of the volume's file."""
        self._slices = None
        self.volume.close()
