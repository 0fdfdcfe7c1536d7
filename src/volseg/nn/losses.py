"""Losses over the whole volume that are made of sums: Dice + cross-entropy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from volseg.distributed.communicator import Communicator
from volseg.nn.kernels import forms, softmax_loss
from volseg.program.kinds import Kind

IGNORE = 255
"""Target value of voxels that do not count: padding, and voxels without a label."""

_SMOOTH = 1e-5


_PIECE, _PIECE_ELSEWHERE = 2**14, 2**18
"""Voxels taken at a time by torch's operators, so that their probabilities stay in the cache and take next to no
memory; on other devices more, as it takes long there to begin."""


@dataclass(frozen=True)
class DiceOfBatch:
    """What the soft Dice of all cases of a step together is made of: nnU-Net's batch Dice.

    A class that one case lacks counts by the cases that have it. The loss of a case is then its own cross-entropy plus
    one minus that Dice; the step's is the mean of those, as ever.

    overlaps  [3 K] float64, `VolumeLoss.overlaps` of all cases, added up
    cases     how many
    """

    overlaps: Tensor
    cases: int


def _soft_dice(overlaps: Tensor) -> Tensor:
    predicted, true, common = overlaps.view(3, -1)
    dice: Tensor = (2 * common + _SMOOTH) / (predicted + true + _SMOOTH)
    return dice


class VolumeLoss:
    """The sums over the volume that a loss is made of, Dice and an entropy, and the gradient that follows from them.

    Logits come in pieces, twice: once to `add`, and again, after `finish`, to `gradient`. Logits are [.., K], their
    channels last in memory or not, targets [..].

    outputs  K
    scored   the first of the outputs that may have a Dice term in the loss
    batch    the Dice of the loss is that of all cases of a step; None: of this one
    unknown  outputs that nobody has annotated in this case: the loss says nothing of where they are
    """

    def __init__(self, outputs: int, scored: int, batch: DiceOfBatch | None, unknown: Sequence[int]) -> None:
        self.outputs, self._batch, self._unknown = outputs, batch, tuple(unknown)
        left_out = () if batch is not None else self._unknown  # of all cases together a few have it
        self._in_mean = [n for n in range(scored, outputs) if n not in left_out]
        # The entropy and what voxels count in it; by output its probability, its voxels, its probability in those,
        # and the voxels where a mask would have it.
        self._sums = torch.zeros(2 + 4 * outputs, dtype=torch.float64)

    def add(self, logits: Tensor, target: Tensor) -> None:
        """Take in some voxels."""
        raise NotImplementedError

    def gradient(self, logits: Tensor, target: Tensor, factor: float, out: Tensor) -> None:
        """`factor` times the loss's gradient in some logits, to `out`, which may be the logits themselves."""
        raise NotImplementedError

    def finish(self, communicator: Communicator) -> tuple[Tensor, Tensor]:
        """Loss [] and soft Dice per output [K], float64, of the whole volume. Collective.

        The Dice is NaN of an output that the volume does not hold, and that a mask would hold nowhere: of such a one
        the mask is right, whatever is left of its probability. The loss counts it all the same.
        """
        sums = self._sums = torch.from_numpy(communicator.reduce_all(self._sums.numpy()))
        of_loss, dice = _soft_dice(self._dice_sums), _soft_dice(self.overlaps)
        absent = (sums[2 + self.outputs : 2 + 2 * self.outputs] == 0) & (sums[2 + 3 * self.outputs :] == 0)
        loss = sums[0] / self._total
        if self._in_mean:
            loss = loss + 1 - of_loss[self._in_mean].mean()
        return loss, torch.where(absent, torch.nan, dice)

    @property
    def overlaps(self) -> Tensor:
        """[3 K] float64: of each output its probability, its voxels, and its probability in those, summed."""
        return self._sums[2 : 2 + 3 * self.outputs]

    @property
    def _dice_sums(self) -> Tensor:
        return self.overlaps if self._batch is None else self._batch.overlaps

    def _dice_slopes(self, factor: float) -> tuple[list[float], list[float]]:
        """The gradient of the loss's Dice in each output's probability: in its own voxels besides, and everywhere."""
        predicted, true, common = self._dice_sums.split(self.outputs)
        bottom = predicted + true + _SMOOTH
        # The mean over the cases of a step is taken afterwards, but the Dice of them all is no mean.
        times = 1 if self._batch is None else self._batch.cases
        weight = torch.zeros(self.outputs, dtype=torch.float64)
        weight[self._in_mean] = -factor * times / max(1, len(self._in_mean))
        weight[list(self._unknown)] = 0
        return (weight * 2 / bottom).tolist(), (-weight * (2 * common + _SMOOTH) / bottom**2).tolist()

    @property
    def _total(self) -> float:
        """What all voxels count together; 1 where none does."""
        return float(self._sums[1]) or 1.0


