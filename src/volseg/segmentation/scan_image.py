"""A scan as the network reads it: slab by slab from its files, normalised on the way."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from volseg.distributed.grid import ProcessGrid
from volseg.errors import VolumeError
from volseg.geometry import Box, Triple
from volseg.models.stored import ModelCard
from volseg.partition.window import Range
from volseg.volumes.checks import check_finite
from volseg.volumes.scan import Scan, own_normalization
from volseg.volumes.volume import Volume

_PLANES = 8


class ScanImage:
    """The channels of a scan around this rank's block. To make one is collective.

    width   voxels around the block that will be asked for, where the volume goes on; they are read, not exchanged
    kept    the voxels are kept, as they are stored, until `close`: for several passes over them. They are also where a
            channel is normalised by the volume's own mean, and where the planes are no slices of a compressed file

    Raises VolumeError, on all ranks, where the model wants another number of channels.
    """

    def __init__(self, scan: Scan, card: ModelCard, grid: ProcessGrid, width: int, kept: bool = False) -> None:
        wanted = card.described.in_channels
        if len(scan.channels) != wanted:
            raise VolumeError(
                f"{scan.channels[0].path}: {len(scan.channels)} image channel(s), but the model was trained with "
                f"{wanted} ({', '.join(scheme.name for scheme in card.schemes)}); name the first of files CASE_0000, "
                "CASE_0001, ..."
            )
        self.channels = wanted
        self._scan, self._grid = scan, grid
        schemes = scan.rules(card.schemes)
        measured = any(scheme.fixed is None for scheme in schemes)
        whole = Box.whole(scan.layout.shape)
        box = _around(scan.block, (width, width, width)).intersect(whole)
        self._readers = [_Reader(volume, box, kept or measured) for volume in scan.channels]
        self._error: Exception | None = None
        if measured:
            with grid.communicator.together():
                for reader in self._readers:
                    for _ in self._pieces(reader, reader.box):
                        pass
        pieces = [partial(self._pieces, reader, scan.inside) for reader in self._readers]
        own = own_normalization(pieces, schemes, grid.communicator)
        self._rules = [scheme.fixed or found for scheme, found in zip(schemes, own, strict=True)]

    def planes(self, wanted: Range, width: int) -> Tensor:
        """As `nn.fused.image.Image.planes`. What goes wrong is raised by `settled`; until then there are zeros."""
        block, whole = self._scan.block, Box.whole(self._scan.layout.shape)
        start = (block.start[0] + wanted[0], *block.start[1:])
        slab = Box((start[0], start[1], start[2]), (block.start[0] + wanted[1], block.stop[1], block.stop[2]))
        box = _around(slab, (0, width, width)).intersect(whole)
        there = box.intersect(Box.whole(self._scan.space.shape))
        out = np.zeros((*box.shape, self.channels), dtype=np.float32)  # zero in the padding
        if there.size and self._error is None:
            place = there.relative_to(box).slices
            try:
                for channel, (reader, rule) in enumerate(zip(self._readers, self._rules, strict=True)):
                    assert rule is not None
                    out[(*place, channel)] = rule.apply(reader.read(there))
            except Exception as error:
                self._error = error
        return torch.from_numpy(out)

    def settled(self) -> None:
        """As `nn.fused.image.Image.settled`."""
        self._grid.communicator.raise_together(self._error)

    def close(self) -> None:
        """Let go of the voxels and the files."""
        for reader in self._readers:
            reader.close()

    def _pieces(self, reader: _Reader, box: Box) -> Iterator[np.ndarray]:
        """A box, some planes at a time."""
        for first in range(box.start[0], box.stop[0], _PLANES):
            stop = min(first + _PLANES, box.stop[0])
            yield reader.read(Box((first, *box.start[1:]), (stop, *box.stop[1:])))


class _Reader:
    """Boxes of a volume, in rising order of planes: each plane is read from the file once a pass, or once and for all.

    box   what will be asked for lies within it
    kept  all of it stays in memory, as it is stored
    """

    def __init__(self, volume: Volume, box: Box, kept: bool) -> None:
        # Each plane of a compressed file that is stored along another axis would cost as much as the file.
        self._at_once = volume.whole_slices and not volume.rising_slices
        self.volume, self.kept = volume, kept or self._at_once
        self.box = box.intersect(Box.whole(volume.shape))
        self._planes = np.empty((0, *self.box.shape[1:]), volume.dtype)
        self._first = self._stop = self.box.start[0]

    def read(self, box: Box) -> np.ndarray:
        """The voxels of a box, a view. Raises VolumeError where they cannot be read, or are not finite."""
        box = box.intersect(self.box)
        if not box.size:
            return np.empty(box.shape, self.volume.dtype)
        first, stop = box.start[0], self.box.stop[0] if self._at_once else box.stop[0]
        if not self.kept and (first < self._first or first > self._stop):  # a new pass
            self._first = self._stop = first
        if stop > self._stop:
            self._extend(first, stop)
        inside = box.relative_to(Box((self._first, *self.box.start[1:]), self.box.stop))
        part: np.ndarray = self._planes[inside.slices]
        return part

    def close(self) -> None:
        """Let go of the voxels and of the file."""
        self._planes = np.empty((0, *self.box.shape[1:]), self.volume.dtype)
        self._first = self._stop = self.box.start[0]
        self.volume.close()

    def _extend(self, first: int, stop: int) -> None:
        new = Box((self._stop, *self.box.start[1:]), (stop, *self.box.stop[1:]))
        values = self.volume.read(new)
        check_finite(values, new, self.volume.path)
        if self.kept:
            if not len(self._planes):
                self._planes = np.empty(self.box.shape, self.volume.dtype)
            self._planes[self._stop - self._first : stop - self._first] = values
        else:
            still = self._planes[first - self._first : self._stop - self._first]
            self._planes = np.concatenate([still, values]) if len(still) else values
            self._first = first
        self._stop = stop


def _around(box: Box, widths: Triple) -> Box:
    """`box` with voxels around it on D, H, W, none below zero."""
    d, h, w = (max(0, a - n) for a, n in zip(box.start, widths, strict=True))
    e, f, g = (b + n for b, n in zip(box.stop, widths, strict=True))
    return Box((d, h, w), (e, f, g))
