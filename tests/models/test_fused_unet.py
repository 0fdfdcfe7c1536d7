"""The fused U-Net: the bits of the partitioned one, its gradients, on any grid; and what it leaves to it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from models.test_unet import config, holds, make, padded
from oracles import ANOTHER_SIDE, GRIDS, alike, relative_error, serial_grid
from volseg.config import ModelConfig
from volseg.distributed.communicator import Communicator
from volseg.distributed.grid import ProcessGrid
from volseg.models.fused import FusedNetwork
from volseg.models.unet import UNet
from volseg.nn.blocks import gather_blocks, take_block
from volseg.nn.convert import partition_module
from volseg.nn.fused import runner
from volseg.nn.gradients import sum_gradients
from volseg.nn.losses import IGNORE, dice_cross_entropy
from volseg.nn.torch_ops import TorchBackend
from volseg.program.ops import Normalize

VARIANTS = {
    "instance": config(),
    "group, relu, wide": config(norm="group", activation="relu", base_channels=16),
    "batch, two channels": config(norm="batch", in_channels=2),
    "no norm, one level": config(norm="none", levels=1),
    "no levels": config(levels=0, classes=5),
    "many channels in": config(in_channels=9, base_channels=8),
    "odd channels": config(base_channels=5, levels=3, classes=2),
}


def volume(settings: ModelConfig, shape: tuple[int, int, int]) -> Tensor:
    whole = padded(shape, settings.multiple)
    generator = torch.Generator().manual_seed(3)
    more = torch.randn((1, settings.in_channels - 1, *whole.shape[2:]), generator=generator)
    return torch.cat([whole, more], 1)


@pytest.mark.parallel([1, 2, 3, 4, 8])
@pytest.mark.parametrize("name", VARIANTS)
def test_logits_have_the_bits_of_the_partitioned_network_on_any_grid(name: str, communicator: Communicator) -> None:
    settings = VARIANTS[name]
    model = make(settings).eval()
    whole = volume(settings, (19, 29, 31))
    with torch.no_grad():
        alone = communicator.on_root(lambda: partition_module(model, serial_grid(), settings.multiple)(whole))
        for dims in GRIDS[communicator.size]:
            if not holds(tuple(whole.shape[2:]), dims, settings):
                continue
            grid = ProcessGrid(communicator, dims)
            block = take_block(whole, grid, grid.layout(tuple(whole.shape[2:]), settings.multiple))
            fused = FusedNetwork(model, grid).eval()
            assert fused.covers(block)
            assert alike(gather_blocks(fused(block), grid), alone), dims
            slabs = torch.cat([part.clone() for _, part in fused.logit_slabs(block)], 2)
            assert alike(gather_blocks(slabs, grid), alone), dims
            features = fused(block, features_only=True)
            assert alike(fused.twin.head(features), fused(block)), dims


def targets(whole: Tensor, classes: int) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    target = torch.randint(0, classes, (1, *whole.shape[2:]), generator=generator).to(torch.uint8)
    target[:, :2] = IGNORE
    return target


def gradients_of(model: UNet, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def training_of_one(
    model: UNet, whole: Tensor, target: Tensor
) -> tuple[float, Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Loss, Dice, gradients and buffers of the partitioned network on one rank."""
    twin = partition_module(copy.deepcopy(model), serial_grid(), model.config.multiple)
    loss, dice = dice_cross_entropy(twin(whole), target, serial_grid().communicator)
    gradients = gradients_of(twin, loss)
    return float(loss.detach()), dice.detach(), gradients, dict(twin.named_buffers())


