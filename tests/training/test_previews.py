"""Previews of validation cases: the same picture on any number of ranks, and which cases and epochs there are."""

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from data_sets import nnunet_folder
from tiny import SERIAL, digest, tiny_config, tiny_dataset
from volseg.distributed.grid import ProcessGrid
from volseg.distributed.replicas import Replicas
from volseg.drawing.planes import SOFT_TISSUE
from volseg.errors import ConfigError
from volseg.nn.losses import IGNORE
from volseg.training import previews
from volseg.training.data import CaseBlocks
from volseg.training.job import TrainingJob
from volseg.training.loop import train
from volseg.training.previews import Previews
from volseg.volumes.dataset import read_dataset
from volseg.volumes.intensity import ChannelScheme, Normalization


def drawn(folder, run, replicas, dims):
    """The previews of two cases whose masks are the reference moved by one label."""
    dataset = read_dataset(folder)
    grid = ProcessGrid(replicas.own, dims)
    blocks = CaseBlocks(dataset, dataset.cases, grid, 4, replicas)
    blocks.schemes = (ChannelScheme("synthetic", Normalization(-10.0, 10.0, 1.0, 2.0)),)
    previews = Previews(run, dataset.cases[:2], dataset.labels, replicas.world)
    for _, case in replicas.share(dataset.cases):
        sample = blocks.load(case)
        mask = torch.where(sample.target == IGNORE, 0, (sample.target + 1) % 3)
        previews.see(case, blocks, sample, mask)
    files, failure = previews.write(4, {dataset.cases[0].name: 0.5})
    assert failure is None
    return files


@pytest.mark.parametrize(("channel", "window"), [("CT", SOFT_TISSUE), ("MR", None)])
def test_ct_is_seen_in_the_soft_tissue_window(tmp_path, monkeypatch, channel, window):
    dataset = read_dataset(nnunet_folder(tmp_path / "set", 1, (channel,)))
    blocks = CaseBlocks(dataset, dataset.cases, ProcessGrid(SERIAL, (1, 1, 1)), 4, Replicas(SERIAL))
    blocks.schemes = (ChannelScheme(channel, Normalization(-150.0, 180.0, 20.0, 90.0)),)
    used = []
    monkeypatch.setattr(previews, "draw_preview", lambda *a: used.append(a[4]))
    made = Previews(tmp_path, dataset.cases, dataset.labels, SERIAL)
    sample = blocks.load(dataset.cases[0])
    made.see(dataset.cases[0], blocks, sample, torch.where(sample.target == IGNORE, 0, sample.target))
    made.write(1, {})
    assert used == [window]


@pytest.mark.parallel([1, 2, 4])
@pytest.mark.parametrize("count", [1, 2])
def test_the_picture_is_the_same_on_any_number_of_ranks(communicator, tmp_path_factory, count):
    if communicator.size % count:
        pytest.skip("as many replicas as ranks at most")
    folder = None
    if communicator.is_root:
        folder = tmp_path_factory.mktemp("previews")
        (folder / "run").mkdir()
        (folder / "serial").mkdir()
        tiny_dataset(folder / "data", cases=3)
    folder = communicator.broadcast(folder)
    size = communicator.size // count
    found = drawn(folder / "data", folder / "run", Replicas(communicator, count), (1, size, 1))
    names = ["epoch_0004_ellipsoids_000.png", "epoch_0004_ellipsoids_001.png"]
    assert [path.name for path in found] == names
    with communicator.together():
        if communicator.is_root:
            drawn(folder / "data", folder / "serial", Replicas(SERIAL), (1, 1, 1))
            assert digest(folder / "run" / "previews") == digest(folder / "serial" / "previews")
            assert np.ptp(imread(found[0]), axis=-1).max() > 0.3  # labels in colour
    communicator.barrier()


def test_so_many_cases_after_each_validation(tmp_path):
    data = tiny_dataset(tmp_path / "data", cases=3)

    def files(name, previews):
        train(TrainingJob(data, tmp_path / name, tiny_config(validation=2), previews=previews), SERIAL)
        return sorted(path.name for path in (tmp_path / name).glob("previews/*"))

    assert not files("none", 0)
    assert not (tmp_path / "none" / "previews").exists()
    one = files("one", 1)
    assert [name[:11] for name in one] == ["epoch_0001_", "epoch_0002_"]
    assert len(files("two", 5)) == 4


def test_a_wrong_number_of_previews_is_refused_before_anything_is_written(tmp_path):
    data = tiny_dataset(tmp_path / "data")
    with pytest.raises(ConfigError, match=r"--previews -1"):
        train(TrainingJob(data, tmp_path / "run", tiny_config(), previews=-1), SERIAL)
    assert not Path(tmp_path / "run").exists()
