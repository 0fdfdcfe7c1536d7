"""Training on masks of several readers: one drawn each step, the same on any ranks and where a run goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from tiny import SERIAL, losses, tiny_config, tiny_dataset
from volseg.api import train as train_by_name
from volseg.config import DataConfig
from volseg.training.job import TrainingJob
from volseg.training.loop import train
from volseg.training.preparing import prepare
from volseg.volumes.readers import majority


@pytest.fixture
def folder(tmp_path: Path, communicator) -> Path:
    """One folder for all ranks, with a data set whose first case three readers have labelled."""
    folder = Path(communicator.broadcast(str(tmp_path)))
    with communicator.together():
        if communicator.is_root:
            labels = tiny_dataset(folder / "data") / "labelsTr"
            path = sorted(labels.iterdir())[0]
            image = nib.load(path)
            stem = path.name.removesuffix(".nii.gz")
            for n in range(3):
                moved = np.roll(np.asarray(image.dataobj), 2 * n, 1)
                nib.save(nib.Nifti1Image(moved, image.affine), labels / f"{stem}_reader{n + 1}.nii.gz")
            path.unlink()
    return folder


def job(folder: Path, run: str, readers: str = "random", crop: tuple[int, ...] = (), **training: object) -> TrainingJob:
    config = replace(tiny_config(**{"schedule": "constant"} | training), data=DataConfig(readers=readers, crop=crop))
    return TrainingJob(folder / "data", folder / run, config)


@pytest.mark.parametrize("crop", [(), (8, 8, 8)])
def test_a_step_sees_the_mask_of_one_reader_and_validation_what_most_say(folder, crop):
    setup = prepare(job(folder, "run", crop=crop), SERIAL, lambda event: None)
    case, other = setup.cases
    blocks, samples = setup.finest.blocks, setup.finest.samples
    assert (blocks.readers(case), blocks.readers(other)) == (3, 0)
    arrays = [np.asarray(nib.load(mask).dataobj).T for mask in case.masks]
    d, h, w = arrays[0].shape
    targets = [samples.load(case, step, 0).target[0].numpy() for step in range(12)]
    assert np.array_equal(blocks.load(case).target[0, :d, :h, :w].numpy(), majority(arrays))
    if crop:
        return
    seen = [[np.array_equal(target[:d, :h, :w], array) for array in arrays].index(True) for target in targets]
    assert set(seen) == {0, 1, 2}
    again = prepare(job(folder, "run"), SERIAL, lambda event: None).finest.samples
    assert np.array_equal(again.load(case, 7, 0).target[0].numpy(), targets[7])
    assert torch.equal(samples.load(other, 0, 1).target, samples.load(other, 5, 1).target)


@pytest.mark.parallel([1, 2])
def test_the_curve_of_random_readers_is_that_of_one_rank_and_goes_on(folder, communicator):
    with communicator.together():
        if communicator.is_root:
            train(job(folder, "alone", crop=(12, 16, 12), epochs=4), SERIAL)
    alone = communicator.on_root(lambda: losses(folder / "alone"))
    train(job(folder, "many", crop=(12, 16, 12), epochs=2), communicator)
    train_by_name(None, folder / "many", proceed=True, epochs=4, communicator=communicator)
    np.testing.assert_allclose(communicator.on_root(lambda: losses(folder / "many")), alone, rtol=1e-5)
