"""Which of a scan's voxels a network sees, and in which order: any axes, any direction, cropped to a box."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from volseg.geometry import Box, Triple
from volseg.volumes.canonical import Orientation
from volseg.volumes.volume import Space


@dataclass(frozen=True)
class Reading:
    """What a network sees of a scan, for masks in canonical order.

    order  from the canonical order to the network's
    crop   the voxels of the scan that it sees, in its order
    """

    order: Orientation
    crop: Box

    def seen(self, array: np.ndarray, box: Box) -> np.ndarray:
        """A view, in the network's order, of the voxels that it sees.

        array  [..., d, h, w] the voxels of `box`, a box in canonical order
        """
        own = self.order.box_to_canonical(box)
        view: np.ndarray = self.order.to_canonical(array)[(..., *own.intersect(self.crop).relative_to(own).slices)]
        return view

    def seen_box(self, box: Box) -> Box:
        """What of `box`, in canonical order, the network sees: in its order, counted from the crop's first voxel."""
        return self.order.box_to_canonical(box).intersect(self.crop).relative_to(self.crop)


def order_of(space: Space, stored: bool, transpose: Triple) -> Orientation:
    """From a volume's own order to that in which a network sees it.

    stored     the network's axis n runs along the volume's own axis ``transpose[n]``; else along the canonical one
    """
    if stored:
        return Orientation(transpose, (False, False, False), space.shape)
    canonical = Orientation.of(space)
    d, h, w = (canonical.axes[axis] for axis in transpose)
    e, f, g = (canonical.flips[axis] for axis in transpose)
    return Orientation((d, h, w), (e, f, g), space.shape)


def from_canonical_order(space: Space, order: Orientation) -> Orientation:
    """From the canonical order of a volume to the order to which `order` leads from its own."""
    canonical = Orientation.of(space)
    d, h, w = (canonical.axes.index(own) for own in order.axes)
    e, f, g = (flip != canonical.flips[axis] for axis, flip in zip((d, h, w), order.flips, strict=True))
    return Orientation((d, h, w), (e, f, g), canonical.canonical_shape)
