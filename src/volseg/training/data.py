"""The cases of a data set, each rank its own blocks of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from volseg.distributed.grid import ProcessGrid
from volseg.distributed.redistribute import redistribute
from volseg.distributed.replicas import Replicas
from volseg.errors import PartitionError
from volseg.geometry import Box, PerAxis
from volseg.nn.losses import IGNORE
from volseg.training.sight import Sight
from volseg.volumes.coarsening import coarsened
from volseg.volumes.dataset import Case, Dataset, check_labels
from volseg.volumes.imported_scan import ImportedView
from volseg.volumes.intensity import UNCHANGED, ChannelScheme, Normalization
from volseg.volumes.resampling import Spacing
from volseg.volumes.scan import (
    Scan,
    lay_out_seen,
    normalized_block,
    own_normalization,
)
from volseg.volumes.volume import Volume

CACHE_BYTES = 2**30


@dataclass(frozen=True)
class Sample:
    """One case, ready to train on: this rank's block of it.

    image   [1, C, d, h, w] float32, channels-last
    target  [1, d, h, w] uint8, IGNORE in the padding and where nobody has labelled
    voxels  of the whole padded volume
    """

    image: Tensor
    target: Tensor
    voxels: int


class CaseBlocks:
    """This rank's blocks of the cases, checked and kept in memory as stored while they fit `CACHE_BYTES`.

    grid      of this rank's replica
    replicas  that share the cases; None: the grid has all ranks
    spacing   mm (canonical D, H, W) at which the network sees the cases; None: their own
    schemes   how each channel is normalised; to be set before `load`
    level     halvings of the resolution at which the volumes are seen
    views     of the cases, by name, where they are seen as another tool reads them, normalised; else empty
    """

    def __init__(
        self, dataset: Dataset, cases: Sequence[Case], grid: ProcessGrid, multiple: PerAxis,
        replicas: Replicas | None = None, level: int = 0, spacing: Spacing | None = None,
        views: Mapping[str, ImportedView] | None = None,
    ) -> None:  # fmt: skip
        self.sight = Sight(dataset, spacing, views or {})
        self.dataset, self.cases, self.grid, self.multiple = dataset, tuple(cases), grid, multiple
        self.level = level
        self.replicas = replicas or Replicas(grid.communicator)
        self.schemes: tuple[ChannelScheme, ...] = ()
        self._scans: dict[str, Scan] = {}
        self._labels: dict[str, tuple[Volume, ...]] = {}  # what is validated with; where they are drawn, each reader's
        self._reader = 0  # which of these are read
        self._cache: dict[str, list[np.ndarray]] = {}
        self._cached_labels: dict[tuple[str, int], np.ndarray] = {}
        self._own: dict[str, list[Normalization]] = {}
        self._reading: str | None = None
        self._room = CACHE_BYTES
        with self.replicas.world.together():
            for case in cases:
                try:
                    self._open(case)
                except PartitionError as error:
                    raise PartitionError(f"case {case.name}: {error}") from None

    @property
    def cached_bytes(self) -> int:
        """What is kept in memory on the rank with the largest blocks."""
        return CACHE_BYTES - self._room

    def _open(self, case: Case) -> None:
        channels, see = self.sight.of(case)
        seen = [coarsened(channel, self.level, "linear") for channel in channels]
        self._scans[case.name] = lay_out_seen(seen, self.grid, self.multiple)
        labels = (self.dataset.open_labels(case), *self.dataset.open_readers(case))
        self._labels[case.name] = tuple(coarsened(see(some), self.level, "labels") for some in labels)

    def readers(self, case: Case) -> int:
        """Of how many readers a step may see a mask; 0 where they are not drawn."""
        return len(self._labels[case.name]) - 1

    @contextmanager
    def read_by(self, reader: int) -> Iterator[None]:
        """Within, labels are those of a reader, counted from 1; 0: those that are validated with."""
        self._reader, before = reader, self._reader
        try:
            yield
        finally:
            self._reader = before

    @property
    def reader(self) -> int:
        """Whose labels are read (`read_by`)."""
        return self._reader

    def on_own_grid(self, case: Case) -> tuple[Scan, Volume] | None:
        """As `Sight.on_own_grid`; None where the network sees a case halved, too."""
        return None if self.level else self.sight.on_own_grid(case, self.grid, self.multiple)

    def scan(self, case: Case) -> Scan:
        """The case's images, laid out."""
        return self._scans[case.name]

    @contextmanager
    def reading(self, case: Case) -> Iterator[None]:
        """Within, the case's files stay open once they are read, so that each compressed one is inflated once, whatever
        is asked of it. Then they are closed: a data set of many cases would run out of file descriptors.
        """
        if self._reading == case.name:  # a part of what is read already; the whole closes
            yield
            return
        self._reading = case.name
        try:
            yield
        finally:
            self._reading = None
            self._scans[case.name].close()
            for labels in self._labels[case.name]:
                labels.close()

    def reads_slices(self, case: Case) -> bool:
        """Whether each part that `fetch` is asked for costs its whole planes to read."""
        volumes = (*self._scans[case.name].channels, self._labels[case.name][self._reader])
        return not self._fits(case) and any(one.whole_slices and one.rising_slices for one in volumes)

    def read(self, case: Case) -> tuple[list[np.ndarray], np.ndarray]:
        """This rank's image channels and labels as stored. Collective over the replica, whose ranks check together."""
        images, labels = self._cache.get(case.name), self._cached_labels.get((case.name, self._reader))
        if images is not None and labels is not None:
            return images, labels
        scan = self._scans[case.name]
        with self.grid.communicator.together(), self.reading(case):
            images = scan.read() if images is None else images
            labels = self.read_labels(case, scan.inside)
        self._keep(case, images, labels)
        return images, labels

    def fetch(self, case: Case, wanted: Sequence[Box | None]) -> tuple[list[np.ndarray], np.ndarray]:
        """Image channels and labels, as stored, of the box that this rank wants, else empty. Collective.

        wanted  by rank: a box of the volume, None for nothing

        From the blocks that the ranks have in memory, or where the case is not kept there, from its files.
        """
        communicator, scan = self.grid.communicator, self._scans[case.name]
        own = wanted[communicator.rank]
        if self._fits(case):
            images, labels = self.read(case)
            whole = Box.whole(scan.space.shape)
            boxes = [block.intersect(whole) for block in scan.layout.blocks()]
            moved = [redistribute(values, boxes, wanted, communicator) for values in (*images, labels)]
            there = [np.empty((0, 0, 0), labels.dtype) if values is None else values for values in moved]
            return there[:-1], there[-1]
        found = [np.empty((0, 0, 0), volume.dtype) for volume in scan.channels] + [np.empty((0, 0, 0), np.uint8)]
        with communicator.together(), self.reading(case):
            if own is not None and own.size:
                found = [*scan.read(own), self.read_labels(case, own)]
        return found[:-1], found[-1]

    def read_labels(self, case: Case, box: Box) -> np.ndarray:
        """Labels of a box, uint8, IGNORE where nobody has labelled.

        Of this rank's own block from memory if it is kept there, else from the file.
        """
        scan = self._scans[case.name]
        kept = self._cached_labels.get((case.name, self._reader))
        if kept is not None and scan.inside.contains(box):
            return kept[box.relative_to(scan.inside).slices]
        labels = self._labels[case.name][self._reader]
        with self.reading(case):
            stored = labels.read(box)
        return self.target_of(stored, labels.path)

    def target_of(self, stored: np.ndarray, path: Path) -> np.ndarray:
        """Labels as a file holds them, of any type, as uint8, IGNORE where nobody has labelled.

        Raises VolumeError where a value is none of the data set's labels.
        """
        ignore = self.dataset.ignore
        check_labels(stored, self.dataset.labels, path, ignore)
        return (stored if ignore is None else np.where(stored == ignore, IGNORE, stored)).astype(np.uint8)

    def _keep(self, case: Case, images: list[np.ndarray], labels: np.ndarray) -> None:
        """Keep what was read, if it fits with the labels of all readers."""
        if not self._fits(case):
            return
        if case.name not in self._cache:
            self._room -= self._size(case)
            self._cache[case.name] = images
        self._cached_labels[case.name, self._reader] = labels

    def _fits(self, case: Case) -> bool:
        """Whether the case is kept in memory, or will be when it is read."""
        return case.name in self._cache or self._size(case) <= self._room

    def _size(self, case: Case) -> int:
        """Bytes of the largest block as stored: by it all ranks decide alike, as they must; to read is collective."""
        scan = self._scans[case.name]
        bytes_per_voxel = len(self._labels[case.name]) + sum(volume.dtype.itemsize for volume in scan.channels)
        return math.prod(scan.layout.largest_block) * bytes_per_voxel

    def rules(self, case: Case) -> list[Normalization]:
        """How each channel of the case is normalised. Collective over the replica the first time."""
        if self.sight.views:
            return [UNCHANGED] * len(self.schemes)
        if case.name not in self._own:
            rules = [scheme.fixed for scheme in self.schemes]
            if None in rules:
                pieces = [partial(iter, [image]) for image in self.read(case)[0]]
                own = own_normalization(pieces, self.schemes, self.grid.communicator)
                rules = [rule or measured for rule, measured in zip(rules, own, strict=True)]
            self._own[case.name] = [rule for rule in rules if rule is not None]
        return self._own[case.name]

    def load(self, case: Case) -> Sample:
        """The case as tensors. Collective over the replica."""
        images, label = self.read(case)
        scan, rules = self._scans[case.name], self.rules(case)
        target = torch.full((1, *scan.block.shape), IGNORE, dtype=torch.uint8)
        target[(0, *scan.inside.relative_to(scan.block).slices)] = torch.from_numpy(label)
        d, h, w = scan.layout.shape
        block = torch.from_numpy(normalized_block(images, scan, rules)).unsqueeze(0)
        return Sample(block.contiguous(memory_format=torch.channels_last_3d), target, d * h * w)
