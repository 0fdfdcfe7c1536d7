"""How well the network does on whole volumes that it was not trained on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from volseg.config import TrainingConfig
from volseg.geometry import Box
from volseg.models.bringing_back import bring_back, maps_of_box
from volseg.models.fused import FusedNetwork
from volseg.nn.losses import IGNORE, dice_from_counts
from volseg.program.kinds import Kind
from volseg.training.data import CaseBlocks, Sample
from volseg.volumes.dataset import Case
from volseg.volumes.regions import Region, labels_of
from volseg.volumes.scan import Scan
from volseg.volumes.volume import Volume

Dice = float | None  # None where neither mask nor labels hold the class

Look = Callable[[Case, Sample, Tensor], None]
"""Gets a case, this rank's block of it, and of its mask [1, d, h, w] uint8; with any class in the padding."""


@dataclass(frozen=True)
class Validation:
    """Dice of whole-volume masks, on the scans' own grids as `volseg evaluate` takes it; at coarser levels of a
    multigrid run, on the grid that the network sees.

    mean      over the classes; None where there is no foreground at all
    by_class  of each foreground class, by value from 1 on, or of each region: the mean over the cases that have it
    by_case   case name -> Dice of each of them
    level     of a multigrid run, at which it was measured; 0 is the finest

    Means are taken as `volseg evaluate` and nnU-Net take them: a class that neither mask nor labels hold says nothing
    about a case, one that the mask alone holds counts as 0.
    """

    mean: Dice
    by_class: tuple[Dice, ...]
    by_case: Mapping[str, tuple[Dice, ...]]
    level: int = 0

    @property
    def case_means(self) -> dict[str, float]:
        """Mean over its foreground classes, by case name; without cases that have none."""
        means = {name: _mean(classes) for name, classes in self.by_case.items()}
        return {name: dice for name, dice in means.items() if dice is not None}


def is_validation_due(config: TrainingConfig, steps: int, in_epoch: int) -> bool:
    """Whether the held-out cases are to be evaluated after `steps` steps: after each few epochs and after the last."""
    epochs, rest = divmod(steps, in_epoch)
    return rest == 0 and (epochs % config.validate_every == 0 or epochs == config.epochs)


@torch.no_grad()
def validate(
    twin: FusedNetwork, blocks: CaseBlocks, cases: Sequence[Case], look: Look | None = None
) -> Validation:  # fmt: skip
    """Dice of the whole-volume masks of `cases`. Collective.

    look  called for each case on all ranks of the replica that has it, in the order of its cases; it may communicate
          over the replica's grid

    Each replica segments its share; means are taken in the order of the cases, whoever had them.
    """
    twin.eval()
    meter, regions = blocks.grid.communicator.meter, blocks.dataset.regions
    count = Counting(len(blocks.dataset.labels), regions)
    scores = np.zeros((2, len(cases), count.scored))  # Dice of each case and class, and whether it has one
    for place, case in blocks.replicas.share(cases):
        with meter.doing(Kind.FILES):
            sample = blocks.load(case)
        with blocks.grid.communicator.together():
            own = blocks.on_own_grid(case)
        mask = torch.empty(sample.target.shape, dtype=torch.uint8)
        if own is None:
            for start, logits in twin.logit_slabs(sample.image):
                with meter.doing(Kind.HEAD):
                    labels_of(logits[0].numpy(), regions, mask[0, start : start + logits.shape[2]].numpy())
            valid = sample.target != IGNORE
            with meter.doing(Kind.LABELS):
                counts = count(mask[valid].numpy(), sample.target[valid].numpy())
        else:
            counts = _counts_on_own_grid(twin, blocks, sample, *own, mask, count)
        counts = blocks.grid.communicator.reduce_all(counts)
        dice = dice_from_counts(*counts)
        dice[[number - count.first for number in blocks.dataset.unknown_in(case)]] = np.nan
        scores[:, place] = np.nan_to_num(dice), ~np.isnan(dice)
        if look is not None:
            look(case, sample, mask)
    scores = blocks.replicas.across.reduce_all(scores)  # one replica has a case, the others zeros: any order, same bits
    rows = [
        tuple(dice if there else None for dice, there in zip(*case, strict=True))
        for case in zip(scores[0].tolist(), scores[1].tolist(), strict=True)
    ]
    by_class = tuple(_mean([row[number] for row in rows]) for number in range(count.scored))
    by_case = {case.name: row for case, row in zip(cases, rows, strict=True)}
    return Validation(_mean(by_class), by_class, by_case, blocks.level)


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


def _counts_on_own_grid(
    twin: FusedNetwork, blocks: CaseBlocks, sample: Sample, scan: Scan, labels: Volume, mask: Tensor, count: Counting
) -> np.ndarray:
    """Of this rank's box of the mask that `segment` would write; a few planes of it exist at a time. Collective.

    mask  filled: on the grid that the network sees, for pictures
    """
    head, regions, meter = twin.twin.logits_layer, blocks.dataset.regions, blocks.grid.communicator.meter
    assert scan.back is not None
    box, shape = scan.mask_box, mask.shape[1:]
    far = [int(stop < whole) for stop, whole in zip(scan.block.stop, scan.layout.shape, strict=True)]
    sides = (shape[0] + far[0], shape[1] + far[1], shape[2] + far[2])
    on_d, on_h, on_w = maps_of_box(scan.back, box, scan.block, sides)
    counts = np.zeros((3, count.scored), dtype=np.int64)
    error: Exception | None = None
    whole: np.ndarray | None = None
    if labels.whole_slices and not labels.rising_slices:  # each run of planes would cost as much as the file
        with blocks.grid.communicator.together():
            whole = labels.read(box)
    for (first, last), features in twin.feature_slabs(sample.image, scan.layout):
        with meter.doing(Kind.HEAD):
            inside = features[:, :, : last - first, : shape[1], : shape[2]]
            labels_of(head(inside)[0].numpy(), regions, mask[0, first:last].numpy())
        start, stop = (int(n) for n in np.searchsorted(on_d.low, (first, last)))
        planes = Box((box.start[0] + start, *box.start[1:]), (box.start[0] + stop, *box.stop[1:]))
        if not planes.size or error is not None:
            continue
        found = np.empty(planes.shape, dtype=np.uint8)
        with meter.doing(Kind.HEAD):
            maps = [on_d[start:stop].relative_to(first, features.shape[2]), on_h, on_w]
            bring_back(features, head.weight, head.bias, maps, found, regions=regions)
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


def _mean(values: Sequence[Dice]) -> Dice:
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers) if numbers else None
