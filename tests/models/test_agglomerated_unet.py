"""Coarse levels on fewer ranks: the same bits forward, the same gradients, the same state on all ranks afterwards."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from models.test_fused_unet import gradients_of, targets, volume
from models.test_unet import config, make
from oracles import relative_error, serial_grid
from volseg.config import ModelConfig
from volseg.distributed.communicator import Communicator
from volseg.distributed.grid import ProcessGrid
from volseg.errors import PartitionError
from volseg.geometry import Triple
from volseg.models.fused import FusedNetwork
from volseg.models.unet import UNet
from volseg.nn.blocks import gather_blocks, take_block
from volseg.nn.convert import partition_module
from volseg.nn.fused.image import TensorImage, image_width
from volseg.nn.fused.scratch import ScratchStore
from volseg.nn.gradients import sum_gradients
from volseg.nn.losses import dice_cross_entropy
from volseg.partition.agglomeration import Agglomeration, parse_agglomeration
from volseg.program.schedule import IN_PLACE, RECOMPUTE, SPILL, Schedule

CASES: dict[int, list[tuple[Triple, str]]] = {
    2: [((2, 1, 1), "1:1x1x1"), ((1, 1, 2), "2:1x1x1"), ((1, 2, 1), "3:1x1x1")],
    3: [((1, 3, 1), "2:1x1x1"), ((3, 1, 1), "1:1x1x1")],
    4: [((2, 2, 1), "2:1x1x1"), ((4, 1, 1), "1:2x1x1,2:1x1x1"), ((1, 2, 2), "2:1x2x1,3:1x1x1")],
    8: [((2, 2, 2), "2:1x1x1"), ((4, 2, 1), "2:2x1x1,3:1x1x1"), ((2, 2, 2), "1:2x1x2")],
}
"""By ranks: grids and stages, of networks of three levels."""

VARIANTS = {
    "instance": config(levels=3),
    "batch, dropout": config(levels=3, norm="batch", dropout=0.4, in_channels=2),
    "no norm, relu": config(levels=3, norm="none", activation="relu", base_channels=5),
}
SHAPE = (37, 30, 29)  # padded to 40, 32, 32: blocks of several sizes
LARGER = (62, 60, 61)


def cases(communicator: Communicator, levels: int = 3) -> list[tuple[ProcessGrid, Agglomeration]]:
    return [
        (ProcessGrid(communicator, dims), parse_agglomeration(text, levels, dims))
        for dims, text in CASES[communicator.size]
    ]


def block_of(whole: Tensor, grid: ProcessGrid, settings: ModelConfig) -> Tensor:
    return take_block(whole, grid, grid.layout(tuple(whole.shape[2:]), settings.multiple))


@pytest.mark.parallel([2, 3, 4, 8])
@pytest.mark.parametrize("name", VARIANTS)
def test_logits_have_the_same_bits(name: str, communicator: Communicator) -> None:
    """By the taped forward, which training runs, and by the streamed one."""
    settings = VARIANTS[name]
    model = make(settings).eval()
    whole = volume(settings, SHAPE)
    with torch.no_grad():
        alone = communicator.on_root(lambda: partition_module(model, serial_grid(), settings.multiple)(whole))
    for grid, agglomeration in cases(communicator):
        fused = FusedNetwork(model, grid, agglomeration=agglomeration).eval()
        block = block_of(whole, grid, settings)
        taped = gather_blocks(fused(block).detach(), grid)
        assert np.array_equal(taped.numpy(), alone.numpy()), agglomeration
        slabs = torch.cat([part.clone() for _, part in fused.logit_slabs(block)], 2)
        assert np.array_equal(gather_blocks(slabs, grid).numpy(), alone.numpy()), agglomeration


def training_of_one(
    model: UNet, whole: Tensor, target: Tensor
) -> tuple[float, dict[str, Tensor], list[Tensor], Tensor]:
    """Loss, gradients and buffers on one rank, and what is drawn at random after it."""
    alone = copy.deepcopy(model)
    torch.manual_seed(8)
    loss, _ = FusedNetwork(alone, serial_grid()).loss(whole, target)
    gradients = gradients_of(alone, loss)
    return float(loss.detach()), gradients, list(alone.buffers()), torch.rand(3)


@pytest.mark.parallel([2, 3, 4, 8])
@pytest.mark.parametrize("checkpoints", [(), (1, 2, 3)])
@pytest.mark.parametrize("name", VARIANTS)
def test_loss_gradients_and_statistics_are_those_of_one_rank(
    name: str, checkpoints: tuple[int, ...], communicator: Communicator
) -> None:
    settings = VARIANTS[name]
    model = make(settings).train()
    whole = volume(settings, SHAPE)
    target = targets(whole, settings.classes)
    loss_of_one, expected, buffers, drawn_by_one = communicator.on_root(lambda: training_of_one(model, whole, target))
    for grid, agglomeration in cases(communicator):
        own = copy.deepcopy(model)
        fused = FusedNetwork(own, grid, checkpoints, agglomeration)
        box = grid.block(grid.layout(tuple(whole.shape[2:]), settings.multiple)).slices
        torch.manual_seed(8)
        loss, _ = fused.loss(block_of(whole, grid, settings), target[(slice(None), *box)])
        own.zero_grad(set_to_none=True)
        loss.backward()
        sum_gradients(own.parameters(), communicator)
        assert abs(float(loss.detach()) / loss_of_one - 1) < 1e-6
        for key, p in own.named_parameters():
            assert relative_error(p.grad, expected[key], floor=1e-2) <= 1e-5, (key, agglomeration)
        for (key, mine), theirs in zip(own.named_buffers(), buffers, strict=True):
            assert torch.equal(mine, theirs), (key, agglomeration)  # on every rank, those that sat out as well
        assert torch.equal(torch.rand(3), drawn_by_one), "another random state than one rank's"
        assert fused.work.buffers.idle


@pytest.mark.parallel([2, 4])
def test_gradients_from_logits_are_those_of_one_rank(communicator: Communicator) -> None:
    settings = VARIANTS["instance"]
    model = make(settings).train()
    whole = volume(settings, SHAPE)
    target = targets(whole, settings.classes)
    logits_of_one = FusedNetwork(model, serial_grid())(whole)
    expected = gradients_of(model, dice_cross_entropy(logits_of_one, target, serial_grid().communicator)[0])
    for grid, agglomeration in cases(communicator):
        own = copy.deepcopy(model)
        own.zero_grad(set_to_none=True)
        logits = FusedNetwork(own, grid, agglomeration=agglomeration)(block_of(whole, grid, settings))
        box = grid.block(grid.layout(tuple(whole.shape[2:]), settings.multiple)).slices
        dice_cross_entropy(logits, target[(slice(None), *box)], communicator)[0].backward()
        sum_gradients(own.parameters(), communicator)
        for key, p in own.named_parameters():
            assert relative_error(p.grad, expected[key], floor=1e-2) <= 1e-5, (key, agglomeration)


@cache
def logits_and_features(settings: ModelConfig) -> tuple[Tensor, Tensor]:
    """By the partitioned network on one rank; once for all schedules."""
    twin = partition_module(make(settings).eval(), serial_grid(), settings.multiple)
    whole = volume(settings, LARGER)
    with torch.no_grad():
        return twin(whole), twin(whole, features_only=True)


@pytest.mark.parallel([2, 3, 4, 8])
@pytest.mark.parametrize("levels", [3, 4])
@pytest.mark.parametrize("schedule", [IN_PLACE, RECOMPUTE, SPILL])
def test_every_schedule_has_the_same_bits(
    schedule: Schedule, levels: int, communicator: Communicator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits, and features with a voxel beyond the block; with levels enough that the deepest basins are hosted."""
    monkeypatch.setattr("volseg.partition.slabs._ROLLING_FLOATS", 1)
    settings = config(levels=levels, base_channels=4)
    model = make(settings).eval()
    whole = volume(settings, LARGER)
    alone, features = communicator.on_root(lambda: logits_and_features(settings))
    for grid, agglomeration in cases(communicator, levels):
        layout = grid.layout(tuple(whole.shape[2:]), settings.multiple)
        block, box = take_block(whole, grid, layout), grid.block(layout)
        store = ScratchStore(tmp_path) if schedule is SPILL else None
        told: list[float] = []
        fused = FusedNetwork(model, grid, agglomeration=agglomeration).eval()
        streamed = fused.streamed(schedule, store, told.append)
        image = TensorImage(block, layout, grid, image_width(model.network, schedule))
        parts = [part.clone() for _, part in streamed.logit_slabs(image, layout)]
        assert np.array_equal(gather_blocks(torch.cat(parts, 2), grid).numpy(), alone.numpy()), agglomeration
        assert told == sorted(told)
        assert told[-1] == 1
        assert streamed.progress is not None
        assert streamed.progress.done == pytest.approx(1), "a rank's arithmetic is not what it counts"
        plain = FusedNetwork(model, grid).streamed(schedule)
        for _ in plain.logit_slabs(TensorImage(block, layout, grid, image_width(model.network, schedule)), layout):
            pass
        assert plain.progress is not None
        mine, without = communicator.reduce_all(np.array([streamed.progress.whole, plain.progress.whole]))
        assert mine == pytest.approx(without), "leaders do what the others leave"
        image = TensorImage(block, layout, grid, image_width(model.network, schedule, 1))
        for (first, last), part in streamed.feature_slabs(image, layout):
            d, h, w = (min(stop + 1, n) for stop, n in zip(box.stop, layout.shape, strict=True))
            d = min(d, box.start[0] + last + 1)
            expected = features[:, :, box.start[0] + first : d, box.start[1] : h, box.start[2] : w]
            assert torch.equal(part, expected), agglomeration


