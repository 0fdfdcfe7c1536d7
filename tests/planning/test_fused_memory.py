"""The plan of the fused U-Net's memory walks through the same pieces of an arena as the network itself."""

from __future__ import annotations

from collections.abc import Collection

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from oracles import GRIDS, serial_grid
from tiny import SERIAL
from volseg.config import ModelConfig, TrainingConfig
from volseg.distributed.grid import ProcessGrid
from volseg.models.fused import FusedNetwork
from volseg.models.unet import UNet
from volseg.networks.unet import unet
from volseg.nn.blocks import take_block
from volseg.nn.fused.buffers import Buffers
from volseg.nn.kernels.jit import workers
from volseg.nn.losses import LossSums, VolumeLoss
from volseg.nn.region_loss import RegionSums
from volseg.partition.agglomeration import parse_agglomeration
from volseg.partition.layout import Layout
from volseg.partition.share import Share, busy_shares, share_of
from volseg.planning.memory import training_memory
from volseg.planning.scratch import loss_floats
from volseg.planning.training_pass import TrainingPass
from volseg.program.build import train_program


def config(**changes) -> ModelConfig:
    return ModelConfig(**({"in_channels": 1, "classes": 3, "base_channels": 8, "levels": 2} | changes))


def pass_of(settings: ModelConfig, share: Share, checkpoints: Collection[int] = ()) -> TrainingPass:
    """The memory of a rank, by the steps that it runs."""
    network = unet(settings)
    return TrainingPass(network, train_program(network, share.merges, share.last, frozenset(checkpoints)), share)


VARIANTS = [
    (config(), (16, 24, 32), ()),
    (config(levels=3, base_channels=4, in_channels=2), (24, 16, 40), ()),
    (config(levels=3), (32, 16, 16), (0, 1)),
    (config(levels=0), (9, 10, 11), ()),
    (config(levels=1, in_channels=6), (8, 12, 10), (0, 1)),
]


@pytest.mark.parametrize(("settings", "shape", "checkpoints"), VARIANTS)
def test_one_rank_s_arena_is_the_planned_one(settings, shape, checkpoints):
    fused = FusedNetwork(UNet(settings), serial_grid(), checkpoints)
    x = torch.randn(1, settings.in_channels, *shape)
    fused.loss(x, torch.zeros(1, *shape, dtype=torch.uint8))[0].backward()
    (share,) = busy_shares(Layout.even(shape, (1, 1, 1), settings.multiple), settings.factors)
    walk = pass_of(settings, share, checkpoints)
    assert walk.arena.chunks == list(fused.work.buffers.arena.chunks)
    assert walk.tensors == 4 * fused.work.buffers.total


@pytest.mark.parallel([2, 3, 4])
@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("slab", [2**21, 2**12])
def test_the_arena_of_the_busiest_rank_is_the_planned_one(number, slab, communicator, monkeypatch):
    """Also where the output of an up-convolution is cut into several slabs, which differ in size."""
    monkeypatch.setattr("volseg.partition.slabs._UP_FLOATS", slab)
    dims = GRIDS[communicator.size][number]
    settings, shape = config(), (16, 24, 32)
    grid = ProcessGrid(communicator, dims)
    layout = grid.layout(shape, settings.multiple)
    fused = FusedNetwork(UNet(settings), grid)
    block = take_block(torch.randn(1, 1, *shape), grid, layout)
    fused.loss(block, torch.zeros(block.shape[:1] + block.shape[2:], dtype=torch.uint8))[0].backward()
    (share,) = busy_shares(layout, settings.factors)
    walk = pass_of(settings, share)
    totals = communicator.gather_all(fused.work.buffers.total)
    assert 4 * max(totals) == walk.tensors


@pytest.mark.parallel([2, 3, 4, 8])
@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("checkpoints", [(), (0, 2)])
@pytest.mark.parametrize("floats", [2**18, 2**9], ids=["a block a message", "a few planes a message"])
def test_each_rank_s_arena_of_an_agglomerated_network_is_the_planned_one(
    floats, checkpoints, number, communicator, monkeypatch
):
    """Of leaders, of leaders of leaders, of those who sit out; and the plan is that of the one with most."""
    monkeypatch.setattr("volseg.partition.agglomeration._MESSAGE_FLOATS", floats)
    dims, text = AGGLOMERATED[communicator.size][number % len(AGGLOMERATED[communicator.size])]
    settings, shape = config(levels=3), (40, 48, 32)
    grid, stages = ProcessGrid(communicator, dims), parse_agglomeration(text, 3, dims)
    layout = grid.layout(shape, settings.multiple)
    fused = FusedNetwork(UNet(settings), grid, checkpoints, stages)
    block = take_block(torch.randn(1, 1, *shape), grid, layout)
    fused.loss(block, torch.zeros(block.shape[:1] + block.shape[2:], dtype=torch.uint8))[0].backward()

    walk = pass_of(settings, share_of(grid.coords, layout, settings.factors, stages), checkpoints)
    assert walk.arena.chunks == list(fused.work.buffers.arena.chunks)
    assert walk.tensors == 4 * fused.work.buffers.total
    most = max(pass_of(settings, share, checkpoints).tensors for share in busy_shares(layout, settings.factors, stages))
    assert most == max(communicator.gather_all(walk.tensors))
    planned = training_memory(
        unet(settings), TrainingConfig(checkpoint_levels=checkpoints), layout, agglomeration=stages
    )
    assert planned.activations + planned.work >= most  # of the rank that needs most in all


AGGLOMERATED = {
    2: [((2, 1, 1), "1:1x1x1"), ((1, 1, 2), "2:1x1x1"), ((1, 2, 1), "3:1x1x1")],
    3: [((1, 3, 1), "2:1x1x1"), ((3, 1, 1), "1:1x1x1")],
    4: [((2, 2, 1), "2:1x1x1"), ((4, 1, 1), "1:2x1x1,2:1x1x1"), ((1, 2, 2), "2:1x2x1,3:1x1x1")],
    8: [((2, 2, 2), "2:1x1x1"), ((4, 2, 1), "2:2x1x1,3:1x1x1"), ((2, 2, 2), "1:1x1x1")],
}


def test_a_slab_has_room_for_the_largest_from_the_first_one_on() -> None:
    """Else the first one, still read, and the larger one after it would be there together."""
    buffers = Buffers()
    buffers.slab("up", (1, 1, 2), 8, 16)  # of a coarser level
    first = buffers.slab("up", (1, 1, 1), 8, 64)
    assert buffers.slab("up", (2, 2, 2), 8, 64).address == first.address
    assert buffers.total == 64


@pytest.mark.parametrize("regions", [False, True])
def test_the_loss_holds_next_to_nothing_beside_a_slab(regions: bool) -> None:
    """Less than its logits, counted as torch makes tensors; what its kernel works in is planned."""
    classes, voxels = 3, 2**16 + 500
    logits = torch.randn(voxels, classes)
    target = torch.randint(0, classes, (voxels,), dtype=torch.uint8)
    sums: VolumeLoss = RegionSums([[1], [2], [1, 2]]) if regions else LossSums(classes)
    workers.release()
    most = 0
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as measured:
        sums.add(logits, target)
        sums.finish(SERIAL)
        sums.gradient(logits, target, 1.0, logits)
    total = 0
    for event in measured.profiler.kineto_results.events():
        if event.name() == "[memory]":
            total += event.nbytes()
            most = max(most, total)
    assert most <= 2**20
    if not regions:
        assert workers.scratch(0, 0).numel() == loss_floats(classes)
