"""Dice + binary cross-entropy of overlapping regions over the whole volume.

Each region has a logit of its own, whose sigmoid is the probability that a voxel lies in it. As nnU-Net trains regions
(`DC_and_BCE_loss`; Isensee et al., "nnU-Net for Brain Tumor Segmentation", BrainLes 2020): the binary cross-entropy is
the mean over the voxels that count and the regions, the Dice that of all regions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from volseg.nn.losses import IGNORE, DiceOfBatch, VolumeLoss, pieces


class RegionSums(VolumeLoss):
    """The sums that the loss of regions is made of; a target holds labels, of which each lies in some of the regions.

    regions  the values of the labels that lie in each
    unknown  regions that nobody has annotated in this case: they have no part in its loss
    """

    def __init__(
        self, regions: Sequence[Sequence[int]], batch: DiceOfBatch | None = None, unknown: Sequence[int] = ()
    ) -> None:
        super().__init__(len(regions), 0, batch, unknown)
        self._known = [r for r in range(len(regions)) if r not in self._unknown]
        self._members = torch.zeros(len(regions), IGNORE + 1, dtype=torch.bool)
        for members, values in zip(self._members, regions, strict=True):
            members[list(values)] = True

    def add(self, logits: Tensor, target: Tensor) -> None:
        k = self.outputs
        for piece, labels, _ in pieces(logits, target, logits):
            valid, members = labels != IGNORE, self._members.to(piece.device)
            new = torch.zeros_like(self._sums, device=piece.device)
            for r in self._known:
                x, inside = piece[r], members[r][labels.int()]
                entropy = binary_cross_entropy_with_logits(x, inside.to(x.dtype), reduction="none")
                new[0] += (entropy * valid).sum(dtype=torch.float64)
                p = torch.sigmoid(x) * valid
                new[2 + r] = p.sum()
                new[2 + k + r] = inside.sum()
                new[2 + 2 * k + r] = (p * inside).sum()
                new[2 + 3 * k + r] = ((x > 0) & valid).sum()
            new[1] = len(self._known) * valid.sum()
            self._sums += new.cpu()

    def gradient(self, logits: Tensor, target: Tensor, factor: float, out: Tensor) -> None:
        hit, everywhere = self._dice_slopes(factor)
        share = factor / self._total
        for piece, labels, place in pieces(logits, target, out):
            valid, members = labels != IGNORE, self._members.to(piece.device)
            for r in self._unknown:
                place[r] = 0
            for r in self._known:
                inside = members[r][labels.int()].to(piece.dtype)
                p = torch.sigmoid(piece[r])
                slope = inside * hit[r]
                slope += everywhere[r]
                slope *= p
                slope *= 1 - p
                slope += p.sub_(inside).mul_(share)
                place[r] = slope.mul_(valid)
