"""What labels hold and where they lie, measured over blocks; and the files it is written to."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest

from mask_blocks import NOTHING, random_tiling
from volseg.distributed.communicator import Communicator, SerialCommunicator
from volseg.errors import VolsegError, VolumeError
from volseg.geometry import Box
from volseg.segmentation.statistics import (
    LabelStatistics,
    label_statistics,
    measure_labels,
    write_statistics,
)
from volseg.volumes.canonical import Orientation
from volseg.volumes.volume import Space

NAMES = {"background": 0, "liver": 1, "spleen": 2}
SPACE = Space((4, 6, 8), np.diag([-2.0, 2.5, 4.0, 1.0]))  # 20 mm³ a voxel


@pytest.fixture
def mask():
    return np.random.default_rng(0).integers(0, 3, size=SPACE.shape).astype(np.uint8)


def test_rows_are_in_millilitres_without_background(mask):
    rows = label_statistics(np.bincount(mask.ravel()), SPACE, NAMES)
    assert [(r.label, r.name) for r in rows] == [(1, "liver"), (2, "spleen")]
    for row in rows:
        assert row.voxels == np.count_nonzero(mask == row.label)
        assert row.ml == pytest.approx(row.voxels * 0.02)


OBLIQUE = np.array([[0.1, -1.9, 0.2, 30.0], [0.2, 0.1, -3.1, -7.5], [0.8, 0.05, 0.3, 1000.0], [0, 0, 0, 1.0]])


def scene(random: np.random.Generator, dtype: str) -> tuple[Space, np.ndarray, np.ndarray]:
    """A grid, and mask and image [D, H, W] in its own order; the label 2 is not there, 4 is one voxel."""
    space = Space((9, 12, 17), OBLIQUE)
    mask = np.zeros(space.shape, dtype=np.uint8)
    mask[2:7, 1:9, 3:15] = random.choice([0, 1, 3], size=(5, 8, 12))
    mask[8, 0, 16] = 4
    image = random.normal(-200, 700, size=space.shape).clip(-1024, 3071)
    return space, mask, image.round().astype(dtype) if dtype != "fractions" else image.astype(np.float32)


def plainly(space: Space, mask: np.ndarray, image: np.ndarray, label: int) -> LabelStatistics:
    """One row from the whole, by numpy, in the grid's own order."""
    voxels = np.argwhere(mask == label)
    row = LabelStatistics(label, f"organ {label}", len(voxels), len(voxels) * space.voxel_ml)
    if not len(voxels):
        return row
    values = image[mask == label].astype(np.float64)
    world = (space.affine @ np.c_[voxels[:, ::-1], np.ones(len(voxels))].T)[:3].mean(axis=1)
    return replace(
        row, mean_hu=values.mean(), sd_hu=values.std(), min_hu=values.min(), max_hu=values.max(),
        centroid_mm=tuple(world), start=tuple(voxels.min(axis=0)), stop=tuple(voxels.max(axis=0) + 1),
    )  # fmt: skip


@pytest.mark.parallel([1, 2, 3, 4, 8])
@pytest.mark.parametrize("dtype", ["int16", "uint16", "float32", "fractions"])
def test_rows_are_those_of_the_whole(dtype: str, communicator: Communicator) -> None:
    """And the same bits as on one rank, where the image has integers, of whatever type."""
    random = np.random.default_rng(7)
    space, mask, image = scene(random, dtype)
    names = {"background": 0} | {f"organ {label}": label for label in range(1, 5)}
    orientation = Orientation.of(space)
    canonical_mask, canonical_image = orientation.to_canonical(mask), orientation.to_canonical(image)
    whole = Box.whole(orientation.canonical_shape)
    alone = measure_labels(
        canonical_mask, whole, space, names, SerialCommunicator(), lambda box: canonical_image[box.slices]
    )
    for _ in range(4):
        box = random_tiling(random, whole.shape, communicator.size)[communicator.rank]
        rows = measure_labels(
            canonical_mask[box.slices], box, space, names, communicator, lambda box: canonical_image[box.slices]
        )
        if dtype != "fractions":
            assert rows == alone
        for row, label in zip(rows, range(1, 5), strict=True):
            right = plainly(space, mask, image, label)
            assert vars(row) == {
                name: pytest.approx(value, rel=1e-12, abs=1e-12) if isinstance(value, float | tuple) else value
                for name, value in vars(right).items()
            }


