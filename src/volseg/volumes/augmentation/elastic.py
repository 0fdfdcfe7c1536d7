"""A smooth random displacement: cubic B-splines over a coarse lattice of random vectors.

As the free-form deformations of Rueckert et al., IEEE TMI 1999. The vectors follow from a key and their place on the
lattice, and the splines' weights from the voxel's index, so every box can be made by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import numpy as np

from volseg.geometry import Box
from volseg.volumes.noise import Key, uniform_noise

Vector = tuple[float, float, float]


@dataclass(frozen=True)
class Elastic:
    """A displacement for each voxel of a view.

    amplitude  voxels, D, H, W: the largest displacement
    distance   voxels, D, H, W: from one lattice point to the next
    key        of the random vectors
    """

    amplitude: Vector
    distance: Vector
    key: Key

    def displacement(self, box: Box) -> np.ndarray:
        """Voxels along D, H, W: [3, d, h, w] float32."""
        taps = [_taps(a, b, step) for a, b, step in zip(box.start, box.stop, self.distance, strict=True)]
        (d, end_d, _), (h, end_h, _), (w, end_w, _) = taps
        lattice = Box((d, h, w), (end_d, end_h, end_w))
        axes = []
        for axis, amplitude in enumerate(self.amplitude):
            vectors = uniform_noise(lattice, (self.key[0], (self.key[1] + axis) % 2**64))
            axes.append((vectors * np.float32(2) - np.float32(1)) * np.float32(amplitude))
        field = np.stack(axes)
        for axis in (3, 2, 1):  # W first: the last, D, then adds up whole planes
            field = _along(field, axis, taps[axis - 1][2])
        return field


_Weights = list[tuple[np.ndarray, np.ndarray]]


def _taps(start: int, stop: int, distance: float) -> tuple[int, int, _Weights]:
    """First and last (exclusive) lattice point that some voxels need; of each of four taps the place and the weight."""
    places = np.arange(start, stop, dtype=np.float64) / distance
    cells = np.floor(places)
    t = places - cells
    point = cells.astype(np.int64)  # counted so that voxel 0 has the points 0 to 3
    first, last = int(point[0]), int(point[-1]) + 4
    weights = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
    return first, last, [(point - first + n, (w / 6).astype(np.float32)) for n, w in enumerate(weights)]


def _along(field: np.ndarray, axis: int, taps: _Weights) -> np.ndarray:
    shape = tuple(-1 if n == axis else 1 for n in range(4))
    return reduce(np.add, (field.take(places, axis) * weights.reshape(shape) for places, weights in taps))
