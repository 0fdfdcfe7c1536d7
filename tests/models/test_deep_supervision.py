"""Deep supervision: the loss at coarser levels too, through the fused layers and through the others, on any grid."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from models.test_fused_unet import targets, volume
from models.test_unet import config, holds
from nn.test_losses import plain
from oracles import ANOTHER_SIDE, GRIDS, relative_error, serial_grid
from volseg.config import Config, ModelConfig, TrainingConfig
from volseg.distributed.communicator import Communicator
from volseg.distributed.grid import ProcessGrid
from volseg.errors import ConfigError
from volseg.models.fused import FusedNetwork
from volseg.models.unet import UNet
from volseg.networks.architectures import described
from volseg.networks.deep_supervision import loss_weights, with_training_heads, without_training_heads
from volseg.networks.description import Interpolation, UpConvolution
from volseg.nn.blocks import gather_blocks, take_block
from volseg.nn.convert import partition_module
from volseg.nn.gradients import sum_gradients
from volseg.partition.agglomeration import parse_agglomeration
from volseg.partition.share import busy_shares, share_of
from volseg.planning.training_pass import TrainingPass
from volseg.planning.work import training_work
from volseg.program.build import train_program

SHAPE = (32, 40, 48)


def make(settings: ModelConfig, deep: bool = True) -> UNet:
    torch.manual_seed(4)
    model = UNet(settings, deep)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() == 1 and not name.startswith("deep"):
                p.add_(0.1 * torch.randn_like(p))
    return model


def plain_loss(model: torch.nn.Module, whole: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """In a few lines of torch, by autograd."""
    deep: dict[int, Tensor] = {}
    logits = {0: model(whole, deep_logits=deep)} | deep
    losses = [plain(logits[n], target[:, :: 2**n, :: 2**n, :: 2**n], weights)[0] for n in sorted(logits)]
    shares = [0.5**n for n in range(len(losses))]
    total = sum(share * loss for share, loss in zip(shares, losses, strict=True)) / sum(shares)
    assert isinstance(total, Tensor)
    return total


def gradients_of_autograd(
    model: torch.nn.Module, whole: Tensor, target: Tensor, weights: tuple[float, ...]
) -> tuple[float, dict[str, Tensor]]:
    """The loss, and its gradients by the names of the parameters."""
    loss = plain_loss(model, whole, target, torch.tensor(weights))
    loss.backward()
    return float(loss.detach()), {key: p.grad for key, p in model.named_parameters() if p.grad is not None}


VARIANTS = {
    "three levels": config(levels=3, base_channels=8),
    "four levels": config(levels=4),
    "batch, dropout-free relu": config(levels=3, norm="batch", activation="relu"),
    "no norm": config(levels=3, norm="none"),
    "segresnet": config(levels=3, architecture="segresnet", blocks=(1, 1, 1, 2)),
    "trilinear": config(levels=3, up="trilinear"),
    "through the layers": config(levels=3, kernel_size=9),
}


@pytest.mark.parallel([1, 2, 4])
@pytest.mark.parametrize("name", VARIANTS)
def test_loss_and_gradients_are_those_of_autograd(name: str, communicator: Communicator) -> None:
    """Of the layers on one rank to 1e-5; of plain torch, whose rounding turns signs near zero over, to 1e-2."""
    settings = VARIANTS[name]
    model = make(settings).train()
    shape = SHAPE if settings.levels == 3 else (32, 32, 64)
    whole = volume(settings, shape)
    target = targets(whole, settings.classes)
    assert tuple(whole.shape[2:]) == shape
    weights = (0.5, 2.0, 1.0)

    def alone() -> list[tuple[float, dict[str, Tensor], float]]:
        layers = partition_module(copy.deepcopy(model), serial_grid(), settings.multiple)
        plain = copy.deepcopy(model)
        return [
            (*gradients_of_autograd(layers, whole, target, weights), ANOTHER_SIDE),
            (*gradients_of_autograd(plain, whole, target, weights), 1e-2),
        ]

    references = communicator.on_root(alone)
    for dims in GRIDS[communicator.size]:
        if not holds(shape, dims, settings):
            continue
        grid = ProcessGrid(communicator, dims)
        layout = grid.layout(shape, settings.multiple)
        own = copy.deepcopy(model)
        fused = FusedNetwork(own, grid, class_weights=weights)
        block = take_block(whole, grid, layout)
        assert fused.covers(block) == (settings.kernel_size == 3)
        loss, _ = fused.loss(block, target[(slice(None), *grid.block(layout).slices)])
        loss.backward()
        sum_gradients(own.parameters(), communicator)
        for expected_loss, expected, tolerance in references:
            assert sum(key.startswith("deep_heads.") for key in expected) == 2 * (settings.levels - 2)
            assert abs(float(loss.detach()) / expected_loss - 1) < 1e-6
            for key, p in own.named_parameters():
                assert p.grad is not None
                assert float(expected[key].abs().max()) > 0
                assert relative_error(p.grad, expected[key], floor=1e-2) <= tolerance, (key, dims)


@pytest.mark.parallel([1, 2])
def test_logits_and_other_weights_are_what_they_are_without(communicator: Communicator) -> None:
    settings = config(levels=3)
    with_heads, without = make(settings), make(settings, deep=False)
    plain_names = set(without.state_dict())
    assert {n for n in with_heads.state_dict() if not n.startswith("deep_heads.")} == plain_names
    with_heads.load_state_dict(without.state_dict(), strict=False)
    whole = volume(settings, (16, 24, 32))
    with torch.no_grad():
        alone = FusedNetwork(without, serial_grid()).eval()(whole)
        grid = ProcessGrid(communicator, (1, 1, communicator.size))
        block = take_block(whole, grid, grid.layout((16, 24, 32), 8))
        assert torch.equal(gather_blocks(FusedNetwork(with_heads, grid).eval()(block), grid), alone)


def test_the_same_seed_draws_the_same_weights_with_and_without_heads() -> None:
    torch.manual_seed(1)
    without = UNet(config(levels=3)).state_dict()
    torch.manual_seed(1)
    with_heads = UNet(config(levels=3), deep_supervision=True).state_dict()
    assert all(torch.equal(with_heads[name], tensor) for name, tensor in without.items())


@pytest.mark.parallel([1, 2, 4])
def test_the_plan_walks_through_the_same_memory_and_reductions(
    communicator: Communicator, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, shape = config(levels=3, base_channels=8), (32, 48, 64)
    grid = ProcessGrid(communicator, GRIDS[communicator.size][0])
    layout = grid.layout(shape, settings.multiple)
    fused = FusedNetwork(make(settings), grid)
    block = take_block(torch.randn(1, 1, *shape), grid, layout)
    target = torch.zeros(1, *block.shape[2:], dtype=torch.uint8)
    fused.loss(block, target)[0].backward()
    (share,) = busy_shares(layout, settings.factors)
    networks = [described(settings, deep) for deep in (True, False)]
    walks = [TrainingPass(network, train_program(network), share) for network in networks]
    totals = communicator.gather_all(fused.work.buffers.total)
    assert 4 * max(totals) == walks[0].tensors == walks[1].tensors
    assert fused.work.buffers.idle
    assert walks[0].work >= walks[1].work

    counted = []
    reduce = type(communicator).reduce_all_in_place
    monkeypatch.setattr(
        type(communicator), "reduce_all_in_place",
        lambda self, values, how="sum": counted.append(values.nbytes) or reduce(self, values, how),
    )  # fmt: skip
    fused.loss(block, target)[0].backward()
    layouts = [layout.coarser(2**level) for level in range(4)]
    work = training_work(described(settings, True), layouts)
    if communicator.size > 1:
        expected = [one.bytes for one in work.reductions if one.layer != "gradients of the weights"]
        assert sorted(counted) == sorted(expected)


def test_levels_and_weights_are_nnunet_s() -> None:
    for levels, stages in {0: [], 1: [], 2: [], 3: [1], 5: [1, 2, 3]}.items():
        heads = described(config(levels=levels), True).heads
        assert sorted(head.stage for head in heads if head.training) == stages
    assert loss_weights(0) == [1.0]
    assert loss_weights(2) == pytest.approx([4 / 7, 2 / 7, 1 / 7])
    settings = config(levels=4)
    assert described(settings, True).parameters(training=True) == sum(p.numel() for p in make(settings).parameters())


@pytest.mark.parametrize("name", ["four levels", "segresnet", "trilinear"])
def test_heads_read_what_the_decoder_takes_up_and_can_be_left_out_again(name: str) -> None:
    network = described(VARIANTS[name])
    deep = with_training_heads(network)
    for head in (head for head in deep.heads if head.training):
        (reader,) = (node for node in deep.readers[head.reads[0]] if node is not head and node.stage <= head.stage)
        lifted = reader if reader.stage < head.stage else deep.readers[reader.name][0]
        assert isinstance(lifted, (UpConvolution, Interpolation))
        assert lifted.stage == head.stage - 1
    assert without_training_heads(deep) == network
    assert with_training_heads(deep) == deep


STAGES = {
    2: [((2, 1, 1), "1:1x1x1"), ((1, 1, 2), "2:1x1x1"), ((1, 2, 1), "3:1x1x1")],
    4: [((2, 2, 1), "1:2x1x1,2:1x1x1"), ((1, 1, 4), "2:1x1x2"), ((1, 2, 2), "1:1x1x1")],
}


@pytest.mark.parallel([2, 4])
@pytest.mark.parametrize("name", ["four levels", "batch, dropout-free relu", "segresnet", "trilinear"])
def test_fewer_ranks_for_coarse_stages_give_the_same_loss_and_gradients(name: str, communicator: Communicator) -> None:
    settings = VARIANTS[name]
    model, shape = make(settings).train(), (32, 32, 64)
    whole = volume(settings, shape)
    target = targets(whole, settings.classes)
    weights, plain = (0.5, 2.0, 1.0), copy.deepcopy(model)
    alone, dice = FusedNetwork(plain, serial_grid(), class_weights=weights).loss(whole, target)
    alone.backward()
    expected = dict(plain.named_parameters())
    for dims, text in STAGES[communicator.size]:
        grid, stages = ProcessGrid(communicator, dims), parse_agglomeration(text, settings.levels, dims)
        layout = grid.layout(shape, settings.multiple)
        own = copy.deepcopy(model)
        fused = FusedNetwork(own, grid, agglomeration=stages, class_weights=weights)
        block, here = take_block(whole, grid, layout), target[(slice(None), *grid.block(layout).slices)]
        loss, own_dice = fused.loss(block, here)
        loss.backward()
        sum_gradients(own.parameters(), communicator)
        assert abs(float(loss.detach()) / float(alone.detach()) - 1) < 1e-6
        assert torch.allclose(own_dice, dice, rtol=1e-5, equal_nan=True)
        for key, p in own.named_parameters():
            assert relative_error(p.grad, expected[key].grad, floor=1e-2) <= 1e-5, (key, text)
        overlaps = FusedNetwork(copy.deepcopy(model), serial_grid()).overlaps(whole, target)
        for own_overlaps, expected_overlaps in zip(fused.overlaps(block, here), overlaps, strict=True):
            assert torch.allclose(own_overlaps, expected_overlaps, rtol=1e-5)
        share = share_of(grid.coords, layout, settings.factors, stages, halo=model.network.halo)
        planned = TrainingPass(model.network, train_program(model.network, share.merges, share.last), share)
        assert planned.tensors == 4 * fused.work.buffers.total
        logits = fused(block)  # whose gradient needs no target
        assert logits.requires_grad


def test_too_few_levels_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"model.levels = 2 there is no coarser level .* use 3 levels or more"):
        Config(ModelConfig(levels=2), TrainingConfig(deep_supervision=True)).check()
    with pytest.raises(ConfigError, match="2 weights for 3 classes"):
        Config(ModelConfig(classes=3), TrainingConfig(class_weights=(1.0, 2.0))).check()
