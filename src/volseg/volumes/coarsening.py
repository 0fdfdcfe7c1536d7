"""Volumes at half their resolution, and half of that: the hierarchy that multigrid training works on."""

from __future__ import annotations

import numpy as np

from volseg.geometry import halved
from volseg.volumes.resampling import How, resampled
from volseg.volumes.volume import Space, Volume


def coarse_space(space: Space) -> Space:
    """The grid whose voxels are blocks of 2 x 2 x 2 of `space`; where a side is odd the last ones stick out."""
    to_fine = np.diag([2.0, 2.0, 2.0, 1.0])
    to_fine[:3, 3] = 0.5
    return Space(halved(space.shape), np.asarray(space.affine, dtype=np.float64) @ to_fine)


def coarsened(volume: Volume, times: int, how: How) -> Volume:
    """`volume` at half its resolution, `times` times over; read lazily, box by box.

    how  "linear": each voxel is the mean of the eight it is made of (of integers, rounded at every halving);
         "labels": the label that most of the eight carry, of equals the smallest
    """
    for _ in range(times):
        volume = resampled(volume, coarse_space(volume.space), how)
    return volume
