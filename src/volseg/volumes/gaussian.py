"""Gaussian blur of a box, axis by axis, summed in one fixed order so that every box gives the same bits."""

from __future__ import annotations

from math import ceil, exp

import numpy as np


def gaussian_kernel(sigma: float) -> np.ndarray:
    """Samples of a Gaussian out to 4 sigma, float32, summing to 1; ``[1]`` for sigma 0."""
    if sigma <= 0:
        return np.ones(1, dtype=np.float32)
    reach = ceil(4 * sigma)
    samples = [exp(-0.5 * (i / sigma) ** 2) for i in range(-reach, reach + 1)]
    return np.asarray([s / sum(samples) for s in samples], dtype=np.float32)


def blur_axis(image: np.ndarray, kernel: np.ndarray, axis: int) -> np.ndarray:
    """The "valid" correlation along one axis, always summed from the first tap to the last."""
    length = image.shape[axis] - len(kernel) + 1
    index: list[slice] = [slice(None)] * 3
    result: np.ndarray | None = None
    for tap, weight in enumerate(kernel):
        index[axis] = slice(tap, tap + length)
        term = image[tuple(index)] * weight
        result = term if result is None else np.add(result, term, out=result)
    assert result is not None
    return result
