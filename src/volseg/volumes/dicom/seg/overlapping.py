"""Segments that overlap, as the regions do that a mask's labels make up.

A mask holds one value a voxel. A voxel lies in every region that its value is one of (`volumes.regions`), so each
region becomes a segment of its own, and the whole tumour contains its core.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from volseg.volumes.regions import Region


def region_segments(regions: Sequence[Region]) -> list[tuple[int, str]]:
    """(what a mask holds for it, name) of each region, in their order."""
    return [(region.written, region.name) for region in regions]


def overlapping_planes(
    mask: np.ndarray, regions: Sequence[Region], file: Path
) -> tuple[np.ndarray, list[Region], int]:  # fmt: skip
    """The regions that have voxels in `mask` [D, H, W], and where they are.

    file  that the planes are put into, so that memory holds only those at work

    out  [D, H, W, regions] uint8, 1 in a region; these regions, in their order; and how many frames they take: one for
         each region in each slice that it is in. Where no region has a voxel, nothing is put into the file
    """
    highest = int(np.iinfo(mask.dtype).max)
    member = np.zeros((len(regions), highest + 1), np.uint8)
    for row, region in zip(member, regions, strict=True):
        row[[value for value in region.values if value <= highest]] = 1
    slices = np.zeros(len(regions), np.int64)
    for plane in mask:
        values = np.bincount(plane.ravel(), minlength=highest + 1) > 0
        slices += (member[:, values] > 0).any(axis=1)
    present = [number for number, count in enumerate(slices.tolist()) if count]
    if not present:
        return np.zeros((0, *mask.shape[1:], 0), np.uint8), [], 0
    planes = np.memmap(file, np.uint8, "w+", shape=(*mask.shape, len(present)))
    of_value = np.ascontiguousarray(member[present].T)
    for out, plane in zip(planes, mask, strict=True):
        out[...] = of_value[plane]
    return planes, [regions[number] for number in present], int(slices.sum())
