"""How well the network does on whole volumes that it was not trained on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from volseg.models.fused_unet import FusedUNet
from volseg.nn.losses import IGNORE, dice_from_counts
from volseg.partition.operations import Kind
from volseg.training.data import CaseBlocks
from volseg.volumes.dataset import Case


@torch.no_grad()
def validate(twin: FusedUNet, blocks: CaseBlocks, cases: Sequence[Case], classes: int) -> float | None:
    """Mean foreground Dice of the whole-volume masks of `cases`; None where there is no foreground. Collective.

    Each replica segments its share; the mean is taken in the order of the cases, whoever had them.
    """
    twin.eval()
    meter = blocks.grid.communicator.meter
    scores = np.zeros((len(cases), 2))  # Dice of each case, and whether it has one
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
                [torch.bincount(part, minlength=classes) for part in (found, true, true[true == found])]
            ).numpy()
        counts = blocks.grid.communicator.reduce_all(counts)
        found_here = dice_from_counts(*counts)[1:]
        found_here = found_here[~np.isnan(found_here)]
        if found_here.size:
            scores[place] = found_here.mean(), 1
    scores = blocks.replicas.across.reduce_all(scores)
    found = scores[scores[:, 1] > 0, 0].tolist()
    return sum(found) / len(found) if found else None
