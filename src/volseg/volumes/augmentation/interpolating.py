"""The values of a view's voxels from those of the volume: linear for images, a vote of the neighbours for labels.

The same as `volumes.interpolation` does at any places, and faster: a few planes at a time, so that all that is between
stays in the cache, and neighbours are found by one index into the flat volume.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from volseg.geometry import Box, Triple
from volseg.volumes.augmentation.spatial import SpatialMap
from volseg.volumes.interpolation import between, winner

CHUNK = 2**16
"""Voxels taken at a time."""

SMALLEST = 2**9
"""Voxels of a piece that is not cut further."""


def interpolate(
    images: Sequence[np.ndarray], labels: np.ndarray, held: Box, space: SpatialMap, box: Box,
    into: tuple[np.ndarray, np.ndarray], outside: int, threads: int = 1,
) -> None:  # fmt: skip
    """Fill `into` with the voxels of `box` of the view; outside of the volume 0, and `outside` in the labels.

    images  [d, h, w] float32, a channel each, of the volume's box `held`, which has ``space.source_box(box)``
    labels  [d, h, w] uint8 of the same box
    into    image [C, d', h', w'] float32 and labels [d', h', w'] uint8, of `box`
    """
    image, target = into
    if not held.size:
        image[...], target[...] = 0, outside
    elif space.whole_voxels:
        cut = _mirrored(space, held, box)
        for channel, values in zip(image, images, strict=True):
            channel[...] = values[cut]
        target[...] = labels[cut]
    else:
        _interpolate(images, labels, held, space, box, into, outside, threads)


def _mirrored(space: SpatialMap, held: Box, box: Box) -> tuple[slice, slice, slice]:
    """The index of `box` in an array of `held`, where whole voxels are mirrored or moved."""
    cuts = []
    for axis in range(3):
        step, shift = int(space.matrix[axis][axis]), int(space.offset[axis]) - held.start[axis]
        first, last = step * box.start[axis] + shift, step * (box.stop[axis] - 1) + shift
        end = last + step
        cuts.append(slice(first, end if end >= 0 else None, step))
    return cuts[0], cuts[1], cuts[2]


def _interpolate(
    images: Sequence[np.ndarray], labels: np.ndarray, held: Box, space: SpatialMap, box: Box,
    into: tuple[np.ndarray, np.ndarray], outside: int, threads: int,
) -> None:  # fmt: skip
    # One voxel more at the far end, so that there is always a neighbour after; its weight is 0 there. No zero of the
    # images is negative: then a weight of 0 leaves every bit as it is.
    flat = [np.pad(values, (0, 1), mode="edge").ravel() + np.float32(0) for values in images]
    names = np.pad(labels, (0, 1), mode="edge").ravel()
    _, h, w = (n + 1 for n in held.shape)
    corners = [(z * h + y) * w + x for z in (0, 1) for y in (0, 1) for x in (0, 1)]
    image, target = into

    def some(planes: Box) -> None:
        place = planes.relative_to(box).slices
        index, weights, inside = _neighbours(space, planes, held)
        whole = bool(inside.all())
        for channel, values in zip(image, flat, strict=True):
            found = _linear([values[n:].take(index, mode="clip") for n in corners], weights)
            channel[place] = (found if whole else np.where(inside, found, np.float32(0))).reshape(planes.shape)
        voted = _voted([names[n:].take(index, mode="clip") for n in corners], weights)
        target[place] = (voted if whole else np.where(inside, voted, np.uint8(outside))).reshape(planes.shape)

    in_parallel(some, chunks(box), threads)


def _neighbours(space: SpatialMap, box: Box, held: Box) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """Of each voxel of `box`, flat: the neighbour before in a padded array of `held`, the weights of those after along
    D, H, W (float32), and whether it lies in the volume, which ends half a voxel beyond its last centres.
    """
    index: np.ndarray | None = None
    inside: np.ndarray | None = None
    weights = []
    for place, length, first, side in zip(space.places(box), space.volume, held.start, held.shape, strict=True):
        place = place.reshape(-1)
        within = (place >= -0.5) & (place <= length - 0.5)
        inside = within if inside is None else np.logical_and(inside, within, out=inside)
        np.clip(place, 0, length - 1, out=place)
        low = np.floor(place)
        place -= low
        weights.append(place.astype(np.float32))
        low -= first
        np.clip(low, 0, side - 1, out=low)  # moves only what lies outside of the volume
        if index is None:
            index = low
        else:  # whole numbers below 2^53: exact
            index *= side + 1
            index += low
    assert index is not None
    assert inside is not None
    return index.astype(np.intp), weights, inside


def _linear(corners: list[np.ndarray], weights: list[np.ndarray]) -> np.ndarray:
    """As `interpolate_points`: D first, then H, then W."""
    found = corners
    for weight in weights:
        half = len(found) // 2
        found = [between(a, b, weight) for a, b in zip(found[:half], found[half:], strict=True)]
    return found[0]


def _voted(corners: list[np.ndarray], weights: list[np.ndarray]) -> np.ndarray:
    """As `vote`; nothing is counted where all eight agree."""
    found = corners[0].copy()
    differ = np.zeros(found.shape, dtype=bool)
    for other in corners[1:]:
        differ |= other != found
    places = np.flatnonzero(differ)
    if places.size:
        found[places] = winner([c[places] for c in corners], [w[places].astype(np.float64) for w in weights])
    return found


def chunks(box: Box) -> list[Box]:
    """A box as some planes after the others, of about `CHUNK` voxels."""
    _, h, w = box.shape
    planes = max(1, CHUNK // max(1, h * w))
    starts = range(box.start[0], box.stop[0], planes)
    return [Box((z, *box.start[1:]), (min(box.stop[0], z + planes), *box.stop[1:])) for z in starts]


def in_parallel(work: Callable[[Box], None], boxes: Sequence[Box], threads: int) -> None:
    """`work` on every box, by so many threads; numpy lets them run side by side."""
    if threads == 1 or len(boxes) == 1:
        for box in boxes:
            work(box)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, boxes))


def pieces(box: Box, space: SpatialMap, voxels: int, planes: bool = False) -> list[Box]:
    """`box`, halved along its longest side until each piece is made from so many voxels of the volume at most.

    planes  so that the pieces come from few planes besides: any part of the volume costs its whole planes to read

    Not below `SMALLEST`: what a displacement reaches does not become less.
    """
    if not box.size:
        return []
    if space.source_box(box).size <= voxels or box.size <= SMALLEST:
        return [box]
    axes = sorted((n for n in range(3) if box.shape[n] > 1), key=lambda n: -box.shape[n])
    axis = min(axes, key=lambda n: _planes_and_voxels(space, _halves(box, n)[0])) if planes else axes[0]
    return [half for cut in _halves(box, axis) for half in pieces(cut, space, voxels, planes)]


def _planes_and_voxels(space: SpatialMap, box: Box) -> int:
    """Of what `box` comes from, the product: a piece costs its planes, and its voxels say how many pieces there are."""
    source = space.source_box(box)
    return source.shape[0] * source.size


def _halves(box: Box, axis: int) -> tuple[Box, Box]:
    middle = (box.start[axis] + box.stop[axis]) // 2

    def moved(ends: Triple) -> Triple:
        d, h, w = (middle if n == axis else end for n, end in enumerate(ends))
        return d, h, w

    return Box(box.start, moved(box.stop)), Box(moved(box.start), box.stop)
