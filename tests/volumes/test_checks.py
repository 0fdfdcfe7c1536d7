"""Checks that every volume must pass."""

from types import SimpleNamespace

import numpy as np
import pytest

from volseg.errors import VolumeError
from volseg.volumes.checks import check_same_grid
from volseg.volumes.volume import Space


def grid(shape=(4, 5, 6), shift=0.0, width=1.0, name="v.nii"):
    affine = np.diag([width, 2.0, 3.0, 1.0])
    affine[0, 3] = shift
    return SimpleNamespace(path=name, shape=shape, space=Space(shape, affine))


def test_a_rounded_affine_is_the_same_grid():
    check_same_grid(grid(), grid(shift=1e-3))
    assert grid().space.apart(grid(shift=1e-3).space) == pytest.approx(1e-3)


def test_another_size_names_both():
    with pytest.raises(
        VolumeError, match=r"m: labels of 4x5x7 voxels \(D x H x W\), but i has 4x5x6; resample the lab"
    ):
        check_same_grid(grid(name="i"), grid((4, 5, 7), name="m"))


@pytest.mark.parametrize(
    ("moved", "words", "names"),
    [
        ({"shift": 1.0}, "up to 1 mm off", "begins at (x, y, z) (1, 0, 0) mm, not at (0, 0, 0) mm; correct the origin"),
        ({"width": 1.1}, "up to 0.5 mm off", "spacing 3x2x1.1 mm against 3x2x1 mm"),
    ],
)
def test_another_place_says_how_far_and_names_both_origins_or_spacings(moved, words, names):
    with pytest.raises(VolumeError, match=rf"a mask of the same shape as i, but at another place: {words}") as caught:
        check_same_grid(grid(name="i"), grid(**moved), "a mask", "do this")
    assert names in str(caught.value)
    assert str(caught.value).endswith("do this")
