"""The streamed forward: the bits of the partitioned network, whatever the schedule, the slabs, and the grid."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.test_fused_unet import VARIANTS, volume
from models.test_unet import config, holds, make
from oracles import GRIDS, alike, serial_grid
from volseg.distributed.communicator import Communicator
from volseg.distributed.grid import ProcessGrid
from volseg.models.fused import FusedNetwork
from volseg.nn.blocks import gather_blocks, take_block
from volseg.nn.convert import partition_module
from volseg.nn.fused.image import TensorImage, image_width
from volseg.nn.fused.scratch import ScratchStore
from volseg.program.schedule import IN_PLACE, RECOMPUTE, SPILL, Schedule

SHAPE = (45, 29, 31)
MORE = VARIANTS | {
    "levels enough to be hosted": config(levels=4, base_channels=4, classes=2),
    "dropout": config(dropout=0.5),
    "anisotropic": config(kernels=((1, 3, 3), (3, 3, 3), (3, 3, 3)), strides=((1, 2, 2), (2, 2, 2))),
    "strided": config(down="stride"),
    "anisotropic, strided, trilinear": config(
        kernels=((3, 1, 3), (3, 3, 3), (3, 3, 3)), strides=((2, 1, 2), (2, 2, 2)), down="stride", up="trilinear"
    ),
    "kernels of 5": config(kernel_size=5, levels=1, convolutions=1),
    "pairs of planes, cut anywhere": config(base_channels=32, levels=0),
    "three convolutions, nearest": config(convolutions=3, up="nearest", down="stride"),
}


@pytest.mark.parametrize("slab", [1, 2**20], ids=["thin slabs", "whole"])
@pytest.mark.parametrize("name", MORE)
@pytest.mark.parametrize("schedule", [IN_PLACE, RECOMPUTE, SPILL])
def test_every_schedule_has_the_bits_of_the_partitioned_network(
    schedule: Schedule, name: str, slab: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("volseg.partition.slabs._ROLLING_FLOATS", slab)
    check(schedule, name, serial_grid().communicator, tmp_path)


@pytest.mark.parallel([2])
@pytest.mark.parametrize("name", MORE)
@pytest.mark.parametrize("schedule", [IN_PLACE, RECOMPUTE])
def test_so_it_has_on_two_ranks(
    schedule: Schedule, name: str, communicator: Communicator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("volseg.partition.slabs._ROLLING_FLOATS", 1)
    check(schedule, name, communicator, tmp_path)


@pytest.mark.parallel([2, 3, 4, 8])
@pytest.mark.parametrize("schedule", [IN_PLACE, RECOMPUTE, SPILL])
def test_so_it_has_on_any_grid(
    schedule: Schedule, communicator: Communicator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("volseg.partition.slabs._ROLLING_FLOATS", 1)
    check(schedule, "instance", communicator, tmp_path)


@cache
def logits_and_features(name: str) -> tuple[Tensor, Tensor]:
    """By the partitioned network on one rank; once for all schedules."""
    settings = MORE[name]
    twin = partition_module(make(settings).eval(), serial_grid(), settings.multiple)
    whole = volume(settings, SHAPE)
    with torch.no_grad():
        return twin(whole), twin(whole, features_only=True)


def check(schedule: Schedule, name: str, communicator: Communicator, scratch: Path) -> None:
    """Logits and features of one network on all grids of so many ranks."""
    settings = MORE[name]
    model = make(settings).eval()
    whole = volume(settings, SHAPE)
    shape = tuple(whole.shape[2:])
    alone, features = communicator.on_root(lambda: logits_and_features(name))
    for dims in GRIDS[communicator.size]:
        if not holds(shape, dims, settings):
            continue
        grid = ProcessGrid(communicator, dims)
        layout = grid.layout(shape, settings.multiple)
        block = take_block(whole, grid, layout)
        store = ScratchStore(scratch) if schedule is SPILL else None
        told: list[float] = []
        streamed = FusedNetwork(model, grid).eval().streamed(schedule, store, told.append)
        image = TensorImage(block, layout, grid, image_width(model.network, schedule))
        parts = [part.clone() for _, part in streamed.logit_slabs(image, layout)]
        assert alike(gather_blocks(torch.cat(parts, 2), grid), alone), dims
        assert told == sorted(told)
        assert told[-1] == 1
        box = layout.block(grid.coords)
        image = TensorImage(block, layout, grid, image_width(model.network, schedule, 1))
        reached = 0
        for (first, last), part in streamed.feature_slabs(image, layout):
            d, h, w = (min(stop + 1, n) for stop, n in zip(box.stop, shape, strict=True))
            d = min(d, box.start[0] + last + 1)
            expected = features[:, :, box.start[0] + first : d, box.start[1] : h, box.start[2] : w]
            assert alike(part, expected), dims
            assert first == reached
            reached = last
        assert reached == box.shape[0]


@pytest.mark.parallel([1, 2])
@pytest.mark.parametrize("schedule", [IN_PLACE, RECOMPUTE])
def test_statistics_that_cancel_are_taken_again(
    schedule: Schedule, communicator: Communicator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Raw values far from zero: their variance comes from a second look at them."""
    monkeypatch.setattr("volseg.partition.slabs._ROLLING_FLOATS", 1)
    settings = config(levels=2)
    model = make(settings).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 5:
                parameter.abs_()
    whole = volume(settings, (40, 16, 16)) * 1e-3 + 100
    shape = tuple(whole.shape[2:])
    with torch.no_grad():
        alone = partition_module(model, serial_grid(), settings.multiple)(whole)
    grid = ProcessGrid(communicator, (communicator.size, 1, 1))
    layout = grid.layout(shape, settings.multiple)
    streamed = FusedNetwork(model, grid).eval().streamed(schedule)
    image = TensorImage(take_block(whole, grid, layout), layout, grid, image_width(model.network, schedule))
    parts = [part.clone() for _, part in streamed.logit_slabs(image, layout)]
    assert alike(gather_blocks(torch.cat(parts, 2), grid), alone, bound=1e-3)


@pytest.mark.parallel([1, 2])
def test_what_enters_the_next_stage_by_a_stride_is_made_in_whole_bricks(
    communicator: Communicator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few planes of the finest stage at a time: half as many of the next one, whose bricks are as deep."""
    monkeypatch.setattr("volseg.partition.slabs._ROLLING_FLOATS", 1)
    settings = config(levels=4, down="stride")
    model, whole = make(settings).eval(), volume(settings, (64, 16, 16))
    grid = ProcessGrid(communicator, (communicator.size, 1, 1))
    layout = grid.layout(tuple(whole.shape[2:]), settings.multiple)
    logits = []
    for schedule in (IN_PLACE, RECOMPUTE):
        streamed = FusedNetwork(model, grid).eval().streamed(schedule)
        image = TensorImage(take_block(whole, grid, layout), layout, grid, image_width(model.network, schedule))
        logits.append(torch.cat([part.clone() for _, part in streamed.logit_slabs(image, layout)], 2))
    assert torch.equal(*logits)