@pytest.mark.parallel([1, 2, 3, 4, 8])
@pytest.mark.parametrize("name", VARIANTS)
def test_loss_and_gradients_are_those_of_the_partitioned_network(name: str, communicator: Communicator) -> None:
    """Of the twin on one rank: both have the same activations, so a sign near zero falls alike."""
    settings = VARIANTS[name]
    model = make(settings).train()
    whole = volume(settings, (24, 30, 33))
    target = targets(whole, settings.classes)
    expected_loss, expected_dice, expected, running = communicator.on_root(
        lambda: training_of_one(model, whole, target)
    )
    for dims in GRIDS[communicator.size]:
        if not holds(tuple(whole.shape[2:]), dims, settings):
            continue
        grid = ProcessGrid(communicator, dims)
        layout = grid.layout(tuple(whole.shape[2:]), settings.multiple)
        box = grid.block(layout).slices
        for levels in ((), (0, 1)):
            own = copy.deepcopy(model)
            fused = FusedNetwork(own, grid, levels)
            loss, dice = fused.loss(take_block(whole, grid, layout), target[(slice(None), *box)])
            gradients_of(own, loss)
            sum_gradients(own.parameters(), communicator)
            assert abs(float(loss.detach()) / expected_loss - 1) < 1e-6
            assert torch.allclose(dice, expected_dice, rtol=1e-6)
            for key, p in own.named_parameters():
                assert relative_error(p.grad, expected[key], floor=1e-2) <= ANOTHER_SIDE, (key, dims, levels)
            for key, b in own.named_buffers():
                assert relative_error(b.float(), running[key].float()) <= 1e-6, key


def test_a_processor_without_kernels_trains_by_torch_to_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config()
    model = make(settings).train()
    whole = volume(settings, (16, 16, 24))
    target = targets(whole, settings.classes)
    fused = FusedNetwork(model, serial_grid())
    loss, _ = fused.loss(whole, target)
    expected = gradients_of(model, loss)
    monkeypatch.setattr("volseg.nn.kernels.winograd.widest_vector", lambda: 0)
    fused = FusedNetwork(model, serial_grid())
    assert fused.covers(whole)
    assert isinstance(fused.backend, TorchBackend)
    other, _ = fused.loss(whole, target)
    assert abs(float(other.detach()) / float(loss.detach()) - 1) < 1e-6
    for name, value in gradients_of(model, other).items():
        assert relative_error(value, expected[name], floor=1e-2) <= 1e-4, name


def test_gradients_of_logits_and_of_the_loss_agree() -> None:
    settings = config()
    model = make(settings).train()
    whole = volume(settings, (16, 16, 24))
    target = targets(whole, settings.classes)
    fused = FusedNetwork(model, serial_grid())
    from_loss = gradients_of(model, fused.loss(whole, target)[0])
    logits = fused(whole)
    from_logits = gradients_of(model, dice_cross_entropy(logits, target, serial_grid().communicator)[0])
    for name, value in from_loss.items():
        assert relative_error(from_logits[name], value, floor=1e-2) <= 1e-6, name


@pytest.mark.parallel([1, 2, 4])
def test_dropout_drops_the_same_channels_as_the_partitioned_network(communicator: Communicator) -> None:
    settings = config(dropout=0.4)
    model = make(settings).train()
    whole = volume(settings, (16, 16, 16))
    torch.manual_seed(8)
    alone = partition_module(model, serial_grid(), 4)(whole).detach()
    grid = ProcessGrid(communicator, GRIDS[communicator.size][-1])
    block = take_block(whole, grid, grid.layout((16, 16, 16), 4))
    torch.manual_seed(8)
    with torch.no_grad():
        y = gather_blocks(FusedNetwork(model, grid)(block), grid)
    assert relative_error(y, alone) < 1e-5  # x * keep is taken into the norm's coefficients
    assert relative_error(y, partition_module(model.eval(), serial_grid(), 4)(whole).detach()) > 1e-2


@pytest.mark.parallel([1, 2])
@pytest.mark.parametrize(
    ("norm", "activation"),
    [("none", "leaky_relu"), ("instance", "leaky_relu"), ("batch", "leaky_relu"), ("none", "silu"), ("batch", "silu")],
)
def test_dropout_in_the_gradients(norm: str, activation: str, communicator: Communicator) -> None:
    """Dropped channels take no part, kept ones count more, biases included."""
    settings = config(dropout=0.4, norm=norm, activation=activation)
    model = make(settings).train()
    whole = volume(settings, (16, 24, 16))
    target = targets(whole, settings.classes)
    twin = partition_module(copy.deepcopy(model), serial_grid(), settings.multiple)
    torch.manual_seed(8)
    expected = gradients_of(twin, dice_cross_entropy(twin(whole), target, serial_grid().communicator)[0])
    grid = ProcessGrid(communicator, GRIDS[communicator.size][-1])
    layout = grid.layout((16, 24, 16), settings.multiple)
    fused = FusedNetwork(model, grid)
    torch.manual_seed(8)
    loss, _ = fused.loss(take_block(whole, grid, layout), target[(slice(None), *grid.block(layout).slices)])
    gradients_of(model, loss)
    sum_gradients(model.parameters(), communicator)
    for name, p in model.named_parameters():
        assert relative_error(p.grad, expected[name], floor=1e-2) <= 1e-4, name


