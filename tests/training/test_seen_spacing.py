"""Cases of differing size and spacing: resampled for training exactly as `segment` resamples a scan."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data_sets import NAMES, describe, image, labels, save
from tiny import MODEL, SERIAL, losses
from volseg.config import Config, DataConfig, TrainingConfig, override
from volseg.config.stored_run import CONFIG, read_run_config
from volseg.distributed.grid import ProcessGrid
from volseg.models.stored import WEIGHTS, ModelCard, load_model, load_tensors
from volseg.segmentation.opening import open_scan
from volseg.segmentation.scan_image import ScanImage
from volseg.training.data import CaseBlocks
from volseg.training.job import TrainingJob
from volseg.training.loop import train
from volseg.training.preparing import prepare
from volseg.volumes.dataset import read_dataset

CASES = [((12, 20, 16), (2.0, 1.0, 1.0)), ((20, 16, 18), (1.0, 1.0, 1.0)), ((10, 24, 20), (3.0, 0.8, 0.8))]
MEDIAN = (2.0, 1.0, 1.0)


@pytest.fixture
def folder(tmp_path):
    """Three cases, no two of one spacing; the second is stored in another voxel order."""
    for seed, (shape, spacing) in enumerate(CASES):
        save(tmp_path / "set" / "imagesTr" / f"case_{seed}_0000.nii.gz", image(seed, shape), spacing)
        save(tmp_path / "set" / "labelsTr" / f"case_{seed}.nii.gz", labels(seed, shape), spacing)
    return describe(tmp_path / "set", channel_names={"0": "CT"}, labels=NAMES, numTraining=3, file_ending=".nii.gz")


def config(spacing, epochs=1):
    return Config(
        replace(MODEL, anisotropy="none"), TrainingConfig(epochs=epochs, validation=0), DataConfig(spacing=spacing)
    )


def ready(folder, spacing):
    return prepare(TrainingJob(folder, folder.parent / "none", config(spacing)), SERIAL, lambda event: None)


@pytest.mark.parametrize(
    ("spacing", "seen", "expected"),
    [
        ("auto", MEDIAN, [(12, 20, 16), (10, 16, 18), (15, 19, 16)]),
        ("median", MEDIAN, [(12, 20, 16), (10, 16, 18), (15, 19, 16)]),
        ("own", MEDIAN, [shape for shape, _ in CASES]),
        ("2x2x2", (2.0, 2.0, 2.0), [(12, 10, 8), (10, 8, 9), (15, 10, 8)]),
    ],
)
def test_each_case_is_seen_at_the_spacing_asked_for(folder, spacing, seen, expected):
    setup = ready(folder, spacing)
    assert setup.card.spacing == seen
    assert setup.card.seen_at == (None if spacing == "own" else seen)
    assert [setup.finest.blocks.scan(case).space.shape for case in setup.cases] == expected
    for case, shape in zip(setup.cases, expected, strict=True):
        sample = setup.finest.blocks.load(case)
        assert tuple(sample.image.shape[2:]) == tuple(-(-side // 4) * 4 for side in shape)
        assert sample.target.shape == (1, *sample.image.shape[2:])


@pytest.mark.parametrize("spacing", ["auto", "own", "2x2x2"])
def test_segment_sees_what_training_saw(folder, tmp_path, spacing):
    """The same voxels, bit for bit: through the stored model, from the scan's own file."""
    run = tmp_path / "run"
    train(TrainingJob(folder, run, config(spacing)), SERIAL)
    setup = ready(folder, spacing)
    _, card = load_model(run)
    for case in setup.cases:
        scan, grid = open_scan(case.images[0].path, card, "auto", SERIAL)
        planes = ScanImage(scan, card, grid, 0).planes((0, scan.layout.shape[0]), 0)
        trained = setup.finest.blocks.load(case).image
        found = planes if planes.shape == trained.shape else planes.permute(3, 0, 1, 2)[None]
        assert torch.equal(found, trained)


