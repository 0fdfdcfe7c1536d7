"""Dice + cross-entropy over the whole volume."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from volseg.distributed.communicator import Communicator

IGNORE = 255
"""Target value of voxels that do not count: padding, and voxels without a label."""

_SMOOTH = 1e-5


class _DiceCrossEntropy(torch.autograd.Function):
    """The loss of `dice_cross_entropy`; keeps the probabilities, which its gradient is made of."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, communicator: Communicator) -> tuple[Tensor, Tensor]:
        probabilities = logits.softmax(1)
        valid = target != IGNORE
        labels = torch.where(valid, target, 0).long().unsqueeze(1)
        chosen = probabilities.gather(1, labels).squeeze(1)
        entropy = (F.cross_entropy(logits, target.long(), ignore_index=IGNORE, reduction="sum")).double()
        classes = logits.shape[1]
        predicted = (probabilities * valid.unsqueeze(1)).sum((0, 2, 3, 4)).double()
        flat = labels.reshape(-1)[valid.reshape(-1)]
        true = torch.bincount(flat, minlength=classes).double()
        common = torch.bincount(flat, weights=chosen[valid].double(), minlength=classes)
        local = torch.cat([entropy.view(1), true.sum().view(1), predicted, true, common])
        sums = torch.from_numpy(communicator.reduce_all(local.cpu().numpy())).to(logits.device)
        predicted, true, common = sums[2:].split(classes)
        count = sums[1].clamp(min=1)
        dice = (2 * common + _SMOOTH) / (predicted + true + _SMOOTH)
        loss = sums[0] / count + 1 - dice[1:].mean()
        ctx.save_for_backward(probabilities, target, predicted, true, common, count)
        ctx.mark_non_differentiable(dice)
        return loss.to(logits.dtype), dice

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        probabilities, target, predicted, true, common, count = ctx.saved_tensors
        dtype, classes = probabilities.dtype, probabilities.shape[1]
        bottom = predicted + true + _SMOOTH
        weight = torch.full((classes,), -1.0 / max(1, classes - 1), dtype=torch.float64, device=bottom.device)
        weight[0] = 0  # the background has no Dice term
        hit = (weight * 2 / bottom).to(dtype)
        all_ = (-weight * (2 * common + _SMOOTH) / bottom**2).to(dtype).view(1, -1, 1, 1, 1)
        valid = (target != IGNORE).unsqueeze(1)
        labels = torch.where(valid.squeeze(1), target, 0).long().unsqueeze(1)
        slope = all_.expand_as(probabilities).contiguous()  # d loss / d probability
        slope.scatter_add_(1, labels, hit[labels])
        inner = (slope * probabilities).sum(1, keepdim=True)
        out = (slope - inner).mul_(probabilities)
        out.add_(probabilities / count.to(dtype))
        out.scatter_add_(1, labels, torch.full_like(labels, 0, dtype=dtype) - (1 / count).to(dtype))
        return out.mul_(valid).mul_(grad), None, None


def dice_cross_entropy(logits: Tensor, target: Tensor, communicator: Communicator) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy plus one minus the mean soft Dice of the foreground classes, over the whole volume.

    Collective. The loss is the same number on every rank; its backward gives each rank the gradient of its own block,
    so gradients of replicated parameters have to be summed over the ranks (`sum_gradients`).

    logits  [N, K, d, h, w]  this rank's block, class 0 the background
    target  [N, d, h, w]     class per voxel, IGNORE where it does not count
    out     loss [], soft Dice per class [K] (float64, no gradient)

    Soft Dice as in Milletari et al., V-Net (3DV 2016), with the sums taken over the batch, smoothed by 1e-5.
    """
    loss, dice = _DiceCrossEntropy.apply(logits, target, communicator)
    return loss, dice


def dice_from_counts(predicted: np.ndarray, true: np.ndarray, common: np.ndarray) -> np.ndarray:
    """Dice per class of hard masks from voxel counts; NaN where a class is in neither."""
    total = predicted + true
    return np.where(total > 0, 2.0 * common / np.maximum(total, 1), np.nan)
