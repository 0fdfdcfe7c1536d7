"""The process grids of a network's levels, and what travels between a grid and a coarser one.

Where a level is agglomerated (`partition.agglomeration`), the blocks of a group of ranks make one block of the rank
that leads it. Nothing is added up on the way, so the transpose of gathering is scattering.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from volseg.distributed.arrays import as_array
from volseg.distributed.grid import ProcessGrid
from volseg.geometry import Box, Triple
from volseg.partition.agglomeration import NONE, Agglomeration, group_boxes, group_size, leads, message_planes
from volseg.partition.layout import Layout
from volseg.partition.slabs import ranges

Room = Callable[[Triple, int], Tensor]
"""Gives contiguous memory [d, h, w, C] for a message, good until the next one."""


class Merge:
    """From a grid to a coarser one of `dims`, and back. To make one is collective over the finer grid.

    finer    the grid whose blocks are merged
    coarser  the grid of those who lead a group; None on the other ranks
    group    the ranks whose blocks make one; its rank 0 leads
    """

    def __init__(self, finer: ProcessGrid, dims: Triple) -> None:
        self.finer = finer
        self._size = group_size(finer.dims, dims)
        lead = leads(finer.coords, self._size)
        leader = tuple(c // n for c, n in zip(finer.coords, self._size, strict=True))
        number = (leader[0] * dims[1] + leader[1]) * dims[2] + leader[2]
        rank = finer.communicator.rank
        cut = (finer.dims, dims)
        self.group = finer.communicator.split_once(("group", cut), number, rank)
        leaders = finer.communicator.split_once(("leaders", cut), int(lead), rank)
        self.coarser = ProcessGrid(leaders, dims) if lead else None

    def gather(self, layout: Layout, own: Tensor, whole: Tensor | None, room: Room) -> None:
        """Put the group's blocks together on its leader. Collective over the group.

        layout  of the finer grid
        own     [d, h, w, C]     this rank's block
        whole   [d', h', w', C]  the coarser grid's block, which is filled; None where this rank does not lead
        """
        boxes = self._boxes(layout)
        if whole is None:
            for part in _messages(own, own.shape[3]):
                packed = _packed(part, room).copy_(part)
                self.group.send_receive([(0, as_array(packed))], [])
            return
        whole[boxes[0].slices] = own
        for rank, box in enumerate(boxes[1:], start=1):
            for part in _messages(whole[box.slices], own.shape[3]):
                packed = _packed(part, room)
                self.group.send_receive([], [(rank, as_array(packed))])
                part.copy_(packed)

    def scatter(self, layout: Layout, whole: Tensor | None, own: Tensor, room: Room) -> None:
        """The transpose of `gather`: fill each rank's block from its leader's. Collective over the group."""
        boxes = self._boxes(layout)
        if whole is None:
            for part in _messages(own, own.shape[3]):
                packed = _packed(part, room)
                self.group.send_receive([], [(0, as_array(packed))])
                part.copy_(packed)
            return
        own.copy_(whole[boxes[0].slices])
        for rank, box in enumerate(boxes[1:], start=1):
            for part in _messages(whole[box.slices], own.shape[3]):
                packed = _packed(part, room).copy_(part)
                self.group.send_receive([(rank, as_array(packed))], [])

    def share(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite small tensors of the group's ranks by its leader's. Collective over the group.

        As many on all of them; where there are none, nothing happens.
        """
        if not tensors:
            return
        if self.group.is_root:
            self.group.broadcast([tensor.cpu().numpy() for tensor in tensors])
            return
        for tensor, value in zip(tensors, self.group.broadcast(None), strict=True):
            tensor.copy_(torch.from_numpy(np.asarray(value)))

    def _boxes(self, layout: Layout) -> list[Box]:
        return group_boxes(layout, self.finer.coords, self._size)


def _messages(block: Tensor, channels: int) -> list[Tensor]:
    """A block in pieces of some planes, which both sides cut alike."""
    d, h, w = block.shape[:3]
    return [block[first:last] for first, last in ranges(d, message_planes(h * w * channels))]


def _packed(part: Tensor, room: Room) -> Tensor:
    d, h, w, channels = part.shape
    return room((d, h, w), channels)


class LevelGrids:
    """The process grids of a network's levels. To make them is collective.

    agglomeration  what they follow from
    grids          of the levels that this rank takes part in, finest first
    merges         by the first level of a coarser grid, where this rank leads a group or is led

    Raises PartitionError, on all ranks, where the agglomeration does not suit levels or grid.
    """

    def __init__(self, grid: ProcessGrid, levels: int, agglomeration: Agglomeration = NONE) -> None:
        agglomeration.check(levels, grid.dims)
        self.agglomeration = agglomeration
        self.grids: list[ProcessGrid] = [grid]
        self.merges: dict[int, Merge] = {}
        for level in range(1, levels + 1):
            here, dims = self.grids[-1], agglomeration.dims_at(level, grid.dims)
            if dims == here.dims:
                self.grids.append(here)
                continue
            merge = self.merges[level] = Merge(here, dims)
            if merge.coarser is None:
                return
            self.grids.append(merge.coarser)

    @property
    def last(self) -> int:
        """The deepest level that this rank takes part in."""
        return len(self.grids) - 1
