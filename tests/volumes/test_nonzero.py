"""Holes among voxels other than zero are those that a flood from the volume's faces does not reach; on any ranks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tiny import SERIAL, save_nifti
from volseg.geometry import Box
from volseg.volumes.imported_scan import Manner, view_as_imported
from volseg.volumes.intensity import ChannelScheme
from volseg.volumes.nonzero import FilledMask
from volseg.volumes.reading import open_volume


def flooded(zeros: np.ndarray) -> np.ndarray:
    """The zeros [D, H, W] that a path over faces joins to one outside of the volume."""
    padded = np.pad(zeros, 1, constant_values=True)
    reached = np.zeros_like(padded)
    reached[0, 0, 0] = True
    while True:
        wider = reached.copy()
        for axis in range(3):
            for step in (1, -1):
                wider |= np.roll(reached, step, axis)
        wider &= padded
        if np.array_equal(wider, reached):
            return reached[1:-1, 1:-1, 1:-1]
        reached = wider


def two_channels(folder: Path) -> tuple[list[Path], np.ndarray]:
    """Files of two channels with zeros in many places, and where the scan is inside, [D, H, W]."""
    arrays = np.random.default_rng(5).integers(0, 9, (2, 9, 12, 11)).astype(np.int16)
    arrays[arrays < 5] = 0
    arrays[:, 3:6, 4:8, 3:9] = 0  # a cavity over several planes, whose walls have gaps
    arrays[0, 2:7, 3:9, 2:10] += 3 * (arrays[0, 2:7, 3:9, 2:10] == 0)
    arrays[:, 4:6, 5:7, 5:8] = 0  # and one whose walls have none
    files = [folder / f"scan_{n}.nii.gz" for n in range(2)]
    for file, array in zip(files, arrays, strict=True):
        if not file.exists():
            save_nifti(file, array)
    zeros = (arrays == 0).all(axis=0)
    return files, ~flooded(zeros)


@pytest.mark.parallel([1, 2, 4])
def test_holes_are_filled_in_every_box(tmp_path, communicator):
    folder = Path(communicator.broadcast(str(tmp_path)))
    files, inside = communicator.on_root(lambda: two_channels(folder))
    mask = FilledMask([open_volume(file) for file in files], communicator)
    assert np.array_equal(mask.read(Box.whole(mask.shape)), inside)
    for box in (Box((4, 5, 6), (6, 9, 8)), Box((5, 0, 0), (9, 12, 7)), Box((2, 6, 9), (3, 7, 11))):
        assert np.array_equal(mask.read(box), inside[box.slices])


def test_zeros_within_are_normalised_with_the_rest(tmp_path):
    files, inside = two_channels(tmp_path)
    manner = Manner(stored=True, transpose=(1, 0, 2), crop=False, cubic=True)
    schemes = [ChannelScheme(name, None, method="zscore_nonzero") for name in ("T1", "T2")]
    view = view_as_imported([open_volume(file) for file in files], manner, None, schemes, SERIAL)
    for file, channel in zip(files, view.channels, strict=True):
        values = open_volume(file).read(Box.whole(inside.shape)).astype(np.float64)
        own = values[inside]
        expected = np.where(inside, (values - own.mean()) / own.std(), 0).transpose(1, 0, 2)
        np.testing.assert_allclose(channel.read(Box.whole(channel.shape)), expected, atol=1e-5)
    assert not np.array_equal(inside, (values != 0) | (open_volume(files[0]).read(Box.whole(inside.shape)) != 0))
