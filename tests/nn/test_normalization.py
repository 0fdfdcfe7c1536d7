"""Sums free of any order, and the normalisations made of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from oracles import GRIDS, relative_error, serial_grid
from volseg.distributed.communicator import Communicator, SerialCommunicator
from volseg.distributed.grid import ProcessGrid
from volseg.nn.blocks import gather_blocks, take_block
from volseg.nn.convert import partition_module
from volseg.nn.kernels.channelwise import channels_last
from volseg.nn.kernels.reproducible import moments, order_free_sum
from volseg.partition.layout import split

ALONE = SerialCommunicator()


def columns(rows: int) -> torch.Tensor:
    """[rows, 6] float64 values of very different kinds: what could make a sum depend on its order."""
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn((rows, 6), generator=generator, dtype=torch.float64)
    x[:, 1] *= 1e30
    x[:, 2] *= 1e-30
    x[:, 3] = 0
    x[:, 4] = -x[:, 4].abs() * torch.logspace(-12, 12, rows, dtype=torch.float64)
    x[:, 5] += 1e6
    return x


def rounding(rows: int, largest: float) -> float:
    """What the sum may be off by at most: each value is rounded to a grid of up to rows * largest * 2^-48."""
    return rows**2 * largest * 2.0**-49


@pytest.mark.parametrize("rows", [1, 2, 1000, 70_001])
def test_a_sum_does_not_depend_on_the_order_of_rows(rows: int) -> None:
    x = columns(rows)
    first = order_free_sum(x.unsqueeze(0), rows, ALONE)
    assert first.shape == (1, 6)
    for seed in range(3):
        shuffled = x[torch.randperm(rows, generator=torch.Generator().manual_seed(seed))]
        assert np.array_equal(order_free_sum(shuffled.unsqueeze(0), rows, ALONE), first)
    for column in range(6):
        values = x[:, column].tolist()
        assert abs(first[0, column] - math.fsum(values)) <= rounding(rows, max(map(abs, values)))
    if rows == 70_001:
        plain = {float(np.cumsum(x[torch.randperm(rows), 0].numpy())[-1]) for _ in range(5)}
        assert len(plain) > 1, "a plain sum does depend on the order: the test above can fail"


@pytest.mark.parallel([2, 4, 8])
def test_a_sum_does_not_depend_on_the_ranks(communicator: Communicator) -> None:
    rows = 5000
    x = columns(rows).unsqueeze(0)
    cuts = split(rows, communicator.size)
    uneven = (0, *range(1, communicator.size), rows)
    whole = order_free_sum(x, rows, ALONE)
    for boundaries in (cuts, uneven):
        a, b = boundaries[communicator.rank : communicator.rank + 2]
        part = order_free_sum(x[:, a:b], rows, communicator)
        assert all(communicator.gather_all(np.array_equal(part, whole)))


@pytest.mark.parallel([1, 2, 4, 8])
@pytest.mark.parametrize("brick", [(1, 1, 1), (2, 2, 2), (4, 2, 4), (2, 1, 4)])
def test_moments_do_not_depend_on_the_grid(brick: tuple[int, int, int], communicator: Communicator) -> None:
    shape = (16, 32, 16)
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn((2, 3, *shape), generator=generator) * torch.tensor([1.0, 1e4, 1e-6]).view(1, 3, 1, 1, 1)
    whole[:, 0] += 3
    bricks = math.prod(shape) // math.prod(brick)
    alone = moments(channels_last(whole), brick, bricks, ALONE)
    exact = torch.stack([whole.double().sum((2, 3, 4)), whole.double().square().sum((2, 3, 4))], dim=1).numpy()
    size = whole.double().abs().amax((2, 3, 4))
    largest = torch.stack([size, size * size], dim=1).numpy()
    in_bricks = 0 if brick == (1, 1, 1) else 1e-6 * math.prod(shape)  # where sums are float32
    assert (abs(alone - exact) <= (rounding(math.prod(shape), 1) + in_bricks) * largest).all()
    for dims in GRIDS[communicator.size]:
        grid = ProcessGrid(communicator, dims)
        if any(n // (4 * p) == 0 for n, p in zip(shape, dims, strict=True)):
            continue
        block = channels_last(take_block(whole, grid, grid.layout(shape, 4)))
        same = np.array_equal(moments(block, brick, bricks, communicator), alone)
        assert all(communicator.gather_all(same)), dims


NORMS = {
    "instance": lambda: nn.InstanceNorm3d(4, affine=True),
    "group": lambda: nn.GroupNorm(2, 4),
    "batch": lambda: nn.BatchNorm3d(4),
}


@pytest.mark.parametrize("multiple", [1, 8])
@pytest.mark.parametrize("name", NORMS)
def test_statistics_of_a_small_spread_about_a_large_mean(name: str, multiple: int) -> None:
    """Mean 1000, deviation 1, as of a soft tissue window in HU + 1024; E[x^2] - E[x]^2 in float32 has no digit left."""
    x = torch.randn((2, 4, 16, 16, 16), generator=torch.Generator().manual_seed(0)) + 1000
    layer = NORMS[name]()
    expected = NORMS[name]().double()(x.double()).detach()
    twin = partition_module(layer, serial_grid(), multiple)
    assert relative_error(twin(x).detach().double(), expected) < 1e-4
    if name == "batch":
        var = x.double().var((0, 2, 3, 4))
        assert relative_error(layer.running_var.double(), 0.9 + 0.1 * var) < 1e-6


@pytest.mark.parallel([1, 2, 4])
def test_a_constant_channel_is_normalised_to_zero_on_every_grid(communicator: Communicator) -> None:
    whole = torch.full((1, 2, 8, 8, 8), 0.1)
    whole[:, 1] = 0
    for dims in GRIDS[communicator.size]:
        grid = ProcessGrid(communicator, dims)
        for multiple in (1, 2):
            twin = partition_module(nn.InstanceNorm3d(2), grid, multiple)
            y = gather_blocks(twin(take_block(whole, grid, grid.layout((8, 8, 8), 2))), grid)
            assert float(y.abs().max()) < 1e-3


@pytest.mark.parallel([1, 2])
def test_batch_norm_in_evaluation_uses_what_training_kept(communicator: Communicator) -> None:
    model = nn.BatchNorm3d(3, momentum=None)
    grid = ProcessGrid(communicator, (1, communicator.size, 1))
    twin = partition_module(model, grid)
    serial = nn.BatchNorm3d(3, momentum=None)
    for seed in range(3):
        whole = torch.randn((2, 3, 4, 6, 5), generator=torch.Generator().manual_seed(seed)) * (seed + 1) + seed
        twin(take_block(whole, grid, grid.layout((4, 6, 5))))
        serial(whole)
    assert int(model.num_batches_tracked) == 3
    assert relative_error(model.running_var, serial.running_var) < 1e-5
    twin.eval()
    serial.eval()
    y = gather_blocks(twin(take_block(whole, grid, grid.layout((4, 6, 5)))), grid)
    assert relative_error(y, serial(whole).detach()) < 1e-5
