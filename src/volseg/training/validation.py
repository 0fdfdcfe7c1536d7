"""How well the network does on whole volumes that it was not trained on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from volseg.config import TrainingConfig
from volseg.models.fused import FusedNetwork
from volseg.nn.losses import IGNORE, dice_from_counts
from volseg.program.kinds import Kind
from volseg.training.data import CaseBlocks, Sample
from volseg.training.own_grid import Counting, counts_on_own_grid, counts_outside
from volseg.volumes.dataset import Case
from volseg.volumes.regions import labels_of

Dice = float | None  # None where neither mask nor labels hold the class

Look = Callable[[Case, Sample, Tensor], None]
"""Gets a case, this rank's block of it, and of its mask [1, d, h, w] uint8; with any class in the padding."""


@dataclass(frozen=True)
class Validation:
    """Dice of whole-volume masks, on the scans' own grids as `volseg evaluate` takes it; at coarser levels of a
    multigrid run, on the grid that the network sees.

    mean      over the classes; None where there is no foreground at all
    by_class  of each foreground class, by value from 1 on, or of each region: the mean over the cases that have it
    by_case   case name -> Dice of each of them
    level     of a multigrid run, at which it was measured; 0 is the finest

    Means are taken as `volseg evaluate` and nnU-Net take them: a class that neither mask nor labels hold says nothing
    about a case, one that the mask alone holds counts as 0.
    """

    mean: Dice
    by_class: tuple[Dice, ...]
    by_case: Mapping[str, tuple[Dice, ...]]
    level: int = 0

    @property
    def case_means(self) -> dict[str, float]:
        """Mean over its foreground classes, by case name; without cases that have none."""
        means = {name: _mean(classes) for name, classes in self.by_case.items()}
        return {name: dice for name, dice in means.items() if dice is not None}


def is_validation_due(config: TrainingConfig, steps: int, in_epoch: int) -> bool:
    """Whether the held-out cases are to be evaluated after `steps` steps: after each few epochs and after the last."""
    epochs, rest = divmod(steps, in_epoch)
    return rest == 0 and (epochs % config.validate_every == 0 or epochs == config.epochs)


@torch.no_grad()
def validate(
    twin: FusedNetwork, blocks: CaseBlocks, cases: Sequence[Case], look: Look | None = None
) -> Validation:  # fmt: skip
    """Dice of the whole-volume masks of `cases`. Collective.

    look  called for each case on all ranks of the replica that has it, in the order of its cases; it may communicate
          over the replica's grid

    Each replica segments its share; means are taken in the order of the cases, whoever had them.
    """
    twin.eval()
    meter, regions = blocks.grid.communicator.meter, blocks.dataset.regions
    count = Counting(len(blocks.dataset.labels), regions)
    scores = np.zeros((2, len(cases), count.scored))  # Dice of each case and class, and whether it has one
    for place, case in blocks.replicas.share(cases):
        with meter.doing(Kind.FILES):
            sample = blocks.load(case)
        with blocks.grid.communicator.together():
            own = blocks.on_own_grid(case)
        mask = torch.empty(sample.target.shape, dtype=torch.uint8)
        if own is None:
            for start, logits in twin.logit_slabs(sample.image.to(twin.device)):
                with meter.doing(Kind.HEAD):
                    labels_of(logits[0].cpu().numpy(), regions, mask[0, start : start + logits.shape[2]].numpy())
            valid = sample.target != IGNORE
            with meter.doing(Kind.LABELS):
                counts = count(mask[valid].numpy(), sample.target[valid].numpy())
        else:
            counts = counts_on_own_grid(twin, blocks, sample, *own, mask, count)
        with meter.doing(Kind.FILES):
            counts = counts + counts_outside(blocks, case, count)
        counts = blocks.grid.communicator.reduce_all(counts)
        dice = dice_from_counts(*counts)
        dice[[number - count.first for number in blocks.dataset.unknown_in(case)]] = np.nan
        scores[:, place] = np.nan_to_num(dice), ~np.isnan(dice)
        if look is not None:
            look(case, sample, mask)
    scores = blocks.replicas.across.reduce_all(scores)  # one replica has a case, the others zeros: any order, same bits
    rows = [
        tuple(dice if there else None for dice, there in zip(*case, strict=True))
        for case in zip(scores[0].tolist(), scores[1].tolist(), strict=True)
    ]
    by_class = tuple(_mean([row[number] for row in rows]) for number in range(count.scored))
    by_case = {case.name: row for case, row in zip(cases, rows, strict=True)}
    return Validation(_mean(by_class), by_class, by_case, blocks.level)


def _mean(values: Sequence[Dice]) -> Dice:
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers) if numbers else None