def test_what_is_not_covered_goes_through_the_partitioned_layers() -> None:
    for changes, samples in (({"kernel_size": 9}, 1), ({}, 2)):
        settings = config(**changes)
        model = make(settings).train()
        x = torch.randn(samples, 1, 8, 8, 8)
        fused = FusedNetwork(model, serial_grid())
        assert not fused.covers(x)
        twin = partition_module(copy.deepcopy(model), serial_grid(), settings.multiple)
        assert torch.equal(fused(x), twin(x))
        target = torch.zeros(samples, 8, 8, 8, dtype=torch.uint8)
        loss, _ = fused.loss(x, target)
        loss.backward()
        assert all(p.grad is not None for p in model.parameters())
    double = FusedNetwork(make(config()).double(), serial_grid())
    assert not double.covers(torch.randn(1, 1, 8, 8, 8))
    assert double(torch.randn(1, 1, 8, 8, 8).double()).dtype == torch.float64
    image = torch.randn(1, 1, 8, 8, 8, requires_grad=True)
    FusedNetwork(make(config()), serial_grid())(image).sum().backward()
    assert image.grad is not None


def test_backward_goes_once() -> None:
    loss, _ = FusedNetwork(make(config()), serial_grid()).loss(torch.randn(1, 1, 8, 8, 8), torch.zeros(1, 8, 8, 8))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="once"):
        loss.backward()


def test_memory_is_handed_on_and_does_not_grow() -> None:
    """Buffers of one step serve the next; another shape begins anew."""
    model = make(config()).train()
    fused = FusedNetwork(model, serial_grid())

    counts = []
    for _ in range(3):
        fused.loss(volume(config(), (16, 16, 16)), torch.zeros(1, 16, 16, 16))[0].backward()
        counts.append(fused.work.buffers.arena.total)
        assert fused.work.buffers.arena.free == counts[-1] > 0
    assert counts[0] == counts[1] == counts[2]
    fused.loss(volume(config(), (8, 8, 8)), torch.zeros(1, 8, 8, 8))[0].backward()
    assert fused.work.buffers.arena.total < counts[0] / 4


def test_passes_that_are_not_finished_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits nobody goes backward from, slabs nobody takes, an error in the middle."""
    fused = FusedNetwork(make(config()).train(), serial_grid())
    x, target = volume(config(), (16, 16, 16)), torch.zeros(1, 16, 16, 16)
    fused.loss(x, target)[0].backward()
    needed = fused.work.buffers.arena.total
    for _ in range(3):
        fused.loss(x, target)
        fused(x)
        fused(x, features_only=True)
        next(fused.logit_slabs(x))
        monkeypatch.setitem(runner.OPERATIONS, Normalize, broken)
        with pytest.raises(ValueError, match="broken"):
            fused(x)
        monkeypatch.undo()
    fused.loss(x, target)[0].backward()
    assert fused.work.buffers.arena.total == needed


def broken(*_: object, **__: object) -> None:
    raise ValueError("broken")


def test_backward_after_other_passes() -> None:
    """Two losses at once, of volumes of two shapes, and a look at the logits before the backward."""
    model = make(config()).train()
    fused = FusedNetwork(model, serial_grid())
    volumes = [volume(config(), shape) for shape in ((16, 16, 16), (8, 16, 24))]
    labels = [targets(x, 3) for x in volumes]
    apart = [gradients_of(model, fused.loss(x, y)[0]) for x, y in zip(volumes, labels, strict=True)]
    losses = [fused.loss(x, y)[0] for x, y in zip(volumes, labels, strict=True)]
    with torch.no_grad():
        fused(volumes[0])
        list(fused.logit_slabs(volumes[1]))
    together = gradients_of(model, losses[0] + losses[1])
    for name, value in together.items():
        assert relative_error(value, apart[0][name] + apart[1][name], floor=1e-2) <= 1e-6, name


def test_slabs_of_logits_leave_the_caller_s_grad_mode_alone() -> None:
    fused = FusedNetwork(make(config()), serial_grid())
    for _ in fused.logit_slabs(torch.randn(1, 1, 8, 8, 8)):
        assert torch.is_grad_enabled()
