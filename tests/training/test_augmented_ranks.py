"""Crops and augmentation over ranks: the sample of one rank on any number of them, bit for bit, and its loss curve."""

from __future__ import annotations

import csv
import gzip
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from oracles import GRIDS, serial_grid
from tiny import SERIAL, losses, tiny_config, tiny_dataset
from volseg.config import AugmentationConfig, Config, DataConfig
from volseg.distributed.grid import ProcessGrid
from volseg.nn.losses import IGNORE
from volseg.training import sampling
from volseg.training.data import CaseBlocks
from volseg.training.job import TrainingJob
from volseg.training.loop import train
from volseg.training.sampling import Samples
from volseg.volumes import inflate
from volseg.volumes.dataset import read_dataset
from volseg.volumes.intensity import ChannelScheme

EVERYTHING = AugmentationConfig(
    flip=(0.5, 0.5, 0.5), rotate=1, scale=1, elastic=1, noise=1, blur=1, brightness=1, contrast=1, low_resolution=1,
    gamma=1, gamma_inverted=1,
)  # fmt: skip
CHANGES = {
    "nothing": AugmentationConfig(),
    "flip": AugmentationConfig(flip=(1.0, 1.0, 1.0)),
    **{
        name: AugmentationConfig(**{name: 1.0})
        for name in ("rotate", "scale", "elastic", "noise", "blur", "contrast", "low_resolution", "gamma")
    },
    "everything": EVERYTHING,
}
CROP = (13, 14, 10)


@pytest.fixture
def shared(tmp_path, communicator):
    """One folder for all ranks, with a data set of odd sides."""
    folder = Path(communicator.broadcast(str(tmp_path)))
    with communicator.together():
        if communicator.is_root:
            tiny_dataset(folder / "data", cases=3, shape=(19, 22, 17))
    return folder


def samples(dataset, grid, config, crop=()):
    blocks = CaseBlocks(dataset, dataset.cases, grid, 4)
    blocks.schemes = (ChannelScheme("MR", None),)
    config = replace(config, model=config.model.for_data(1, 3))
    return Samples(blocks, config, crop)


@pytest.mark.parallel([1, 2, 4])
@pytest.mark.parametrize("crop", [(), CROP], ids=["whole", "crop"])
@pytest.mark.parametrize("name", CHANGES)
def test_each_rank_makes_its_block_of_the_sample_of_one_rank(shared, communicator, name, crop, monkeypatch):
    monkeypatch.setattr(sampling, "SOURCE_BYTES", 10_000)  # a block comes in several pieces
    dataset = read_dataset(shared / "data")
    config = replace(tiny_config(), augmentation=CHANGES[name], data=DataConfig(crop=crop, foreground=0.5))
    alone = samples(dataset, serial_grid(), config, crop)
    for dims in GRIDS[communicator.size][:2]:
        grid = ProcessGrid(communicator, dims)
        many = samples(dataset, grid, config, crop)
        for step, case in enumerate(dataset.cases):
            whole, own = alone.load(case, step, 1), many.load(case, step, 1)
            shape = tuple(whole.target.shape[1:])
            place = grid.block(grid.layout(shape, 4)).slices
            expected = whole.image[(..., *place)].numpy()
            np.testing.assert_array_equal(own.image.numpy().view(np.uint32), expected.view(np.uint32))
            np.testing.assert_array_equal(own.target.numpy(), whole.target[(0, *place)][None].numpy())
            assert own.voxels == whole.voxels == np.prod(shape)
            assert set(np.unique(own.target)) <= {0, 1, 2, IGNORE}
            assert not own.image[0, 0][own.target[0] == IGNORE].any()
            assert shape == ((16, 16, 12) if crop else (20, 24, 20))


