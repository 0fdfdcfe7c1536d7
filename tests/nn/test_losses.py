"""Dice + cross-entropy against plain torch and its autograd."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from oracles import GRIDS, losses_on_grids, relative_error
from volseg.distributed.communicator import Communicator, SerialCommunicator
from volseg.distributed.grid import ProcessGrid
from volseg.nn.blocks import gather_blocks, take_block
from volseg.nn.losses import IGNORE, DiceOfBatch, LossSums, dice_cross_entropy, dice_from_counts

SHAPE = (6, 9, 7)


def plain(logits: Tensor, target: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The same loss in a few lines of torch."""
    valid = target != IGNORE
    entropy = F.cross_entropy(logits, target.long(), weights, ignore_index=IGNORE)
    classes = logits.shape[1]
    truth = F.one_hot(torch.where(valid, target, 0).long(), classes).movedim(-1, 1) * valid.unsqueeze(1)
    found = logits.softmax(1) * valid.unsqueeze(1)
    axes = (0, 2, 3, 4)
    dice = (2 * (found * truth).sum(axes) + 1e-5) / (found.sum(axes) + truth.sum(axes) + 1e-5)
    return entropy + 1 - dice[1:].mean(), dice


def case(name: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    classes = 2 if name == "two classes" else 4
    logits = torch.randn((2, classes, *SHAPE), generator=generator).to(dtype) * 2
    target = torch.randint(classes, (2, *SHAPE), generator=generator).to(torch.uint8)
    if name == "ignored voxels":
        target[:, 2:4] = IGNORE
        target[0, :, :, 5:] = IGNORE
    elif name == "an absent class":
        target[target == 2] = 0
    elif name == "background only":
        target[:] = 0
    return logits, target


CASES = ["all classes", "two classes", "ignored voxels", "an absent class", "background only"]


@pytest.mark.parallel([1, 2, 4])
@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_equal_plain_torch(name: str, communicator: Communicator) -> None:
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        logits, target = case(name, dtype)
        logits.requires_grad_()
        expected, expected_dice = plain(logits, target)
        (3 * expected).backward()

        def loss_of(block: Tensor, part: Tensor) -> tuple[Tensor, Tensor]:
            return dice_cross_entropy(block, part, communicator)

        for loss, dice in losses_on_grids(loss_of, logits, target, expected, communicator, tolerance):
            losses = communicator.gather_all(float(loss))
            assert losses == [losses[0]] * communicator.size
            assert relative_error(dice, expected_dice.detach().double()) <= tolerance


@pytest.mark.parallel([1, 2, 4])
@pytest.mark.parametrize("name", CASES)
def test_class_weights_are_those_of_torch(name: str, communicator: Communicator) -> None:
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        logits, target = case(name, dtype)
        weights = [0.3, 2.0, 0.0, 5.0][: logits.shape[1]]
        logits.requires_grad_()
        expected, _ = plain(logits, target, torch.tensor(weights, dtype=dtype))
        (3 * expected).backward()

        def loss_of(block: Tensor, part: Tensor, weights: list[float] = weights) -> tuple[Tensor, Tensor]:
            return dice_cross_entropy(block, part, communicator, weights)

        assert list(losses_on_grids(loss_of, logits, target, expected, communicator, tolerance))


@pytest.mark.parallel([1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dice_of_a_batch_equals_plain_torch(dtype: torch.dtype, communicator: Communicator) -> None:
    """Cases that hold other classes: mean cross-entropy, and one Dice of all voxels together."""
    cases = []
    for number, name in enumerate(("all classes", "an absent class", "ignored voxels")):
        logits, target = case(name, dtype)
        cases.append((logits[:1] + number, target[:1]))
    whole = torch.cat([logits for logits, _ in cases]).requires_grad_()
    targets = torch.cat([target for _, target in cases])
    _, dice = plain(whole, targets)
    entropy = torch.stack([
        F.cross_entropy(whole[n : n + 1], targets[n : n + 1].long(), ignore_index=IGNORE) for n in range(3)
    ]).mean()  # fmt: skip
    expected = entropy + 1 - dice[1:].mean()
    expected.backward()
    assert whole.grad is not None
    grid = ProcessGrid(communicator, GRIDS[communicator.size][0])
    layout = grid.layout(SHAPE)
    blocks = [
        (take_block(logits, grid, layout).requires_grad_(), take_block(target.unsqueeze(1), grid, layout).squeeze(1))
        for logits, target in cases
    ]
    sums = []
    for block, part in blocks:
        some = LossSums(4)
        some.add(block.detach().movedim(1, -1), part)
        some.finish(communicator)
        sums.append(some.overlaps)
    batch = DiceOfBatch(torch.stack(sums).sum(0), len(sums))
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    total = 0.0
    for number, (block, part) in enumerate(blocks):
        loss, _ = dice_cross_entropy(block, part, communicator, batch=batch)
        (loss / len(blocks)).backward()
        total += float(loss.detach()) / len(blocks)
        assert block.grad is not None
        gathered = gather_blocks(block.grad, grid)
        assert relative_error(gathered, whole.grad[number : number + 1], floor=1e-12) <= 10 * tolerance
    assert abs(total / float(expected.detach()) - 1) <= tolerance


@pytest.mark.parallel([1, 2])
def test_a_class_in_neither_reference_nor_prediction_has_no_dice(communicator: Communicator) -> None:
    logits, target = case("an absent class")
    logits[:, 2] = -9
    grid = ProcessGrid(communicator, GRIDS[communicator.size][0])
    layout = grid.layout(SHAPE)
    part = take_block(target.unsqueeze(1), grid, layout).squeeze(1)
    _, dice = dice_cross_entropy(take_block(logits, grid, layout), part, communicator)
    assert torch.isnan(dice).tolist() == [False, False, True, False]
    logits[0, 2, 0, 0, 0] = 99  # one voxel predicted: that is wrong, and counts
    _, dice = dice_cross_entropy(take_block(logits, grid, layout), part, communicator)
    assert 0 <= dice[2] < 0.01


def test_weights_of_one_change_no_bit() -> None:
    logits, target = case("ignored voxels")
    alone, _ = dice_cross_entropy(logits, target, SerialCommunicator())
    ones, _ = dice_cross_entropy(logits, target, SerialCommunicator(), [1.0] * 4)
    assert torch.equal(alone, ones)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("voxels", "classes"), [(1, 2), (127, 3), (300, 9)])
def test_the_kernel_equals_torchs_operators_in_float64(voxels: int, classes: int, dtype: torch.dtype) -> None:
    """On logits with channels that are stored and not there, whose gradient is written in their place."""
    torch.manual_seed(voxels)
    stored = (torch.randn(1, voxels, classes + 5) * 4).to(dtype)
    logits, target = stored[..., :classes], torch.randint(classes, (1, voxels)).to(torch.uint8)
    target[:, 1::5] = IGNORE
    for weights in ([], [0.5 + n for n in range(classes)]):
        kernel, exact = LossSums(classes, weights), LossSums(classes, weights)
        beyond, gradient = stored.clone(), torch.empty(logits.shape, dtype=torch.float64)
        kernel.add(logits, target)
        exact.add(logits.double(), target)
        (loss, dice), (true_loss, true_dice) = (sums.finish(SerialCommunicator()) for sums in (kernel, exact))
        assert relative_error(loss, true_loss) <= 1e-6
        assert relative_error(dice.nan_to_num(), true_dice.nan_to_num()) <= 1e-6
        kernel.gradient(logits, target, 2.0, beyond[..., :classes])
        exact.gradient(logits.double(), target, 2.0, gradient)
        assert relative_error(beyond[..., :classes].double(), gradient) <= (2e-6 if dtype == torch.float32 else 2**-8)
        assert torch.equal(beyond[..., classes:], stored[..., classes:])
        assert not beyond[:, 1::5, :classes].any()


def test_logits_that_are_no_numbers_make_a_loss_that_is_none() -> None:
    logits, target = case("all classes")
    logits[0, 2, 1, 1, 1] = torch.nan
    assert dice_cross_entropy(logits, target, SerialCommunicator())[0].isnan()


def test_gradient_against_finite_differences() -> None:
    logits, target = case("ignored voxels", torch.float64)
    logits, target = logits[:1, :3, :2, :4, 4:6].clone().requires_grad_(), target[:1, :2, :4, 4:6].clamp(max=IGNORE)
    target[target == 3] = 1
    assert (target == IGNORE).any()
    assert (target != IGNORE).any()
    assert torch.autograd.gradcheck(lambda x: dice_cross_entropy(x, target, SerialCommunicator())[0], (logits,))


def test_a_volume_without_any_label_has_no_loss_and_no_gradient() -> None:
    logits = case("all classes")[0].requires_grad_()
    loss, _ = dice_cross_entropy(logits, torch.full((2, *SHAPE), IGNORE, dtype=torch.uint8), SerialCommunicator())
    loss.backward()
    assert float(loss.detach()) == 0
    assert logits.grad is not None
    assert float(logits.grad.abs().max()) == 0


def test_dice_from_counts() -> None:
    dice = dice_from_counts(np.array([10, 4, 0]), np.array([10, 0, 0]), np.array([10, 0, 0]))
    assert dice[:2].tolist() == [1.0, 0.0]
    assert np.isnan(dice[2])
