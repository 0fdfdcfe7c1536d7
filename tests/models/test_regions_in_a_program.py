"""The loss of overlapping regions through the program: deep supervision, coarse stages on fewer ranks, any grid."""

from __future__ import annotations

import copy

import pytest
import torch

from models.test_deep_supervision import STAGES, make
from models.test_fused_unet import targets, volume
from models.test_unet import config
from nn.test_region_loss import plain_of_regions
from oracles import ANOTHER_SIDE, GRIDS, relative_error, serial_grid
from volseg.distributed.communicator import Communicator
from volseg.distributed.grid import ProcessGrid
from volseg.models.fused import FusedNetwork
from volseg.nn.blocks import take_block
from volseg.nn.convert import partition_module
from volseg.nn.gradients import sum_gradients
from volseg.partition.agglomeration import NONE, parse_agglomeration

REGIONS = ((1, 2), (2,), (1,))
SHAPE = (32, 32, 64)
VARIANTS = {"by the program": config(levels=3, base_channels=8), "through the layers": config(levels=3, kernel_size=9)}


@pytest.mark.parallel([1, 2, 4])
@pytest.mark.parametrize("name", VARIANTS)
def test_loss_and_gradients_are_those_of_autograd(name: str, communicator: Communicator) -> None:
    settings = VARIANTS[name]
    assert settings.classes == len(REGIONS)
    model = make(settings).train()
    whole = volume(settings, SHAPE)
    target = targets(whole, settings.classes)
    assert {1, 2} <= set(target.unique().tolist())

    def alone() -> tuple[float, dict[str, torch.Tensor]]:
        layers, deep = partition_module(copy.deepcopy(model), serial_grid(), settings.multiple), {}
        logits = {0: layers(whole, deep_logits=deep)} | deep
        terms = [plain_of_regions(logits[n], target[:, :: 2**n, :: 2**n, :: 2**n], REGIONS)[0] for n in sorted(logits)]
        shares = [0.5**n for n in range(len(terms))]
        loss = sum(share * term for share, term in zip(shares, terms, strict=True)) / sum(shares)
        loss.backward()
        return float(loss.detach()), {key: p.grad for key, p in layers.named_parameters() if p.grad is not None}

    expected_loss, expected = communicator.on_root(alone)
    ways = [(dims, NONE) for dims in GRIDS[communicator.size] if dims[2] < 4]
    if name == "by the program":
        stages = STAGES.get(communicator.size, [])
        ways += [(dims, parse_agglomeration(text, settings.levels, dims)) for dims, text in stages]
    for dims, stages in ways:
        grid = ProcessGrid(communicator, dims)
        layout = grid.layout(SHAPE, settings.multiple)
        own = copy.deepcopy(model)
        fused = FusedNetwork(own, grid, agglomeration=stages, regions=REGIONS)
        block = take_block(whole, grid, layout)
        assert fused.covers(block) == (name == "by the program")
        here = target[(slice(None), *grid.block(layout).slices)]
        loss, dice = fused.loss(block, here)
        loss.backward()
        sum_gradients(own.parameters(), communicator)
        assert tuple(dice.shape) == (len(REGIONS),)
        assert abs(float(loss.detach()) / expected_loss - 1) < 1e-6
        for key, p in own.named_parameters():
            assert p.grad is not None
            assert relative_error(p.grad, expected[key], floor=1e-2) <= ANOTHER_SIDE, (key, dims)
        overlaps = fused.overlaps(block, here)
        assert len(overlaps) == len(fused.supervised) > 1
        voxels = [float((torch.isin(target, torch.tensor(some, dtype=target.dtype))).sum()) for some in REGIONS]
        assert overlaps[0][len(REGIONS) : 2 * len(REGIONS)].tolist() == voxels
