"""The normalisation behind a fused convolution: coefficients from the whole volume's sums, and its gradient.

Instance, group or batch norm, or none. The convolution leaves the sums of bricks, taken while its output is in the
cache; they have the same bits on every grid (`kernels.reproducible`). What is computed of a few numbers a channel is
computed on the processor, wherever tensors lie: sums over all ranks go there anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from volseg.distributed.communicator import Communicator
from volseg.geometry import Triple
from volseg.networks.description import Normalization
from volseg.nn.kernels.block_convolution import BrickSums
from volseg.nn.kernels.reproducible import brick_moments, moments, order_free_sum
from volseg.nn.kernels.rows import Affine
from volseg.nn.normalization import CANCELLED, PartitionedBatchNorm3d, PartitionedNorm, Pooling


@dataclass
class Statistics:
    """What `normalize` knows of one tensor. mean, rstd: [C] float64; pooling None where they are fixed.

    keep  [C] what channel dropout multiplies by, where that is in the coefficients
    """

    mean: Tensor
    rstd: Tensor
    pooling: Pooling | None
    count: int
    keep: Tensor | None


RawSlabs = Callable[[], Iterable[Tensor]]
"""Gives this rank's block of a raw tensor, whole bricks [planes, h, w, C as stored] at a time."""


def normalize(
    node: Normalization, norm: nn.Module, stored: int, raw: RawSlabs, sums: BrickSums | None, shape: Triple,
    keep: Tensor | None, communicator: Communicator, device: torch.device,
) -> tuple[Affine, Statistics | None]:  # fmt: skip
    """The coefficients of a norm and the activation behind it for a convolution's output. Collective.

    norm      the layer of `node`: a partitioned norm, or anything else for none
    stored    channels of the output as stored, those of `node` or more
    raw       the output; asked for only where the sums do not say enough
    sums      of the bricks of this rank's block; None where bricks are single voxels: then `raw` gives one slab
    shape     (D, H, W) of the whole volume
    keep      [channels] factors of channel dropout, or None
    device    on which the coefficients are to lie

    Raises PartitionError where the volume is one voxel in training.
    """
    channels, fold = node.channels, keep if node.activation == "leaky_relu" else None
    if not isinstance(norm, PartitionedNorm):
        one = torch.ones(channels, dtype=torch.float64)
        fixed = None if fold is None else Statistics(torch.zeros_like(one), one, None, 1, fold)
        return _affine(node, one, torch.zeros_like(one), keep, stored).on(device), fixed
    weight, bias = _parameters(norm)
    if isinstance(norm, PartitionedBatchNorm3d) and not norm.training and norm.running_mean is not None:
        assert norm.running_var is not None
        mean, rstd = norm.running_mean.double().cpu(), (norm.running_var.double().cpu() + _eps(norm)).rsqrt()
        statistics = Statistics(mean, rstd, None, 1, fold)
    else:
        pooling = norm.pooling(channels)
        count = shape[0] * shape[1] * shape[2] * (channels // pooling.groups)
        if norm.training and count == 1:
            raise norm.refuse("one voxel has no statistics to train with; the volume is too small for this depth")
        mean_, var = _moments(raw, channels, sums, shape, pooling, count, communicator)
        if isinstance(norm, PartitionedBatchNorm3d):
            norm.update(torch.from_numpy(mean_).to(device), torch.from_numpy(var).to(device), count)
        rstd_ = 1 / np.sqrt(var + _eps(norm))
        statistics = Statistics(torch.from_numpy(mean_), torch.from_numpy(rstd_), pooling, count, fold)
    gain = statistics.rstd if weight is None else statistics.rstd * weight.double()
    offset = -statistics.mean * gain
    if bias is not None:
        offset = bias.double() + offset
    return _affine(node, gain, offset, keep, stored).on(device), statistics


def _parameters(norm: Any) -> tuple[Tensor | None, Tensor | None]:
    """Weight and bias, which torch's norms have or have not, in the processor's memory."""
    weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
    return None if weight is None else weight.detach().cpu(), None if bias is None else bias.detach().cpu()


def _eps(norm: Any) -> float:
    return float(norm.eps)


def _affine(node: Normalization, scale: Tensor, shift: Tensor, keep: Tensor | None, stored: int) -> Affine:
    gain = None
    if node.activation != "leaky_relu":
        gain = _stored(torch.ones_like(scale) if keep is None else keep, stored)
    elif keep is not None:  # keep * leaky(u) = leaky(keep * u) for keep >= 0: channel dropout costs nothing
        scale, shift = scale * keep, shift * keep
    return Affine(_stored(scale, stored), _stored(shift, stored), node.slope, node.activation, gain)


def _stored(values: Tensor, channels: int) -> Tensor:
    """[C] float64 as float32, with zeros for the channels that are stored but not there."""
    return torch.nn.functional.pad(values.float(), [0, channels - values.shape[0]])


def _moments(
    raw: RawSlabs, channels: int, sums: BrickSums | None, shape: Triple, pooling: Pooling, count: int,
    communicator: Communicator,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Mean and biased variance per channel, [C] float64. Collective."""
    brick = (1, 1, 1) if sums is None else sums.brick
    bricks = (shape[0] // brick[0]) * (shape[1] // brick[1]) * (shape[2] // brick[2])
    if sums is None:
        (whole,) = raw()
        total = moments(_channels_first(whole[..., :channels]), brick, bricks, communicator)
    else:
        total = order_free_sum(sums.sums.view(1, -1, 2, sums.sums.shape[-1])[..., :channels], bricks, communicator)
    mean, var = _mean_and_variance(pooling.spread(total)[0] / count)
    if (var * CANCELLED < mean * mean).any():  # the same answer on every rank: these bits are
        centre = torch.from_numpy(mean).float()
        if sums is None:
            (whole,) = raw()
            total = moments(
                _channels_first(whole[..., :channels] - centre.to(whole.device)), brick, bricks, communicator
            )
        else:
            parts = [brick_moments(slab[..., :channels] - centre.to(slab.device), brick) for slab in raw()]
            total = order_free_sum(torch.cat(parts).unsqueeze(0), bricks, communicator)
        rest, var = _mean_and_variance(pooling.spread(total)[0] / count)
        mean = centre.double().numpy() + rest
    return mean, var


def _channels_first(rows: Tensor) -> Tensor:
    """[d, h, w, C] as [1, C, d, h, w], a view."""
    return rows.permute(3, 0, 1, 2).unsqueeze(0)


def _mean_and_variance(averages: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """From the averages [2, C] of x and of x * x."""
    return averages[0], np.maximum(averages[1] - averages[0] * averages[0], 0)


@dataclass(frozen=True)
class NormGradient:
    """Gradient of the raw tensor: ``a * g + b * raw + c``, [C] as stored; None where it is g itself.

    weight, bias  [C] this rank's parts of the sums
    """

    combination: tuple[Tensor, Tensor, Tensor] | None
    weight: Tensor | None
    bias: Tensor | None


def normalization_gradient(
    norm: nn.Module, statistics: Statistics | None, sums: Tensor, communicator: Communicator
) -> NormGradient:
    """The gradient of `normalize`, from that before the activation. Collective.

    sums  [2, C as stored] float64, in the processor's memory: of the gradient g before the activation, and of g times
          raw
    """
    if statistics is None:
        return NormGradient(None, None, None)
    (weight, bias), stored = _parameters(norm), sums.shape[1]
    mean, rstd, keep = statistics.mean, statistics.rstd, statistics.keep
    own = sums[:, : mean.shape[0]]
    if keep is not None:
        own = own * keep
    normalized = rstd * (own[1] - mean * own[0])
    share = torch.ones_like(rstd) if weight is None else weight.double()
    factor = rstd * share if keep is None else rstd * share * keep
    grad_w = None if weight is None else normalized.float()
    grad_b = None if bias is None else own[0].float()
    b = c = torch.zeros_like(factor)
    if statistics.pooling is not None:
        local = torch.stack([share * own[0], share * normalized])
        total = statistics.pooling.spread(communicator.reduce_all(local.numpy())[None])[0]
        first, second = (torch.from_numpy(t) / statistics.count for t in total)
        b, c = -rstd * rstd * second, rstd * (rstd * mean * second - first)
    a, b, c = (_stored(values, stored) for values in (factor, b, c))
    return NormGradient((a, b, c), grad_w, grad_b)
