"""partition_module: what it turns it turns exactly, and what it cannot turn it refuses by name."""

from __future__ import annotations

import copy
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oracles import GRIDS, assert_matches_serial, relative_error, serial_grid
from volseg.distributed.communicator import Communicator
from volseg.distributed.grid import ProcessGrid
from volseg.errors import PartitionError
from volseg.nn.blocks import gather_blocks, take_block
from volseg.nn.convert import partition_module
from volseg.program.kinds import Kind


class Between(nn.Module):
    """A convolution, then `function` in the network's own forward, then another convolution."""

    def __init__(self, function) -> None:
        super().__init__()
        self.first, self.last = nn.Conv3d(2, 4, 3, padding=1), nn.Conv3d(4, 2, 1)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x)))


class OwnParameter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.scale = nn.Conv3d(2, 2, 1), nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.scale


REFUSED_LAYERS = {
    "Linear": nn.Linear(8, 8),
    "Conv2d": nn.Conv2d(2, 2, 3),
    "AdaptiveAvgPool3d": nn.AdaptiveAvgPool3d(1),
    "ReplicationPad3d": nn.ReplicationPad3d(1),
    "Softmax": nn.Softmax(dim=2),
    "OwnParameter": OwnParameter(),
}

REFUSED_SETTINGS = {
    "padding_mode='circular'": nn.Conv3d(2, 2, 3, padding=1, padding_mode="circular"),
    "return_indices": nn.MaxPool3d(2, return_indices=True),
    "ceil_mode": nn.MaxPool3d(3, 2, ceil_mode=True),
    "ceil_mode=True": nn.AvgPool3d(3, 2, ceil_mode=True),
    "track_running_stats": nn.InstanceNorm3d(2, track_running_stats=True),
    "`size`": nn.Upsample(size=(16, 16, 16), mode="trilinear"),
    "whole scale_factors": nn.Upsample(scale_factor=1.5, mode="trilinear"),
    "mode='nearest-exact'": nn.Upsample(scale_factor=2, mode="nearest-exact"),
}

COUPLING = {
    "interpolate": lambda x: F.interpolate(x, scale_factor=2),
    "pad": lambda x: F.pad(x, (1, 1)),
    "mean": lambda x: x - x.mean((2, 3, 4), keepdim=True),
    "sum": lambda x: x / torch.sum(x),
    "mean without keepdim, then": lambda x: x * x.mean(1).mean(1)[:, None, None],
    "max": lambda x: x / x.max(),
    "softmax": lambda x: x.softmax(-1),
    "__getitem__": lambda x: x[:, :, 1:-1],
    "__getitem__ of a plane": lambda x: x[..., 0:1],
    "cat": lambda x: torch.cat([x, x], dim=2),
    "roll": lambda x: x.roll(1, 2),
    "flip": lambda x: torch.flip(x, [-1]),
    "conv3d": lambda x: F.conv3d(x, torch.ones(4, 4, 3, 3, 3), padding=1),
    "group_norm": lambda x: F.group_norm(x, 2),
    "dropout": lambda x: F.dropout(x),
    "reshape": lambda x: x.reshape(1, 4, -1),
    "transpose": lambda x: x.transpose(2, 3),
    "linspace": lambda x: x + torch.linspace(0, 1, x.shape[-1]),
    "randn_like": lambda x: x + torch.randn_like(x),
    "chunk": lambda x: x.chunk(2, 2)[0],
}

VOXELWISE = {
    "activations": lambda x: F.leaky_relu(x, 0.1) * F.hardsigmoid(x) + F.relu6(x).abs() - x.clamp(min=0) / 2,
    "channels joined and split": lambda x: torch.cat(torch.cat([x, -x], 1).chunk(2, dim=1)[::-1], dim=-4)[:, 4:],
    "channels reduced": lambda x: x * x.amax(dim=1, keepdim=True) + x.argmax(1, keepdim=True),
    "in place": lambda x: (x + 1).mul_(2).relu_(),
    "of two tensors": lambda x: torch.where(x > 0, torch.maximum(x, x * 2), torch.max(x, -x)),
    "with constants": lambda x: x * torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 4, 1, 1, 1),
}


@pytest.fixture(autouse=True)
def _same_weights_on_every_rank() -> None:
    torch.manual_seed(0)


def block_of(grid: ProcessGrid, shape: tuple[int, int, int], channels: int = 2) -> Tensor:
    whole = torch.randn((1, channels, *shape), generator=torch.Generator().manual_seed(0))
    return take_block(whole, grid, grid.layout(shape))


@pytest.mark.parametrize("name", REFUSED_LAYERS)
def test_a_layer_it_does_not_know_is_refused_by_name_at_once(name: str) -> None:
    model = nn.Sequential(nn.Conv3d(2, 2, 1), nn.Sequential(nn.ReLU(), REFUSED_LAYERS[name]))
    with pytest.raises(PartitionError, match=rf"1\.1 \({name}\)"):
        partition_module(model, serial_grid())


