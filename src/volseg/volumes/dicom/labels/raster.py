"""Which voxels of a plane lie inside a set of closed contours: even-odd filling, line by line.

A voxel is inside if its centre is: if a ray from it meets the contours an odd number of times. So a contour inside
another is a hole, and a keyhole (one contour led in to the hole and out again over the same line) is one too. A centre
exactly on a contour is inside on its upper and left edges only, so that neighbours that share a line share no voxel.

Why not a library: skimage and OpenCV are large and know whole-pixel vertices (OpenCV) or one polygon at a time;
matplotlib's `Path.contains_points` tests each point against each edge, 200 times the work (see the tests, where it is
the reference). Source: the scan-line algorithm, Foley et al., Computer Graphics, section 3.6.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

CROSSINGS = 1 << 21  # held at once


def fill(contours: Iterable[np.ndarray], start: tuple[int, int], shape: tuple[int, int]) -> np.ndarray:
    """Bool [rows, columns]: the voxels of a window that lie inside.

    contours  each float64 [points, 2], (row, column) in voxels, voxel centres at whole numbers; closed by itself
    start     (row, column) of the window's first voxel; `shape` its (rows, columns)
    """
    rows, columns = shape
    toggles = np.zeros(rows * (columns + 1), dtype=np.int64)
    edges = np.concatenate(
        [np.hstack([points, np.roll(points, -1, axis=0)]) for points in contours] or [np.zeros((0, 4))]
    ) - np.tile(np.asarray(start, dtype=np.float64), 2)
    edges = np.where((edges[:, 0] > edges[:, 2])[:, None], edges[:, [2, 3, 0, 1]], edges)  # upwards
    first = np.ceil(np.clip(edges[:, 0], 0, rows)).astype(np.int64)
    counts = np.ceil(np.clip(edges[:, 2], 0, rows)).astype(np.int64) - first
    edges, first, counts = edges[counts > 0], first[counts > 0], counts[counts > 0]
    step = max(1, CROSSINGS // max(1, rows))
    for begin in range(0, len(edges), step):
        part = slice(begin, begin + step)
        y0, x0, y1, x1 = np.repeat(edges[part], counts[part], axis=0).T
        before = np.cumsum(counts[part]) - counts[part]
        row = np.arange(int(counts[part].sum())) + np.repeat(first[part] - before, counts[part])
        crossing = x0 + (row - y0) * ((x1 - x0) / (y1 - y0))
        column = np.ceil(np.clip(crossing, 0, columns)).astype(np.int64)
        toggles += np.bincount(row * (columns + 1) + column, minlength=toggles.size)
    inside: np.ndarray = np.cumsum(toggles.reshape(rows, columns + 1), axis=1)[:, :columns] % 2 == 1
    return inside


def area(contours: Iterable[np.ndarray]) -> float:
    """The area of the contours in voxel faces, that of holes added, to tell large from small (shoelace formula)."""
    total = 0.0
    for points in contours:
        row, column = points.T
        total += float(abs(row @ np.roll(column, -1) - column @ np.roll(row, -1)) / 2)
    return total
