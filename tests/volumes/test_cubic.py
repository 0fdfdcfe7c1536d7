"""Cubic splines box by box, against scipy's over the whole volume."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from volseg.geometry import Box
from volseg.volumes.cubic import Range, maps_between, resized, resized_shape, slice_axis
from volseg.volumes.interpolation import interpolate_axes
from volseg.volumes.volume import Space, Volume

ndimage = pytest.importorskip("scipy.ndimage")


class ArrayVolume(Volume):
    """A volume that is there as an array."""

    def __init__(self, values: np.ndarray) -> None:
        self.path, self.dtype, self.values = Path("array"), values.dtype, values
        self.space = Space(values.shape, np.diag([1.0, 1.0, 1.0, 1.0]))
        self.planes_read = 0

    def read(self, box: Box) -> np.ndarray:
        self.planes_read += box.shape[0]
        return self.values[box.slices].copy()


def zoomed(values: np.ndarray, shape: tuple[int, ...], order: int) -> np.ndarray:
    """What scikit-image's `resize` does with mode "edge" and no anti-aliasing, before it clips."""
    factors = [n / m for n, m in zip(shape, values.shape, strict=True)]
    return ndimage.zoom(values.astype(float), factors, order=order, mode="nearest", grid_mode=True)


def noise(shape: tuple[int, int, int]) -> np.ndarray:
    return np.random.default_rng(4).normal(0, 1, shape).astype(np.float32)


def whole_range(values: np.ndarray) -> Range:
    return Range(values.min(keepdims=True), values.max(keepdims=True))


@pytest.mark.parametrize("shape", [(30, 17, 40), (11, 25, 19), (20, 18, 23), (1, 40, 9), (40, 36, 46)])
def test_all_axes_are_those_of_scipy(shape) -> None:
    values = noise((20, 18, 23))
    got = resized(ArrayVolume(values), shape, None, whole_range(values)).read(Box.whole(shape))
    expected = np.clip(zoomed(values, shape, 3), values.min(), values.max())
    np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_are_resized_by_themselves_and_the_nearest_is_taken(axis) -> None:
    values, shape = noise((9, 14, 11)), (13, 17, 16)
    slices = np.moveaxis(values, axis, 0)
    plane = tuple(n for a, n in enumerate(shape) if a != axis)
    each = np.stack([np.clip(zoomed(one, plane, 3), one.min(), one.max()) for one in slices])
    there = (np.arange(shape[axis]) + 0.5) * values.shape[axis] / shape[axis] - 0.5
    near = np.clip(np.floor(there + 0.5).astype(int), 0, values.shape[axis] - 1)
    expected = np.moveaxis(each[near], 0, axis)
    limits = Range(slices.min(axis=(1, 2)), slices.max(axis=(1, 2)), axis)
    got = resized(ArrayVolume(values), shape, axis, limits).read(Box.whole(shape))
    np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("nearest", [None, 0, 2])
def test_every_box_has_the_bits_of_the_whole(nearest) -> None:
    values, shape = noise((20, 18, 23)), (31, 25, 40)
    whole = resized(ArrayVolume(values), shape, nearest, None).read(Box.whole(shape))
    rng = np.random.default_rng(1)
    view = resized(ArrayVolume(values), shape, nearest, None)
    for _ in range(20):
        start = [int(rng.integers(0, n)) for n in shape]
        stop = [int(rng.integers(a + 1, n + 1)) for a, n in zip(start, shape, strict=True)]
        box = Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))
        assert np.array_equal(view.read(box), whole[box.slices])


def test_rising_boxes_read_each_plane_once() -> None:
    source, shape = ArrayVolume(noise((50, 8, 9))), (75, 8, 9)
    view = resized(source, shape, None, None)
    for first in range(0, 75, 5):
        view.read(Box((first, 0, 0), (first + 5, 8, 9)))
    assert source.planes_read == 50


@pytest.mark.parametrize("nearest", [None, 0, 1])
def test_linear_maps_are_those_of_scipy(nearest) -> None:
    values, shape = noise((9, 14, 11)), (13, 17, 8)
    got = interpolate_axes(values, maps_between(values.shape, shape, nearest))
    if nearest is None:
        expected = zoomed(values, shape, 1)
    else:
        slices = np.moveaxis(values, nearest, 0)
        plane = tuple(n for a, n in enumerate(shape) if a != nearest)
        each = np.stack([zoomed(one, plane, 1) for one in slices])
        there = (np.arange(shape[nearest]) + 0.5) * values.shape[nearest] / shape[nearest] - 0.5
        near = np.clip(np.floor(there + 0.5).astype(int), 0, values.shape[nearest] - 1)
        expected = np.moveaxis(each[near], 0, nearest)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_shapes_and_slice_axes_are_nnunets() -> None:
    assert resized_shape((100, 512, 512), (5.0, 0.7, 0.7), (2.5, 0.8, 0.8)) == (200, 448, 448)
    assert resized_shape((5, 1, 1), (1.0, 1.0, 1.0), (2.0, 9.0, 1.0)) == (2, 1, 1)
    assert slice_axis((5.0, 0.7, 0.7), (1.0, 1.0, 1.0)) == 0
    assert slice_axis((1.0, 1.0, 1.0), (0.5, 0.5, 2.0)) == 2
    assert slice_axis((0.2, 1.25, 1.25), (1.0, 1.0, 1.0)) is None
    assert slice_axis((1.0, 1.0, 2.0), (1.0, 1.0, 1.0)) is None
