"""Every partitioned layer against its serial torch twin, over shapes, grids, kernels and strides."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from oracles import GRIDS, assert_matches_serial
from volseg.distributed.communicator import Communicator
from volseg.distributed.grid import ProcessGrid
from volseg.errors import PartitionError
from volseg.partition.layout import Layout

RANKS = [1, 2, 3, 4, 8]

# even, uneven, odd, thin, and blocks of one voxel on some axes
SHAPES = [(8, 8, 8), (12, 10, 14), (9, 11, 13), (8, 3, 9), (3, 8, 8)]

LAYERS = {
    "conv k1": lambda: nn.Conv3d(3, 4, 1),
    "conv k3": lambda: nn.Conv3d(3, 4, 3, padding=1),
    "conv k3 same, no bias": lambda: nn.Conv3d(3, 4, 3, padding="same", bias=False),
    "conv k5": lambda: nn.Conv3d(3, 2, 5, padding=2),
    "conv k3 dilation 2": lambda: nn.Conv3d(3, 4, 3, padding=2, dilation=2),
    "conv k3 stride 2": lambda: nn.Conv3d(3, 4, 3, stride=2, padding=1),
    "conv k5 stride 2": lambda: nn.Conv3d(3, 4, 5, stride=2, padding=2),
    "conv k1 stride 2": lambda: nn.Conv3d(3, 4, 1, stride=2),
    "conv k2 stride 2": lambda: nn.Conv3d(3, 4, 2, stride=2),
    "conv k3 stride 2 dilation 2": lambda: nn.Conv3d(3, 4, 3, stride=2, padding=2, dilation=2),
    "conv k3 valid": lambda: nn.Conv3d(3, 4, 3),
    "conv k(1,3,5) stride (1,2,1)": lambda: nn.Conv3d(3, 4, (1, 3, 5), stride=(1, 2, 1), padding=(0, 1, 2)),
    "conv groups": lambda: nn.Conv3d(4, 4, 3, padding=1, groups=2),
    "transpose k2 s2": lambda: nn.ConvTranspose3d(3, 4, 2, stride=2),
    "transpose k3 s2": lambda: nn.ConvTranspose3d(3, 4, 3, stride=2, padding=1, output_padding=1),
    "transpose k3 s2 odd": lambda: nn.ConvTranspose3d(3, 4, 3, stride=2, padding=1),
    "transpose k4 s2": lambda: nn.ConvTranspose3d(3, 4, 4, stride=2, padding=1),
    "transpose k1 s2": lambda: nn.ConvTranspose3d(3, 4, 1, stride=2, output_padding=1),
    "transpose k3 s1 d2": lambda: nn.ConvTranspose3d(3, 4, 3, stride=1, padding=2, dilation=2),
    "max k2": lambda: nn.MaxPool3d(2),
    "max k3 s2": lambda: nn.MaxPool3d(3, stride=2, padding=1),
    "max k3 s1": lambda: nn.MaxPool3d(3, stride=1, padding=1),
    "average k2": lambda: nn.AvgPool3d(2),
    "average k3 s2": lambda: nn.AvgPool3d(3, stride=2, padding=1),
    "average k3 s1 without padding in the count": lambda: nn.AvgPool3d(3, stride=1, padding=1, count_include_pad=False),
    "nearest": lambda: nn.Upsample(scale_factor=2, mode="nearest"),
    "trilinear": lambda: nn.Upsample(scale_factor=2, mode="trilinear"),
    "trilinear corners": lambda: nn.Upsample(scale_factor=2, mode="trilinear", align_corners=True),
    "pad": lambda: nn.ConstantPad3d((1, 2, 0, 3, 5, 1), 0.5),
    "zeros after": lambda: nn.ZeroPad3d((0, 1, 0, 1, 0, 1)),
    "crop": lambda: nn.ConstantPad3d((-1, 0, 0, -1, 1, -1), 0.0),
    "instance norm": lambda: nn.InstanceNorm3d(3, affine=True),
    "instance norm plain": lambda: nn.InstanceNorm3d(3),
    "group norm": lambda: nn.GroupNorm(2, 4),
    "batch norm": lambda: nn.BatchNorm3d(3),
    "prelu": lambda: nn.PReLU(),
}


def randomised(model: nn.Module) -> nn.Module:
    """Every parameter drawn anew, so that no gradient is right by accident (weights of one, biases of zero)."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.3 + 0.1)
    return model


