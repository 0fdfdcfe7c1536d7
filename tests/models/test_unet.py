"""The U-Net: partitioned it is the plain torch module, and its logits have the same bits on any number of ranks."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from oracles import GRIDS, assert_matches_serial, serial_grid
from volseg.config import ModelConfig
from volseg.distributed.communicator import Communicator
from volseg.distributed.grid import ProcessGrid
from volseg.geometry import PerAxis, Triple
from volseg.models.unet import UNet
from volseg.networks.unet import unet
from volseg.nn.blocks import gather_blocks, take_block
from volseg.nn.convert import partition_module
from volseg.partition.layout import padded_shape


def config(**changes) -> ModelConfig:
    return ModelConfig(**({"in_channels": 1, "classes": 3, "base_channels": 4, "levels": 2} | changes))


VARIANTS = {
    "instance, transpose": config(),
    "group, trilinear, relu": config(norm="group", up="trilinear", activation="relu", base_channels=8),
    "batch, nearest, two channels": config(norm="batch", up="nearest", in_channels=2),
    "no norm, k5, one level": config(norm="none", kernel_size=5, levels=1),
    "no levels": config(levels=0),
}


def make(settings: ModelConfig) -> UNet:
    """A U-Net with the same weights on every rank, its norms' weights drawn too."""
    torch.manual_seed(4)
    model = UNet(settings)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 1:
                p.add_(0.1 * torch.randn_like(p))
    return model


@pytest.mark.parallel([1, 2, 4])
@pytest.mark.parametrize("name", VARIANTS)
def test_partitioned_equals_serial(name: str, communicator: Communicator) -> None:
    """Logits, input gradient, every weight gradient, running statistics."""
    settings = VARIANTS[name]
    dims = GRIDS[communicator.size][-1]
    grid = ProcessGrid(communicator, dims)
    layout = grid.layout((16, 24, 16), settings.multiple)
    samples = 2 if settings.norm == "batch" else 1
    tolerance = 1e-4  # two levels of normalisation, ten convolutions: float32 rounding is amplified
    assert_matches_serial(
        make(settings), grid, layout, settings.in_channels, samples=samples, multiple_of=settings.multiple,
        tolerance=tolerance,
    )  # fmt: skip


@pytest.mark.parallel([8])
def test_partitioned_equals_serial_on_eight_ranks(communicator: Communicator) -> None:
    grid = ProcessGrid(communicator, (2, 2, 2))
    assert_matches_serial(make(config()), grid, grid.layout((16, 16, 24), 4), 1, multiple_of=4, tolerance=1e-4)


def padded(shape: Triple, multiple: PerAxis) -> Tensor:
    """A volume of odd sides with the zeros that bring them to the multiple."""
    d, h, w = shape
    whole = torch.zeros((1, 1, *padded_shape(shape, multiple)))
    whole[:, :, :d, :h, :w] = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return whole


def holds(shape: Sequence[int], dims: Triple, settings: ModelConfig) -> bool:
    """Whether each rank of a grid gets a block of a volume."""
    return all(n >= p * m for n, p, m in zip(shape, dims, settings.multiple, strict=True))


@pytest.mark.parallel([1, 2, 3, 4, 8])
def test_logits_have_the_same_bits_on_any_grid(communicator: Communicator) -> None:
    for settings, shape in ((config(), (19, 29, 31)), (config(norm="group", up="trilinear"), (30, 17, 23))):
        model = make(settings).eval()
        whole = padded(shape, settings.multiple)
        with torch.inference_mode():
            alone = partition_module(model, serial_grid(), settings.multiple)(whole)
            for dims in GRIDS[communicator.size]:
                if not holds(whole.shape[2:], dims, settings):
                    continue
                grid = ProcessGrid(communicator, dims)
                layout = grid.layout(tuple(whole.shape[2:]), settings.multiple)
                twin = partition_module(model, grid, settings.multiple)
                logits = gather_blocks(twin(take_block(whole, grid, layout)), grid)
                assert torch.equal(logits, alone), dims


@pytest.mark.parallel([1, 2])
def test_dropout_draws_the_same_mask_on_any_grid(communicator: Communicator) -> None:
    model = make(config(dropout=0.4)).train()
    whole = padded((16, 16, 16), 4)
    grid = ProcessGrid(communicator, (1, communicator.size, 1))
    torch.manual_seed(8)
    alone = partition_module(model, serial_grid(), 4)(whole).detach()
    torch.manual_seed(8)
    y = gather_blocks(partition_module(model, grid, 4)(take_block(whole, grid, grid.layout((16, 16, 16), 4))), grid)
    assert torch.equal(y, alone)
    assert not torch.equal(y, partition_module(model.eval(), serial_grid(), 4)(whole).detach())


@pytest.mark.parametrize("name", VARIANTS)
def test_the_memory_model_counts_the_network_s_parameters(name: str) -> None:
    model = UNet(VARIANTS[name])
    trainable = sum(p.numel() for p in model.parameters())
    assert unet(VARIANTS[name]).parameters() == trainable


def test_features_are_what_the_head_reads() -> None:
    model = make(config()).eval()
    x = padded((8, 8, 8), 4)
    assert torch.equal(model.head(model(x, features_only=True)), model(x))


def test_one_seed_one_initialisation() -> None:
    first, second = make(config()).state_dict(), make(config()).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
