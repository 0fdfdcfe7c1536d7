"""Up-sampled tensors that are never whole, in networks that no configuration has: several readers, a norm before it."""

from __future__ import annotations

import copy

import pytest
import torch

from oracles import GRIDS, relative_error, serial_grid
from volseg.config import ModelConfig
from volseg.distributed.communicator import Communicator
from volseg.distributed.grid import ProcessGrid
from volseg.models.fused import FusedNetwork
from volseg.models.unet import UNet
from volseg.networks.coverage import can_recompute, why_not_covered
from volseg.networks.description import (
    IMAGE,
    ONES,
    Addition,
    Convolution,
    Head,
    Interpolation,
    MaxPool,
    Network,
    Node,
    Normalization,
    UpConvolution,
)
from volseg.nn.blocks import gather_blocks, take_block
from volseg.nn.fused.image import TensorImage, image_width
from volseg.nn.gradients import sum_gradients
from volseg.nn.losses import dice_cross_entropy
from volseg.program.schedule import IN_PLACE, RECOMPUTE, Schedule

SHAPE, TWICE = (12, 16, 20), (2, 2, 2)
UPS = {
    "transposed": UpConvolution("up", ("2, activated",), 0, 8, TWICE, True, "layers.up"),
    "trilinear": Interpolation("up", ("2, activated",), 0, 8, TWICE, "trilinear", "layers.up"),
    "nearest": Interpolation("up", ("2, activated",), 0, 8, TWICE, "nearest", "layers.up"),
}


def convolution(name: str, reads: tuple[str, ...], stage: int, kernel: int = 3, stride: int = 1) -> Node:
    sides, strides = (kernel, kernel, kernel), (stride, stride, stride)
    return Convolution(name, reads, stage, 8, sides, strides, bias=False, module=f"layers.{name}")


def activated(name: str, stage: int) -> Node:
    return Normalization(f"{name}, activated", (name,), stage, 8, "instance", 0.1, module=f"layers.{name}n")


def encoder() -> tuple[Node, ...]:
    pooled = MaxPool("pooled", ("1, activated",), 1, 8, TWICE)
    return (
        convolution("1", (IMAGE,), 0),
        activated("1", 0),
        pooled,
        convolution("2", ("pooled",), 1),
        activated("2", 1),
    )


def network(*nodes: Node) -> Network:
    return Network(1, (ONES, TWICE), (*encoder(), *nodes), ("layers", "down", "head"))


def residual_decoder(up: Node) -> Network:
    """A convolution and a projection, both of the skip connection and of what comes up, and their sum."""
    both = ("1, activated", "up")
    return network(
        up, convolution("3", both, 0), activated("3", 0), convolution("4", both, 0, 1), activated("4", 0),
        Addition("sum", ("3, activated", "4, activated"), 0, 8), Head("head", ("sum",), 0, 3, "head"),
    )  # fmt: skip


def chain_with_the_skip_behind(up: Node) -> Network:
    """As nnU-Net joins them: what comes up, then the skip connection."""
    return network(
        up, convolution("3", ("up", "1, activated"), 0), activated("3", 0),
        Head("head", ("3, activated",), 0, 3, "head"),
    )  # fmt: skip


@pytest.mark.parallel([1, 2, 4])
@pytest.mark.parametrize("name", UPS)
def test_what_comes_up_before_the_skip_connection(name: str, communicator: Communicator) -> None:
    described = chain_with_the_skip_behind(UPS[name])
    assert can_recompute(described)
    check(described, communicator, (IN_PLACE, RECOMPUTE))


@pytest.mark.parallel([1, 2, 4])
@pytest.mark.parametrize("name", UPS)
def test_two_convolutions_read_what_comes_up_from_an_activation(name: str, communicator: Communicator) -> None:
    described = residual_decoder(UPS[name])
    assert not can_recompute(described)
    check(described, communicator, (IN_PLACE,))


def check(described: Network, communicator: Communicator, schedules: tuple[Schedule, ...]) -> None:
    """Logits and gradients are those of torch, and the logits have the same bits on any grid and by any schedule."""
    assert not why_not_covered(described)
    torch.manual_seed(3)
    model = UNet(ModelConfig(in_channels=1, classes=3, levels=1), described=described).train()
    whole, target = torch.randn(1, 1, *SHAPE), torch.randint(0, 3, (1, *SHAPE), dtype=torch.uint8)
    plain = copy.deepcopy(model).double()
    dice_cross_entropy(plain(whole.double()), target, serial_grid().communicator)[0].backward()
    expected = dict(plain.named_parameters())
    with torch.no_grad():
        logits = plain.eval()(whole.double()).float()
        alone = FusedNetwork(copy.deepcopy(model).eval(), serial_grid()).eval()(whole)
    assert relative_error(alone, logits) < 1e-5
    for dims in GRIDS[communicator.size]:
        grid, own = ProcessGrid(communicator, dims), copy.deepcopy(model)
        layout = grid.layout(SHAPE, TWICE)
        block, here = take_block(whole, grid, layout), target[(slice(None), *grid.block(layout).slices)]
        fused = FusedNetwork(own, grid)
        fused.loss(block, here)[0].backward()
        sum_gradients(own.parameters(), communicator)
        for key, p in own.named_parameters():
            assert relative_error(p.grad, expected[key].grad.float(), floor=1e-2) < 2e-4, (key, dims)
        for schedule in schedules:
            streamed = fused.eval().streamed(schedule)
            image = TensorImage(block, layout, grid, image_width(described, schedule))
            parts = [part.clone() for _, part in streamed.logit_slabs(image, layout)]
            assert torch.equal(gather_blocks(torch.cat(parts, 2), grid), alone), (dims, schedule)


def test_what_cannot_be_lifted_for_a_convolution_is_refused_by_name() -> None:
    up, other = UPS["trilinear"], UpConvolution("other", ("2, activated",), 0, 8, TWICE, True, "layers.other")
    head = Head("head", ("3, activated",), 0, 3, "head")
    strided = network(up, convolution("3", ("up",), 1, stride=2), activated("3", 1))
    assert why_not_covered(strided) == "3 takes every second voxel of what is up-sampled"
    two = network(up, other, convolution("3", ("up", "other"), 0), activated("3", 0), head)
    assert why_not_covered(two) == "3 reads two up-sampled tensors side by side"
