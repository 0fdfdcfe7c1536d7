"""The loss of cases in which some classes were not annotated: that of the classes merged, by plain torch."""

from __future__ import annotations

import pytest
import torch

from nn.test_losses import SHAPE, case, plain
from nn.test_region_loss import REGIONS, plain_of_regions
from nn.test_region_loss import case as case_of_regions
from oracles import GRIDS, losses_on_grids, relative_error
from volseg.distributed.communicator import Communicator, SerialCommunicator
from volseg.distributed.grid import ProcessGrid
from volseg.nn.blocks import gather_blocks, take_block
from volseg.nn.losses import IGNORE, DiceOfBatch, LossSums, VolumeLoss, dice_cross_entropy, loss_of_logits
from volseg.nn.region_loss import RegionSums


def merged(logits: torch.Tensor, unknown: tuple[int, ...]) -> torch.Tensor:
    """The logits of the background and the unknown classes as one, then those of the others."""
    others = [c for c in range(1, logits.shape[1]) if c not in unknown]
    background = logits[:, [0, *unknown]].logsumexp(1, keepdim=True)
    return torch.cat([background, logits[:, others]], 1)


def without(target: torch.Tensor, unknown: tuple[int, ...], classes: int) -> torch.Tensor:
    """The target with the classes that are known numbered from 1; the others are background."""
    numbers = torch.zeros(256, dtype=torch.uint8)
    numbers[IGNORE] = IGNORE
    for number, c in enumerate((c for c in range(1, classes) if c not in unknown), 1):
        numbers[c] = number
    return numbers[target.long()]


@pytest.mark.parallel([1, 2, 4])
@pytest.mark.parametrize("weights", [(), (0.3, 2.0, 4.0, 5.0)])
@pytest.mark.parametrize("unknown", [(2,), (1, 3)])
@pytest.mark.parametrize("name", ["all classes", "ignored voxels"])
def test_the_background_takes_the_unknown_classes_in(
    name: str, unknown: tuple[int, ...], weights: tuple[float, ...], communicator: Communicator
) -> None:
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        logits, labels = case(name, dtype)
        target = torch.where(torch.isin(labels, torch.tensor(unknown)), 0, labels).to(torch.uint8)
        logits.requires_grad_()
        kept = torch.tensor([weights[c] for c in range(4) if c not in unknown], dtype=dtype) if weights else None
        expected, _ = plain(merged(logits, unknown), without(target, unknown, 4), kept)
        (3 * expected).backward()

        def loss_of(block: torch.Tensor, part: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return loss_of_logits(block, part, communicator, LossSums(4, weights, unknown=unknown))

        for _, dice in losses_on_grids(loss_of, logits, target, expected, communicator, tolerance):
            assert torch.isnan(dice[list(unknown)]).all()


@pytest.mark.parallel([1, 2])
def test_unknown_regions_have_no_part_in_the_loss(communicator: Communicator) -> None:
    logits, target = case_of_regions("ignored voxels", torch.float64)
    known = [0, 2]
    logits.requires_grad_()
    expected, _ = plain_of_regions(logits[:, known], target, tuple(REGIONS[r] for r in known))
    expected.backward()
    assert logits.grad is not None
    grid = ProcessGrid(communicator, GRIDS[communicator.size][0])
    layout = grid.layout(SHAPE)
    block = take_block(logits.detach(), grid, layout).requires_grad_()
    part = take_block(target.unsqueeze(1), grid, layout).squeeze(1)
    loss, dice = loss_of_logits(block, part, communicator, RegionSums(REGIONS, unknown=(1,)))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-12)
    assert block.grad is not None
    assert relative_error(gather_blocks(block.grad, grid), logits.grad, floor=1e-12) <= 1e-11
    assert torch.isnan(dice).tolist() == [False, True, False]


def test_of_all_cases_of_a_step_those_that_have_a_class_annotated_make_its_dice() -> None:
    """Against the gradient of finite differences, in double precision."""
    communicator = SerialCommunicator()
    first, second = (case(name, torch.float64) for name in ("all classes", "an absent class"))
    target = torch.where(first[1] == 3, 0, first[1]).to(torch.uint8)
    cases = [(first[0][:1], target[:1], (3,)), (second[0][:1] + 1, second[1][:1], ())]

    def total(values: list[torch.Tensor], slopes: bool) -> tuple[float, list[torch.Tensor]]:
        sums: list[VolumeLoss] = [LossSums(4, unknown=unknown) for _, _, unknown in cases]
        for some, logits, (_, labels, _) in zip(sums, values, cases, strict=True):
            some.add(logits.movedim(1, -1), labels)
            some.finish(communicator)
        batch = DiceOfBatch(torch.stack([some.overlaps for some in sums]).sum(0), 2)
        loss, gradients = 0.0, []
        for logits, (_, labels, unknown) in zip(values, cases, strict=True):
            leaf = logits.clone().requires_grad_(slopes)
            own, _ = loss_of_logits(leaf, labels, communicator, LossSums(4, (), batch, unknown))
            loss += float(own.detach()) / 2
            if slopes:
                (own / 2).backward()
                assert leaf.grad is not None
                gradients.append(leaf.grad)
        return loss, gradients

    values = [logits for logits, _, _ in cases]
    _, gradients = total(values, slopes=True)
    generator = torch.Generator().manual_seed(3)
    directions = [torch.randn(logits.shape, generator=generator, dtype=torch.float64) for logits in values]
    step = 1e-5
    above, below = (
        total([v + sign * step * d for v, d in zip(values, directions, strict=True)], slopes=False)[0]
        for sign in (1, -1)
    )
    slope = sum(float((g * d).sum()) for g, d in zip(gradients, directions, strict=True))
    assert (above - below) / (2 * step) == pytest.approx(slope, rel=1e-6)


def test_with_all_classes_annotated_nothing_changes() -> None:
    logits, target = case("all classes")
    expected, _ = dice_cross_entropy(logits, target, SerialCommunicator())
    loss, _ = loss_of_logits(logits, target, SerialCommunicator(), LossSums(4, unknown=()))
    assert float(loss) == float(expected)
