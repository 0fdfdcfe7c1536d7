"""Connected components of a mask that lies on many ranks, without ever gathering it.

Each rank labels its own block (cc3d), fetches the neighbours' voxels that touch it, and notes which of its components
go on over there. Only those pairs travel to all ranks, and every rank merges them alike. A component is known by its
first voxel in the C order of the whole volume, so its name does not depend on who holds it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import cc3d
import numpy as np

from volseg.distributed.communicator import Communicator
from volseg.errors import ConfigError
from volseg.geometry import Box, Triple
from volseg.program.kinds import Kind

# Connectivity -> on how many axes a neighbour may differ: over faces; edges too; corners too.
CONNECTIVITIES = {6: 1, 18: 2, 26: 3}
_SLAB = 2**20  # voxels handled at a time, where a pass needs a copy
_RUN = 256  # voxels of which one maximum is taken, in the search for first voxels


@dataclass(frozen=True, eq=False)
class Components:
    """The components that have voxels in this rank's block.

    labels  [d, h, w] uint16 or uint32: for each voxel the entry of the tables below; 0 is background
    value   [n + 1] of the mask's dtype: the component's label in the mask; 0 for entry 0
    first   [n + 1] int64: C index, in the whole volume, of the component's first voxel; -1 for entry 0. Two entries
            with the same one are parts of one component, here or on two ranks
    owned   [n + 1] bool: whether this entry holds that first voxel; true for exactly one entry of all ranks
    """

    labels: np.ndarray
    value: np.ndarray
    first: np.ndarray
    owned: np.ndarray
    communicator: Communicator
    _groups: _Groups

    def sizes(self) -> tuple[np.ndarray, np.ndarray]:
        """Voxels of each entry in this block, and of its whole component: int64, [n + 1] each. Collective."""
        here = _voxels(self.labels, len(self.value))
        return here, self.totals(here)

    def totals(self, table: np.ndarray) -> np.ndarray:
        """For each entry its whole component's sum of `table`, int64 [n + 1], on all ranks. Collective."""
        whole = table.copy()
        whole[self._groups.entries] = self._groups.reduce(table, "sum", self.communicator)
        return whole


@dataclass(frozen=True, eq=False)
class _Groups:
    """Which entries of this rank belong to components that cross a cut.

    entries  [m] this rank's entries that do
    groups   [m] their component, numbered alike on all ranks
    count    how many such components there are on all ranks together
    """

    entries: np.ndarray
    groups: np.ndarray
    count: int

    def reduce(self, table: np.ndarray, how: str, communicator: Communicator) -> np.ndarray:
        """For each of `entries` its component's sum or minimum of `table` [n + 1] over all ranks. Collective."""
        table = table[self.entries]
        if self.count == 0:
            return table
        if how == "sum":
            values = np.zeros(self.count, dtype=np.int64)
            np.add.at(values, self.groups, table)
            communicator.reduce_all_in_place(values, "sum")
        else:
            values = np.full(self.count, np.iinfo(np.int64).max)
            np.minimum.at(values, self.groups, table)
            communicator.reduce_all_in_place(values, "min")
        reduced: np.ndarray = values[self.groups]
        return reduced


def connected_components(
    mask: np.ndarray, boxes: Sequence[Box], communicator: Communicator, connectivity: int = 26
) -> Components:
    """The components of equal label of the mask that the ranks hold together. Collective.

    mask          [d, h, w] uint8 or uint16: this rank's block; 0 is background
    boxes         by rank: where each block lies; any boxes that tile the volume, some may be empty
    connectivity  6 (faces), 18 (and edges) or 26 (and corners)

    Memory: 2 or 4 bytes a voxel of the block for the labels; on all ranks about 100 bytes for each of the volume's
    components that cross a cut. The partition is that of `cc3d.connected_components` on the whole mask.
    Raises ConfigError for another connectivity.
    """
    check_connectivity(connectivity)
    box = boxes[communicator.rank]
    whole = _tiled(boxes)
    assert mask.shape == box.shape, f"a block of {mask.shape} voxels for the box {box}"
    mask = np.ascontiguousarray(mask)
    labels, start = _label_block(mask, connectivity)
    value = np.zeros(len(start) + 1, dtype=mask.dtype)
    value[1:] = mask.reshape(-1)[start]
    first = np.full(len(start) + 1, -1, dtype=np.int64)
    inside = np.unravel_index(start, box.shape) if mask.size else (start, start, start)
    d, h, w = (index + offset for index, offset in zip(inside, box.start, strict=True))
    first[1:] = (d * whole[1] + h) * whole[2] + w

    groups = _merge_over_cuts(mask, labels, len(start), boxes, communicator, connectivity)
    local = first.copy()
    first[groups.entries] = groups.reduce(first, "min", communicator)
    owned = first == local
    owned[0] = False
    return Components(labels=labels, value=value, first=first, owned=owned, communicator=communicator, _groups=groups)


