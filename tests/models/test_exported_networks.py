"""Modules of others as descriptions: the same numbers, on any number of ranks, refused by path and line otherwise."""

from __future__ import annotations

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oracles import GRIDS, relative_error, serial_grid
from volseg.distributed.communicator import Communicator
from volseg.distributed.grid import ProcessGrid
from volseg.errors import PartitionError
from volseg.models.described import DescribedModule
from volseg.models.exported import describe, state_for
from volseg.models.fused import FusedNetwork
from volseg.networks.as_json import network_as_json, network_from_json
from volseg.networks.coverage import why_not_covered
from volseg.networks.deep_supervision import loss_weights
from volseg.networks.description import Network
from volseg.nn.blocks import gather_blocks, take_block
from volseg.nn.convert import partition_module
from volseg.nn.gradients import sum_gradients
from volseg.nn.losses import dice_cross_entropy

SIDES = (16, 16, 24)


def described_as_json(module: nn.Module, channels: int = 2) -> Network:
    """Its description after a way through JSON."""
    network = describe(module, channels)
    again = network_from_json(json.loads(json.dumps(network_as_json(network))), "test")
    assert again == network
    return again


def twin_of(module: nn.Module) -> DescribedModule:
    network = described_as_json(module)
    model = DescribedModule(network)
    model.load_state_dict(state_for(network, module))
    return model


class PlainUNet(nn.Module):
    """As nnU-Net has them: strides going down, biases before norms, in-place activations, heads at both stages."""

    def __init__(self, norm: str = "instance") -> None:
        super().__init__()
        norms = {
            "instance": lambda c: nn.InstanceNorm3d(c, affine=True),
            "bare": nn.InstanceNorm3d,
            "group": lambda c: nn.GroupNorm(2, c),
            "batch": nn.BatchNorm3d,
        }

        def block(inputs: int, outputs: int, stride: int = 1) -> nn.Module:
            conv = nn.Conv3d(inputs, outputs, 3, stride, 1)
            return nn.Sequential(conv, norms[norm](outputs), nn.Dropout3d(0.0), nn.LeakyReLU(0.01, inplace=True))

        self.encoder = nn.ModuleList([block(2, 8), block(8, 16, 2), block(16, 16, 2)])
        self.shortcut = nn.Sequential(nn.AvgPool3d(2), nn.Conv3d(8, 16, 1, bias=False))
        self.up = nn.ModuleList([nn.ConvTranspose3d(16, 16, 2, 2), nn.ConvTranspose3d(16, 8, 2, 2)])
        self.decoder = nn.ModuleList([block(32, 16), block(16, 8)])
        self.heads = nn.ModuleList([nn.Conv3d(16, 3, 1), nn.Conv3d(8, 3, 1)])

    def forward(self, x: Tensor) -> list[Tensor]:
        fine = self.encoder[0](x)
        middle = self.encoder[1](fine)
        middle = middle + self.shortcut(fine)
        x = self.decoder[0](torch.cat((self.up[0](self.encoder[2](middle)), middle), 1))
        coarse = self.heads[0](x)
        return [self.heads[1](self.decoder[1](torch.cat((self.up[1](x), fine), 1))), coarse]


@pytest.fixture(autouse=True)
def _same_weights_on_every_rank() -> None:
    torch.manual_seed(3)