class LossSums(VolumeLoss):
    """Of classes of which each voxel has one: cross-entropy, and the Dice of all but the background.

    weights  of the classes in the cross-entropy, which is then sum w_y ce / sum w_y over the voxels, as with
             nn.CrossEntropyLoss(weight=...); none: all 1
    unknown  classes that nobody has annotated in this case: a voxel of the background may be of one of them, so that
             its cross-entropy is that of their probabilities and the background's together, and they have no Dice.
             The marginal loss of Shi et al., "Marginal loss and exclusion loss for partially supervised multi-organ
             segmentation" (Medical Image Analysis 2021)
    """

    def __init__(
        self, classes: int, weights: Sequence[float] = (), batch: DiceOfBatch | None = None, unknown: Sequence[int] = ()
    ) -> None:
        super().__init__(classes, 1, batch, unknown)
        self._unlabelled = [0, *unknown]
        self._weights: Tensor | None = None
        if weights:
            self._weights = torch.zeros(IGNORE + 1, dtype=torch.float64)
            self._weights[:classes] = torch.tensor(weights, dtype=torch.float64)

    def add(self, logits: Tensor, target: Tensor) -> None:
        """Take in some voxels."""
        k = self.outputs
        if self._by_kernel(logits, target):
            new = softmax_loss.add(*_in_order(logits, target), self._classes)
            if self._unknown:
                new[2:].view(softmax_loss.SUMS, k)[:, self._unlabelled] = 0
            self._sums += new
            return
        for piece, labels, _ in pieces(logits, target, logits):
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
                if c == 0 and self._unknown:
                    entropy -= piece[self._unlabelled].logsumexp(0) * here
                    continue
                if c in self._unknown:
                    continue
                new[2 + 3 * k + c] = ((piece[c] == largest) & valid).sum()
                entropy -= piece[c] * here
                new[2 + c] = powers[c].sum()
                new[2 + k + c] = here.sum()
                new[2 + 2 * k + c] = (powers[c] * here).sum()
            entropy *= counts
            new[0], new[1] = entropy.sum(), counts.sum(dtype=torch.float64)
            self._sums += new.cpu()

    def gradient(self, logits: Tensor, target: Tensor, factor: float, out: Tensor) -> None:
        """`factor` times the loss's gradient in some logits, to `out`, which may be the logits themselves."""
        hit, everywhere = self._dice_slopes(factor)
        share = factor / self._total
        if self._by_kernel(logits, target) and out.dtype == logits.dtype:
            rows, labels = _in_order(logits, target)
            softmax_loss.gradient(rows, labels, self._classes, share, (hit, everywhere), _as_list(out))
            return
        for piece, labels, place in pieces(logits, target, out):
            p = (piece - piece.amax(0)).exp_()
            p /= p.sum(0)
            masks = [(labels == c).to(p.dtype) for c in range(self.outputs)]
            slopes = torch.stack([mask * h + e for mask, h, e in zip(masks, hit, everywhere, strict=True)])
            slopes -= (slopes * p).sum(0)
            pull = share if self._weights is None else share * self._counts(labels, p)
            slopes += pull
            slopes *= p
            for c, mask in enumerate(masks[1:] if self._unknown else masks, int(bool(self._unknown))):
                slopes[c] -= mask * pull
            if self._unknown:
                slopes[self._unlabelled] -= piece[self._unlabelled].softmax(0) * (masks[0] * pull)
            slopes *= labels != IGNORE
            place.copy_(slopes)

    def _by_kernel(self, logits: Tensor, target: Tensor) -> bool:
        """Whether voxels go to `softmax_loss`; other devices, and float64, to torch's operators."""
        return target.dtype == torch.uint8 and forms.readable(logits)

    @property
    def _classes(self) -> softmax_loss.Classes:
        weights = None if self._weights is None else self._weights[: self.outputs]
        return softmax_loss.Classes(weights, self._unknown, IGNORE)

    def _counts(self, labels: Tensor, like: Tensor) -> Tensor:
        """How much each voxel counts in the cross-entropy."""
        return labels != IGNORE if self._weights is None else self._weights.to(like)[labels.long()]


