"""The preview of a partitioned mask: three planes are chosen together and gathered, nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from volseg.distributed.grid import ProcessGrid
from volseg.segmentation.inference import BlockResult
from volseg.segmentation.preview import PLANES, PreviewPlane, draw_preview, pick_planes, plane_counts
from volseg.volumes.scan import Scan


def write_preview(
    path: Path, result: BlockResult, scan: Scan, grid: ProcessGrid, labels: dict[str, int], title: str
) -> None:
    """Draw the preview PNG on the root rank. Collective."""
    space, communicator = scan.space, grid.communicator
    counts = []
    for axis, found in enumerate(plane_counts(result.mask, len(labels))):
        all_planes = np.zeros((found.shape[0], space.shape[axis]), dtype=np.int64)
        all_planes[:, scan.inside.start[axis] : scan.inside.stop[axis]] = found
        counts.append(communicator.reduce_all(all_planes))
    chosen = pick_planes(counts)
    planes = {}
    for axis, name in enumerate(PLANES):
        rows, columns = (n for n in range(3) if n != axis)
        shape = space.shape[rows], space.shape[columns]
        image, mask = np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.uint8)
        for place, image_part, mask_part in communicator.gather_all(_cut(result, scan, axis, chosen[axis])):
            image[place], mask[place] = image_part, mask_part
        spacing = space.spacing[rows], space.spacing[columns]
        planes[name] = PreviewPlane(image, mask, spacing, chosen[axis], space.shape[axis])
    with communicator.together():
        if communicator.is_root:
            draw_preview(path, planes, labels, title)


def _cut(result: BlockResult, scan: Scan, axis: int, index: int) -> tuple[tuple[slice, slice], np.ndarray, np.ndarray]:
    """This rank's part of a plane, and where in the plane it belongs; empty where the plane passes it by."""
    inside = scan.inside
    places = [s for n, s in enumerate(inside.slices) if n != axis]
    if not inside.size or not inside.start[axis] <= index < inside.stop[axis]:
        nothing = np.zeros((0, 0), dtype=np.float32)
        return (slice(0, 0), slice(0, 0)), nothing, nothing.astype(np.uint8)
    at = index - inside.start[axis]
    image, mask = result.image.take(at, axis), result.mask.take(at, axis)
    return (places[0], places[1]), image.astype(np.float32), mask
