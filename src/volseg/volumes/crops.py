"""Random crops: boxes of a volume, drawn alike on all ranks; a voxel to be in the middle is found, nothing gathered."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from volseg.distributed.communicator import Communicator
from volseg.geometry import Box, Triple


def crop_shape(volume: Triple, crop: Sequence[int]) -> Triple:
    """The sides of a crop; no side is larger than the volume's. An empty `crop` is the whole volume."""
    if not crop:
        return volume
    d, h, w = (min(side, length) for side, length in zip(crop, volume, strict=True))
    return d, h, w


def random_crop(rng: np.random.Generator, volume: Triple, crop: Sequence[int]) -> Box:
    """A crop anywhere in the volume, each place as likely."""
    sides = crop_shape(volume, crop)
    start = [int(rng.integers(0, length - side + 1)) for length, side in zip(volume, sides, strict=True)]
    return _box(start, sides)


def crop_around(voxel: Triple, volume: Triple, crop: Sequence[int]) -> Box:
    """A crop with `voxel` in its middle, or as near to it as the volume's faces allow."""
    sides = crop_shape(volume, crop)
    start = [min(max(0, v - s // 2), n - s) for v, s, n in zip(voxel, sides, volume, strict=True)]
    return _box(start, sides)


def count_by_plane(labels: np.ndarray, inside: Box, depth: int, classes: int, communicator: Communicator) -> np.ndarray:
    """How many voxels of each class each plane of the volume has: [classes, depth] int64. Collective.

    labels  [d, h, w] uint8 of this rank's box `inside`
    """
    counts = np.zeros((classes, depth), dtype=np.int64)
    for plane, values in enumerate(labels, inside.start[0]):
        counts[:, plane] = np.bincount(values.reshape(-1), minlength=classes)[:classes]
    return communicator.reduce_all(counts)


def find_voxel(
    value: int, number: int, planes: np.ndarray, inside: Box, shape: Triple, read: Callable[[int], np.ndarray],
    communicator: Communicator,
) -> Triple:  # fmt: skip
    """The voxel of class `value` that comes after `number` others of it, in the volume's order D, H, W. Collective.

    Its plane follows from the counts; its row and its column from the sum of one row of counts each.

    planes  [depth] how many of them each plane has
    inside  this rank's box, `read` gives its labels [h, w] on a plane that it has
    """
    d, left = _place(planes, number)
    own: np.ndarray | None = None
    with communicator.together():
        if inside.size and inside.start[0] <= d < inside.stop[0]:
            own = read(d) == value
    rows = np.zeros(shape[1], dtype=np.int64)
    if own is not None:
        rows[inside.start[1] : inside.stop[1]] = own.sum(1)
    h, left = _place(communicator.reduce_all(rows), left)
    columns = np.zeros(shape[2], dtype=np.int64)
    if own is not None and inside.start[1] <= h < inside.stop[1]:
        columns[inside.start[2] : inside.stop[2]] = own[h - inside.start[1]]
    w, _ = _place(communicator.reduce_all(columns), left)
    return d, h, w


def _place(counts: np.ndarray, number: int) -> tuple[int, int]:
    """Where the item after `number` others stands, and how many stand before it at the same place."""
    ends = np.cumsum(counts)
    place = int(np.searchsorted(ends, number, side="right"))
    return place, number - int(ends[place] - counts[place])


def _box(start: Sequence[int], sides: Triple) -> Box:
    d, h, w = start
    return Box((d, h, w), (d + sides[0], h + sides[1], w + sides[2]))