def volume(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn((1, 2, *SIDES), generator=torch.Generator().manual_seed(1)).to(dtype)


def test_a_module_loads_into_its_description_and_gives_the_same() -> None:
    module = PlainUNet().eval()
    model = twin_of(module).eval()
    assert [head.stage for head in model.network.heads] == [1, 0]
    assert model.network.strides == ((1, 1, 1), (2, 2, 2), (2, 2, 2))
    assert set(model.state_dict()) == set(module.state_dict())
    deep: dict[int, Tensor] = {}
    logits = model(volume(), deep_logits=deep)
    for actual, expected in zip((logits, deep[1]), module(volume()), strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.parallel([1, 2, 4])
@pytest.mark.parametrize("norm", ["instance", "bare", "group", "batch"])
def test_it_runs_by_its_program_and_learns_as_plain_torch_does(norm: str, communicator: Communicator) -> None:
    module = PlainUNet(norm)
    model = twin_of(module).train()
    assert not why_not_covered(model.network)
    target = torch.randint(0, 3, (1, *SIDES), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    plain = module.double().train()
    logits, coarse = plain(volume(torch.float64))
    world = serial_grid().communicator
    shares = loss_weights(1)
    loss = shares[0] * dice_cross_entropy(logits, target, world)[0]
    loss = loss + shares[1] * dice_cross_entropy(coarse, target[:, ::2, ::2, ::2], world)[0]
    loss.backward()
    grid = ProcessGrid(communicator, GRIDS[communicator.size][0])
    layout = grid.layout(SIDES, 4)
    fused = FusedNetwork(model, grid)
    here = target[(slice(None), *grid.block(layout).slices)]
    ours = fused.loss(take_block(volume(), grid, layout), here)[0]
    ours.backward()
    sum_gradients(model.parameters(), communicator)
    assert abs(float(ours.detach()) - float(loss.detach())) < 1e-5
    expected = dict(plain.named_parameters())
    for name, p in model.named_parameters():
        assert relative_error(p.grad, expected[name].grad.float(), floor=1e-2) < 2e-4, name


class Between(nn.Module):
    """`function` of the features between two convolutions; it may use `layer`."""

    def __init__(self, function, layer: nn.Module | None = None) -> None:
        super().__init__()
        self.first, self.middle, self.final = nn.Conv3d(2, 8, 3, padding=1), layer, nn.Conv3d(8, 3, 1)
        self.scale = nn.Parameter(torch.randn(1, 8, 1, 1, 1))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.final(self.function(self, self.first(x)))


class SqueezeExcitation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(8, 4), nn.Linear(4, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = F.adaptive_avg_pool3d(x, 1).view(x.shape[0], -1)
        return x * torch.sigmoid(self.up(F.relu(self.down(y)))).view(x.shape[0], -1, 1, 1, 1)


def shuffled(x: Tensor) -> Tensor:
    """Channels spread over space, as MONAI has it."""
    n, c, d, h, w = x.shape
    y = x.reshape(n, c // 8, 2, 2, 2, d, h, w).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return y.reshape(n, c // 8, 2 * d, 2 * h, 2 * w)


def gathered(x: Tensor) -> Tensor:
    """Voxels of small blocks as channels, the voxels slower than the channels."""
    n, c, d, h, w = x.shape
    y = x.view(n, c, d // 2, 2, h // 2, 2, w // 2, 2).permute(0, 3, 5, 7, 1, 2, 4, 6)
    return y.reshape(n, 8 * c, d // 2, h // 2, w // 2)


EXACT = {
    "elu": (lambda net, x: F.elu(x, 0.5), None),
    "selu, celu, softplus": (lambda net, x: F.selu(x) + F.celu(x, 2.0) - F.softplus(x), None),
    "silu, gelu, tanh": (lambda net, x: F.silu(x) * F.gelu(x) + torch.tanh(F.gelu(x, approximate="tanh")), None),
    "hardswish, relu6, mish": (lambda net, x: F.hardswish(x) + F.relu6(x) - F.mish(x) * F.hardsigmoid(x), None),
    "clamp, power, abs": (lambda net, x: x.clamp(-1, 2) + x**2 - x.abs() + x.clamp(min=0), None),
    "prelu": (lambda net, x: net.middle(x), nn.PReLU(8)),
    "prelu of one": (lambda net, x: net.middle(x), nn.PReLU()),
    "parameter": (lambda net, x: x * net.scale + net.scale, None),
    "numbers": (lambda net, x: 1 - (2 * x - 3) / 4, None),
    "gate of one channel": (lambda net, x: x * torch.sigmoid(net.middle(x)), nn.Conv3d(8, 1, 1)),
    "squeeze and excitation": (lambda net, x: net.middle(x), SqueezeExcitation()),
    "mean over space": (lambda net, x: x - x.mean((2, 3, 4), keepdim=True), None),
    "channels split": (lambda net, x: torch.cat([part * n for n, part in enumerate(x.chunk(4, 1))], 1), None),
    "channels repeated": (lambda net, x: net.middle(x.to(x.dtype).repeat(1, 3, 1, 1, 1)), nn.Conv3d(24, 8, 1)),
    "channels cut": (lambda net, x: torch.cat([x[:, 3:], x[:, :3] * 2], 1), None),
    "channels reduced": (lambda net, x: x * x.mean(1, keepdim=True) + x.amax(1, keepdim=True), None),
    "softmax": (lambda net, x: x.softmax(1) + x.log_softmax(1), None),
    "maximum": (lambda net, x: torch.maximum(x, -x) - torch.minimum(x, 2 * x), None),
    "grouped convolution": (lambda net, x: net.middle(x), nn.Conv3d(8, 8, 3, padding=1, groups=4)),
    "dilated convolution": (lambda net, x: net.middle(x), nn.Conv3d(8, 8, 3, padding=2, dilation=2)),
    "same padding": (lambda net, x: net.middle(x), nn.Conv3d(8, 8, 5, padding="same")),
    "strided and transposed": (
        lambda net, x: net.middle(x),
        nn.Sequential(nn.Conv3d(8, 8, 2, 2), nn.ConvTranspose3d(8, 8, 3, 2, 1, output_padding=1)),
    ),
    "pools": (
        lambda net, x: net.middle(x),
        nn.Sequential(nn.MaxPool3d(2), nn.AvgPool3d(3, 1, 1), nn.MaxPool3d(3, 1, 1), nn.Upsample(scale_factor=2)),
    ),
    "averages without padding": (lambda net, x: net.middle(x), nn.AvgPool3d(3, 1, 1, count_include_pad=False)),
    "interpolated": (
        lambda net, x: F.interpolate(F.max_pool3d(x, 2), size=x.shape[2:], mode="trilinear", align_corners=False),
        None,
    ),
    "interpolated by corners": (
        lambda net, x: F.interpolate(F.max_pool3d(x, 2), scale_factor=2, mode="trilinear", align_corners=True),
        None,
    ),
    "norm behind an activation": (lambda net, x: net.middle(x.relu()), nn.GroupNorm(2, 8)),
    "dropout": (lambda net, x: net.middle(x), nn.Dropout(0.3)),
    "channels padded": (lambda net, x: net.middle(F.pad(x, (0, 0, 0, 0, 0, 0, 2, 3), value=0.5)), nn.Conv3d(13, 8, 1)),
    "padded and cropped": (lambda net, x: F.pad(x, (1, 2, 0, 3, 2, 0), value=0.5)[:, :, 2:, :-3, 2:-1], None),
    "padded behind a transposed convolution": (
        lambda net, x: F.pad(net.middle(x), (1, 0, 1, 0, 1, 0)),
        nn.Sequential(nn.Conv3d(8, 8, 2, 2), nn.ConvTranspose3d(8, 8, 3, 2, 1), nn.GroupNorm(2, 8)),
    ),
    "every second voxel": (lambda net, x: F.interpolate(x[:, :, ::2, ::2, 1::2], scale_factor=2), None),
    "pixel shuffle": (lambda net, x: shuffled(net.middle(x)), nn.Conv3d(8, 64, 2, 2)),
    "voxels as channels": (lambda net, x: shuffled(net.middle(gathered(x))), nn.Conv3d(64, 64, 1)),
    "channels in another order": (
        lambda net, x: x.view(1, 4, 2, *x.shape[2:]).transpose(1, 2).reshape(x.shape) * x,
        None,
    ),
    "channels last": (lambda net, x: x.permute(0, 2, 3, 4, 1).contiguous().permute(0, 4, 1, 2, 3), None),
    "stack": (lambda net, x: torch.stack([x, 2 * x], 1).mean(1) + torch.stack([x, x**2]).amax(0), None),
    "stack of one": (lambda net, x: torch.stack([x]).sum(0), None),
    "stack between channels": (
        lambda net, x: net.middle(torch.stack([x, x.relu()], 2).flatten(1, 2)),
        nn.Conv3d(16, 8, 1),
    ),
    "stack unbound": (lambda net, x: torch.stack([x, x.relu()], -1).unbind(-1)[0] * x.unsqueeze(1)[:, 0], None),
    "mean of flat voxels": (lambda net, x: x * x.flatten(2).mean(-1)[:, :, None, None, None], None),
    "in place": (lambda net, x: (x + 1).mul_(2).relu_().add_(x), None),
}


@pytest.mark.parallel([1, 2, 4])
@pytest.mark.parametrize("name", EXACT)
def test_operations_that_are_described_are_exact(name: str, communicator: Communicator) -> None:
    function, layer = EXACT[name]
    module = Between(function, copy.deepcopy(layer)).eval()
    for part in module.modules():  # the layer was made before the seed was set
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
    model = twin_of(module).eval()
    grid = ProcessGrid(communicator, GRIDS[communicator.size][-1])
    multiple = model.network.multiple
    layout = grid.layout(SIDES, multiple)
    with torch.no_grad():
        alone = partition_module(model, serial_grid(), multiple)(volume())
        shared = partition_module(model, grid, multiple)(take_block(volume(), grid, layout))
    assert torch.equal(gather_blocks(shared, grid), alone), "bits differ from the one-rank run"
    model = model.double()
    twin = partition_module(model, grid, multiple)
    y = gather_blocks(twin(take_block(volume(torch.float64), grid, layout)), grid)
    assert relative_error(y, module.double()(volume(torch.float64)).detach()) < 1e-12


REFUSED = {
    "roll": (lambda net, x: x.roll(1, 2), r"roll\(\)"),
    "transpose": (lambda net, x: x.transpose(2, 3), r"reads a tensor \[1, 8, 16, 16, 16\] whose axes are not"),
    "reflection": (lambda net, x: F.pad(x, (1, 1, 1, 1, 1, 1), mode="reflect"), r"pad\(\) pads with mode 'reflect'"),
    "tokens": (
        lambda net, x: x.flatten(2).transpose(1, 2).softmax(1).transpose(1, 2).view(x.shape),
        r"softmax\(\) reads a tensor \[1, 4096, 8\] whose axes are not",
    ),
    "axes joined": (lambda net, x: x.view(1, 8, 8, 32, 16), r"reads a tensor \[1, 8, 8, 32, 16\] whose axes are not"),
    "flip": (lambda net, x: x.flip(2), r"flip\(\)"),
    "space repeated": (lambda net, x: x.repeat(1, 1, 2, 1, 1), r"repeat\(\) repeats an axis other than the channels"),
    "mean of all": (lambda net, x: x / x.mean(), r"mean\(\)"),
    "std": (lambda net, x: x / x.std(True), r"std\(\)"),
    "places": (lambda net, x: x + torch.linspace(0, 1, x.shape[4]), "linspace|no value for each channel"),
    "sides": (lambda net, x: x / x.shape[2], "is another network for"),
    "random": (lambda net, x: x + torch.randn_like(x), r"randn_like\(\)"),
    "circular": (lambda net, x: F.pad(x, (1, 1, 1, 1, 1, 1), mode="circular"), r"pad\(\)"),
    "fixed size": (lambda net, x: F.adaptive_avg_pool3d(x, 2), r"adaptive_avg_pool3d\(\) pools to a fixed size"),
    "weight that is computed": (lambda net, x: F.conv3d(x, net.scale.expand(8, 8, 1, 1, 1) * 2), r"\(\)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_node_says_is_refused_with_its_place(name: str) -> None:
    function, message = REFUSED[name]
    with pytest.raises(PartitionError, match=message) as refusal:
        describe(Between(function), 2, (16, 16, 16))
    assert name == "sides" or "test_exported_networks.py line" in str(refusal.value)