def input_channels(model: nn.Module) -> int:
    for module in model.modules():
        for name in ("in_channels", "num_features", "num_channels"):
            if hasattr(module, name):
                return int(getattr(module, name))
    return 3


@pytest.mark.parallel(RANKS)
@pytest.mark.parametrize("name", LAYERS)
def test_layer_equals_its_serial_twin_or_is_refused_by_name(name: str, communicator: Communicator) -> None:
    matched = 0
    for dims in GRIDS[communicator.size]:
        grid = ProcessGrid(communicator, dims)
        for shape in SHAPES:
            if any(p > n for p, n in zip(dims, shape, strict=True)):
                continue
            model = randomised(LAYERS[name]())
            layout = Layout.even(shape, dims)
            samples = 2 if "norm" in name else 1
            refusal = None
            try:
                assert_matches_serial(model, grid, layout, input_channels(model), samples=samples)
                matched += 1
            except PartitionError as error:
                refusal = str(error)
            if refusal is not None:
                assert type(model).__name__ in refusal
                assert "without output" in refusal or "empty output" in refusal
                assert min(layout.largest_block) <= 4, f"refused without need: {refusal}"
    assert matched >= 4


@pytest.mark.parallel(RANKS)
def test_uneven_blocks_chosen_by_hand(communicator: Communicator) -> None:
    """Blocks of 1 and 7 voxels under a kernel of 5: windows reach past the neighbour's block."""
    for dims in GRIDS[communicator.size]:
        cuts = []
        for parts in dims:
            inner = sorted({1, 2, 3, 5, 6, 8, 9}) if parts == 8 else [1, 2, 4][: parts - 1]
            cuts.append((0, *inner, 11) if parts > 1 else (0, 11))
        layout = Layout((cuts[0], cuts[1], cuts[2]))
        grid = ProcessGrid(communicator, dims)
        stack = nn.Sequential(
            nn.Conv3d(2, 3, 5, padding=2, bias=False), nn.BatchNorm3d(3), nn.ReLU(),
            nn.Conv3d(3, 2, 3, padding=3, dilation=3, bias=False),
            nn.InstanceNorm3d(2, affine=True), nn.LeakyReLU(0.1), nn.AvgPool3d(3, 1, 1),
        )  # fmt: skip
        assert_matches_serial(randomised(stack), grid, layout, 2)


STACKS = {
    "strided encoder and decoder": lambda: nn.Sequential(
        nn.Conv3d(1, 4, 3, padding=1, bias=False), nn.InstanceNorm3d(4, affine=True), nn.LeakyReLU(0.01),
        nn.Conv3d(4, 6, 3, stride=2, padding=1), nn.GroupNorm(3, 6), nn.ReLU(),
        nn.Conv3d(6, 6, 3, padding=2, dilation=2), nn.SiLU(),
        nn.ConvTranspose3d(6, 4, 3, stride=2, padding=1, output_padding=1, bias=False), nn.BatchNorm3d(4), nn.ELU(),
        nn.Conv3d(4, 2, 1),
    ),
    "pooling and interpolation": lambda: nn.Sequential(
        nn.Conv3d(1, 4, 5, padding=2), nn.MaxPool3d(2), nn.Conv3d(4, 4, 3, padding=1, bias=False), nn.InstanceNorm3d(4),
        nn.AvgPool3d(3, 2, 1), nn.Upsample(scale_factor=2, mode="trilinear"), nn.Conv3d(4, 3, 3, padding=1), nn.Tanh(),
        nn.Upsample(scale_factor=2, mode="nearest"), nn.ConvTranspose3d(3, 2, 2, 2),
    ),
}  # fmt: skip


@pytest.mark.parallel(RANKS)
@pytest.mark.parametrize("name", STACKS)
def test_stack_of_layers(name: str, communicator: Communicator) -> None:
    """Several layers in a row: an error in one's input gradient shows in the weight gradients of those before it."""
    for dims in GRIDS[communicator.size]:
        grid = ProcessGrid(communicator, dims)
        for shape in [(16, 16, 16), (20, 16, 24)]:
            if any(n // 4 < p for n, p in zip(shape, dims, strict=True)):
                shape = (32, 32, 32)
            layout = grid.layout(shape, 4)
            for multiple in (1, 4):
                assert_matches_serial(randomised(STACKS[name]()), grid, layout, 1, multiple_of=multiple, tolerance=2e-5)
