"""Weights of the convolution on AMX tiles: bfloat16, as right factors of its products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

import torch
from torch import Tensor

from volseg.geometry import Triple
from volseg.nn.kernels.amx import packing
from volseg.nn.kernels.direct.weights import (
    TapGroup,
    as_stored,
    backward_groups,
    forward_groups,
    kernel_of,
)
from volseg.nn.kernels.jit import workers
from volseg.nn.kernels.jit.tiles import INNER, ROWS
from volseg.partition.amx_tiling import Pairing
from volseg.partition.direct_tiling import FLUSH_VOXELS, Reach
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
    return packed(stored.permute(2, 3, 4, 0, 1), forward_groups(kernel), layout, kernel, stride)


def pack_turned_weight(weight: Tensor, sources: Sequence[int], stride: Triple = (1, 1, 1)) -> Weight:
    """The weight of the input gradient, for `backward`: inputs and outputs exchanged, taps by the inputs they reach."""
    kernel, stored = kernel_of(weight), as_stored(weight.detach(), sources)
    layout = layout_for([padded_channels(s) for s in sources], [stored.shape[0]])
    return packed(stored.permute(2, 3, 4, 1, 0), backward_groups(kernel, stride), layout, kernel, stride)


def packed(
    by_tap: Tensor, groups: Sequence[TapGroup], layout: Registers, kernel: Triple, stride: Triple, inner: int = 1
) -> Weight:  # fmt: skip
    """A `Weight` from [kd, kh, kw, results' channels .., windows' channels ..] float32, of any strides.

    inner  dimensions of the windows' channels
    """
    last = by_tap.dim() - inner
    channels, voxel = prod(by_tap.shape[3:last]), prod(by_tap.shape[last:])
    terms = sum(_terms(group, voxel) for group in groups)
    memory = workers.take("weight", -(-channels * terms // 2))
    whole = memory.view(torch.bfloat16)[: channels * terms]
    packing.pack(by_tap.float(), inner, groups, layout.width, min(layout.width, ROWS), whole)
    return Weight(whole, layout, groups, voxel, channels, kernel, stride, memory)


def _terms(group: TapGroup, voxel: int) -> int:
    """Products of each result, those of a tap on D and H rounded up to whole tiles."""
    d, h, w = group.counts
    return d * h * -(-w * voxel // INNER) * INNER if prod(group.counts) else 0


_TERMS_TOGETHER = 4
"""Terms of a weight's gradient whose sums are in tiles at once."""


class Sums:
    """Sums over the volume of the products of a window's channels at each tap with a tile's channels, by thread.

    kernel   taps on D, H, W
    groups   of the taps, by the voxels of the tile that they meet
    voxel    channels of the windows, a multiple of 8
    sources  channels of the tile's tensors, as stored
    voxels   of this rank's block of results: whether so many can be added in float32
    """

    def __init__(
        self, kernel: Triple, groups: Sequence[TapGroup], voxel: int, sources: Sequence[int], voxels: int
    ) -> None:  # fmt: skip
        self.kernel, self.groups, self.voxel, self.tile = kernel, groups, voxel, sum(sources)
        self.columns = 8 if voxel % ROWS else ROWS
        self.blocks = -(-self.tile // ROWS)
        self.size = sum(self._terms(group) for group in groups) * self.blocks * ROWS * self.columns
        self._memory = workers.take("weight gradient", workers.count() * self.size)
        self.sums = self._memory[: workers.count() * self.size].view(workers.count(), self.size).zero_()
        long = voxels > 4 * FLUSH_VOXELS * workers.count()
        self.totals = torch.zeros(self.sums.shape, dtype=torch.float64) if long else None

    def _terms(self, group: TapGroup) -> int:
        """Some channels of the windows and a tap each, rounded up to those that are summed at once.

        Taps on W follow one another: they read mostly the same factors.
        """
        terms = prod(group.counts) * self.voxel // self.columns
        return -(-terms // _TERMS_TOGETHER) * _TERMS_TOGETHER

    def term_fields(self, pairing: Pairing, reach: Reach) -> dict[str, object]:
        """The `outer.Terms` of blocks of such a pairing, whose windows reach so far."""
        table: list[int] = []
        numbers = []
        phases, step = reach.phases, reach.step[1]
        for group in self.groups:
            offsets = [
                (((z * phases + y % step) * pairing.shifts + x) * pairing.lines + y // step)
                * pairing.pairs
                * self.voxel
                + channel
                for channel in range(0, self.voxel, self.columns)
                for z, y, x in product(*([place for place, _ in places] for places in group.places))
            ]
            terms = self._terms(group)
            numbers.append([terms, len(table), *group.rest])
            table += offsets + [0] * (terms - len(offsets))
        return {"table": torch.tensor(table or [0]), "numbers": torch.tensor(numbers), "count": len(self.groups)}

    def finish_to(self, out: Tensor, stored: Sequence[int]) -> None:
        """The sums of all threads. Gives their memory back.

        out     [windows' channels, tile's channels, kd, kh, kw] float32, of any strides
        stored  which of the tile's channels are wanted
        """
        whole = self.sums if self.totals is None else self.totals
        added = (whole[0] if len(whole) == 1 else whole.sum(0)).float()
        at = 0
        for group in self.groups:
            terms = self._terms(group)
            if terms:
                packing.unpack(added[at:], group, terms, self.columns, stored, out)
            at += self.blocks * terms * ROWS * self.columns
        workers.give("weight gradient", self._memory)


class WeightSums(Sums):
    """The sums over the volume that a convolution's weight gradient is made from, by thread.

    weight   [K, C, kd, kh, kw]
    sources  C cut into the inputs' channels
    voxels   of this rank's block of outputs: whether so many can be added in float32
    stride   of the convolution
    """

    def __init__(
        self, weight: Tensor, sources: Sequence[int], voxels: int, stride: Triple = (1, 1, 1)
    ) -> None:  # fmt: skip
        kernel, stored = kernel_of(weight), [padded_channels(s) for s in sources]
        super().__init__(kernel, backward_groups(kernel, stride), padded_channels(weight.shape[0]), stored, voxels)
        self._shape, self._sources = (weight.shape[0], weight.shape[1]), list(sources)

    def finish(self) -> Tensor:
        """[K, C, kd, kh, kw] float32: this rank's part of the gradient. Gives the sums' memory back."""
        gradient, stored, first = torch.empty(*self._shape, *self.kernel), list[int](), 0
        for channels in self._sources:
            stored += range(first, first + channels)
            first += padded_channels(channels)
        self.finish_to(gradient, stored)
        return gradient