def _in_order(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [n, K], where they lie if strides allow it, and labels [n] one after another."""
    return logits.detach().reshape(-1, logits.shape[-1]), target.reshape(-1).contiguous()


def pieces(logits: Tensor, target: Tensor, out: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Logits [K, n], labels [n] and the place [K, n] of `out`, of some voxels after the others."""
    classes = logits.shape[-1]
    flat, there, labels = logits.reshape(-1, classes), _as_list(out), target.reshape(-1)
    step = _PIECE if logits.device.type == "cpu" else _PIECE_ELSEWHERE
    for start in range(0, labels.numel(), step):
        part = slice(start, start + step)
        yield flat[part].t().contiguous(), labels[part], there[part].t()


def _as_list(rows: Tensor) -> Tensor:
    """[.., K] as [voxels, K], a view also where some channels are stored and not there."""
    return rows.flatten(0, -2) if rows.dim() > 2 else rows


class _LossOfLogits(torch.autograd.Function):
    """The loss of `loss_of_logits`; keeps the logits, from which backward makes the probabilities again."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target: Tensor, communicator: Communicator, sums: VolumeLoss
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
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


def loss_of_logits(
    logits: Tensor, target: Tensor, communicator: Communicator, sums: VolumeLoss
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The loss that `sums`, which are empty yet, stand for, of a whole volume's logits. Collective.

    The loss is the same number on every rank; its backward gives each rank the gradient of its own block, so gradients
    of replicated parameters have to be summed over the ranks (`sum_gradients`).

    logits  [N, K, d, h, w]  this rank's block
    target  [N, d, h, w]     label per voxel, IGNORE where it does not count
    out     loss [], soft Dice per output [K] (float64, no gradient), NaN where there is none (`VolumeLoss.finish`)
    """
    loss, dice = _LossOfLogits.apply(logits, target, communicator, sums)
    return loss, dice


def dice_cross_entropy(
    logits: Tensor, target: Tensor, communicator: Communicator, weights: Sequence[float] = (),
    batch: DiceOfBatch | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Mean cross-entropy plus one minus the mean soft Dice of the foreground classes, over the whole volume.

    Collective. Logits, target and what comes out are those of `loss_of_logits`, class 0 being the background.

    weights  of the classes in the cross-entropy, and `batch` for the Dice (`LossSums`)

    Soft Dice as in Milletari et al., V-Net (3DV 2016), with the sums taken over the batch, smoothed by 1e-5.
    """
    return loss_of_logits(logits, target, communicator, LossSums(logits.shape[1], weights, batch))


def dice_from_counts(predicted: np.ndarray, true: np.ndarray, common: np.ndarray) -> np.ndarray:
    """Dice per class of hard masks from voxel counts; NaN where a class is in neither."""
    total = predicted + true
    return np.where(total > 0, 2.0 * common / np.maximum(total, 1), np.nan)
