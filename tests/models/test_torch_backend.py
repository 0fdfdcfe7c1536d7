"""Programs by torch's operators: the numbers of the compiled kernels and of plain torch, on any grid."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.test_bfloat16_networks import _Rounded, apart, together
from models.test_described_networks import (
    NETWORKS,
    STAGES,
    config,
    grids,
    logits_of_torch,
    make,
    targets,
    training_of_torch,
    volume,
)
from oracles import relative_error, serial_grid
from volseg.distributed.communicator import Communicator
from volseg.distributed.grid import ProcessGrid
from volseg.models.fused import FusedNetwork
from volseg.nn.blocks import gather_blocks, take_block
from volseg.nn.fused.backend import CPU, CompiledBackend
from volseg.nn.fused.image import TensorImage, image_width
from volseg.nn.fused.scratch import ScratchStore
from volseg.nn.gradients import sum_gradients
from volseg.nn.losses import dice_cross_entropy
from volseg.nn.torch_ops import TorchBackend
from volseg.partition.agglomeration import parse_agglomeration
from volseg.precision import BFLOAT16, FLOAT32, Precision
from volseg.program.schedule import SPILL, schedules_of

TORCH = TorchBackend(CPU, limit=2**14)
"""With windows so small that there are many."""

BOUND = 2e-6
"""Of logits on two grids, relative to the largest: the library may add up otherwise where shapes are others."""

SOME = [
    "residual, batch norm, two channels", "anisotropic, residual, strided", "kernels of each size",
    "gelu by tanh, segresnet", "trilinear, pooled on one axis", "residual encoder of nnU-Net",
    "group norm behind biases",
]  # fmt: skip


@pytest.mark.parallel([1, 2, 4])
@pytest.mark.parametrize("name", SOME)
def test_logits_are_those_of_torch_on_any_grid_by_any_schedule(
    name: str, communicator: Communicator, tmp_path: Path
) -> None:
    settings = NETWORKS[name]
    model, whole = make(settings).eval(), volume(settings)
    expected = communicator.on_root(lambda: logits_of_torch(model, whole)).float()
    alone: Tensor | None = None
    for dims in grids(settings, communicator, whole)[:2]:
        grid = ProcessGrid(communicator, dims)
        layout = grid.layout(tuple(whole.shape[2:]), settings.multiple)
        for schedule in schedules_of(model.network):
            store = ScratchStore(tmp_path) if schedule is SPILL else None
            network = FusedNetwork(model, grid, backend=TORCH).eval().streamed(schedule, store)
            image = TensorImage(take_block(whole, grid, layout), layout, grid, image_width(model.network, schedule))
            parts = [part.clone() for _, part in network.logit_slabs(image, layout)]
            logits = gather_blocks(torch.cat(parts, 2), grid)
            assert relative_error(logits, expected) < 1e-5, (dims, schedule)
            alone = logits if alone is None else alone
            assert relative_error(logits, alone) < BOUND, (dims, schedule)


@pytest.mark.parallel([1, 2, 4])
@pytest.mark.parametrize("name", [*SOME, "silu, residual, batch norm"])
def test_gradients_are_those_of_torch_and_of_the_compiled_kernels(name: str, communicator: Communicator) -> None:
    settings = NETWORKS[name]
    model, whole = make(settings).train(), volume(settings)
    loss_of_torch, expected = communicator.on_root(lambda: training_of_torch(model, whole))
    grid = ProcessGrid(communicator, grids(settings, communicator, whole)[0])
    layout = grid.layout(tuple(whole.shape[2:]), settings.multiple)
    block, here = take_block(whole, grid, layout), targets(whole)[(slice(None), *grid.block(layout).slices)]
    smooth = "silu" in name or "gelu" in name
    for checkpoints in ((), (0, 1)):
        own = copy.deepcopy(model)
        fused = FusedNetwork(own, grid, checkpoints, backend=TORCH)
        assert fused.covers(block)
        loss, _ = fused.loss(block, here)
        loss.backward()
        sum_gradients(own.parameters(), communicator)
        assert abs(float(loss.detach()) / loss_of_torch - 1) < 1e-6
        for (
            key,
            p,
        ) in own.named_parameters():  # where a value near zero falls otherwise, a leaky ReLU's slope is another
            assert relative_error(p.grad, expected[key], floor=1e-2) < (1e-5 if smooth else 2e-4), (key, checkpoints)
        assert fused.work.buffers.idle


@pytest.mark.parallel([2, 4])
@pytest.mark.parametrize("precision", [FLOAT32, BFLOAT16])
@pytest.mark.parametrize("name", ["silu, residual, batch norm", "anisotropic segresnet, nearest"])
def test_fewer_ranks_for_coarse_stages_give_the_same(
    name: str, precision: Precision, communicator: Communicator
) -> None:
    settings, (dims, text) = NETWORKS[name], STAGES[communicator.size]
    model, whole = make(settings).train(), volume(settings)
    grid, stages = ProcessGrid(communicator, dims), parse_agglomeration(text, settings.deepest, dims)
    layout = grid.layout(tuple(whole.shape[2:]), settings.multiple)
    block, here = take_block(whole, grid, layout), targets(whole)[(slice(None), *grid.block(layout).slices)]
    alone, of_one = communicator.on_root(lambda: _training(model, serial_grid(), whole, targets(whole), precision))
    fused = FusedNetwork(copy.deepcopy(model), grid, agglomeration=stages, precision=precision, backend=TORCH)
    loss, _ = fused.loss(block, here)
    loss.backward()
    sum_gradients(fused.twin.parameters(), communicator)
    assert abs(float(loss.detach()) / alone - 1) < (1e-6 if precision is FLOAT32 else 1e-3)
    for key, p in fused.twin.named_parameters():
        bound = 2e-5 if precision is FLOAT32 else 0.2
        assert relative_error(p.grad, of_one[key], floor=1e-2) < bound, key
    assert all(torch.isfinite(buffer).all() for buffer in fused.twin.buffers())


def _training(
    model: nn.Module, grid: ProcessGrid, whole: Tensor, labels: Tensor, precision: Precision
) -> tuple[float, dict[str, Tensor]]:
    own = copy.deepcopy(model)
    loss, _ = FusedNetwork(own, grid, precision=precision, backend=TORCH).loss(whole, labels)
    loss.backward()
    return float(loss.detach()), {key: p.grad for key, p in own.named_parameters()}


class _Read(torch.autograd.Function):
    """What a convolution of bfloat16 gets; its gradient goes on as it is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.bfloat16().to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def test_bfloat16_gradients_are_those_of_torch_with_the_same_roundings() -> None:
    """In float64, but for what is stored, and for what convolutions read: activated tensors and weights."""
    name = "strided"
    plain = make(NETWORKS[name]).double().train()
    for path, layer in plain.named_modules():
        if isinstance(layer, (nn.Conv3d, nn.ConvTranspose3d)):
            layer.register_forward_pre_hook(lambda _, inputs: tuple(_Read.apply(x) for x in inputs))
            layer.weight.data.copy_(layer.weight.data.bfloat16())
        if path != "head" and isinstance(layer, (nn.Conv3d, nn.ConvTranspose3d, nn.InstanceNorm3d)):
            stored = not isinstance(layer, nn.InstanceNorm3d)
            layer.register_forward_hook(lambda _, __, output, stored=stored: _Rounded.apply(output, stored))
    whole = volume(NETWORKS[name])
    dice_cross_entropy(plain(whole.double()), targets(whole), serial_grid().communicator)[0].backward()
    expected = {key: p.grad.float() for key, p in plain.named_parameters()}
    half, single = (
        _training(make(NETWORKS[name]).train(), serial_grid(), whole, targets(whole), precision)[1]
        for precision in (BFLOAT16, FLOAT32)
    )
    assert all(gradient.dtype == torch.float32 for gradient in half.values())
    assert apart(together(half), together(single)) < 1.5 * apart(together(expected), together(single))
    for key in ("head.weight", "head.bias", "decoder.0.4.weight"):
        assert apart(half[key], expected[key]) < 1e-3, key


