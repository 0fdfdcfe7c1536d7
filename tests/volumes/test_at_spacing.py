"""Labels that are lost at another spacing than a case's own: named, with a remedy that works."""

from pathlib import Path

import numpy as np
import pytest

from data_sets import labels, nnunet_folder, save
from tiny import SERIAL
from volseg.volumes.dataset import DataSource, read_dataset
from volseg.volumes.dataset.at_spacing import lost_labels
from volseg.volumes.dataset.check import check_dataset
from volseg.volumes.dataset.examination import examine


def small_spleen(seed):
    """Liver as ever; of the spleen two voxels, which no voxel of 2 mm has the most of."""
    found = labels(seed)
    found[found == 2] = 0
    found[11, 9, 6:8] = 2
    return found


@pytest.mark.parallel([1, 2])
def test_case_and_label_are_named(tmp_path, communicator):
    folder = Path(communicator.broadcast(str(tmp_path)))
    with communicator.together():
        if communicator.is_root:
            nnunet_folder(folder, cases=3)
            save(folder / "labelsTr" / "case_1.nii.gz", small_spleen(1))
    dataset = read_dataset(folder)
    fingerprint = examine(dataset, communicator).fingerprint
    assert lost_labels(dataset, fingerprint, None, communicator) == []
    assert lost_labels(dataset, fingerprint, (2.0, 1.0, 1.0), communicator) == []
    fault, other = lost_labels(dataset, fingerprint, (2.0, 2.0, 2.0), communicator)
    assert (fault.case, fault.kind, fault.serious) == ("case_1", "lost label", False)
    assert other.case == "case_2"  # four voxels of 1 mm that lie astride those of 2 mm
    assert "label spleen (2 voxels) has none left at 2x2x2 mm" in fault.message
    assert "--spacing 2x1x1 keeps it" in fault.message


def test_check_looks_at_the_spacing_that_training_would_choose(tmp_path):
    folder = nnunet_folder(tmp_path, cases=3)
    for seed in (0, 2):
        for kind, array in (("imagesTr", np.random.default_rng(seed).normal(0, 9, (12, 10, 8)).astype("i2")),
                            ("labelsTr", labels(seed))):  # fmt: skip
            name = f"case_{seed}_0000" if kind == "imagesTr" else f"case_{seed}"
            save(folder / kind / f"{name}.nii.gz", array, (4.0, 4.0, 4.0))
    save(folder / "labelsTr" / "case_1.nii.gz", small_spleen(1))
    report = check_dataset(DataSource(folder), SERIAL)
    assert [fault.case for fault in report.faults if fault.kind == "lost label"] == ["case_1"]
    assert report.is_sound
