"""How well the network does on whole volumes that it was not trained on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from volseg.nn.losses import IGNORE, dice_from_counts
from volseg.training.data import CaseBlocks
from volseg.volumes.dataset import Case


@torch.no_grad()
def validate(twin: nn.Module, blocks: CaseBlocks, cases: Sequence[Case], classes: int) -> float:
    """Mean foreground Dice of the whole-volume masks of `cases`. Collective."""
    twin.eval()
    scores = []
    for case in cases:
        sample = blocks.load(case)
        mask = twin(sample.image).argmax(1)
        valid = sample.target != IGNORE
        true, found = sample.target[valid].long(), mask[valid]
        counts = torch.stack(
            [torch.bincount(part, minlength=classes) for part in (found, true, true[true == found])]
        ).numpy()
        counts = blocks.grid.communicator.reduce_all(counts)
        scores.append(np.nanmean(dice_from_counts(*counts)[1:]))
    return float(np.nanmean(scores))
