"""Gradients of replicated parameters: each rank has the part of its block, training needs the sum."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from volseg.distributed.communicator import Communicator


def sum_gradients(parameters: Iterable[nn.Parameter], communicator: Communicator) -> None:
    """Replace every gradient by its sum over the ranks, in one message per dtype. Collective.

    A parameter without a gradient on this rank counts as zero and gets one, so that all ranks send the same.
    """
    trainable = [p for p in parameters if p.requires_grad]
    for dtype in sorted({p.dtype for p in trainable}, key=str):
        group = [p for p in trainable if p.dtype == dtype]
        flat = torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).reshape(-1).cpu() for p in group])
        communicator.reduce_all_in_place(flat.numpy())
        for p, part in zip(group, flat.split([p.numel() for p in group]), strict=True):
            p.grad = part.view(p.shape).to(p.device)


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float, communicator: Communicator) -> float:
    """Scale all gradients, the same on every rank, so that their norm together is at most `limit`. Collective.

    out  the norm before. The root's counts: processors may add in orders of their own, and weights must not drift apart
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = communicator.broadcast(sum(float(g.double().square().sum()) for g in gradients) ** 0.5)
    if norm > limit:
        for gradient in gradients:
            gradient.mul_(limit / norm)
    return float(norm)
