"""The preview of a partitioned mask: three planes are chosen together and gathered, nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from volseg.distributed.grid import ProcessGrid
from volseg.segmentation.preview import PLANES, PreviewPlane, draw_preview, pick_planes, plane_counts
from volseg.volumes.scan import Scan


def write_preview(
    path: Path, image: np.ndarray, mask: np.ndarray, scan: Scan, grid: ProcessGrid, labels: dict[str, int], title: str
) -> None:
    """Draw the preview PNG on the root rank. Collective.

    image  [d, h, w] this rank's box of the scan (`Scan.mask_box`), in canonical order
    mask   [d, h, w] the same box of the mask
    """
    space, communicator = scan.mask_space, grid.communicator
    counts = []
    for axis, found in enumerate(plane_counts(mask, len(labels))):
        all_planes = np.zeros((found.shape[0], space.shape[axis]), dtype=np.int64)
        all_planes[:, scan.mask_box.start[axis] : scan.mask_box.stop[axis]] = found
        counts.append(communicator.reduce_all(all_planes))
    chosen = pick_planes(counts)
    planes = {}
    for axis, name in enumerate(PLANES):
        rows, columns = (n for n in range(3) if n != axis)
        shape = space.shape[rows], space.shape[columns]
        whole_image, whole_mask = np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.uint8)
        for place, image_part, mask_part in communicator.gather_all(_cut(image, mask, scan, axis, chosen[axis])):
            whole_image[place], whole_mask[place] = image_part, mask_part
        spacing = space.spacing[rows], space.spacing[columns]
        planes[name] = PreviewPlane(whole_image, whole_mask, spacing, chosen[axis], space.shape[axis])
    with communicator.together():
        if communicator.is_root:
            draw_preview(path, planes, labels, title)


def _cut(
    image: np.ndarray, mask: np.ndarray, scan: Scan, axis: int, index: int
) -> tuple[tuple[slice, slice], np.ndarray, np.ndarray]:
    """This rank's part of a plane, and where in the plane it belongs; empty where the plane passes it by."""
    inside = scan.mask_box
    places = [s for n, s in enumerate(inside.slices) if n != axis]
    if not inside.size or not inside.start[axis] <= index < inside.stop[axis]:
        nothing = np.zeros((0, 0), dtype=np.float32)
        return (slice(0, 0), slice(0, 0)), nothing, nothing.astype(np.uint8)
    at = index - inside.start[axis]
    image_part, mask_part = image.take(at, axis), mask.take(at, axis)
    return (places[0], places[1]), image_part.astype(np.float32), mask_part
