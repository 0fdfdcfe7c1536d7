"""What a forward does that sees one block where it means the volume is refused on every rank before it is used."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oracles import relative_error
from volseg.distributed.communicator import Communicator
from volseg.distributed.grid import ProcessGrid
from volseg.errors import PartitionError
from volseg.nn.blocks import gather_blocks, take_block
from volseg.nn.convert import partition_module

CHANCE = np.random.default_rng()
WEIGHT = torch.ones(4, 4, 3, 3, 3)


class Between(nn.Module):
    """A convolution, then `function` in the network's own forward, then another convolution."""

    def __init__(self, function) -> None:
        super().__init__()
        self.first, self.last = nn.Conv3d(2, 4, 3, padding=1), nn.Conv3d(4, 2, 1)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x)))


@torch.jit.script
def centred(x: Tensor) -> Tensor:
    return x - x.mean()


class OfNumpy(torch.autograd.Function):
    """A function that no export sees through, as numpy computes it."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        values = x.detach().numpy()
        return torch.from_numpy(values - values.mean())

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad


def grid_of_places(x: Tensor) -> Tensor:
    return x + torch.ones(x.shape[2]).cumsum(0).view(1, 1, -1, 1, 1)


def hooked(layer: nn.Module, *, before: Any = None, after: Any = None) -> nn.Module:
    model = nn.Sequential(layer, nn.ReLU(), nn.Conv3d(getattr(layer, "out_channels", 2), 2, 3, padding=1))
    if before is not None:
        layer.register_forward_pre_hook(lambda module, inputs: (before(inputs[0]),))
    if after is not None:
        layer.register_forward_hook(lambda module, inputs, output: after(output))
    return model


def padded(x: Tensor) -> Tensor:
    return F.pad(x, (1, 1, 1, 1, 1, 1))


HOOKED = {
    "pad": lambda: hooked(nn.Conv3d(2, 4, 3, padding=1), before=padded),
    "mean": lambda: hooked(nn.Conv3d(2, 4, 3, padding=1), after=lambda y: y - y.mean()),
    "conv3d": lambda: hooked(nn.Conv3d(2, 4, 3, padding=1), after=lambda y: F.conv3d(y, WEIGHT, padding=1)),
    "pad of a pad": lambda: hooked(nn.ConstantPad3d(1, 0.0), after=padded),
}
"""Modules whose hooks couple voxels, by what they do."""


WRONG = {
    "mT": lambda x: x + x.mT.mT.mT.flip(-1) if x.shape[-1] == x.shape[-2] else x * 1,
    "turned axes": lambda x: x + x.mT,
    "std": lambda x: x / x.std(True),
    "var": lambda x: x / torch.var(x, True).sqrt(),
    "sides as numbers": lambda x: x / x.shape[2],
    "number of values": lambda x: x / x.numel(),
    "places": grid_of_places,
    "counts": lambda x: x * torch.where(x > 0)[0].numel(),
    "numpy's random numbers": lambda x: x * float(CHANCE.random()),
    "Python's random numbers": lambda x: x * random.random(),
    "an array of random numbers": lambda x: x * torch.from_numpy(CHANCE.random((1, 4, 1, 1, 1))).float(),
    "script": lambda x: centred(x),
    "numpy": OfNumpy.apply,
    "norm over space": lambda x: F.normalize(x, dim=2),
    "cumulative": lambda x: x.cumsum(2),
    "rolled": lambda x: torch.roll(x, 1),
    "argument of the largest": lambda x: x * x.argmax(),
    "einsum": lambda x: torch.einsum("ncdhw,ncdhv->ncdhv", x, x),
    "matmul": lambda x: x @ x.transpose(3, 4) if x.shape[3] == x.shape[4] else x @ x.mT @ x,
    "unfold": lambda x: x.unfold(2, 2, 2).mean(-1).repeat_interleave(2, 2),
}
"""Functions that are right on a whole volume and wrong on a block of one."""


def refused_alike(model: nn.Module, communicator: Communicator, shape: tuple[int, int, int]) -> str:
    """The message with which every rank refuses the model."""
    grid = ProcessGrid(communicator, (communicator.size, 1, 1))
    whole = torch.randn((1, 2, *shape), generator=torch.Generator().manual_seed(0))
    twin = partition_module(model, grid)
    message = ""
    try:
        twin(take_block(whole, grid, grid.layout(shape)))
    except PartitionError as error:
        message = str(error)
    messages = communicator.gather_all(message)
    assert len(set(messages)) == 1, messages
    return messages[0]


@pytest.mark.parallel([2, 4])
@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_on_a_block_is_refused_on_all_ranks(name: str, communicator: Communicator) -> None:
    assert "Between" in refused_alike(Between(WRONG[name]), communicator, (16, 8, 8))


@pytest.mark.parallel([2])
@pytest.mark.parametrize("what", HOOKED)
def test_hooks_that_couple_voxels_are_refused(what: str, communicator: Communicator) -> None:
    message = refused_alike(HOOKED[what](), communicator, (16, 8, 8))
    assert what.split()[0] in message
    assert "module 0" in message


@pytest.mark.parallel([2])
def test_a_layer_that_is_called_twice_is_taken(communicator: Communicator) -> None:
    torch.manual_seed(0)
    layer = nn.Conv3d(2, 2, 3, padding=1)
    model, grid = nn.Sequential(layer, nn.ReLU(), layer), ProcessGrid(communicator, (2, 1, 1))
    whole = torch.randn((1, 2, 16, 8, 8), generator=torch.Generator().manual_seed(0))
    y = gather_blocks(partition_module(model, grid)(take_block(whole, grid, grid.layout((16, 8, 8)))), grid)
    assert relative_error(y, model(whole).detach()) < 1e-5


@pytest.mark.parallel([2, 3])
def test_a_branch_on_the_sides_that_ranks_take_differently_is_refused(communicator: Communicator) -> None:
    message = refused_alike(
        Between(lambda x: F.pad(x, (0, 0, 0, 0, 0, 1)) if x.shape[2] % 2 else x), communicator, (17, 8, 8)
    )
    assert "pad" in message


@pytest.mark.parallel([2])
def test_a_branch_that_all_ranks_take_as_the_volume_does_is_taken(communicator: Communicator) -> None:
    torch.manual_seed(0)
    model = Between(lambda x: x * 2 if x.shape[3] > 4 and x.dim() == 5 else x)
    grid = ProcessGrid(communicator, (2, 1, 1))
    whole = torch.randn((1, 2, 8, 8, 8), generator=torch.Generator().manual_seed(0))
    y = gather_blocks(partition_module(model, grid)(take_block(whole, grid, grid.layout((8, 8, 8)))), grid)
    assert relative_error(y, model(whole).detach()) < 1e-5


class Skipping(nn.Module):
    """Half the sides and back, joined with what was before."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv3d(2, 2, 3, 2, 1), nn.ConvTranspose3d(2, 2, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x, self.up(self.down(x))), 1)


