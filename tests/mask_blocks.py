"""Masks that are hard to label in parts, tilings that are hard to merge over, and the plainest labelling of all."""

from __future__ import annotations

from itertools import product

import numpy as np

from volseg.geometry import Box, Triple

NOTHING = Box((0, 0, 0), (0, 0, 0))
REACH = {6: 1, 18: 2, 26: 3}


def random_tiling(random: np.random.Generator, shape: Triple, ranks: int) -> list[Box]:
    """Boxes by rank that tile a volume of `shape`: cut at random, so of any sides, some one voxel, some empty."""
    pieces = [Box.whole(shape)]
    empty = int(random.integers(0, ranks)) if random.random() < 0.3 else 0
    while len(pieces) < ranks - empty:
        box = pieces.pop(int(random.integers(len(pieces))))
        axis = int(random.integers(3))
        if box.shape[axis] < 2:
            pieces.append(box)
            continue
        thin = random.random() < 0.2
        cut = box.start[axis] + (1 if thin else int(random.integers(1, box.shape[axis])))
        start, stop = list(box.start), list(box.stop)
        start[axis] = stop[axis] = cut
        pieces += [Box(box.start, (stop[0], stop[1], stop[2])), Box((start[0], start[1], start[2]), box.stop)]
    pieces += [NOTHING] * (ranks - len(pieces))
    return [pieces[place] for place in random.permutation(ranks)]


def pinwheel(shape: Triple, ranks: int) -> list[Box]:
    """Five blocks round a middle, which no sequence of cuts through the whole makes; the other ranks hold nothing."""
    d, h, w = shape
    a, b, c, e = h // 3, 2 * h // 3, w // 3, 2 * w // 3
    flat = [(0, 0, a, e), (0, e, b, w), (b, c, h, w), (a, 0, h, c), (a, c, b, e)]
    boxes = [Box((0, h0, w0), (d, h1, w1)) for h0, w0, h1, w1 in flat]
    return [NOTHING] * (ranks - 5) + boxes


def snake(shape: Triple) -> np.ndarray:
    """One path, a voxel wide, there and back along every other row of every other slice."""
    mask = np.zeros(shape, dtype=np.uint8)
    d, h, w = shape
    down = True
    for z in range(0, d, 2):
        for turn, y in enumerate(range(0, h, 2)):
            mask[z, y] = 1
            if y + 2 < h:
                mask[z, y + 1, w - 1 if turn % 2 == 0 else 0] = 1
        if z + 2 < d:
            last = (h - 1) // 2 * 2
            end = w - 1 if (last // 2) % 2 == 0 else 0
            mask[z + 1, last if down else 0, end if down else 0] = 1
        down = not down
    return mask


def spirals(shape: Triple) -> np.ndarray:
    """Two interleaved spirals in the plane of D and W, of different labels, and a third that returns to label 1."""
    d, _, w = shape
    z, x = np.mgrid[0:d, 0:w].astype(np.float64)
    z, x = z - d / 2 + 0.25, x - w / 2 + 0.25
    arm = np.floor((np.hypot(z, x) / 4 - np.arctan2(z, x) / (2 * np.pi)) * 4).astype(int) % 4
    plane = np.array([1, 0, 2, 0], dtype=np.uint8)[arm]
    return np.ascontiguousarray(np.broadcast_to(plane[:, None, :], shape))


def diagonals(shape: Triple, corners: bool) -> np.ndarray:
    """Voxels that touch over corners only, or over edges only."""
    d, h, w = np.indices(shape)
    chosen = (d % 2 == h % 2) & (h % 2 == w % 2) if corners else (d + h + w) % 2 == 0
    return chosen.astype(np.uint8)


def speckles(random: np.random.Generator, shape: Triple, labels: int, share: float) -> np.ndarray:
    """Voxels of random labels, independent of each other; `share` of them are foreground."""
    mask = random.integers(1, labels + 1, size=shape)
    return np.where(random.random(shape) < share, mask, 0).astype(np.uint8)


def hard_masks(random: np.random.Generator, shape: Triple) -> dict[str, np.ndarray]:
    """One of each, by name."""
    return {
        "snake": snake(shape),
        "spirals": spirals(shape),
        "corners": diagonals(shape, corners=True),
        "edges": diagonals(shape, corners=False),
        "full": np.ones(shape, dtype=np.uint8),
        "empty": np.zeros(shape, dtype=np.uint8),
        "sparse": speckles(random, shape, 2, 0.15),
        "dense": speckles(random, shape, 3, 0.9),
        "wide": speckles(random, shape, 2, 0.4).astype(np.uint16) * 300,
    }


def flooded(mask: np.ndarray, connectivity: int) -> np.ndarray:
    """By voxel the C index of the first voxel of its component, -1 for background: a plain flood fill."""
    first = np.full(mask.shape, -1, dtype=np.int64)
    steps = [o for o in product((-1, 0, 1), repeat=3) if 0 < sum(map(abs, o)) <= REACH[connectivity]]
    for seed in map(tuple, np.argwhere(mask)):
        if first[seed] >= 0:
            continue
        name = int(np.ravel_multi_index(seed, mask.shape))
        first[seed], border = name, [seed]
        while border:
            d, h, w = border.pop()
            for step in steps:
                there = (d + step[0], h + step[1], w + step[2])
                inside = all(0 <= index < side for index, side in zip(there, mask.shape, strict=True))
                if inside and first[there] < 0 and mask[there] == mask[seed]:
                    first[there] = name
                    border.append(there)
    return first