def check_connectivity(connectivity: int) -> None:
    """Raise ConfigError unless it is 6, 18 or 26."""
    if connectivity not in CONNECTIVITIES:
        raise ConfigError(f"connectivity {connectivity} is not one of 6 (faces), 18 (and edges), 26 (and corners)")


def _tiled(boxes: Sequence[Box]) -> Triple:
    """The sides of the volume that `boxes` tile."""
    full = [box for box in boxes if box.size] or [Box((0, 0, 0), (0, 0, 0))]
    d, h, w = (max(box.stop[axis] for box in full) for axis in range(3))
    assert sum(box.size for box in full) == d * h * w, "the boxes do not tile the volume"
    return d, h, w


def _label_block(mask: np.ndarray, connectivity: int) -> tuple[np.ndarray, np.ndarray]:
    """The block's own components, 1 to n by their first voxel in C order, and those voxels' flat indices, int64 [n]."""
    if not mask.size:
        return np.zeros(mask.shape, dtype=np.uint16), np.zeros(0, dtype=np.int64)
    labels, count = cc3d.connected_components(mask, connectivity=connectivity, return_N=True)
    assert count < 2**32
    return labels, _first_voxels(labels.reshape(-1), int(count))


def _first_voxels(flat: np.ndarray, count: int) -> np.ndarray:
    """Where each of the numbers 1 to `count` occurs first in `flat`, if they occur in rising order, as cc3d has them.

    A run of voxels in which no new number turns up (its maximum is not above those before) is not looked at again.
    """
    full = flat.size // _RUN
    runs = flat[: full * _RUN].reshape(full, _RUN)
    highest = np.concatenate([np.zeros(1, dtype=flat.dtype), np.maximum.accumulate(runs.max(axis=1))])
    news = np.flatnonzero(highest[1:] > highest[:-1])
    found = [np.zeros(0, dtype=np.int64)]
    for batch in np.array_split(news, 1 + len(news) * _RUN // _SLAB):
        if len(batch):
            place = _rises(runs[batch].reshape(-1), highest[batch[0]])
            found.append(batch[place // _RUN] * _RUN + place % _RUN)
    found.append(full * _RUN + _rises(flat[full * _RUN :], highest[-1]))
    first: np.ndarray = np.concatenate(found)
    assert np.array_equal(flat[first], np.arange(1, count + 1)), "cc3d did not number components by their first voxels"
    return first


def _rises(flat: np.ndarray, before: int) -> np.ndarray:
    """Where `flat` exceeds `before` and all that stands in front."""
    highest = np.maximum.accumulate(np.insert(flat, 0, before))
    return np.flatnonzero(highest[1:] > highest[:-1])


def _voxels(labels: np.ndarray, entries: int) -> np.ndarray:
    """How often each of 0 .. entries - 1 occurs: np.bincount, by slabs, because it copies to int64."""
    flat = labels.reshape(-1)
    counts = np.zeros(entries, dtype=np.int64)
    step = max(_SLAB, entries)
    for start in range(0, flat.size, step):
        part = np.bincount(flat[start : start + step])
        counts[: len(part)] += part
    return counts


def _merge_over_cuts(
    mask: np.ndarray,
    labels: np.ndarray,
    count: int,
    boxes: Sequence[Box],
    communicator: Communicator,
    connectivity: int,
) -> _Groups:
    """Find what goes on beyond the cuts, and merge it, alike on all ranks. Collective."""
    box = boxes[communicator.rank]
    # A node is an entry of some rank, entries counted through the ranks.
    counts = communicator.gather_all(count)
    offsets = np.cumsum([0, *counts], dtype=np.int64)
    mine = int(offsets[communicator.rank])
    values = _fetch_shells(mask, mask.dtype, boxes, communicator)
    numbers = _fetch_shells(labels, np.dtype(np.uint32), boxes, communicator)
    links = [np.zeros((0, 2), dtype=np.int64)]
    for other, theirs in values.items():
        piece = _touching(box, boxes[other])
        pairs = _links(mask, labels, box, theirs, numbers[other], piece, connectivity)
        links.append(pairs + np.array([mine, offsets[other]]) - 1)
    nodes, roots = merge(np.concatenate(links))
    # A tree says as much as all links of a group, and has no more links than nodes.
    tree = np.stack([nodes, roots], axis=1)[nodes != roots]
    nodes, roots = merge(np.concatenate(communicator.gather_all(tree)))
    names, groups = np.unique(roots, return_inverse=True)
    own = (nodes >= mine) & (nodes < mine + count)
    return _Groups(nodes[own] - mine + 1, groups[own], len(names))


def _touching(box: Box, other: Box) -> Box:
    """The voxels of `other` that touch `box`, over a face, edge or corner."""
    if not box.size or not other.size:
        return Box((0, 0, 0), (0, 0, 0))
    (a, b, c), (d, e, f) = box.start, box.stop
    return Box((a - 1, b - 1, c - 1), (d + 1, e + 1, f + 1)).intersect(other)


def _fetch_shells(
    array: np.ndarray, dtype: np.dtype[Any], boxes: Sequence[Box], communicator: Communicator
) -> dict[int, np.ndarray]:
    """By higher rank: its voxels that touch this rank's box, as `dtype`. Collective. (The lower of two compares.)"""
    rank = communicator.rank
    mine = boxes[rank]
    sends = []
    for other in range(rank):
        piece = _touching(boxes[other], mine)
        if piece.size:
            sends.append((other, np.ascontiguousarray(array[piece.relative_to(mine).slices], dtype)))
    received = {}
    for other in range(rank + 1, communicator.size):
        piece = _touching(mine, boxes[other])
        if piece.size:
            received[other] = np.empty(piece.shape, dtype)
    with communicator.meter.doing(Kind.HALO):
        communicator.send_receive(sends, list(received.items()))
    return received


def _links(
    mask: np.ndarray,
    labels: np.ndarray,
    box: Box,
    values: np.ndarray,
    numbers: np.ndarray,
    piece: Box,
    connectivity: int,
) -> np.ndarray:
    """The (own entry, other's entry) pairs that touch and have one label, each once: int64 [m, 2].

    mask, labels     [d, h, w] this rank's block, at `box`
    values, numbers  the other rank's mask and entries at `piece`, which touches `box`
    """
    found = [np.zeros(0, dtype=np.uint64)]
    for offset in _offsets(connectivity):
        own = piece.shift(offset).intersect(box)
        if not own.size:
            continue
        there = own.shift((-offset[0], -offset[1], -offset[2])).relative_to(piece).slices
        here = own.relative_to(box).slices
        same = (mask[here] == values[there]) & (values[there] != 0)
        # Entries are below 2^32, so a pair is one number; neighbouring voxels mostly repeat it.
        pair = labels[here][same].astype(np.uint64) << np.uint64(32) | numbers[there][same]
        found.append(pair[np.concatenate([[True], pair[1:] != pair[:-1]])] if len(pair) else pair)
    pairs = np.unique(np.concatenate(found))
    return np.stack([pairs >> np.uint64(32), pairs & np.uint64(2**32 - 1)], axis=1).astype(np.int64)


def _offsets(connectivity: int) -> Iterator[Triple]:
    for d, h, w in product((-1, 0, 1), repeat=3):
        if 0 < abs(d) + abs(h) + abs(w) <= CONNECTIVITIES[connectivity]:
            yield d, h, w


def merge(links: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Union-find over whole arrays: the nodes that occur in `links` [m, 2], rising, and each one's smallest relative.

    Every root with a smaller neighbour hangs itself below the smallest, all at once; paths are halved until they are
    flat; links inside one tree drop out (after Shiloach and Vishkin 1982). Order of the links does not matter.
    """
    nodes, ends = np.unique(links, return_inverse=True)
    ends = ends.reshape(-1, 2)
    parents = np.arange(len(nodes))
    while True:
        ends = parents[ends]
        ends = ends[ends[:, 0] != ends[:, 1]]
        if not len(ends):
            return nodes, nodes[parents]
        np.minimum.at(parents, ends.max(axis=1), ends.min(axis=1))
        while True:
            shorter = parents[parents]
            if np.array_equal(shorter, parents):
                break
            parents = shorter
