"""Any voxel order, seen in one: rows of a volume run to the patient's right, columns forward, slices up.

A network learns from volumes of many orientations only when it sees them in one. Nothing is resampled: axes are
permuted and flipped to the nearest RAS+ order, exactly as nibabel's `as_closest_canonical` does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from volseg.geometry import Box, Triple
from volseg.volumes.volume import Space, Volume


@dataclass(frozen=True)
class Orientation:
    """The map between a volume's own voxel order and the canonical one.

    axes    canonical axis a (of D, H, W) runs along the volume's own axis ``axes[a]``
    flips   and backwards where ``flips[a]``
    shape   the volume's own (D, H, W)
    """

    axes: Triple
    flips: tuple[bool, bool, bool]
    shape: Triple

    @classmethod
    def of(cls, space: Space) -> Orientation:
        """The orientation of `space`; an oblique one goes to the closest."""
        towards, backwards = nearest_axes(np.asarray(space.affine, dtype=np.float64)[:3, :3])
        # In NIfTI's order own axis n runs along world axis towards[n]; D, H, W is that order read backwards.
        own = [2 - towards.index(2 - axis) for axis in range(3)]
        flips = [backwards[2 - axis] for axis in own]
        return cls((own[0], own[1], own[2]), (flips[0], flips[1], flips[2]), space.shape)

    @property
    def is_canonical(self) -> bool:
        """Whether nothing moves."""
        return self.axes == (0, 1, 2) and not any(self.flips)

    @property
    def canonical_shape(self) -> Triple:
        """(D, H, W) in canonical order."""
        d, h, w = (self.shape[axis] for axis in self.axes)
        return d, h, w

    def canonical_space(self, space: Space) -> Space:
        """`space` with its voxels named in canonical order; each voxel stays where it is in the patient."""
        to_own = np.zeros((4, 4))
        to_own[3, 3] = 1
        for axis, (own, flip) in enumerate(zip(self.axes, self.flips, strict=True)):
            to_own[2 - own, 2 - axis] = -1 if flip else 1
            to_own[2 - own, 3] = self.shape[own] - 1 if flip else 0
        return Space(self.canonical_shape, np.asarray(space.affine, dtype=np.float64) @ to_own)

    def to_canonical(self, array: np.ndarray) -> np.ndarray:
        """A view of `array` [..., D, H, W] (the whole volume or a box of it) in canonical order."""
        lead = array.ndim - 3
        moved = array.transpose(*range(lead), *(lead + axis for axis in self.axes))
        view: np.ndarray = moved[self._steps()]
        return view

    def from_canonical(self, array: np.ndarray) -> np.ndarray:
        """The inverse of `to_canonical`, a view too."""
        lead = array.ndim - 3
        unflipped: np.ndarray = array[self._steps()]
        return unflipped.transpose(*range(lead), *(lead + self.axes.index(n) for n in range(3)))

    def box_to_canonical(self, box: Box) -> Box:
        """The canonical names of the voxels that `box` names in the volume's own order."""
        ends = []
        for own, flip in zip(self.axes, self.flips, strict=True):
            start, stop, side = box.start[own], box.stop[own], self.shape[own]
            ends.append((side - stop, side - start) if flip else (start, stop))
        (d0, d1), (h0, h1), (w0, w1) = ends
        return Box((d0, h0, w0), (d1, h1, w1))

    def box_from_canonical(self, box: Box) -> Box:
        """The inverse of `box_to_canonical`."""
        starts, stops = [0, 0, 0], [0, 0, 0]
        for axis, (own, flip) in enumerate(zip(self.axes, self.flips, strict=True)):
            start, stop, side = box.start[axis], box.stop[axis], self.shape[own]
            starts[own], stops[own] = (side - stop, side - start) if flip else (start, stop)
        return Box((starts[0], starts[1], starts[2]), (stops[0], stops[1], stops[2]))

    def _steps(self) -> Any:
        return (..., *(slice(None, None, -1) if flip else slice(None) for flip in self.flips))


def canonical(volume: Volume) -> Volume:
    """`volume` read in canonical order; itself where it already is."""
    return reordered(volume, Orientation.of(volume.space))


def reordered(volume: Volume, orientation: Orientation) -> Volume:
    """`volume` read in the order to which `orientation` leads from its own; itself where that is the same."""
    return volume if orientation.is_canonical else _ReorderedView(volume, orientation)


def in_order_of(volume: Volume, space: Space) -> Volume:
    """`volume` with its voxels in the order of `space`; itself where it is in that order already.

    Two grids of the same voxels, stored in different orders, become the same grid so.
    """
    there, here = Orientation.of(space), Orientation.of(volume.space)
    axes, flips = [0, 0, 0], [False, False, False]
    for axis in range(3):  # of the canonical order, in which both meet
        axes[there.axes[axis]] = here.axes[axis]
        flips[there.axes[axis]] = here.flips[axis] != there.flips[axis]
    change = Orientation((axes[0], axes[1], axes[2]), (flips[0], flips[1], flips[2]), volume.shape)
    return reordered(volume, change)


class _ReorderedView(Volume):
    def __init__(self, volume: Volume, orientation: Orientation) -> None:
        self.path, self.dtype = volume.path, volume.dtype
        self.format, self.whole_slices, self.audit = volume.format, volume.whole_slices, volume.audit
        self.space = orientation.canonical_space(volume.space)
        self.rising_slices = volume.rising_slices and orientation.axes[0] == 0 and not orientation.flips[0]
        self._volume, self._orientation = volume, orientation

    def close(self) -> None:
        self._volume.close()

    def read(self, box: Box) -> np.ndarray:
        own = self._volume.read(self._orientation.box_from_canonical(box))
        return np.ascontiguousarray(self._orientation.to_canonical(own))

    def slabs(self, depth: int = 16) -> Iterator[tuple[Box, np.ndarray]]:
        """Slabs in the order of the file, `depth` of *its* slices at a time, so that it is still inflated once.

        Their boxes are in the new order and tile the volume, but need not be slabs along D, nor come in rising order.
        """
        for box, array in self._volume.slabs(depth):
            yield self._orientation.box_to_canonical(box), np.ascontiguousarray(self._orientation.to_canonical(array))


def nearest_axes(matrix: np.ndarray) -> tuple[list[int], list[bool]]:
    """For each NIfTI voxel axis the world axis it runs along, and whether backwards.

    The rotation nearest to the affine (polar decomposition) decides, as in nibabel's `io_orientation`.
    """
    u, _, vh = np.linalg.svd(matrix / np.sqrt((matrix**2).sum(axis=0)))
    rotation = u @ vh
    towards, backwards = [], []
    for axis in range(3):
        world = int(np.argmax(np.abs(rotation[:, axis])))
        towards.append(world)
        backwards.append(bool(rotation[world, axis] < 0))
        rotation[world] = 0
    return towards, backwards