def test_labels_stay_labels_on_the_image_s_grid(folder):
    setup = ready(folder, "1.5x1x1")
    for case in setup.cases:
        sample, scan = setup.finest.blocks.load(case), setup.finest.blocks.scan(case)
        inside = sample.target[0][tuple(slice(0, side) for side in scan.space.shape)]
        assert set(np.unique(inside)) == {0, 1, 2}
        # Organs have their intensities, so the labels lie where the image has them.
        values = sample.image[0, 0][tuple(slice(0, side) for side in scan.space.shape)]
        assert values[inside == 2].mean() > values[inside == 1].mean() > values[inside == 0].mean() + 0.5


def test_a_set_of_one_spacing_is_not_touched(tmp_path):
    for seed in (0, 1):
        spacing = (2.0, 1.0, 1.0 + 0.005 * seed)
        save(tmp_path / "imagesTr" / f"case_{seed}_0000.nii.gz", image(seed), spacing)
        save(tmp_path / "labelsTr" / f"case_{seed}.nii.gz", labels(seed), spacing)
    describe(tmp_path, channel_names={"0": "CT"}, labels=NAMES, file_ending=".nii.gz")
    setup = ready(tmp_path, "auto")
    for case in setup.cases:
        assert setup.finest.blocks.scan(case).channels[0] is setup.finest.blocks.scan(case).images[0]


def test_the_plan_is_of_the_shapes_seen(folder):
    assert (
        ready(folder, "4x4x4").planned.peak < ready(folder, "auto").planned.peak < ready(folder, "1x1x1").planned.peak
    )


@pytest.mark.parallel([1, 2, 4])
def test_resampled_blocks_are_those_of_the_whole(tmp_path, communicator):
    folder = Path(communicator.broadcast(str(tmp_path)))
    if communicator.is_root:
        for seed, (shape, spacing) in enumerate(CASES):
            save(folder / "imagesTr" / f"case_{seed}_0000.nii.gz", image(seed, shape), spacing)
            save(folder / "labelsTr" / f"case_{seed}.nii.gz", labels(seed, shape), spacing)
        describe(folder, channel_names={"0": "CT"}, labels=NAMES, file_ending=".nii.gz")
    communicator.barrier()
    dataset = read_dataset(folder)

    def blocks(world):
        grid = ProcessGrid(world, (1, world.size, 1) if world.size < 4 else (2, 2, 1))
        made = CaseBlocks(dataset, dataset.cases, grid, 4, spacing=(2.0, 1.2, 1.2))
        made.schemes = ready(folder, "auto").card.schemes if world is SERIAL else ()
        return made

    whole, own = blocks(SERIAL), blocks(communicator)
    own.schemes = whole.schemes
    for case in dataset.cases:
        place = own.scan(case).block.slices
        mine, all_of_it = own.load(case), whole.load(case)
        assert torch.equal(mine.image, all_of_it.image[(..., *place)])
        assert torch.equal(mine.target, all_of_it.target[(0, *place)][None])
    communicator.barrier()


def test_a_run_at_another_spacing_goes_on_at_its_own(folder, tmp_path):
    run = tmp_path / "run"
    train(TrainingJob(folder, run, config("2x2x2")), SERIAL)
    from volseg.errors import CheckpointError

    with pytest.raises(CheckpointError, match=r"data.spacing 2x2x2, but .* give auto"):
        train(TrainingJob(folder, run, config("auto", 2), proceed=True), SERIAL)
    train(TrainingJob(folder, run, replace(config("2x2x2", 2)), proceed=True), SERIAL)
    assert len(losses(run)) == 6


def test_a_run_of_a_version_without_spacing_goes_on_at_each_volume_s_own(folder, tmp_path):
    """Its model is still segmented with at the median, as that version did."""
    run = tmp_path / "run"
    train(TrainingJob(folder, run, config("own")), SERIAL)
    _, card = load_tensors(run / WEIGHTS)
    text = json.loads(card.as_json())
    del text["config"]["data"]
    old = ModelCard.from_json(json.dumps(text), run)
    assert old.config.data.spacing == "own"
    assert old.seen_at == MEDIAN
    assert card.seen_at is None
    settings = (run / CONFIG).read_text().replace('spacing = "own"\n', "")
    assert "spacing" not in settings
    (run / CONFIG).write_text(settings)
    assert read_run_config(run).data == config("own").data
    train(TrainingJob(folder, run, override(read_run_config(run), training={"epochs": 2}), proceed=True), SERIAL)
    assert len(losses(run)) == 6
