"""Voxels that nobody has labelled (nnU-Net's ``ignore``): they count neither in a step nor in validation."""

import json

import numpy as np
import pytest
import torch

from data_sets import NAMES, change, describe, nnunet_folder
from tiny import MODEL, SERIAL
from volseg.config import AugmentationConfig, Config
from volseg.distributed.grid import ProcessGrid
from volseg.models.fused import FusedNetwork
from volseg.models.unet import UNet
from volseg.nn.losses import IGNORE
from volseg.training.data import CaseBlocks
from volseg.training.sampling import Samples
from volseg.training.validation import validate
from volseg.volumes.dataset import read_dataset
from volseg.volumes.intensity import ChannelScheme


def blocks_of(folder):
    dataset = read_dataset(folder)
    blocks = CaseBlocks(dataset, dataset.cases, ProcessGrid(SERIAL, (1, 1, 1)), 4)
    blocks.schemes = (ChannelScheme("MR", None),)
    return blocks


@pytest.fixture(params=[3, 255, 300])
def sets(tmp_path, request):
    """A set without, and the same with the left half of each case unlabelled."""
    whole, half = nnunet_folder(tmp_path / "whole", cases=1), nnunet_folder(tmp_path / "half", cases=1)

    def forget(array):
        array = array.astype(np.int16)
        array[:4] = request.param
        return array

    change(half / "labelsTr" / "case_0.nii.gz", forget)
    described = json.loads((half / "dataset.json").read_text())
    describe(half, **(described | {"labels": NAMES | {"ignore": request.param}}))
    return whole, half


def test_a_step_sees_the_image_and_not_the_labels(sets):
    whole, half = (blocks_of(folder) for folder in sets)
    case = whole.cases[0]
    before, after = whole.load(case), half.load(half.cases[0])
    assert torch.equal(before.image, after.image)
    target = before.target.clone()
    target[..., :4][..., :12, :10, :] = IGNORE
    assert torch.equal(after.target, target)


@pytest.mark.parametrize("change", [{"flip": (1.0, 1.0, 1.0)}, {"rotate": 1.0}])
def test_an_augmented_image_is_whole_where_labels_are_not(sets, change):
    config = Config(MODEL, augmentation=AugmentationConfig(**change))
    before, after = (
        Samples(blocks, config).load(blocks.cases[0], 3, 0) for blocks in map(blocks_of, sets)
    )  # fmt: skip
    assert torch.equal(before.image, after.image)
    assert (after.target == IGNORE).sum() > (before.target == IGNORE).sum()
    kept = after.target != IGNORE
    if "flip" in change:
        assert torch.equal(after.target[kept], before.target[kept])
    assert after.image[0, 0][after.target[0] == IGNORE].abs().max() > 0


def test_validation_counts_what_is_labelled(sets):
    blocks = blocks_of(sets[1])
    torch.manual_seed(0)
    seen = []

    def look(case, sample, mask):
        seen.append([part[0, :12, :10, :8].numpy() for part in (sample.target, mask)])

    network = FusedNetwork(UNet(MODEL.for_data(1, 3)), blocks.grid)
    found = validate(network, blocks, blocks.cases, look).by_case["case_0"]
    true, mask = (part[..., 4:] for part in seen[0])
    for value, dice in zip((1, 2), found, strict=True):
        sizes = (true == value).sum() + (mask == value).sum()
        assert dice == pytest.approx(2 * ((true == value) & (mask == value)).sum() / sizes)
