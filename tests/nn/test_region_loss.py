"""Dice + binary cross-entropy of overlapping regions against plain torch, its autograd, and nnU-Net's own loss."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from oracles import GRIDS, losses_on_grids, relative_error
from volseg.distributed.communicator import Communicator, SerialCommunicator
from volseg.distributed.grid import ProcessGrid
from volseg.nn.blocks import gather_blocks, take_block
from volseg.nn.losses import IGNORE, DiceOfBatch, loss_of_logits
from volseg.nn.region_loss import RegionSums

SHAPE = (6, 9, 7)
REGIONS = ((1, 2, 3), (2, 3), (3,))


def inside_of(target: Tensor, regions: tuple[tuple[int, ...], ...] = REGIONS) -> Tensor:
    """[N, R, ...]: whether each voxel lies in each region."""
    return torch.stack([torch.isin(target, torch.tensor(values, dtype=target.dtype)) for values in regions], 1)


def plain_of_regions(
    logits: Tensor, target: Tensor, regions: tuple[tuple[int, ...], ...] = REGIONS
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The same loss in a few lines of torch."""
    valid = (target != IGNORE).unsqueeze(1)
    truth = inside_of(target, regions).to(logits.dtype)
    entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none") * valid
    found = logits.sigmoid() * valid
    axes = (0, 2, 3, 4)
    dice = (2 * (found * truth).sum(axes) + 1e-5) / (found.sum(axes) + truth.sum(axes) + 1e-5)
    return entropy.sum() / (valid.sum() * len(regions)) + 1 - dice.mean(), dice


def case(name: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn((2, 3, *SHAPE), generator=generator).to(dtype) * 2
    target = torch.randint(4, (2, *SHAPE), generator=generator).to(torch.uint8)
    if name == "ignored voxels":
        target[:, 2:4] = IGNORE
    elif name == "an absent region":
        target[target == 3] = 0
    elif name == "background only":
        target[:] = 0
    elif name == "large logits":
        logits *= 50
    return logits, target


CASES = ["all regions", "ignored voxels", "an absent region", "background only", "large logits"]


@pytest.mark.parallel([1, 2, 4])
@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_equal_plain_torch(name: str, communicator: Communicator) -> None:
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        logits, target = case(name, dtype)
        logits.requires_grad_()
        expected, expected_dice = plain_of_regions(logits, target)
        (3 * expected).backward()

        def loss_of(block: Tensor, part: Tensor) -> tuple[Tensor, Tensor]:
            return loss_of_logits(block, part, communicator, RegionSums(REGIONS))

        for _, dice in losses_on_grids(loss_of, logits, target, expected, communicator, tolerance):
            assert relative_error(dice, expected_dice.detach().double()) <= tolerance


@pytest.mark.parametrize("regions", [((1,),), ((1, 2), (2, 3))])
def test_a_single_region_and_regions_of_which_none_holds_the_other(regions: tuple[tuple[int, ...], ...]) -> None:
    logits, target = case("all regions", torch.float64)
    logits = logits[:, : len(regions)].clone().requires_grad_()
    expected, _ = plain_of_regions(logits, target, regions)
    (gradient,) = torch.autograd.grad(expected, logits)
    loss, _ = loss_of_logits(logits, target, SerialCommunicator(), RegionSums(regions))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-12)
    assert logits.grad is not None
    assert relative_error(logits.grad, gradient, floor=1e-12) <= 1e-11


@pytest.mark.parallel([1, 2])
def test_the_dice_of_a_batch_equals_plain_torch(communicator: Communicator) -> None:
    cases = [tuple(part[:1] for part in case(name, torch.float64)) for name in CASES[:3]]
    whole = torch.cat([logits for logits, _ in cases]).requires_grad_()
    _, dice = plain_of_regions(whole, torch.cat([target for _, target in cases]))
    entropies = []
    for number, (_, target) in enumerate(cases):
        loss, own = plain_of_regions(whole[number : number + 1], target)
        entropies.append(loss - 1 + own.mean())
    expected = torch.stack(entropies).mean() + 1 - dice.mean()
    expected.backward()
    assert whole.grad is not None
    grid = ProcessGrid(communicator, GRIDS[communicator.size][0])
    layout = grid.layout(SHAPE)
    blocks = [
        (take_block(logits, grid, layout).requires_grad_(), take_block(target.unsqueeze(1), grid, layout).squeeze(1))
        for logits, target in cases
    ]
    overlaps = []
    for block, part in blocks:
        some = RegionSums(REGIONS)
        some.add(block.detach().movedim(1, -1), part)
        some.finish(communicator)
        overlaps.append(some.overlaps)
    batch = DiceOfBatch(torch.stack(overlaps).sum(0), len(overlaps))
    total = 0.0
    for number, (block, part) in enumerate(blocks):
        loss, _ = loss_of_logits(block, part, communicator, RegionSums(REGIONS, batch))
        (loss / len(blocks)).backward()
        total += float(loss.detach()) / len(blocks)
        assert block.grad is not None
        gathered = gather_blocks(block.grad, grid)
        assert relative_error(gathered, whole.grad[number : number + 1], floor=1e-12) <= 1e-11
    assert total == pytest.approx(float(expected.detach()), rel=1e-12)


def test_a_region_in_neither_reference_nor_prediction_has_no_dice() -> None:
    logits, target = case("an absent region")
    logits[:, 2] = -9
    _, dice = loss_of_logits(logits, target, SerialCommunicator(), RegionSums(REGIONS))
    assert torch.isnan(dice).tolist() == [False, False, True]
    logits[0, 2, 0, 0, 0] = 9
    _, dice = loss_of_logits(logits, target, SerialCommunicator(), RegionSums(REGIONS))
    assert not torch.isnan(dice).any()


def test_it_is_the_loss_that_nnunet_trains_regions_with() -> None:
    pytest.importorskip("nnunetv2")
    from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss
    from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

    theirs = DC_and_BCE_loss(
        {}, {"batch_dice": True, "do_bg": True, "smooth": 1e-5, "ddp": False},
        dice_class=MemoryEfficientSoftDiceLoss,
    )  # fmt: skip
    logits, target = case("all regions")
    logits.requires_grad_()
    expected = theirs(logits, inside_of(target).float())
    (gradient,) = torch.autograd.grad(expected, logits)
    loss, _ = loss_of_logits(logits, target, SerialCommunicator(), RegionSums(REGIONS))
    loss.backward()
    # Their Dice is minus its mean, ours one minus that.
    assert float(loss.detach()) == pytest.approx(float(expected.detach()) + 1, rel=1e-5)
    assert logits.grad is not None
    assert relative_error(logits.grad, gradient, floor=1e-12) <= 1e-4
