"""Networks whose tensors are stored as bfloat16: the same bits on any grid by any schedule, and near to float32."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from torch import Tensor

from models.test_described_networks import NETWORKS, STAGES, gradients_of_one_rank, make, targets, volume
from models.test_described_networks import grids as grids_of
from oracles import relative_error, serial_grid
from volseg.distributed.communicator import Communicator
from volseg.distributed.grid import ProcessGrid
from volseg.models.fused import FusedNetwork
from volseg.nn.blocks import gather_blocks, take_block
from volseg.nn.fused.image import TensorImage, image_width
from volseg.nn.fused.scratch import ScratchStore
from volseg.nn.gradients import sum_gradients
from volseg.partition.agglomeration import parse_agglomeration
from volseg.precision import BFLOAT16, FLOAT32, Precision
from volseg.program.schedule import SPILL, schedules_of

SOME = ["strided", "residual, strided", "segresnet", "silu, residual, batch norm", "trilinear"]


@cache
def logits_alone(name: str, precision: Precision) -> Tensor:
    """Of one rank, in place."""
    model, whole = make(NETWORKS[name]).eval(), volume(NETWORKS[name])
    with torch.no_grad():
        logits: Tensor = FusedNetwork(model, serial_grid(), precision=precision).eval()(whole)
    return logits


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_are_near_those_of_float32(name: str) -> None:
    half, whole = logits_alone(name, BFLOAT16), logits_alone(name, FLOAT32)
    assert half.dtype == torch.float32
    assert not torch.equal(half, whole)
    assert relative_error(half, whole) < 0.03


@pytest.mark.parallel([1, 2, 3, 4, 8])
@pytest.mark.parametrize("name", SOME)
def test_bits_are_the_same_on_any_grid_by_any_schedule(name: str, communicator: Communicator, tmp_path) -> None:
    settings = NETWORKS[name]
    model, whole = make(settings).eval(), volume(settings)
    alone = communicator.on_root(lambda: logits_alone(name, BFLOAT16))
    for dims in grids_of(settings, communicator, whole)[:2]:
        grid = ProcessGrid(communicator, dims)
        layout = grid.layout(tuple(whole.shape[2:]), settings.multiple)
        block = take_block(whole, grid, layout)
        for schedule in schedules_of(model.network):
            store = ScratchStore(tmp_path) if schedule is SPILL else None
            network = FusedNetwork(model, grid, precision=BFLOAT16).eval().streamed(schedule, store)
            image = TensorImage(block, layout, grid, image_width(model.network, schedule))
            parts = [part.clone() for _, part in network.logit_slabs(image, layout)]
            assert torch.equal(gather_blocks(torch.cat(parts, 2), grid), alone), (dims, schedule)


@pytest.mark.parallel([2, 4])
@pytest.mark.parametrize("name", SOME[:3])
def test_fewer_ranks_for_coarse_stages_give_the_same(name: str, communicator: Communicator) -> None:
    settings, (dims, text) = NETWORKS[name], STAGES[communicator.size]
    model, whole = make(settings), volume(settings)
    grid = ProcessGrid(communicator, dims)
    stages = parse_agglomeration(text, settings.deepest, dims)
    block = take_block(whole, grid, grid.layout(tuple(whole.shape[2:]), settings.multiple))
    alone = communicator.on_root(lambda: logits_alone(name, BFLOAT16))
    with torch.no_grad():
        network = FusedNetwork(copy.deepcopy(model).eval(), grid, agglomeration=stages, precision=BFLOAT16).eval()
        assert torch.equal(gather_blocks(network(block), grid), alone)
    gradients_are_near(name, grid, FusedNetwork(copy.deepcopy(model).train(), grid, (), stages, precision=BFLOAT16))


@pytest.mark.parallel([1, 2, 4])
@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("checkpoints", [(), (0, 1)])
def test_gradients_are_near_those_of_float32(
    name: str, checkpoints: tuple[int, ...], communicator: Communicator
) -> None:
    settings = NETWORKS[name]
    grid = ProcessGrid(communicator, grids_of(settings, communicator, volume(settings))[0])
    gradients_are_near(name, grid, FusedNetwork(make(settings).train(), grid, checkpoints, precision=BFLOAT16))


def gradients_are_near(name: str, grid: ProcessGrid, fused: FusedNetwork) -> None:
    settings, whole, communicator = NETWORKS[name], volume(NETWORKS[name]), grid.communicator
    expected = communicator.on_root(lambda: gradients_of_one_rank(make(settings), whole))
    layout = grid.layout(tuple(whole.shape[2:]), settings.multiple)
    here = targets(whole)[(slice(None), *grid.block(layout).slices)]
    fused.loss(take_block(whole, grid, layout), here)[0].backward()
    sum_gradients(fused.twin.parameters(), communicator)
    for key, p in fused.twin.named_parameters():
        assert p.grad.dtype == torch.float32
        error = relative_error(p.grad, expected[key], floor=1e-2)
        assert error < 0.1, (key, float(error))
    assert fused.work.buffers.idle