def test_a_large_block_is_read_in_slabs_and_only_where_there_is_something() -> None:
    """Twelve slabs of four slices, two of them with foreground."""
    shape = (48, 256, 256)
    mask = np.zeros(shape, dtype=np.uint8)
    mask[9:13, 100:120, 30] = 1
    asked: list[Box] = []

    def read(box: Box) -> np.ndarray:
        asked.append(box)
        slices = np.arange(box.start[0], box.stop[0], dtype=np.int16)
        return np.broadcast_to(slices[:, None, None], box.shape)

    offset = Box((100, 0, 0), (148, 256, 256))
    space = Space((148, 256, 256), np.diag([-2.0, -2.0, 3.0, 1.0]))
    (row,) = measure_labels(mask, offset, space, {"rod": 1}, SerialCommunicator(), read)
    assert [(box.start[0], box.stop[0]) for box in asked] == [(108, 112), (112, 116)]
    assert (row.voxels, row.mean_hu, row.min_hu, row.max_hu) == (80, 110.5, 109.0, 112.0)


def test_without_an_image_there_are_no_intensities(mask) -> None:
    rows = measure_labels(mask, Box.whole(SPACE.shape), SPACE, NAMES, SerialCommunicator())
    assert [(row.label, row.name, row.voxels, row.ml) for row in rows] == [
        (row.label, row.name, row.voxels, row.ml) for row in label_statistics(np.bincount(mask.ravel()), SPACE, NAMES)
    ]
    assert {row.mean_hu for row in rows} == {None}
    assert all(row.centroid_mm and row.start and row.stop for row in rows)


def test_values_that_are_no_numbers_spoil_only_their_label(mask) -> None:
    image = np.ones(SPACE.shape, dtype=np.float32)
    image[tuple(np.argwhere(mask == 1)[3])] = np.nan
    liver, spleen = measure_labels(
        mask, Box.whole(SPACE.shape), SPACE, NAMES, SerialCommunicator(), lambda box: image[box.slices]
    )
    assert (liver.mean_hu, liver.sd_hu, liver.min_hu, liver.max_hu) == (None,) * 4
    assert (spleen.mean_hu, spleen.sd_hu, spleen.min_hu, spleen.max_hu) == (1.0, 0.0, 1.0, 1.0)


@pytest.mark.parallel([1, 2])
def test_one_rank_s_failure_is_everyone_s(communicator: Communicator) -> None:
    """A label beyond the names, or an image that cannot be read, in the last rank's block."""
    last = communicator.size - 1
    box = Box.whole(SPACE.shape) if communicator.rank == last else NOTHING
    mask = np.full(box.shape, 2, dtype=np.uint8)

    def read(box: Box) -> np.ndarray:
        raise VolumeError("scan.nii: truncated")

    with pytest.raises(VolumeError, match="label 2; the names given end at 1"):
        measure_labels(mask, box, SPACE, {"liver": 1}, communicator)
    with pytest.raises(VolumeError, match="truncated"):
        measure_labels(mask, box, SPACE, NAMES, communicator, read)


def test_csv_and_json_hold_the_same(mask, tmp_path):
    mask[mask == 2] = 0
    image = np.random.default_rng(1).normal(size=SPACE.shape)
    rows = measure_labels(
        mask, Box.whole(SPACE.shape), SPACE, NAMES, SerialCommunicator(), lambda box: image[box.slices]
    )
    write_statistics(tmp_path / "s.csv", rows)
    write_statistics(tmp_path / "s.json", rows)
    from_json = json.loads((tmp_path / "s.json").read_text())
    with open(tmp_path / "s.csv", newline="") as file:
        from_csv = list(csv.DictReader(file))
    assert [{k: "" if v is None else str(v) for k, v in row.items()} for row in from_json] == from_csv
    assert list(from_json[0])[:4] == ["label", "name", "voxels", "ml"]
    liver, spleen = from_json
    (x, y, z), (d, h, w) = rows[0].centroid_mm, rows[0].stop
    assert [liver["centroid_x_mm"], liver["centroid_y_mm"], liver["centroid_z_mm"]] == pytest.approx(
        [x, y, z], abs=6e-4
    )
    assert [liver["d_start"], liver["d_stop"], liver["h_stop"], liver["w_stop"]] == [rows[0].start[0], d, h, w]
    assert liver["mean_hu"] == pytest.approx(image[mask == 1].mean(), abs=6e-5)
    assert spleen == dict.fromkeys(spleen) | {"label": 2, "name": "spleen", "voxels": 0, "ml": 0.0}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.csv", "s.json"]


def test_what_cannot_be_written_is_named(tmp_path):
    with pytest.raises(VolumeError, match=r"\.csv or \.json, not \.xlsx"):
        write_statistics(tmp_path / "s.xlsx", [])
    with pytest.raises(VolsegError, match="cannot write"):
        write_statistics(tmp_path / "none" / "s.csv", [])
