"""Counts of the voxels of a case on its own grid, where the network sees another one, or not the whole of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from volseg.geometry import Box
from volseg.models.bringing_back import bring_back, maps_of_box
from volseg.models.fused import FusedNetwork
from volseg.nn.losses import IGNORE
from volseg.program.kinds import Kind
from volseg.training.data import CaseBlocks, Sample
from volseg.volumes.dataset import Case
from volseg.volumes.regions import Region, labels_of
from volseg.volumes.scan import Scan
from volseg.volumes.volume import Volume

_PLANES = 8


class Counting:
    """Counts the voxels of what has a Dice.

    labels  of the data set, the background included
    scored  how many have a Dice: the regions, or the labels but the background
    first   which of the network's outputs is the first of these
    """

    def __init__(self, labels: int, regions: Sequence[Region]) -> None:
        self._labels, self.scored = labels, len(regions) or labels - 1
        self.first = 0 if regions else 1
        self._members = [np.isin(np.arange(labels), region.values) for region in regions]

    def __call__(self, found: np.ndarray, true: np.ndarray) -> np.ndarray:
        """[3, scored]: voxels of each in a mask, in the labels, and in both."""
        if self._members:
            pairs = np.bincount(true.astype(np.int64) * self._labels + found, minlength=self._labels**2)
            square = pairs.reshape(self._labels, self._labels)
            rows = [(square[:, m].sum(), square[m].sum(), square[np.ix_(m, m)].sum()) for m in self._members]
            return np.array(rows).T
        parts = (found, true, true[true == found])
        return np.stack([np.bincount(part.reshape(-1), minlength=self._labels)[1 : self._labels] for part in parts])


def counts_on_own_grid(
    twin: FusedNetwork, blocks: CaseBlocks, sample: Sample, scan: Scan, labels: Volume, mask: Tensor, count: Counting
) -> np.ndarray:
    """Of this rank's box of the mask that `segment` would write, as far as the network sees the scan. Collective.

    A few planes of it exist at a time.

    labels  on the grid of that mask, in the network's order
    mask  filled: on the grid that the network sees, for pictures
    """
    head, regions, meter = twin.twin.logits_layer, blocks.dataset.regions, blocks.grid.communicator.meter
    weight, bias = head.weight.cpu(), None if head.bias is None else head.bias.cpu()
    assert scan.back is not None
    box, shape = scan.seen_box, mask.shape[1:]
    far = [int(stop < whole) for stop, whole in zip(scan.block.stop, scan.layout.shape, strict=True)]
    sides = (shape[0] + far[0], shape[1] + far[1], shape[2] + far[2])
    on_d, on_h, on_w = maps_of_box(scan.back, box, scan.block, sides)
    counts = np.zeros((3, count.scored), dtype=np.int64)
    error: Exception | None = None
    whole: np.ndarray | None = None
    if labels.whole_slices and not labels.rising_slices:  # each run of planes would cost as much as the file
        with blocks.grid.communicator.together():
            whole = labels.read(box)
    for (first, last), made in twin.feature_slabs(sample.image.to(twin.device), scan.layout):
        with meter.doing(Kind.HEAD):
            inside = made[:, :, : last - first, : shape[1], : shape[2]]
            labels_of(head(inside)[0].cpu().numpy(), regions, mask[0, first:last].numpy())
        start, stop = (int(n) for n in np.searchsorted(on_d.low, (first, last)))
        planes = Box((box.start[0] + start, *box.start[1:]), (box.start[0] + stop, *box.stop[1:]))
        if not planes.size or error is not None:
            continue
        found = np.empty(planes.shape, dtype=np.uint8)
        with meter.doing(Kind.HEAD):
            features = made.cpu()
            maps = [on_d[start:stop].relative_to(first, features.shape[2]), on_h, on_w]
            bring_back(features, weight, bias, maps, found, regions=regions)
        try:
            with meter.doing(Kind.FILES):
                stored = labels.read(planes) if whole is None else whole[planes.relative_to(box).slices]
                true = blocks.target_of(stored, labels.path)
        except Exception as caught:  # the other ranks' next exchange waits for this rank
            error = caught
            continue
        with meter.doing(Kind.LABELS):
            valid = true != IGNORE
            counts += count(found[valid], true[valid])
    labels.close()
    blocks.grid.communicator.raise_together(error)
    return counts


def counts_outside(blocks: CaseBlocks, case: Case, count: Counting) -> np.ndarray:
    """Of this rank's share of what the network does not see of a case, which is background in its mask. Collective.

    Zeros where the network sees all of it, or sees it halved.
    """
    counts = np.zeros((3, count.scored), dtype=np.int64)
    view, communicator = blocks.sight.views.get(case.name), blocks.grid.communicator
    if view is None or case.label is None or blocks.level:
        return counts
    labels = blocks.dataset.open_labels(case)
    d, h, w = labels.shape
    crop = view.crop_in(labels.space)
    if crop == Box.whole(labels.shape):
        return counts
    first, last = (d * n // communicator.size for n in (communicator.rank, communicator.rank + 1))
    with communicator.together():
        for start in range(first, last, _PLANES):
            box = Box((start, 0, 0), (min(start + _PLANES, last), h, w))
            true = blocks.target_of(labels.read(box), labels.path)
            there = box.intersect(crop)
            if there.size:
                true[there.relative_to(box).slices] = IGNORE
            true = true[true != IGNORE]
            counts += count(np.zeros_like(true), true)
        labels.close()
    return counts