@pytest.mark.parallel([2, 3])
def test_blocks_cut_between_the_strides_are_refused_with_a_remedy_that_works(communicator: Communicator) -> None:
    torch.manual_seed(0)
    message = refused_alike(Skipping(), communicator, (10 if communicator.size == 2 else 20, 8, 8))
    assert "multiples of the product of the network's strides" in message
    grid = ProcessGrid(communicator, (communicator.size, 1, 1))
    whole = torch.randn((1, 2, 20, 8, 8), generator=torch.Generator().manual_seed(0))
    model = Skipping()
    y = gather_blocks(partition_module(model, grid)(take_block(whole, grid, grid.layout((20, 8, 8), 2))), grid)
    assert relative_error(y, model(whole).detach()) < 1e-5


def doubled_unless_exported(x: Tensor) -> Tensor:
    if torch.compiler.is_exporting():
        raise NotImplementedError("not for export")
    return x * 2


@pytest.mark.parallel([2])
def test_what_cannot_be_exported_is_taken_where_its_numbers_are_right(communicator: Communicator) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Between(doubled_unless_exported), nn.BatchNorm3d(2))
    before = model[1].running_mean.clone()
    grid = ProcessGrid(communicator, (1, 1, 2))
    whole = torch.randn((1, 2, 8, 8, 8), generator=torch.Generator().manual_seed(0))
    twin = partition_module(model, grid)
    model.eval(), twin.eval()
    y = gather_blocks(twin(take_block(whole, grid, grid.layout((8, 8, 8)))), grid)
    assert relative_error(y, model(whole).detach()) < 1e-5
    assert torch.equal(model[1].running_mean, before)


@pytest.mark.filterwarnings("ignore")
def test_a_weight_that_a_hook_computes_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Sequential(torch.nn.utils.weight_norm(nn.Conv3d(2, 2, 3, padding=1))))
    model(torch.zeros(1, 2, 4, 4, 4))
    from oracles import serial_grid

    with pytest.raises(PartitionError, match=r"take the weight norm or spectral norm off 0\.0"):
        partition_module(model, serial_grid())