@pytest.mark.parallel([1, 2])
@pytest.mark.parametrize("what", REFUSED_SETTINGS)
def test_a_setting_that_cannot_be_partitioned_is_refused_by_name(what: str, communicator: Communicator) -> None:
    model = nn.Sequential(nn.Conv3d(2, 2, 1), REFUSED_SETTINGS[what])
    grid = ProcessGrid(communicator, (communicator.size, 1, 1))
    twin = partition_module(model, grid)
    with pytest.raises(PartitionError, match=rf"layer 1 \(Partitioned.*{re.escape(what)}"):
        twin(block_of(grid, (8, 8, 8)))


@pytest.mark.parallel([1, 2])
@pytest.mark.parametrize("name", COUPLING)
def test_functions_that_couple_voxels_are_refused_between_layers(name: str, communicator: Communicator) -> None:
    grid = ProcessGrid(communicator, (1, 1, communicator.size))
    twin = partition_module(Between(COUPLING[name]), grid)
    by_name = rf"Between: its forward calls {name.split()[0]}\(\) between layers"
    on_ranks = r"Between: module .*test_convert.py line \d+: its forward (calls \w+\(\)|does not do with a block)"
    if name == "reshape":  # what it makes fits no convolution: the plain module fails, too
        on_ranks = "Between: fails with a whole volume of 8x8x8"
    with pytest.raises(PartitionError, match=by_name if communicator.size == 1 else on_ranks):
        twin(block_of(grid, (8, 8, 8)))


@pytest.mark.parallel([1, 2])
@pytest.mark.parametrize("name", VOXELWISE)
def test_functions_of_single_voxels_are_let_through(name: str, communicator: Communicator) -> None:
    grid = ProcessGrid(communicator, (1, communicator.size, 1))
    assert_matches_serial(Between(VOXELWISE[name]), grid, grid.layout((6, 7, 5)), 2)


@pytest.mark.parallel([1, 2])
def test_a_softmax_is_let_through_to_the_last_bit_but_one(communicator: Communicator) -> None:
    """torch computes the ends of an array, where exp is not vectorised, by another routine than the rest."""
    model = Between(lambda x: x.softmax(1) + (2 * x).sigmoid_())
    grid = ProcessGrid(communicator, (1, communicator.size, 1))
    whole = torch.randn((1, 2, 6, 7, 5), generator=torch.Generator().manual_seed(0))
    y = gather_blocks(partition_module(model, grid)(take_block(whole, grid, grid.layout((6, 7, 5)))), grid)
    assert relative_error(y, model(whole).detach()) < 1e-6


def test_parameters_are_shared_and_the_model_is_left_alone() -> None:
    model = nn.Sequential(nn.Conv3d(2, 4, 3, padding=1), nn.BatchNorm3d(4), nn.ReLU(), nn.Dropout3d(0.0))
    types, keys = [type(m) for m in model.modules()], list(model.state_dict())
    plain = copy.deepcopy(model)
    twin = partition_module(model, serial_grid())
    assert list(twin.state_dict()) == keys == list(model.state_dict())
    assert all(a is b for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    assert all(a is b for a, b in zip(model.buffers(), twin.buffers(), strict=True))
    x = torch.randn(1, 2, 8, 8, 8)
    twin(x).sum().backward()
    assert model[0].weight.grad is twin[0].weight.grad
    torch.optim.SGD(twin.parameters(), 0.1).step()
    assert not torch.equal(model[0].weight, plain[0].weight), "training the twin trains the model"
    assert [type(m) for m in model.modules()] == types
    assert "forward" not in vars(model)
    model.eval()
    twin.eval()
    assert relative_error(twin(x).detach(), model(x).detach()) < 1e-5
    twin.load_state_dict(plain.state_dict())
    assert torch.equal(model[0].weight, plain[0].weight)


# Convolutions before a norm have no bias: its true gradient is zero, so that only rounding would be compared.


class SharedLayers(nn.Module):
    """One pooling for two levels, under two names, one convolution used twice, and one norm before two activations."""

    def __init__(self) -> None:
        super().__init__()
        norm, self.pool = nn.InstanceNorm3d(4, affine=True), nn.MaxPool3d(2)
        self.again = nn.ModuleList([self.pool])
        self.first = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1, bias=False), norm, nn.ReLU())
        self.second = nn.Sequential(nn.Conv3d(4, 4, 3, padding=1, bias=False), norm, nn.LeakyReLU(0.2))
        self.third = nn.Sequential(norm, nn.Tanh())
        self.up = nn.Upsample(scale_factor=2, mode="trilinear")

    def forward(self, x: Tensor) -> Tensor:
        a = self.first(x)
        b = self.second(self.pool(a))
        c = self.second(self.again[0](b))
        return a + self.up(b + self.third(self.up(c))) + self.up(self.up(self.second[:2](c)))


