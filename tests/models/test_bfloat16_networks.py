"""Networks whose tensors are stored as bfloat16: the same bits on any grid by any schedule, and near to float32."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.test_described_networks import NETWORKS, STAGES, make, targets, volume
from models.test_described_networks import grids as grids_of
from oracles import BY_TORCH, relative_error, serial_grid
from volseg.config import ModelConfig
from volseg.distributed.communicator import Communicator
from volseg.distributed.grid import ProcessGrid
from volseg.errors import ConfigError, PartitionError
from volseg.models.fused import FusedNetwork
from volseg.models.unet import UNet
from volseg.nn.blocks import gather_blocks, take_block
from volseg.nn.fused.image import TensorImage, image_width
from volseg.nn.fused.scratch import ScratchStore
from volseg.nn.gradients import sum_gradients
from volseg.nn.kernels import amx
from volseg.nn.losses import dice_cross_entropy
from volseg.partition.agglomeration import parse_agglomeration
from volseg.precision import BFLOAT16, FLOAT32, Precision
from volseg.program.schedule import SPILL, schedules_of

SOME = ["strided", "residual, strided", "segresnet"]


@cache
def logits_alone(name: str, precision: Precision) -> Tensor:
    """Of one rank, in place."""
    model, whole = make(NETWORKS[name]).eval(), volume(NETWORKS[name])
    with torch.no_grad():
        logits: Tensor = FusedNetwork(model, serial_grid(), precision=precision).eval()(whole)
    return logits


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


@pytest.mark.skipif(BY_TORCH, reason="torch's operators are the same on processors of any kind")
@pytest.mark.parallel([2])
@pytest.mark.parametrize("rank", [0, 1])
def test_processors_of_two_kinds_are_refused(rank: int, communicator: Communicator, monkeypatch) -> None:
    monkeypatch.setattr(amx, "available", lambda: communicator.rank == rank)
    model, grid = make(NETWORKS["strided"]), ProcessGrid(communicator, (2, 1, 1))
    with pytest.raises(PartitionError, match=f"1 of 2 ranks, the first of them rank {1 - rank}, .*precision float32"):
        FusedNetwork(model, grid, precision=BFLOAT16)
    assert FusedNetwork(model, grid, precision=FLOAT32).precision is FLOAT32  # what the message advises


@pytest.mark.parallel([2, 4])
@pytest.mark.parametrize("name", SOME[:1])
def test_fewer_ranks_for_coarse_stages_give_the_same(name: str, communicator: Communicator) -> None:
    settings, (dims, text) = NETWORKS[name], STAGES[communicator.size]
    model, whole = make(settings), volume(settings)
    grid = ProcessGrid(communicator, dims)
    stages = parse_agglomeration(text, settings.deepest, dims)
    layout = grid.layout(tuple(whole.shape[2:]), settings.multiple)
    block, here = take_block(whole, grid, layout), targets(whole)[(slice(None), *grid.block(layout).slices)]
    alone, expected = communicator.on_root(lambda: (logits_alone(name, BFLOAT16), gradients(name, BFLOAT16)))
    with torch.no_grad():
        network = FusedNetwork(copy.deepcopy(model).eval(), grid, agglomeration=stages, precision=BFLOAT16).eval()
        assert torch.equal(gather_blocks(network(block), grid), alone)
    fused = FusedNetwork(copy.deepcopy(model).train(), grid, (), stages, precision=BFLOAT16)
    fused.loss(block, here)[0].backward()
    sum_gradients(fused.twin.parameters(), communicator)
    for key, p in fused.twin.named_parameters():
        assert apart(p.grad, expected[key]) < 0.5, key
    assert apart(fused.twin.get_submodule("head").weight.grad, expected["head.weight"]) < 1e-5


@cache
def gradients(name: str, precision: Precision) -> dict[str, Tensor]:
    """Of one rank."""
    model, whole = make(NETWORKS[name]).train(), volume(NETWORKS[name])
    FusedNetwork(model, serial_grid(), precision=precision).loss(whole, targets(whole))[0].backward()
    return {key: p.grad for key, p in model.named_parameters() if p.grad is not None}


def together(gradients: dict[str, Tensor]) -> Tensor:
    return torch.cat([gradients[key].flatten() for key in sorted(gradients)])


def apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm().clamp(min=1e-3))


class _Rounded(torch.autograd.Function):
    """A tensor that is stored as bfloat16, and so is its gradient; or its gradient alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, stored: bool) -> Tensor:
        return x.bfloat16().to(x.dtype) if stored else x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.bfloat16().to(grad.dtype), None


@pytest.mark.skipif(BY_TORCH, reason="rounds what convolutions read, too: see test_torch_backend.py")
def test_gradients_are_those_of_torch_with_the_same_roundings() -> None:
    """In float64, but for what is stored: raw outputs, their gradients, and gradients before an activation."""
    name = "strided"
    plain = make(NETWORKS[name]).double().train()
    for path, layer in plain.named_modules():
        if path != "head" and isinstance(layer, (nn.Conv3d, nn.ConvTranspose3d, nn.InstanceNorm3d)):
            stored = not isinstance(layer, nn.InstanceNorm3d)
            layer.register_forward_hook(lambda _, __, output, stored=stored: _Rounded.apply(output, stored))
    whole = volume(NETWORKS[name])
    dice_cross_entropy(plain(whole.double()), targets(whole), serial_grid().communicator)[0].backward()
    half, single = (gradients(name, precision) for precision in (BFLOAT16, FLOAT32))
    expected = {key: p.grad.float() for key, p in plain.named_parameters()}
    assert all(gradient.dtype == torch.float32 for gradient in half.values())
    # A value that is rounded the other way turns a leaky ReLU elsewhere: far from the loss both stray alike.
    assert apart(together(half), together(single)) < 1.5 * apart(together(expected), together(single))
    for key in ("head.weight", "head.bias", "decoder.0.4.weight"):
        assert apart(half[key], expected[key]) < 5e-4, key


@pytest.mark.parametrize("name", SOME)
def test_logits_are_near_those_of_float32_and_keeping_less_changes_nothing(name: str) -> None:
    half, whole = logits_alone(name, BFLOAT16), logits_alone(name, FLOAT32)
    assert half.dtype == torch.float32
    assert 1e-4 < relative_error(half, whole) < 0.03
    model, image = make(NETWORKS[name]).train(), volume(NETWORKS[name])
    fused = FusedNetwork(model, serial_grid(), (0, 1), precision=BFLOAT16)
    fused.loss(image, targets(image))[0].backward()
    for key, p in model.named_parameters():
        assert p.grad is None or torch.equal(p.grad, gradients(name, BFLOAT16)[key]), key
    assert fused.work.buffers.idle


def test_what_runs_layer_by_layer_is_refused_by_name() -> None:
    model = UNet(ModelConfig(levels=1, base_channels=4, kernel_size=9))
    with pytest.raises(ConfigError, match=r"--precision bfloat16: .*use --precision float32"):
        FusedNetwork(model, serial_grid(), precision=BFLOAT16)