def test_bfloat16_logits_are_near_those_of_float32() -> None:
    settings = config(base_channels=8)
    model, whole = make(settings).eval(), volume(settings)
    with torch.no_grad():
        single, half = (
            FusedNetwork(model, serial_grid(), precision=precision, backend=TORCH).eval()(whole)
            for precision in (FLOAT32, BFLOAT16)
        )
        compiled = FusedNetwork(model, serial_grid(), backend=CompiledBackend()).eval()(whole)
    assert half.dtype == torch.float32
    assert 1e-4 < relative_error(half, single) < 0.03
    assert relative_error(single, compiled) < 1e-5


FACTORIES = ("empty", "zeros", "ones", "full", "arange", "tensor", "rand", "randn")
DEVICE_CODE = ("volseg/nn/fused", "volseg/nn/torch_ops", "volseg/models")
ON_THE_PROCESSOR = ("normalization.py",)
"""Few numbers a channel are computed there, wherever tensors lie."""


@pytest.mark.parametrize("name", ["anisotropic, trilinear, residual", "gelu by tanh, segresnet", "strided"])
def test_a_step_says_of_all_that_it_makes_on_which_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no other device here: so each call that makes a tensor has to name one."""
    settings = NETWORKS[name]
    fused, whole = FusedNetwork(make(settings).train(), serial_grid(), (0, 1), backend=TORCH), volume(settings)
    silent: set[tuple[str, int]] = set()

    def watched(make_tensor: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Tensor:
            frame = sys._getframe(1)
            file = frame.f_code.co_filename
            inside = any(part in file for part in DEVICE_CODE) and not file.endswith(ON_THE_PROCESSOR)
            if inside and kwargs.get("device") is None:
                silent.add((file, frame.f_lineno))
            return make_tensor(*args, **kwargs)

        return call

    for factory in FACTORIES:
        monkeypatch.setattr(torch, factory, watched(getattr(torch, factory)))
    fused.loss(whole, targets(whole))[0].backward()
    network = fused.eval().streamed()
    grid = serial_grid()
    layout = grid.layout(tuple(whole.shape[2:]), settings.multiple)
    image = TensorImage(whole, layout, grid, image_width(settings, schedules_of(settings)[0]))
    for _ in network.logit_slabs(image, layout):
        pass
    assert not silent
