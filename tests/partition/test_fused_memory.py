"""The plan of the fused U-Net's memory walks through the same pieces of an arena as the network itself."""

from __future__ import annotations

import pytest
import torch

from oracles import GRIDS, serial_grid
from volseg.config import ModelConfig
from volseg.distributed.grid import ProcessGrid
from volseg.models.fused_unet import FusedUNet
from volseg.models.unet import UNet
from volseg.nn.blocks import take_block
from volseg.nn.fused.buffers import Buffers
from volseg.partition.fused_memory import FusedWalk
from volseg.partition.layout import Layout


def config(**changes) -> ModelConfig:
    return ModelConfig(**({"in_channels": 1, "classes": 3, "base_channels": 8, "levels": 2} | changes))


VARIANTS = [
    (config(), (16, 24, 32), ()),
    (config(levels=3, base_channels=4, in_channels=2), (24, 16, 40), ()),
    (config(levels=3), (32, 16, 16), (0, 1)),
    (config(levels=0), (9, 10, 11), ()),
    (config(levels=1, in_channels=6), (8, 12, 10), (0, 1)),
]


@pytest.mark.parametrize(("settings", "shape", "checkpoints"), VARIANTS)
def test_one_rank_s_arena_is_the_planned_one(settings, shape, checkpoints):
    fused = FusedUNet(UNet(settings), serial_grid(), checkpoints)
    x = torch.randn(1, settings.in_channels, *shape)
    fused.loss(x, torch.zeros(1, *shape, dtype=torch.uint8))[0].backward()
    walk = FusedWalk(settings, Layout.even(shape, (1, 1, 1), settings.multiple), checkpoints)
    walk.forward()
    walk.backward()
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
    fused = FusedUNet(UNet(settings), grid)
    block = take_block(torch.randn(1, 1, *shape), grid, layout)
    fused.loss(block, torch.zeros(block.shape[:1] + block.shape[2:], dtype=torch.uint8))[0].backward()
    walk = FusedWalk(settings, layout)
    walk.forward()
    walk.backward()
    totals = communicator.gather_all(fused.work.buffers.total)
    assert 4 * max(totals) == walk.tensors


def test_a_slab_has_room_for_the_largest_from_the_first_one_on() -> None:
    """Else the first one, still read, and the larger one after it would be there together."""
    buffers = Buffers()
    buffers.slab("up", (1, 1, 2), 8, 16)  # of a coarser level
    first = buffers.slab("up", (1, 1, 1), 8, 64)
    assert buffers.slab("up", (2, 2, 2), 8, 64).address == first.address
    assert buffers.total == 64
