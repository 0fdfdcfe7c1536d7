"""U-Nets whose kernels and strides differ by axis and resolution: partitioned they are the plain torch module."""

from __future__ import annotations

import json

import pytest
import torch

from models.test_unet import config, holds, make, padded
from oracles import GRIDS, alike, assert_matches_serial, serial_grid
from volseg.config import ModelConfig
from volseg.distributed.communicator import Communicator
from volseg.distributed.grid import ProcessGrid
from volseg.models.fused import FusedNetwork, coarse
from volseg.models.unet import UNet
from volseg.networks.coverage import why_not_covered
from volseg.networks.description import Convolution, MaxPool, UpConvolution
from volseg.networks.unet import unet
from volseg.nn.blocks import gather_blocks, take_block
from volseg.nn.convert import partition_module

KERNELS = ((1, 3, 3), (3, 3, 3), (3, 3, 3))
STRIDES = ((1, 2, 2), (2, 2, 2))

VARIANTS = {
    "nnU-Net's for thick slices": config(kernels=KERNELS, strides=STRIDES),
    "strided": config(kernels=KERNELS, strides=STRIDES, down="stride"),
    "isotropic, strided": config(down="stride"),
    "mixed kernels, features": config(kernels=((5, 1, 3), (3, 7, 1), (3, 3, 3)), features=(4, 6, 12)),
    "trilinear, three convolutions": config(strides=((2, 1, 2), (1, 2, 1)), up="trilinear", convolutions=3),
    "nearest, one convolution, group": config(
        strides=((1, 1, 2), (2, 2, 2)), up="nearest", convolutions=1, norm="group", base_channels=8
    ),
    "residual, strided": config(
        encoder="residual",
        in_channels=2,
        blocks=(1, 2, 1),
        kernels=KERNELS,
        strides=STRIDES,
        down="stride",
        convolutions=1,
    ),
    "residual, as many channels, strided": config(
        encoder="residual", in_channels=2, blocks=(1, 1, 1), strides=STRIDES, down="stride", features=(4, 4, 4)
    ),
}


@pytest.mark.parallel([1, 2, 4])
@pytest.mark.parametrize("name", VARIANTS)
def test_partitioned_equals_serial(name: str, communicator: Communicator) -> None:
    """Logits, input gradient, every weight gradient, running statistics."""
    settings = VARIANTS[name]
    for dims in {GRIDS[communicator.size][n] for n in (0, -1)}:
        grid = ProcessGrid(communicator, dims)
        # Where two voxels of a pool are the same but for rounding, gradients jump: not in a volume of this shape.
        layout = grid.layout((16, 24, 32), settings.multiple)
        assert_matches_serial(
            make(settings), grid, layout, settings.in_channels, multiple_of=settings.multiple, tolerance=1e-3
        )


@pytest.mark.parallel([1, 2, 3, 4, 8])
def test_logits_have_the_same_bits_on_any_grid(communicator: Communicator) -> None:
    for name in ("nnU-Net's for thick slices", "residual, strided"):
        settings = VARIANTS[name]
        model = make(settings).eval()
        whole = padded((9, 29, 31), settings.multiple).expand(-1, settings.in_channels, -1, -1, -1)
        assert whole.shape[2:] == (10, 32, 32)
        with torch.inference_mode():
            alone = partition_module(model, serial_grid(), settings.multiple)(whole)
            for dims in GRIDS[communicator.size]:
                if not holds(whole.shape[2:], dims, settings):
                    continue
                grid = ProcessGrid(communicator, dims)
                block = take_block(whole, grid, grid.layout(tuple(whole.shape[2:]), settings.multiple))
                logits = gather_blocks(FusedNetwork(model, grid).eval()(block), grid)
                assert alike(logits, alone), dims


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_are_counted(name: str) -> None:
    trainable = sum(p.numel() for p in UNet(VARIANTS[name]).parameters())
    assert unet(VARIANTS[name]).parameters() == trainable


def test_what_the_configuration_says_is_what_is_made() -> None:
    settings = VARIANTS["strided"]
    network = unet(settings)
    convolutions = {node.name: node for node in network.nodes if isinstance(node, Convolution)}
    assert convolutions["encoder 0.1"].kernel == convolutions["decoder 0.2"].kernel == (1, 3, 3)
    assert convolutions["encoder 0.1"].stride == convolutions["encoder 1.2"].stride == (1, 1, 1)
    assert (convolutions["encoder 1.1"].stride, convolutions["encoder 2.1"].stride) == STRIDES
    assert not any(isinstance(node, MaxPool) for node in network.nodes)
    ups = {node.name: node.factors for node in network.nodes if isinstance(node, UpConvolution)}
    assert ups == {"up 0": (1, 2, 2), "up 1": (2, 2, 2)}
    assert network.factors == settings.factors == ((1, 1, 1), (1, 2, 2), (2, 4, 4))
    assert network.factor_between(1, 2) == (2, 2, 2)
    pooled = unet(VARIANTS["nnU-Net's for thick slices"])
    assert [node.window for node in pooled.nodes if isinstance(node, MaxPool)] == list(STRIDES)


def test_the_long_form_of_today_s_network_is_that_network() -> None:
    """Names, order and initial weights."""
    short = config(levels=2)
    long = config(
        kernels=((3, 3, 3),) * 3, strides=((2, 2, 2),) * 2, features=(4, 8, 16), convolutions=2, down="pool", levels=2
    )
    assert unet(long) == unet(short)
    first, second = make(short).state_dict(), make(long).state_dict()
    assert list(first) == list(second)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not why_not_covered(unet(long))
    assert json.dumps(long.multiple) == "[4, 4, 4]"


def test_the_classes_of_a_coarse_stage_are_those_of_its_voxels() -> None:
    target = torch.arange(4 * 4 * 4).reshape(1, 4, 4, 4)
    assert torch.equal(coarse(target, (1, 2, 4)), target[:, :, ::2, ::4])


@pytest.mark.parallel([1, 2])
def test_deep_supervision_at_stages_of_their_own_shape(communicator: Communicator) -> None:
    """The loss, and how many voxels each head sees, on one rank and on two."""
    settings = ModelConfig(
        in_channels=1, classes=3, base_channels=4, levels=3, kernels=((1, 3, 3), *[(3, 3, 3)] * 3),
        strides=((1, 2, 2), (2, 2, 2), (2, 2, 2)),
    )  # fmt: skip
    torch.manual_seed(4)
    model = UNet(settings, deep_supervision=True)
    whole = padded((8, 16, 32), settings.multiple)
    labels = torch.randint(0, 3, (1, 8, 16, 32), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    alone = FusedNetwork(model, serial_grid()).loss(whole, labels)[0]
    grid = ProcessGrid(communicator, (1, 1, communicator.size))
    layout = grid.layout((8, 16, 32), settings.multiple)
    loss = FusedNetwork(model, grid).loss(
        take_block(whole, grid, layout), take_block(labels.unsqueeze(1), grid, layout)[:, 0]
    )[0]
    assert loss.item() == pytest.approx(alone.item(), rel=1e-5)
