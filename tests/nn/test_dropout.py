"""Dropout: the mask belongs to the volume, not to the blocks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from oracles import GRIDS, serial_grid
from volseg.distributed.communicator import Communicator
from volseg.distributed.grid import ProcessGrid
from volseg.nn.blocks import gather_blocks, take_block
from volseg.nn.convert import partition_module

SHAPE = (16, 10, 14)


def ones(shape: tuple[int, int, int] = SHAPE) -> Tensor:
    return torch.ones((2, 3, *shape))


@pytest.mark.parallel([1, 2, 4, 8])
@pytest.mark.parametrize("layer", [nn.Dropout, nn.Dropout3d])
def test_the_mask_is_the_same_on_every_grid(layer, communicator: Communicator) -> None:
    """One torch seed, one mask; and the ranks' own random states (other seeds here) do not matter but the root's."""
    torch.manual_seed(5)
    alone = partition_module(layer(0.4), serial_grid())(ones())
    for dims in GRIDS[communicator.size]:
        if any(p > n for p, n in zip(dims, SHAPE, strict=True)):
            continue
        grid = ProcessGrid(communicator, dims)
        torch.manual_seed(5 + communicator.rank)
        y = partition_module(layer(0.4), grid)(take_block(ones(), grid, grid.layout(SHAPE)))
        assert torch.equal(gather_blocks(y, grid), alone)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_rate_and_scale(p: float) -> None:
    x = ones((24, 24, 24))
    y = partition_module(nn.Dropout(p), serial_grid())(x)
    kept = y != 0
    assert torch.equal(y[kept], torch.full_like(y[kept], 1 / (1 - p)))
    deviation = (p * (1 - p) / kept.numel()) ** 0.5
    assert abs(float(kept.float().mean()) - (1 - p)) < 5 * deviation
    # neighbours on each axis, channels and samples are dropped independently of one another
    for axis in range(5):
        shifted = kept.roll(1, axis)
        both = float((kept & shifted).float().mean())
        assert abs(both - (1 - p) ** 2) < 10 * deviation, f"axis {axis}"


def test_whole_channels_are_dropped() -> None:
    torch.manual_seed(1)
    y = partition_module(nn.Dropout3d(0.5), serial_grid())(torch.ones(8, 64, 2, 3, 4))
    assert torch.equal(y, y[:, :, :1, :1, :1].expand_as(y))
    kept = (y[:, :, 0, 0, 0] != 0).float()
    assert abs(float(kept.mean()) - 0.5) < 0.12
    assert len({tuple(row.tolist()) for row in kept}) == 8, "each sample has channels of its own"


@pytest.mark.parametrize("layer", [nn.Dropout, nn.Dropout3d])
def test_calls_differ_seeds_repeat_and_evaluation_is_the_identity(layer) -> None:
    twin = partition_module(layer(0.5), serial_grid())
    x = torch.ones(1, 32, 4, 4, 4)
    torch.manual_seed(0)
    first, second = twin(x), twin(x)
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(twin(x), first)
    assert float(partition_module(layer(1.0), serial_grid())(x).abs().max()) == 0
    twin.eval()
    assert torch.equal(twin(x), x)


@pytest.mark.parallel([1, 2])
@pytest.mark.parametrize("layer", [nn.Dropout, nn.Dropout3d])
def test_the_gradient_goes_through_the_same_mask(layer, communicator: Communicator) -> None:
    grid = ProcessGrid(communicator, (1, 1, communicator.size))
    torch.manual_seed(2)
    x = take_block(ones(), grid, grid.layout(SHAPE)).requires_grad_()
    y = partition_module(layer(0.5), grid)(x)
    upstream = torch.randn_like(y)
    y.backward(upstream)
    assert x.grad is not None
    assert all(communicator.gather_all(torch.equal(x.grad, upstream * y.detach())))
