"""Runs that begin with an imported model see scans as its tool reads them, in training, validation and `segment`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from nnunet_folders import LABELS, dataset, plans, result_folder
from tiny import SERIAL, ct_like, losses, save_nifti, tiny_config
from volseg.api import import_model
from volseg.api import train as train_by_name
from volseg.config import Config
from volseg.files import sha256
from volseg.geometry import Box
from volseg.models.stored import WEIGHTS, read_card
from volseg.segmentation.job import SegmentationJob
from volseg.segmentation.opening import open_scan
from volseg.segmentation.segment import segment
from volseg.segmentation.windows.options import WindowOptions
from volseg.training.job import NetworkSource, TrainingJob
from volseg.training.loop import train
from volseg.training.preparing import prepare
from volseg.training.validation import validate
from volseg.volumes.cropped import cropped
from volseg.volumes.image_file import ImageFile
from volseg.volumes.imported_scan import Manner, view_as_imported
from volseg.volumes.intensity import UNCHANGED, ChannelScheme
from volseg.volumes.reading import open_volume
from volseg.volumes.scan import open_channels

SHAPE = (21, 33, 30)  # with zeros on some sides
AFFINES = (np.diag([-0.8, -0.7, 2.4, 1.0]), np.array([[0, 0, 1.1, 0], [0.8, 0, 0, 0], [0, -2.5, 0, 0], [0, 0, 0, 1.0]]))


def files(folder: Path) -> None:
    """Two CT scans of different voxel orders and spacings, zero at their borders, where some labels lie too."""
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    (folder / "dataset.json").write_text(json.dumps(dataset(numTraining=2)))
    for number, affine in enumerate(AFFINES):
        voxels = np.pad(ct_like(SHAPE, seed=number) + 1, ((2, 1), (0, 3), (4, 2)))
        labels = np.digitize(voxels, (50, 250)).astype(np.uint8)
        labels[0, :4, :5] = 2
        save_nifti(folder / "imagesTr" / f"scan_{number}_0000.nii.gz", voxels, affine)
        save_nifti(folder / "labelsTr" / f"scan_{number}.nii.gz", labels, affine)


@pytest.fixture
def folder(tmp_path: Path, communicator) -> Path:
    """One folder for all ranks, with a data set and an imported model whose network's axes are turned."""
    folder = Path(communicator.broadcast(str(tmp_path)))
    with communicator.together():
        if communicator.is_root:
            files(folder / "data")
            turned = {"transpose_forward": [1, 0, 2], "transpose_backward": [1, 0, 2]}
            import_model(
                result_folder(folder / "theirs", plans(spacing=[1.0, 2.9, 0.9]) | turned),
                folder / "model",
                communicator=SERIAL,
            )
    return folder


def job(folder: Path, run: str = "run", **training: object) -> TrainingJob:
    config = replace(tiny_config(**{"learning_rate": 1e-3} | training), model=Config().model)
    return TrainingJob(folder / "data", folder / run, config, begins=NetworkSource(run=folder / "model"))


def dice(mask: Path, labels: Path) -> tuple[float, ...]:
    found, true = (np.asarray(nib.load(file).dataobj) for file in (mask, labels))
    return tuple(2 * ((found == n) & (true == n)).sum() / ((found == n).sum() + (true == n).sum()) for n in (1, 2))


@pytest.mark.parallel([1, 2, 4])
def test_dice_before_the_first_step_is_that_of_segment(folder, communicator):
    setup = prepare(job(folder), communicator, lambda event: None)
    measured = validate(setup.finest.twin, setup.finest.blocks, setup.cases)
    for case in setup.cases:
        mask = folder / f"{case.name}.nii.gz"
        whole = WindowOptions(whole=True)
        segment(SegmentationJob(case.images[0].path, folder / "model", mask, view=whole), communicator)
        assert measured.by_case[case.name] == communicator.on_root(lambda of=case, at=mask: dice(at, of.label))


@pytest.mark.parallel([1, 2])
def test_a_run_segments_with_the_reading_that_it_was_trained_with(folder, communicator):
    train(job(folder, epochs=1), communicator)
    card = communicator.on_root(lambda: read_card(folder / "run" / WEIGHTS))
    before = read_card(folder / "model" / WEIGHTS)
    assert card.origin == replace(before.origin, window=None, folds=())
    assert (card.spacing, card.schemes) == ((1.0, 2.9, 0.9), before.schemes)
    setup = prepare(job(folder, "other"), communicator, lambda event: None)
    for case in setup.cases:
        scan, _ = open_scan(case.images[0].path, card, "auto", communicator)
        trained = setup.finest.blocks.scan(case)
        assert (scan.space.shape, scan.inside) == (trained.space.shape, trained.inside)
        assert np.array_equal(setup.finest.blocks.read(case)[0][0], scan.read()[0])


