"""How well the network does on whole volumes that it was not trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from volseg.models.fused_unet import FusedUNet
from volseg.nn.losses import IGNORE, dice_from_counts
from volseg.partition.operations import Kind
from volseg.training.data import CaseBlocks, Sample
from volseg.volumes.dataset import Case

Look = Callable[[Case, CaseBlocks, Sample, Tensor], None]
"""Is shown each case of this replica with this rank's block of its mask, [1, d, h, w] uint8. Collective over it."""


@dataclass(frozen=True)
class Validation:
    """Dice of whole volumes.

    mean      of the cases' means over their foreground classes; None where there is no foreground
    by_class  mean over the cases that have the class or were given it, by label name
    by_case   mean over its foreground classes, by case name; those without foreground are left out
    """

    mean: float | None
    by_class: dict[str, float]
    by_case: dict[str, float]


@torch.no_grad()
def validate(
    twin: FusedUNet, blocks: CaseBlocks, cases: Sequence[Case], look: Look = lambda *_: None
) -> Validation:  # fmt: skip
    """Dice of the whole-volume masks of `cases`. Collective.

    Each replica segments its share; means are taken in the order of the cases, whoever had them.
    """
    twin.eval()
    meter = blocks.grid.communicator.meter
    names = blocks.dataset.label_names
    scores = np.zeros((len(cases), len(names)))  # Dice by case and class; of one replica, zeros of the others
    for place, case in blocks.replicas.share(cases):
        with meter.doing(Kind.FILES):
            sample = blocks.load(case)
        mask = torch.empty(sample.target.shape, dtype=torch.uint8)
        for start, logits in twin.logit_slabs(sample.image):
            with meter.doing(Kind.HEAD):
                mask[:, start : start + logits.shape[2]] = logits.argmax(1)
        with meter.doing(Kind.LABELS):
            valid = sample.target != IGNORE
            true, found = sample.target[valid].long(), mask[valid].long()
            counts = torch.stack(
                [torch.bincount(part, minlength=len(names)) for part in (found, true, true[true == found])]
            ).numpy()
        counts = blocks.grid.communicator.reduce_all(counts)
        scores[place] = dice_from_counts(*counts)
        look(case, blocks, sample, mask)
    scores = blocks.replicas.across.reduce_all(scores)
    by_case = {case.name: _mean(row[1:]) for case, row in zip(cases, scores, strict=True)}
    by_class = {name: _mean(column) for name, column in zip(names[1:], scores.T[1:], strict=True)}
    return Validation(
        _mean(np.array([dice for dice in by_case.values() if dice is not None])),
        {name: dice for name, dice in by_class.items() if dice is not None},
        {name: dice for name, dice in by_case.items() if dice is not None},
    )


def _mean(values: np.ndarray) -> float | None:
    """Of those that are numbers, in their order; None where none is."""
    found = values[~np.isnan(values)].tolist()
    return sum(found) / len(found) if found else None
