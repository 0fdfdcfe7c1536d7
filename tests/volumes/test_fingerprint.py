"""The fingerprint: what numpy finds in the whole set, the same bits on any number of ranks, kept in a file."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from data_sets import change, image, labels, nnunet_folder, save
from tiny import SERIAL
from volseg.errors import CheckpointError
from volseg.volumes.dataset import read_dataset
from volseg.volumes.dataset.examination import examine
from volseg.volumes.fingerprint import FINGERPRINT, read_fingerprint, write_fingerprint
from volseg.volumes.intensity import Normalization


def foreground(cases):
    return np.concatenate([image(seed)[labels(seed) > 0] for seed in range(cases)])


def test_it_says_what_numpy_finds(tmp_path):
    folder = nnunet_folder(tmp_path, cases=3, channels=("CT", "MR"))
    found = examine(read_dataset(folder), SERIAL).fingerprint
    values = foreground(3)
    ct = found.intensities[0]
    assert ct is not None
    expected = np.quantile(values, [0, 0.005, 0.5, 0.995, 1], method="inverted_cdf")
    measured = (ct.minimum, ct.percentile_00_5, ct.median, ct.percentile_99_5, ct.maximum)
    np.testing.assert_array_equal(measured, expected)
    clipped = np.clip(values.astype(float), expected[1], expected[3])
    np.testing.assert_allclose((ct.mean, ct.std), (clipped.mean(), clipped.std()), rtol=1e-12)
    assert found.voxels == tuple(sum((labels(seed) == value).sum() for seed in range(3)) for value in range(3))
    assert [case.shape for case in found.cases] == [(12, 10, 8)] * 3
    assert [case.spacing for case in found.cases] == [(2.0, 1.0, 1.0)] * 3
    assert len({case.digest for case in found.cases}) == 3
    # CT is normalised by it, the other channel by each volume's own values.
    ct_scheme, mr_scheme = found.schemes()
    assert ct_scheme.fixed == Normalization(expected[1], expected[3], ct.mean, ct.std)
    assert mr_scheme.fixed is None


def test_real_numbers_are_measured_exactly(tmp_path):
    folder = nnunet_folder(tmp_path, cases=2)
    for seed in (0, 1):
        save(folder / "imagesTr" / f"case_{seed}_0000.nii.gz", image(seed).astype(np.float32) / 7)
    (found,) = examine(read_dataset(folder), SERIAL).fingerprint.intensities
    assert found is not None
    values = (foreground(2).astype(np.float32) / 7).astype(float)
    expected = np.quantile(values, [0, 0.005, 0.5, 0.995, 1], method="inverted_cdf")
    measured = (found.minimum, found.percentile_00_5, found.median, found.percentile_99_5, found.maximum)
    np.testing.assert_array_equal(measured, expected)


@pytest.mark.parametrize(("dtype", "wild"), [("f4", 1e7), ("f4", -3e38), ("i4", 2**31 - 1)])
def test_one_wild_voxel_of_one_case_spoils_nothing(tmp_path, dtype, wild):
    folder = nnunet_folder(tmp_path, cases=3)
    expected = examine(read_dataset(folder), SERIAL).fingerprint.intensities[0]
    values = image(1).astype(dtype)
    values[tuple(np.argwhere(labels(1) == 1)[50])] = wild
    save(folder / "imagesTr" / "case_1_0000.nii.gz", values)
    (found,) = examine(read_dataset(folder), SERIAL).fingerprint.intensities
    assert float(np.float32(wild)) in (found.minimum, found.maximum)
    assert found.mean == pytest.approx(expected.mean, abs=1)
    assert found.std == pytest.approx(expected.std, rel=0.02)
    assert found.percentile_00_5 == pytest.approx(expected.percentile_00_5, abs=15)
    assert found.percentile_99_5 == pytest.approx(expected.percentile_99_5, abs=15)


def test_whole_numbers_out_of_the_short_range_are_measured_too(tmp_path):
    folder = nnunet_folder(tmp_path, cases=2)
    for seed in (0, 1):
        save(folder / "imagesTr" / f"case_{seed}_0000.nii.gz", image(seed).astype(np.int32) * 1000)
    (found,) = examine(read_dataset(folder), SERIAL).fingerprint.intensities
    assert found is not None
    assert found.median == pytest.approx(np.median(foreground(2)) * 1000, rel=0.01)


@pytest.mark.parallel([1, 2, 4])
@pytest.mark.parametrize("kind", ["whole", "real"])
def test_the_bits_do_not_depend_on_the_ranks(tmp_path, communicator, kind, monkeypatch):
    """Three cases, and one, whose pieces the ranks share."""
    folder = Path(communicator.broadcast(str(tmp_path)))
    if communicator.is_root:
        for cases in (1, 3):
            part = nnunet_folder(folder / str(cases), cases=cases)
            if kind == "real":
                for case in range(cases):
                    change(part / "imagesTr" / f"case_{case}_0000.nii.gz", lambda a: a / 7)
    communicator.barrier()
    for cases in (1, 3):
        dataset = read_dataset(folder / str(cases))
        alone = examine(dataset, SERIAL).fingerprint
        with monkeypatch.context() as patch:
            patch.setattr("volseg.volumes.dataset.examination.PIECE_VOXELS", 100)
            together = examine(dataset, communicator).fingerprint
        assert json.dumps(together.as_json()) == json.dumps(alone.as_json())
    communicator.barrier()


def test_it_survives_its_file(tmp_path):
    found = examine(read_dataset(nnunet_folder(tmp_path / "set")), SERIAL).fingerprint
    assert read_fingerprint(tmp_path) is None
    write_fingerprint(tmp_path, found)
    assert read_fingerprint(tmp_path) == found
    nothing = dataclasses.replace(found, intensities=(None,))
    write_fingerprint(tmp_path, nothing)
    assert read_fingerprint(tmp_path) == nothing


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": 2}', '{"schema": 1, "cases": [{"name": "a"}]}'])
def test_a_damaged_file_is_named(tmp_path, text):
    (tmp_path / FINGERPRINT).write_text(text)
    with pytest.raises(CheckpointError, match=r"fingerprint.json: damaged .*; remove it"):
        read_fingerprint(tmp_path)
