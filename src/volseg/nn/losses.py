"""Dice + cross-entropy over the whole volume."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from volseg.distributed.communicator import Communicator
from volseg.partition.operations import Kind

IGNORE = 255
"""Target value of voxels that do not count: padding, and voxels without a label."""

_SMOOTH = 1e-5


_PIECE = 2**16
"""Voxels taken at a time, so that their probabilities stay in the cache and are never held for the volume."""


class LossSums:
    """The sums over the volume that Dice and cross-entropy are made of, and the gradient that follows from them.

    Logits come in pieces, twice: once to `add`, and again, after `finish`, to `gradient`. Logits are [.., K], classes
    last in memory or not, targets [..].

    weights  of the classes in the cross-entropy, which is then sum w_y ce / sum w_y over the voxels, as with
             nn.CrossEntropyLoss(weight=...); none: all 1
    """

    def __init__(self, classes: int, weights: Sequence[float] = ()) -> None:
        self.classes = classes
        self._weights: Tensor | None = None
        if weights:
            self._weights = torch.zeros(IGNORE + 1, dtype=torch.float64)
            self._weights[:classes] = torch.tensor(weights, dtype=torch.float64)
        self._sums = torch.zeros(2 + 3 * classes, dtype=torch.float64)

    def add(self, logits: Tensor, target: Tensor) -> None:
        """Take in some voxels."""
        k = self.classes
        for piece, labels, _ in _pieces(logits, target, logits):
            largest = piece.amax(0)
            powers = (piece - largest).exp_()
            total = powers.sum(0)
            powers /= total
            valid = labels != IGNORE
            counts = self._counts(labels, piece)
            entropy = largest + total.log_()
            powers *= valid
            new = torch.zeros_like(self._sums, device=piece.device)
            for c in range(k):
                here = labels == c
                entropy -= piece[c] * here
                new[2 + c] = powers[c].sum()
                new[2 + k + c] = here.sum()
                new[2 + 2 * k + c] = (powers[c] * here).sum()
            entropy *= counts
            new[0], new[1] = entropy.sum(), counts.sum(dtype=torch.float64)
            self._sums += new.cpu()

    def finish(self, communicator: Communicator) -> tuple[Tensor, Tensor]:
        """Loss [] and soft Dice per class [K], float64, of the whole volume. Collective."""
        sums = self._sums = torch.from_numpy(communicator.reduce_all(self._sums.numpy()))
        predicted, true, common = sums[2:].split(self.classes)
        dice = (2 * common + _SMOOTH) / (predicted + true + _SMOOTH)
        loss = sums[0] / self._total + 1 - dice[1:].mean()
        return loss, dice

    def gradient(self, logits: Tensor, target: Tensor, factor: float, out: Tensor) -> None:
        """`factor` times the loss's gradient in some logits, to `out`, which may be the logits themselves."""
        predicted, true, common = self._sums[2:].split(self.classes)
        bottom = predicted + true + _SMOOTH
        weight = torch.full((self.classes,), -factor / max(1, self.classes - 1), dtype=torch.float64)
        weight[0] = 0  # the background has no Dice term
        # The gradient in a probability: `everywhere`, and `hit` where it is the true class.
        hit = (weight * 2 / bottom).tolist()
        everywhere = (-weight * (2 * common + _SMOOTH) / bottom**2).tolist()
        share = factor / self._total
        for piece, labels, place in _pieces(logits, target, out):
            p = (piece - piece.amax(0)).exp_()
            p /= p.sum(0)
            masks = [(labels == c).to(p.dtype) for c in range(self.classes)]
            slopes = torch.stack([mask * h + e for mask, h, e in zip(masks, hit, everywhere, strict=True)])
            slopes -= (slopes * p).sum(0)
            pull = share if self._weights is None else share * self._counts(labels, p)
            slopes += pull
            slopes *= p
            for c, mask in enumerate(masks):
                slopes[c] -= mask * pull
            slopes *= labels != IGNORE
            place.copy_(slopes)

    def _counts(self, labels: Tensor, like: Tensor) -> Tensor:
        """How much each voxel counts in the cross-entropy."""
        return labels != IGNORE if self._weights is None else self._weights.to(like)[labels.long()]

    @property
    def _total(self) -> float:
        """What all voxels count together; 1 where none does."""
        return float(self._sums[1]) or 1.0


def _pieces(logits: Tensor, target: Tensor, out: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Logits [K, n], labels [n] and the place [K, n] of `out`, of some voxels after the others."""
    classes = logits.shape[-1]
    flat, there, labels = logits.reshape(-1, classes), _as_list(out), target.reshape(-1)
    for start in range(0, labels.numel(), _PIECE):
        part = slice(start, start + _PIECE)
        yield flat[part].t().contiguous(), labels[part], there[part].t()


def _as_list(rows: Tensor) -> Tensor:
    """[.., K] as [voxels, K], a view also where some channels are stored and not there."""
    return rows.flatten(0, -2) if rows.dim() > 2 else rows


class _DiceCrossEntropy(torch.autograd.Function):
    """The loss of `dice_cross_entropy`; keeps the logits, from which backward makes the probabilities again."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target: Tensor, communicator: Communicator, weights: Sequence[float]
    ) -> tuple[Tensor, Tensor]:
        sums = LossSums(logits.shape[1], weights)
        with communicator.meter.doing(Kind.HEAD):
            sums.add(logits.movedim(1, -1), target)
            loss, dice = sums.finish(communicator)
        ctx.save_for_backward(logits, target)
        ctx.sums, ctx.meter = sums, communicator.meter
        ctx.mark_non_differentiable(dice)
        return loss.to(logits), dice

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None, None]:
        logits, target = ctx.saved_tensors
        rows = logits.movedim(1, -1)
        out = torch.empty(rows.shape, dtype=logits.dtype, device=logits.device)
        with ctx.meter.doing(Kind.HEAD):
            ctx.sums.gradient(rows, target, float(grad), out)
        return out.movedim(-1, 1), None, None, None


def dice_cross_entropy(
    logits: Tensor, target: Tensor, communicator: Communicator, weights: Sequence[float] = ()
) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy plus one minus the mean soft Dice of the foreground classes, over the whole volume.

    Collective. The loss is the same number on every rank; its backward gives each rank the gradient of its own block,
    so gradients of replicated parameters have to be summed over the ranks (`sum_gradients`).

    logits  [N, K, d, h, w]  this rank's block, class 0 the background
    target  [N, d, h, w]     class per voxel, IGNORE where it does not count
    weights  of the classes in the cross-entropy (`LossSums`)
    out     loss [], soft Dice per class [K] (float64, no gradient)

    Soft Dice as in Milletari et al., V-Net (3DV 2016), with the sums taken over the batch, smoothed by 1e-5.
    """
    loss, dice = _DiceCrossEntropy.apply(logits, target, communicator, weights)
    return loss, dice


def dice_from_counts(predicted: np.ndarray, true: np.ndarray, common: np.ndarray) -> np.ndarray:
    """Dice per class of hard masks from voxel counts; NaN where a class is in neither."""
    total = predicted + true
    return np.where(total > 0, 2.0 * common / np.maximum(total, 1), np.nan)
