"""Label volumes: counts that add up over blocks, and the files they are written to."""

import csv
import json

import numpy as np
import pytest

from volseg.errors import VolsegError, VolumeError
from volseg.segmentation.statistics import count_labels, label_statistics, write_statistics
from volseg.volumes.volume import Space

NAMES = {"background": 0, "liver": 1, "spleen": 2}
SPACE = Space((4, 6, 8), np.diag([-2.0, 2.5, 4.0, 1.0]))  # 20 mm³ a voxel


@pytest.fixture
def mask():
    return np.random.default_rng(0).integers(0, 3, size=SPACE.shape).astype(np.uint8)


def test_counts_of_blocks_add_up(mask):
    parts = count_labels(mask[:3], 3) + count_labels(mask[3:, :2], 3) + count_labels(mask[3:, 2:], 3)
    np.testing.assert_array_equal(parts, count_labels(mask, 3))
    assert parts.tolist() == [np.count_nonzero(mask == k) for k in range(3)]


def test_a_label_beyond_the_names_is_refused(mask):
    with pytest.raises(VolumeError, match="label 2; the names given end at 1"):
        count_labels(mask, 2)


def test_rows_are_in_millilitres_without_background(mask):
    rows = label_statistics(count_labels(mask, 3), SPACE, NAMES)
    assert [(r.label, r.name) for r in rows] == [(1, "liver"), (2, "spleen")]
    for row in rows:
        assert row.voxels == np.count_nonzero(mask == row.label)
        assert row.ml == pytest.approx(row.voxels * 0.02)


def test_csv_and_json_hold_the_same(mask, tmp_path):
    rows = label_statistics(count_labels(mask, 3), SPACE, NAMES)
    write_statistics(tmp_path / "s.csv", rows)
    write_statistics(tmp_path / "s.json", rows)
    from_json = json.loads((tmp_path / "s.json").read_text())
    with open(tmp_path / "s.csv", newline="") as file:
        from_csv = list(csv.DictReader(file))
    assert [{k: str(v) for k, v in row.items()} for row in from_json] == from_csv
    assert from_json[0] == {"label": 1, "name": "liver", "voxels": rows[0].voxels, "ml": round(rows[0].ml, 6)}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.csv", "s.json"]


def test_what_cannot_be_written_is_named(tmp_path):
    with pytest.raises(VolumeError, match=r"\.csv or \.json, not \.xlsx"):
        write_statistics(tmp_path / "s.xlsx", [])
    with pytest.raises(VolsegError, match="cannot write"):
        write_statistics(tmp_path / "none" / "s.csv", [])
