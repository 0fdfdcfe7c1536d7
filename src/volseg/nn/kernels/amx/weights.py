"""Weights of the convolution on AMX tiles: bfloat16, as right factors of its products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from volseg.geometry import Triple
from volseg.nn.kernels.direct.weights import TapGroup, as_stored, backward_groups, chosen, forward_groups, kernel_of
from volseg.nn.kernels.jit import workers
from volseg.nn.kernels.jit.tiles import INNER, ROWS
from volseg.partition.tiling import Registers, padded_channels, registers_for


@dataclass(frozen=True)
class Weight:
    """A weight made ready for `forward` or `backward`.

    packed    [channels / width][terms / INNER][tiles side by side][16 pairs][columns, 2] bfloat16
    groups    of products, whose terms follow one another
    voxel     channels of the windows
    channels  of the results, rounded up to vectors
    kernel, stride  on D, H, W
    """

    packed: Tensor
    layout: Registers
    groups: Sequence[TapGroup]
    voxel: int
    channels: int
    kernel: Triple
    stride: Triple
    memory: Tensor

    @property
    def columns(self) -> int:
        """The most columns whose numbers taps meet on a line."""
        return max(group.counts[2] for group in self.groups)

    def release(self) -> None:
        """Give the memory to the next weight; this one must not be used any more."""
        workers.give("weight", self.memory)


def layout_for(results: Sequence[int], read: Sequence[int]) -> Registers:
    """The layout of results of these channels, multiples of 8, from tensors that have as many as `read` stored."""
    return registers_for(results, read, ROWS)


def pack_weight(weight: Tensor, sources: Sequence[int], stride: Triple = (1, 1, 1)) -> Weight:
    """The weight of a convolution for `forward`.

    weight   [K, C, kd, kh, kw], sides of 1, 3, 5 or 7
    sources  C cut into the inputs' channels, 8 or more; each input's are stored rounded up to vectors
    stride   1 or 2 on D, H, W
    """
    kernel, stored = kernel_of(weight), as_stored(weight.detach(), sources)
    layout = layout_for([stored.shape[0]], [padded_channels(s) for s in sources])
    return packed(stored.permute(0, 2, 3, 4, 1), forward_groups(kernel), layout, kernel, stride)


def pack_turned_weight(weight: Tensor, sources: Sequence[int], stride: Triple = (1, 1, 1)) -> Weight:
    """The weight of the input gradient, for `backward`: inputs and outputs exchanged, taps by the inputs they reach."""
    kernel, stored = kernel_of(weight), as_stored(weight.detach(), sources)
    layout = layout_for([padded_channels(s) for s in sources], [stored.shape[0]])
    return packed(stored.permute(1, 2, 3, 4, 0), backward_groups(kernel, stride), layout, kernel, stride)


def packed(
    by_tap: Tensor, groups: Sequence[TapGroup], layout: Registers, kernel: Triple, stride: Triple
) -> Weight:  # fmt: skip
    """A `Weight` from [results' channels, kd, kh, kw, windows' channels]."""
    channels, voxel, width = by_tap.shape[0], by_tap.shape[4], layout.width
    terms = [_terms(group, voxel) for group in groups]
    memory = workers.take("weight", -(-channels * sum(terms) // 2))
    whole = memory.view(torch.bfloat16)[: channels * sum(terms)].view(channels // width, -1)
    at = 0
    for group, count in zip(groups, terms, strict=True):
        if count:
            taps = chosen(by_tap, group, 1).flatten(3).flatten(1, 2)  # [channels, taps on D and H, inner]
            taps = torch.nn.functional.pad(taps, [0, -taps.shape[2] % INNER])
            columns = min(width, ROWS)
            factors = taps.view(channels // width, width // columns, columns, taps.shape[1], -1, INNER // 2, 2)
            part = whole[:, at * width : (at + count) * width]
            part.copy_(factors.permute(0, 3, 4, 1, 5, 2, 6).flatten(1))
        at += count
    return Weight(whole, layout, groups, voxel, channels, kernel, stride, memory)


def _terms(group: TapGroup, voxel: int) -> int:
    """Products of each result, those of a tap on D and H rounded up to whole tiles."""
    d, h, w = group.counts
    return d * h * -(-w * voxel // INNER) * INNER if prod(group.counts) else 0
