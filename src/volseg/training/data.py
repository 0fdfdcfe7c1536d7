"""The cases of a data set, each rank its own blocks of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from volseg.distributed.grid import ProcessGrid
from volseg.distributed.replicas import Replicas
from volseg.errors import PartitionError, VolumeError
from volseg.nn.losses import IGNORE
from volseg.volumes.canonical import canonical, in_order_of
from volseg.volumes.checks import check_same_grid
from volseg.volumes.coarsening import coarsened
from volseg.volumes.dataset import Case, Dataset, check_labels
from volseg.volumes.intensity import ChannelScheme, Normalization, is_ct, measure_foreground
from volseg.volumes.reading import open_volume
from volseg.volumes.scan import Scan, lay_out, normalized_block, open_channels, own_normalization
from volseg.volumes.volume import Volume

CACHE_BYTES = 2**30


@dataclass(frozen=True)
class Sample:
    """One case, ready to train on: this rank's block of it.

    image   [1, C, d, h, w] float32, channels-last
    target  [1, d, h, w] uint8, IGNORE in the padding
    voxels  of the whole padded volume
    """

    image: Tensor
    target: Tensor
    voxels: int


class CaseBlocks:
    """This rank's blocks of the cases, checked and kept in memory as stored while they fit `CACHE_BYTES`.

    grid      of this rank's replica
    replicas  that share the cases; None: the grid has all ranks
    level     halvings of the resolution at which the volumes are seen
    """

    def __init__(
        self, dataset: Dataset, cases: Sequence[Case], grid: ProcessGrid, multiple: int,
        replicas: Replicas | None = None, level: int = 0,
    ) -> None:  # fmt: skip
        self.dataset, self.cases, self.grid, self.multiple = dataset, tuple(cases), grid, multiple
        self.level = level
        self.replicas = replicas or Replicas(grid.communicator)
        self.schemes: tuple[ChannelScheme, ...] = ()
        self._scans: dict[str, Scan] = {}
        self._labels: dict[str, Volume] = {}
        self._cache: dict[str, tuple[list[np.ndarray], np.ndarray]] = {}
        self._own: dict[str, list[Normalization | None]] = {}
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
        assert case.label is not None
        channels = open_channels(case.images)
        label = in_order_of(open_volume(case.label), channels[0].space)
        check_same_grid(channels[0], label)
        seen = [coarsened(canonical(channel), self.level, "linear") for channel in channels]
        self._scans[case.name] = lay_out(seen, self.grid, self.multiple)
        self._labels[case.name] = coarsened(canonical(label), self.level, "labels")

    def scan(self, case: Case) -> Scan:
        """The case's images, laid out."""
        return self._scans[case.name]

    def read(self, case: Case) -> tuple[list[np.ndarray], np.ndarray]:
        """This rank's image channels and labels as stored. Collective over the replica, whose ranks check together."""
        if case.name in self._cache:
            return self._cache[case.name]
        with self.grid.communicator.together():
            blocks = self._read(case)
        self._keep(case, blocks)
        return blocks

    def _read(self, case: Case) -> tuple[list[np.ndarray], np.ndarray]:
        scan = self._scans[case.name]
        images = scan.read()
        labels = self._labels[case.name]
        stored = labels.read(scan.inside)
        labels.close()
        check_labels(stored, self.dataset.labels, labels.path)
        return images, stored.astype(np.uint8)

    def _keep(self, case: Case, blocks: tuple[list[np.ndarray], np.ndarray]) -> None:
        """Keep what was read, if it fits."""
        # By the largest block, so that all ranks decide alike: a read is collective, a cached one is not.
        scan = self._scans[case.name]
        bytes_per_voxel = 1 + sum(volume.dtype.itemsize for volume in scan.channels)
        size = math.prod(scan.layout.largest_block) * bytes_per_voxel
        if size <= self._room:
            self._room -= size
            self._cache[case.name] = blocks

    def check(self) -> None:
        """Read every case once, so that one that cannot be used is found before training begins. Collective.

        Each replica reads its share.
        """
        own = [case for _, case in self.replicas.share(self.cases)]
        for turn in range(self.replicas.most(self.cases)):
            with self.replicas.world.together():
                if turn < len(own):
                    self._keep(own[turn], self._read(own[turn]))

    def measure(self) -> None:
        """Find how each channel is normalised, from the foreground of all cases where it is CT. Collective.

        Each replica counts its share; counts add up to the same bits however cases are shared.
        """
        schemes = []
        for number, name in enumerate(self.dataset.channel_names):
            fixed = None
            if is_ct(name):
                fixed = measure_foreground(lambda n=number: self._foreground(n), self.replicas.world)  # type: ignore[misc]
            schemes.append(ChannelScheme(name, fixed))
        self.schemes = tuple(schemes)

    def _foreground(self, channel: int) -> Iterator[np.ndarray]:
        for _, case in self.replicas.share(self.cases):
            images, label = self.read(case)
            yield images[channel][label > 0]

    def load(self, case: Case) -> Sample:
        """The case as tensors. Collective over the replica."""
        images, label = self.read(case)
        scan = self._scans[case.name]
        if case.name not in self._own:
            pieces = [partial(iter, [image]) for image in images]
            self._own[case.name] = own_normalization(pieces, self.schemes, self.grid.communicator)
        target = torch.full((1, *scan.block.shape), IGNORE, dtype=torch.uint8)
        target[(0, *scan.inside.relative_to(scan.block).slices)] = torch.from_numpy(label)
        d, h, w = scan.layout.shape
        block = torch.from_numpy(normalized_block(images, scan, self.schemes, self._own[case.name])).unsqueeze(0)
        return Sample(block.contiguous(memory_format=torch.channels_last_3d), target, d * h * w)


def split_cases(dataset: Dataset, validation: int, seed: int) -> tuple[list[Case], list[Case]]:
    """Training and validation cases: `validation` of them held out, drawn by `seed`; -1 holds out one in eight.

    Raises VolumeError where nothing would be left to train on.
    """
    count = len(dataset.cases) // 8 if validation < 0 else validation
    if count >= len(dataset.cases):
        raise VolumeError(
            f"{dataset.folder}: training.validation = {count} of {len(dataset.cases)} cases leaves none to train on"
        )
    order = np.random.default_rng(seed).permutation(len(dataset.cases))
    held_out = {int(n) for n in order[:count]}
    return (
        [case for n, case in enumerate(dataset.cases) if n not in held_out],
        [case for n, case in enumerate(dataset.cases) if n in held_out],
    )