@pytest.mark.parallel([1, 2])
def test_the_samples_of_cases_that_are_not_kept_are_the_same(shared, communicator, monkeypatch):
    dataset = read_dataset(shared / "data")
    config = replace(tiny_config(), augmentation=EVERYTHING, data=DataConfig(crop=CROP, foreground=1.0))
    grid = ProcessGrid(communicator, GRIDS[communicator.size][0])
    kept = samples(dataset, grid, config, CROP)
    for case in dataset.cases:
        kept.blocks.read(case)
    assert kept.blocks.cached_bytes > 0
    monkeypatch.setattr("volseg.training.data.CACHE_BYTES", 0)
    read = samples(dataset, grid, config, CROP)
    for step, case in enumerate(dataset.cases):
        ours, theirs = read.load(case, step, 0), kept.load(case, step, 0)
        assert torch.equal(ours.image, theirs.image)
        assert torch.equal(ours.target, theirs.target)
    assert read.blocks.cached_bytes == 0


@pytest.mark.parametrize("crop", [(), (24, 24, 24)], ids=["whole", "crop"])
def test_a_sample_of_a_compressed_case_that_is_not_kept_opens_each_file_once(tmp_path, monkeypatch, crop):
    """For several pieces, and the voxel that a crop lies around; and little more is inflated than all of it."""
    dataset = read_dataset(tiny_dataset(tmp_path / "data", cases=1, shape=(32, 32, 32)))
    monkeypatch.setattr("volseg.training.data.CACHE_BYTES", 0)
    monkeypatch.setattr(sampling, "SOURCE_BYTES", 60_000)
    monkeypatch.setattr(inflate, "CHECKPOINT_BYTES", 2048)
    monkeypatch.setattr(inflate, "PIECE", 512)
    change = AugmentationConfig(rotate=1.0, rotate_degrees=(2.0, 2.0, 2.0))
    config = replace(tiny_config(), augmentation=change, data=DataConfig(crop=crop, foreground=1.0))
    made = samples(dataset, serial_grid(), config, crop)
    made.load(dataset.cases[0], 0, 0)  # measures what is measured once a case
    opened, inflated, turns = [], [], []
    whole_read, whole_inflate, whole_fetch = inflate.SeekableGzip.read, inflate.SeekableGzip._inflate, made.blocks.fetch

    def read(self, offset, buffer):
        if self._file is None:
            opened.append(self.path.parent.name)
        whole_read(self, offset, buffer)

    def counted(self, most):
        piece = whole_inflate(self, most)
        inflated.append(len(piece))
        return piece

    def fetch(*args):
        turns.append(args)
        return whole_fetch(*args)

    monkeypatch.setattr(inflate.SeekableGzip, "read", read)
    monkeypatch.setattr(inflate.SeekableGzip, "_inflate", counted)
    monkeypatch.setattr(made.blocks, "fetch", fetch)
    made.load(dataset.cases[0], 1, 0)
    assert len(turns) >= 4
    assert sorted(opened) == ["imagesTr", "labelsTr"]
    contents = sum(
        len(gzip.decompress(path.read_bytes())) for path in (dataset.cases[0].label, dataset.cases[0].images[0].path)
    )
    assert sum(inflated) < 2 * contents
    scan, labels = made.blocks.scan(dataset.cases[0]), made.blocks._labels[dataset.cases[0].name]
    assert all(volume.contents._file is None for volume in (*scan.channels, *labels))


def test_without_augmentation_a_sample_is_the_case_as_it_is(shared):
    dataset = read_dataset(shared / "data")
    made = samples(dataset, serial_grid(), tiny_config())
    for case in dataset.cases:
        sample, stored = made.load(case, 3, 0), made.blocks.load(case)
        assert torch.equal(sample.image, stored.image)
        assert torch.equal(sample.target, stored.target)


