"""Planes of a partitioned volume: chosen together, and gathered, nothing else of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from volseg.distributed.communicator import Communicator
from volseg.drawing.planes import PLANES, Plane, PlaneName, pick_planes, plane_counts
from volseg.geometry import Box, Triple
from volseg.volumes.volume import Space


def choose_planes(mask: np.ndarray, labels: int, box: Box, space: Space, communicator: Communicator) -> Triple:
    """The planes that show the labels best (`pick_planes`): indices along D, H and W, on every rank. Collective.

    mask    [d, h, w] this rank's box of it, in canonical order
    labels  how many, the background included
    space   the grid of the whole mask
    """
    counts = []
    for axis, found in enumerate(plane_counts(mask, labels)):
        all_planes = np.zeros((found.shape[0], space.shape[axis]), dtype=np.int64)
        all_planes[:, box.start[axis] : box.stop[axis]] = found
        counts.append(communicator.reduce_all(all_planes))
    return pick_planes(counts)


def gather_planes(
    image: np.ndarray, mask: np.ndarray, chosen: Triple, box: Box, space: Space, communicator: Communicator,
    reference: np.ndarray | None = None,
) -> Mapping[PlaneName, Plane]:  # fmt: skip
    """One plane of each axis, put together on every rank. Collective.

    image      [d, h, w] this rank's box of the scan, in canonical order
    mask       [d, h, w] the same box of the mask, and `reference` of the true labels
    chosen     which planes, by axis
    """
    arrays = [image, mask] if reference is None else [image, mask, reference]
    planes: dict[PlaneName, Plane] = {}
    for axis, name in enumerate(PLANES):
        rows, columns = (n for n in range(3) if n != axis)
        shape = space.shape[rows], space.shape[columns]
        whole = [np.zeros(shape, dtype=np.float32 if n == 0 else np.uint8) for n in range(len(arrays))]
        for place, parts in communicator.gather_all(_cut(arrays, box, axis, chosen[axis])):
            for plane, part in zip(whole, parts, strict=True):
                plane[place] = part
        planes[name] = Plane(
            image=whole[0], mask=whole[1], spacing=(space.spacing[rows], space.spacing[columns]), index=chosen[axis],
            count=space.shape[axis], reference=whole[2] if reference is not None else None,
        )  # fmt: skip
    return planes


def _cut(arrays: Sequence[np.ndarray], box: Box, axis: int, index: int) -> tuple[tuple[slice, slice], list[np.ndarray]]:
    """This rank's parts of a plane, and where in the plane they belong; empty where the plane passes it by."""
    if not box.size or not box.start[axis] <= index < box.stop[axis]:
        return (slice(0, 0), slice(0, 0)), [np.zeros((0, 0), dtype=array.dtype) for array in arrays]
    rows, columns = (side for n, side in enumerate(box.slices) if n != axis)
    return (rows, columns), [np.ascontiguousarray(array.take(index - box.start[axis], axis)) for array in arrays]