@pytest.mark.parallel([2, 4])
@pytest.mark.parametrize("activation", ["leaky_relu", "silu"])
def test_a_training_network_runs_forward_without_gradients_too(activation: str, communicator: Communicator) -> None:
    settings = replace(VARIANTS["batch, dropout"], activation=activation)
    model = make(settings).train()
    whole = volume(settings, SHAPE)
    alone = copy.deepcopy(model)
    torch.manual_seed(8)
    with torch.no_grad():
        expected = FusedNetwork(alone, serial_grid())(whole)
    for grid, agglomeration in cases(communicator):
        own = copy.deepcopy(model)
        torch.manual_seed(8)
        with torch.no_grad():
            y = FusedNetwork(own, grid, agglomeration=agglomeration)(block_of(whole, grid, settings))
        assert torch.equal(gather_blocks(y, grid), expected), agglomeration
        for mine, theirs in zip(own.buffers(), alone.buffers(), strict=True):
            assert torch.equal(mine, theirs), agglomeration


@pytest.mark.parallel(2)
def test_networks_of_other_layers_are_refused(communicator: Communicator) -> None:
    grid, stages = ProcessGrid(communicator, (2, 1, 1)), Agglomeration(((1, (1, 1, 1)),))
    with pytest.raises(PartitionError, match=r"--agglomerate 1:1x1x1: this network .* use --agglomerate none"):
        FusedNetwork(UNet(config(kernel_size=9)), grid, agglomeration=stages)
    with pytest.raises(PartitionError, match="4:1x1x1: the network has levels 1 to 2"):
        FusedNetwork(UNet(config()), grid, agglomeration=Agglomeration(((4, (1, 1, 1)),)))


@pytest.mark.parallel(2)
def test_where_a_rank_lacks_the_kernels_all_go_by_torch(
    communicator: Communicator, monkeypatch: pytest.MonkeyPatch
) -> None:
    if communicator.rank == 1:
        monkeypatch.setattr("volseg.nn.kernels.winograd.widest_vector", lambda: 0)
    fused = FusedNetwork(UNet(config()), ProcessGrid(communicator, (2, 1, 1)))
    assert communicator.gather_all(fused.backend.name) == ["torch's operators"] * 2