@pytest.mark.parallel([1, 2, 4])
def test_shared_layers_and_slices_of_a_sequential(communicator: Communicator) -> None:
    for dims in GRIDS[communicator.size]:
        grid = ProcessGrid(communicator, dims)
        assert_matches_serial(SharedLayers(), grid, grid.layout((16, 16, 16), 4), 1, multiple_of=4, tolerance=2e-5)


@pytest.mark.parallel([1, 2])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6, nn.PReLU, nn.LeakyReLU, lambda: nn.LeakyReLU(-0.5)])
@pytest.mark.parametrize("norm", [nn.InstanceNorm3d, nn.BatchNorm3d, lambda c: nn.GroupNorm(2, c)])
def test_a_norm_with_its_activation_equals_the_two_in_turn(activation, norm, communicator: Communicator) -> None:
    model = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1, bias=False), norm(4), activation(), nn.Conv3d(4, 1, 1))
    grid = ProcessGrid(communicator, (1, 1, communicator.size))
    assert_matches_serial(model, grid, grid.layout((8, 8, 8)), 1, tolerance=2e-5)


def test_a_hook_on_a_norm_sees_the_norm_alone() -> None:
    model = nn.Sequential(nn.InstanceNorm3d(2), nn.ReLU())
    seen = []
    twin = partition_module(model, serial_grid())
    twin[0].register_forward_hook(lambda module, inputs, output: seen.append(output))
    twin(torch.randn(1, 2, 4, 4, 4))
    assert float(seen[0].min()) < 0


