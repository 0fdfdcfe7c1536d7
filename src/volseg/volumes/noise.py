"""Random numbers for voxels: each follows from a key and the voxel's place alone, so any box can be made by itself.

A counter-based generator (Philox: Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011) is set to a
counter that names the place, one stream for each tile of a plane.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from volseg.geometry import Box

NOISE_TILE = 64  # rows and columns of one plane that share a random stream

Key = tuple[int, int]


def normal_noise(box: Box, key: Key) -> np.ndarray:
    """Standard normal numbers for the voxels of `box`, float32; none of them has a negative index."""
    return _tiled(box, key, lambda rng, shape: rng.standard_normal(shape, dtype=np.float32))


def uniform_noise(box: Box, key: Key) -> np.ndarray:
    """Uniform numbers in [0, 1) for the voxels of `box`, float32; none of them has a negative index."""
    return _tiled(box, key, lambda rng, shape: rng.random(shape, dtype=np.float32))


def _tiled(box: Box, key: Key, draw: Callable[[np.random.Generator, tuple[int, int, int]], np.ndarray]) -> np.ndarray:
    noise = np.empty(box.shape, dtype=np.float32)
    for d in range(box.start[0], box.stop[0]):
        for tile_h in range(box.start[1] // NOISE_TILE, -(-box.stop[1] // NOISE_TILE)):
            for tile_w in range(box.start[2] // NOISE_TILE, -(-box.stop[2] // NOISE_TILE)):
                first = (d, tile_h * NOISE_TILE, tile_w * NOISE_TILE)
                tile = Box(first, (d + 1, first[1] + NOISE_TILE, first[2] + NOISE_TILE))
                common = tile.intersect(box)
                # Philox's counter has four words: the lowest counts within the tile, the others name it.
                stream = np.random.Philox(
                    key=np.array(key, dtype=np.uint64), counter=np.array([0, d, tile_h, tile_w], dtype=np.uint64)
                )
                values = draw(np.random.Generator(stream), tile.shape)
                noise[common.relative_to(box).slices] = values[common.relative_to(tile).slices]
    return noise