def test_a_plain_crop_is_a_box_of_the_case(shared):
    dataset = read_dataset(shared / "data")
    config = replace(tiny_config(), data=DataConfig(crop=(8, 12, 40), foreground=0.0))
    made = samples(dataset, serial_grid(), config, (8, 12, 40))
    whole = made.blocks.load(dataset.cases[0])
    starts = set()
    for step in range(12):
        sample = made.load(dataset.cases[0], step, 0)
        assert sample.image.shape[2:] == (8, 12, 20)  # no larger than the volume, and padded
        found = [
            (d, h)
            for d in range(12)
            for h in range(11)
            if torch.equal(whole.image[:, :, d : d + 8, h : h + 12, :17], sample.image[..., :17])
            and torch.equal(whole.target[:, d : d + 8, h : h + 12, :17], sample.target[..., :17])
        ]
        assert len(found) == 1
        starts.update(found)
    assert len(starts) > 6


def test_crops_hold_each_foreground_class_as_often(shared):
    dataset = read_dataset(shared / "data")
    config = replace(tiny_config(), data=DataConfig(crop=(3, 3, 3), foreground=1.0))
    made = samples(dataset, serial_grid(), config, (3, 3, 3))
    case = dataset.cases[0]
    label = made.blocks.load(case).target
    present = [n for n in (1, 2) if (label == n).any()]
    middles = [int(made.load(case, step, 0).target[0, 1, 1, 1]) for step in range(60)]
    # A crop at a face of the volume has its voxel beside its middle.
    assert sum(middle in present for middle in middles) > 40
    for n in present:
        assert middles.count(n) > 60 / len(present) * 0.5


def curve_of_one_rank(shared, config, communicator, **job):
    found = None
    with communicator.together():
        if communicator.is_root:
            train(TrainingJob(shared / "data", shared / "alone", config, **job), SERIAL)
            found = losses(shared / "alone")
    return communicator.broadcast(found)


def changed_config(crop=(), **training) -> Config:
    config = tiny_config(**({"epochs": 4, "learning_rate": 3e-4} | training))
    return replace(config, augmentation=EVERYTHING, data=DataConfig(crop=crop, foreground=0.5))


@pytest.mark.parallel([2, 4])
@pytest.mark.parametrize("crop", [(), (16, 20, 16)], ids=["whole", "crop"])
def test_the_loss_of_each_step_is_that_of_one_rank_with_everything_on(shared, communicator, crop):
    config = changed_config(crop, validation=1 if crop else 0)
    alone = curve_of_one_rank(shared, config, communicator)
    train(TrainingJob(shared / "data", shared / "many", config), communicator)
    np.testing.assert_allclose(losses(shared / "many"), alone, rtol=1e-5)


@pytest.mark.parallel([2, 4])
def test_replicas_have_the_curve_of_one_rank_with_everything_on(shared, communicator):
    config = changed_config((16, 20, 16))
    settings = replace(config.training, accumulate=2)
    alone = curve_of_one_rank(shared, replace(config, training=settings), communicator)
    train(TrainingJob(shared / "data", shared / "many", config, replicas=2), communicator)
    np.testing.assert_allclose(losses(shared / "many"), alone, rtol=1e-5)


class Interrupted(Exception):
    pass


@pytest.mark.parallel([2])
def test_an_augmented_run_goes_on_on_another_number_of_ranks(shared, communicator):
    config = changed_config((16, 20, 16), epochs=2, checkpoint_seconds=0.0)
    whole = curve_of_one_rank(shared, config, communicator)

    def stop(event):
        if getattr(event, "done", None) == 4:  # of 6 steps; the cases are 3
            raise Interrupted

    job = TrainingJob(shared / "data", shared / "parts", config)
    with pytest.raises(Interrupted):
        train(job, communicator, stop)
    with communicator.together():
        if communicator.is_root:
            train(replace(job, proceed=True), SERIAL)
    np.testing.assert_allclose(losses(shared / "parts"), whole, rtol=1e-5)


def test_steps_differ_and_the_same_seed_gives_the_same_run(shared):
    config = changed_config((16, 20, 16), epochs=2)
    for run in ("one", "two"):
        train(TrainingJob(shared / "data", shared / run, config), SERIAL)
    np.testing.assert_array_equal(losses(shared / "one"), losses(shared / "two"))
    with (shared / "one" / "log.csv").open(newline="") as file:
        assert len({row["loss"] for row in csv.DictReader(file)}) == 6
