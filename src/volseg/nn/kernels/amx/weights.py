"""Weights of the convolution on AMX tiles: bfloat16, as right factors of its products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

import torch
from torch import Tensor

from volseg.geometry import Triple
from volseg.nn.kernels.direct.weights import (
    TapGroup,
    as_stored,
    backward_groups,
    chosen,
    forward_groups,
    kernel_of,
    without_padding,
)
from volseg.nn.kernels.jit import workers
from volseg.nn.kernels.jit.tiles import INNER, ROWS
from volseg.partition.amx_tiling import Pairing
from volseg.partition.direct_tiling import FLUSH_VOXELS
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


_TERMS_TOGETHER = 4
"""Terms of a weight's gradient whose sums are in tiles at once."""


class WeightSums:
    """The sums over the volume that a weight's gradient is made from, by thread.

    weight   [K, C, kd, kh, kw]
    sources  C cut into the inputs' channels
    voxels   of this rank's block of outputs: whether so many can be added in float32
    stride   of the convolution
    """

    def __init__(
        self, weight: Tensor, sources: Sequence[int], voxels: int, stride: Triple = (1, 1, 1)
    ) -> None:  # fmt: skip
        self.kernel, self.stride = kernel_of(weight), stride
        self.groups = backward_groups(self.kernel, stride)
        self.shape, self.sources = (weight.shape[0], weight.shape[1]), list(sources)
        stored = [padded_channels(s) for s in sources]
        self.voxel, self.tile = padded_channels(weight.shape[0]), sum(stored)
        self.layout = layout_for(stored, [self.voxel])
        self.columns = 8 if self.voxel % ROWS else ROWS
        self.blocks = -(-self.tile // ROWS)
        self.size = sum(self._terms(group) for group in self.groups) * self.blocks * ROWS * self.columns
        self._memory = workers.take("weight gradient", workers.count() * self.size)
        self.sums = self._memory[: workers.count() * self.size].view(workers.count(), self.size).zero_()
        long = voxels > 4 * FLUSH_VOXELS * workers.count()
        self.totals = torch.zeros(self.sums.shape, dtype=torch.float64) if long else None

    def _terms(self, group: TapGroup) -> int:
        """A tap and some channels of the windows each; so many are summed at once."""
        terms = prod(group.counts) * self.voxel // self.columns
        return -(-terms // _TERMS_TOGETHER) * _TERMS_TOGETHER

    def term_fields(self, pairing: Pairing) -> dict[str, object]:
        """The `outer.Terms` of blocks of such a pairing."""
        table: list[int] = []
        numbers = []
        for group in self.groups:
            offsets = [
                ((z * pairing.shifts + x) * pairing.lines + y) * pairing.pairs * self.voxel + channel
                for z, y, x in product(*([place for place, _ in places] for places in group.places))
                for channel in range(0, self.voxel, self.columns)
            ]
            terms = self._terms(group)
            numbers.append([terms, len(table), *group.rest])
            table += offsets + [0] * (terms - len(offsets))
        return {"table": torch.tensor(table or [0]), "numbers": torch.tensor(numbers), "count": len(self.groups)}

    def finish(self) -> Tensor:
        """[K, C, kd, kh, kw]: this rank's part of the gradient. Gives the sums' memory back."""
        whole = self.sums if self.totals is None else self.totals
        added = whole[0] if len(whole) == 1 else whole.sum(0)
        by_tap = torch.empty(*self.kernel, self.voxel, self.blocks * ROWS)
        at = 0
        for group in self.groups:
            terms, (d, h, w) = self._terms(group), group.counts
            size = self.blocks * terms * ROWS * self.columns
            if terms:
                part = added[at : at + size].view(self.blocks, terms, ROWS, self.columns)
                part = part[:, : d * h * w * self.voxel // self.columns].unflatten(1, (d, h, w, -1))
                z, y, x = (torch.tensor(group.taps(axis)) for axis in range(3))
                values = part.permute(1, 2, 3, 4, 6, 0, 5).reshape(d, h, w, self.voxel, -1)
                by_tap[z[:, None, None], y[:, None], x] = values.to(by_tap.dtype)
            at += size
        workers.give("weight gradient", self._memory)
        return without_padding(by_tap[..., : self.tile].permute(3, 4, 0, 1, 2), self.shape, self.sources)
