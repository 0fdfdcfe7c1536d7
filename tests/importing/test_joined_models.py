"""Several models of nnU-Net in one run folder, as TotalSegmentator has them: one mask with the labels of all."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from nnunet_folders import dataset, plans, result_folder
from tiny import SERIAL, ct_like, digest, save_nifti
from volseg.api import import_model
from volseg.distributed.communicator import Communicator
from volseg.errors import CheckpointError, ConfigError
from volseg.models.joined import read_joined
from volseg.models.stored import load_weights, read_card
from volseg.segmentation.job import SegmentationJob
from volseg.segmentation.segment import segment
from volseg.segmentation.windows.options import WindowOptions

PARTS = {291: ("spleen", "liver"), 293: ("heart", "aorta")}


def results(folder: Path, parts: dict[int, tuple[str, ...]] = PARTS, **changes) -> Path:
    """A folder of TotalSegmentator's results, one data set for each part."""
    for number, names in parts.items():
        name = f"Dataset{number}_TotalSegmentator_part_{number}_9subj"
        of_plans = plans(**changes | {"spacing": [1.5, 1.5, 1.5]}) | {"dataset_name": name}
        labels = {"background": 0} | {name: value for value, name in enumerate(names, 1)}
        fold = str(number % 2)  # other weights in each
        trained = result_folder(folder / "made", of_plans, dataset(labels), folds=(fold,))
        trained.parent.rename(folder / name)
    return folder


def scan_of(folder: Path) -> Path:
    return save_nifti(folder / "scan.nii.gz", ct_like((14, 30, 33)), np.diag([-1.1, 0.9, 2.0, 1.0]))


def mask_of(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def test_a_folder_of_parts_becomes_one_model(tmp_path: Path) -> None:
    imported = import_model(results(tmp_path / "results"), tmp_path / "run")
    labels = {"background": 0, "spleen": 1, "liver": 2, "heart": 51, "aorta": 52}  # TotalSegmentator's numbers
    assert imported.facts["labels"] == labels
    joined = read_joined(tmp_path / "run")
    assert joined is not None
    assert joined.labels == labels
    assert [part.values for part in joined.parts] == [{1: 1, 2: 2}, {1: 51, 2: 52}]
    origin = read_card(tmp_path / "run" / "part_1" / "weights.safetensors").origin
    assert origin is not None
    assert (origin.step, origin.order, origin.back) == (0.8, "canonical", "labels")
    import_model(sorted((tmp_path / "results").glob("Dataset*")), tmp_path / "run", overwrite=True)
    with pytest.raises(CheckpointError, match=r"joins several models; name one of them, such as .*part_1"):
        load_weights(tmp_path / "run")


@pytest.mark.parametrize("view", [WindowOptions(), WindowOptions(whole=True)])
def test_later_parts_lie_over_earlier_ones(view: WindowOptions, tmp_path: Path) -> None:
    import_model(results(tmp_path / "results"), tmp_path / "run")
    scan, masks = scan_of(tmp_path), []
    for name in ("part_1", "part_2", ""):
        report = tmp_path / f"report_{name}.json"
        job = SegmentationJob(scan, tmp_path / "run" / name, tmp_path / f"mask_{name}.nii.gz", view=view, report=report)
        segment(job, SERIAL)
        masks.append(mask_of(job.output))
    first, second, both = masks
    assert 0 < (second == 0).mean() < 1
    expected = np.where(second > 0, second + 50, first)
    assert np.array_equal(both, expected)
    assert json.loads((tmp_path / "report_.json").read_text())["parts"] == 2


@pytest.mark.parallel([2, 4])
@pytest.mark.parametrize("view", [WindowOptions(), WindowOptions(whole=True)])
def test_the_same_bytes_on_any_ranks(view: WindowOptions, communicator: Communicator, shared: Path) -> None:
    def prepared() -> None:
        import_model(results(shared / "results"), shared / "model", communicator=SERIAL)
        segment(SegmentationJob(scan_of(shared), shared / "model", shared / "one.nii.gz", view=view), SERIAL)

    communicator.on_root(prepared)
    job = SegmentationJob(shared / "scan.nii.gz", shared / "model", shared / "all.nii.gz", view=view)
    segment(job, communicator)
    communicator.on_root(lambda: None)
    assert digest(shared / "all.nii.gz") == digest(shared / "one.nii.gz")


def test_parts_that_clash_are_refused(tmp_path: Path) -> None:
    same = results(tmp_path / "same", {291: ("spleen", "liver"), 292: ("liver", "sacrum")})
    with pytest.raises(ConfigError, match=r"finds liver, and so does .*part_291"):
        import_model(same, tmp_path / "run")
    first = results(tmp_path / "first", {291: ("spleen", "liver")})
    other = results(tmp_path / "other", {293: ("heart", "aorta")}, normalization_schemes=["ZScoreNormalization"])
    (other_plans,) = other.glob("*/*/plans.json")
    values = json.loads(other_plans.read_text())
    values["configurations"]["3d_fullres"]["spacing"] = [3.0, 3.0, 3.0]
    other_plans.write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=r"sees scans otherwise than .*spacing"):
        import_model([first, other], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_probabilities_are_those_of_a_part(tmp_path: Path) -> None:
    import_model(results(tmp_path / "results"), tmp_path / "run")
    scan = scan_of(tmp_path)
    with pytest.raises(ConfigError, match=r"--save-probabilities: .* --model .*part_1"):
        segment(SegmentationJob(scan, tmp_path / "run", probabilities=True), SERIAL)
    segment(SegmentationJob(scan, tmp_path / "run" / "part_1", probabilities=True), SERIAL)