def test_a_run_goes_on_with_the_same_reading_and_curve(folder):
    train(job(folder, epochs=1, schedule="constant"), SERIAL)
    train_by_name(None, folder / "run", proceed=True, epochs=2, communicator=SERIAL)
    train(job(folder, "whole", epochs=2, schedule="constant"), SERIAL)
    assert np.array_equal(losses(folder / "run"), losses(folder / "whole"))
    assert not read_card(folder / "run" / WEIGHTS).origin.is_our_reading
    weights = folder / "model" / WEIGHTS
    assert json.loads((folder / "run" / "report.json").read_text())["begun_from"] == {
        "from": str(folder / "model"), "weights": str(weights), "sha256": sha256(weights),
    }  # fmt: skip


@pytest.mark.parallel([2])
def test_training_has_the_curve_of_one_rank(folder, communicator):
    asked = job(folder, "many", epochs=2)
    with communicator.together():
        if communicator.is_root:
            train(replace(asked, run=folder / "alone"), SERIAL)
    train(asked, communicator)
    alone, many = communicator.on_root(lambda: [losses(folder / run) for run in ("alone", "many")])
    np.testing.assert_allclose(many, alone, rtol=1e-5)


def test_labels_by_side_are_not_mirrored_along_the_axis_that_sides_have_in_the_network(folder):
    description = folder / "data" / "dataset.json"
    names = {"background": 0, "left lung": 1, "right lung": 2}
    description.write_text(json.dumps(json.loads(description.read_text()) | {"labels": names}))
    heard: list[object] = []
    asked = job(folder)
    flips = replace(asked.config.augmentation, flip=(0.5, 0.5, 0.5))
    setup = prepare(replace(asked, config=replace(asked.config, augmentation=flips)), SERIAL, heard.append)
    # One file's axes run left, forward, up, the other's forward, down, right; the network exchanges D and H.
    assert setup.config.augmentation.flip == (0.5, 0.0, 0.0)
    said = "\n".join(getattr(event, "text", "") for event in heard)
    assert "mirroring along H and W would swap them" in said


@pytest.mark.parametrize("name", ["finer", "coarser", "coarse slices"])
def test_labels_are_resampled_as_nnunet_does(name, tmp_path):
    default = pytest.importorskip("nnunetv2.preprocessing.resampling.default_resampling")
    sides, new = {
        "finer": ((2.0, 1.0, 1.3), (1.4, 0.9, 1.0)),
        "coarser": ((2.0, 1.0, 1.1), (2.5, 1.6, 1.5)),
        "coarse slices": ((5.0, 0.8, 0.8), (3.0, 1.0, 0.9)),
    }[name]
    labels = np.digitize(ct_like((14, 20, 17)), (0, 150)).astype(np.uint8)
    affine = np.diag([*reversed(sides), 1.0])
    image, mask = save_nifti(tmp_path / "i.nii.gz", labels, affine), save_nifti(tmp_path / "m.nii.gz", labels, affine)
    manner = Manner(stored=True, transpose=(0, 1, 2), crop=False, cubic=True)
    view = view_as_imported(
        open_channels([ImageFile(image)]), manner, new, [ChannelScheme("CT", UNCHANGED)], SERIAL
    )  # fmt: skip
    ((_, got),) = view.labels(open_volume(mask)).slabs(100)
    expected = default.resample_data_or_seg_to_shape(
        labels[None].astype(np.int8), got.shape, sides, new, is_seg=True, order=1, order_z=0
    )[0]  # fmt: skip
    # Where no label has half of a voxel, nnU-Net leaves background; two that have half each it gives to the later.
    assert (got == expected)[expected > 0].mean() > 0.95
    assert (got == expected).mean() > 0.93
    assert set(LABELS.values()) == set(np.unique(got))


def test_a_cropped_volume_is_the_box_where_it_lies(tmp_path):
    file = save_nifti(tmp_path / "scan.nii.gz", ct_like())
    volume = open_volume(file)
    box = Box((2, 3, 4), (9, 17, 10))
    view = cropped(volume, box)
    assert cropped(volume, Box.whole(volume.shape)) is volume
    assert np.array_equal(view.read(Box.whole(view.shape)), volume.read(box))
    assert np.array_equal(view.space.affine @ [0, 0, 0, 1], volume.space.affine @ [4, 3, 2, 1])