@pytest.mark.parallel([2, 4])
def test_blocks_that_do_not_fit_together_are_refused_on_every_rank(communicator: Communicator) -> None:
    size = communicator.size
    grid = ProcessGrid(communicator, (1, 2, size // 2))
    twin = partition_module(nn.Sequential(nn.Conv3d(1, 1, 3, padding=1)), grid)
    odd = 1 if communicator.rank == size - 1 else 0
    for shape in [(8 + odd, 8, 8), (8, 8, 0)]:
        message = ""
        try:
            twin(torch.zeros(1, 1, *shape))
        except PartitionError as error:
            message = str(error)
        messages = communicator.gather_all(message)
        assert messages[0]
        assert messages == [messages[0]] * size


@pytest.mark.parallel([1, 2, 4])
def test_plans_are_made_anew_for_other_shapes(communicator: Communicator) -> None:
    model = nn.Sequential(
        nn.Conv3d(1, 4, 3, stride=2, padding=1), nn.InstanceNorm3d(4), nn.ReLU(), nn.ConvTranspose3d(4, 2, 2, 2)
    )
    grid = ProcessGrid(communicator, GRIDS[communicator.size][-1])
    twin = partition_module(model, grid)
    for shape in [(8, 8, 8), (12, 10, 14), (8, 8, 8), (16, 8, 12)]:
        whole = torch.randn((1, 1, *shape), generator=torch.Generator().manual_seed(1))
        y = gather_blocks(twin(take_block(whole, grid, grid.layout(shape, 2))), grid)
        assert relative_error(y, model(whole).detach()) < 1e-5


class Branching(nn.Module):
    """The same layer's first call lies at another level when `deep` changes."""

    def __init__(self) -> None:
        super().__init__()
        self.pool, self.conv, self.deep = nn.AvgPool3d(2), nn.Conv3d(1, 1, 3, padding=1), False

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.pool(x) if self.deep else x)


@pytest.mark.parallel([1, 2])
def test_a_network_that_takes_another_path_the_next_time(communicator: Communicator) -> None:
    model = Branching()
    grid = ProcessGrid(communicator, (communicator.size, 1, 1))
    twin = partition_module(model, grid)
    whole = torch.randn((1, 1, 8, 8, 8), generator=torch.Generator().manual_seed(1))
    for deep in (False, True, False):
        model.deep = twin.deep = deep
        y = gather_blocks(twin(take_block(whole, grid, grid.layout((8, 8, 8), 2))), grid)
        assert relative_error(y, model(whole).detach()) < 1e-5


class InPlace(nn.Module):
    """Activations and sums that overwrite what layers made, as most published networks have them."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.first, self.layer = nn.Conv3d(1, 8, 3, padding=1), layer
        self.activation = nn.ReLU(inplace=True)
        self.norm, self.last = nn.InstanceNorm3d(8, affine=True), nn.Conv3d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.first(x))
        y = self.layer(x)
        y += 0.5
        y = self.activation(self.norm(y))
        y = self.last(y)
        return y.mul_(2.0)


LAYERS_IN_PLACE = {
    "3x3x3": lambda: nn.Conv3d(8, 8, 3, padding=1, bias=False),
    "1x1x1": lambda: nn.Conv3d(8, 8, 1, bias=False),
    "strided": lambda: nn.Conv3d(8, 8, 3, 2, 1, bias=False),
    "5x5x5": lambda: nn.Conv3d(8, 8, 5, padding=2, bias=False),
    "grouped": lambda: nn.Conv3d(8, 8, 3, padding=1, groups=2, bias=False),
    "up": lambda: nn.ConvTranspose3d(8, 8, 2, 2, bias=False),
}


@pytest.mark.parallel([1, 2])
@pytest.mark.parametrize("name", LAYERS_IN_PLACE)
def test_what_a_layer_made_may_be_changed_in_place(name: str, communicator: Communicator) -> None:
    torch.manual_seed(0)
    grid = ProcessGrid(communicator, (communicator.size, 1, 1))
    model = InPlace(LAYERS_IN_PLACE[name]())
    assert_matches_serial(model, grid, grid.layout((16, 8, 8), 4), 1, tolerance=1e-4)


class ResidualUnit(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv3d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm3d(outputs), nn.PReLU(),
            nn.Conv3d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm3d(outputs), nn.Dropout(0.0),
        )  # fmt: skip
        self.shortcut = nn.Conv3d(inputs, outputs, 3, stride, 1) if stride > 1 or inputs != outputs else nn.Identity()
        self.gate = nn.Conv3d(outputs, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return F.relu(y * torch.sigmoid(self.gate(y)) + self.shortcut(x))


class ResidualUNet(nn.Module):
    """In the manner of MONAI's UNet: strided residual units down, k3 s2 transposed convolutions up, attention gates."""

    def __init__(self, widths: tuple[int, ...] = (4, 6, 8)) -> None:
        super().__init__()
        self.down = nn.ModuleDict(
            {f"level{n}": ResidualUnit(a, b, 2) for n, (a, b) in enumerate(zip((1, *widths), widths, strict=False))}
        )
        self.bottom = ResidualUnit(widths[-1], widths[-1], 1)
        back = (widths[-1], *widths[-2::-1])
        self.up = nn.ModuleList(
            nn.ConvTranspose3d(2 * a, b, 3, 2, 1, output_padding=1) for a, b in zip(back, (*back[1:], 2), strict=True)
        )

    def forward(self, x: Tensor) -> list[Tensor] | Tensor:
        skips = []
        for unit in self.down.values():
            x = unit(x)
            skips.append(x)
        x = self.bottom(x)
        for layer in self.up:
            x = layer(torch.cat((x, skips.pop()), 1))
        return x


@pytest.mark.parallel([1, 2, 4])
def test_a_network_that_someone_else_wrote(communicator: Communicator) -> None:
    torch.manual_seed(0)
    model = ResidualUNet()
    for dims in GRIDS[communicator.size][:2]:
        if max(dims) > 2:
            continue
        grid = ProcessGrid(communicator, dims)
        assert_matches_serial(copy.deepcopy(model), grid, grid.layout((16, 24, 16), 8), 1, samples=2, tolerance=1e-4)
        twin = partition_module(model, grid)
        whole = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 1, 16, 24, 16)).astype(np.float32))
        with torch.no_grad():
            model.eval()
            twin.eval()
            y = gather_blocks(twin(take_block(whole, grid, grid.layout((16, 24, 16), 8))), grid)
            assert relative_error(y, model(whole)) < 1e-5


@pytest.mark.parallel([1, 2])
def test_the_meter_knows_the_work_of_each_layer_forward_and_backward(communicator: Communicator) -> None:
    grid, meter = ProcessGrid(communicator, GRIDS[communicator.size][0]), communicator.meter
    layers = [
        nn.Conv3d(2, 4, 3, padding=1), nn.InstanceNorm3d(4, affine=True), nn.LeakyReLU(0.1), nn.MaxPool3d(2),
        nn.ConvTranspose3d(4, 2, 2, stride=2), nn.Upsample(scale_factor=2),
    ]  # fmt: skip
    network = partition_module(nn.Sequential(*layers), grid)
    meter.reset()
    network(block_of(grid, (8, 8, 8)).requires_grad_()).square().sum().backward()
    found = {(layer, kind) for (layer, kind), seconds in meter.taken[""].items() if seconds}
    assert found >= {
        ("0", Kind.CONVOLUTION), ("0, backward", Kind.CONVOLUTION), ("1", Kind.NORM), ("1, backward", Kind.NORM),
        ("3", Kind.POOLING), ("4", Kind.UP), ("4, backward", Kind.UP), ("5", Kind.UP), ("0", Kind.HALO),
    }  # fmt: skip
