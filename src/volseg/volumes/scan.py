"""A scan as a network sees it: in canonical voxel order, padded, laid over the process grid, normalised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from volseg.distributed.grid import ProcessGrid
from volseg.errors import VolumeError
from volseg.geometry import Box, Triple
from volseg.partition.layout import Layout, padded_shape
from volseg.volumes.canonical import canonical
from volseg.volumes.checks import check_finite
from volseg.volumes.intensity import ChannelScheme, Normalization, measure_volume
from volseg.volumes.reading import open_volume
from volseg.volumes.volume import Space, Volume


@dataclass(frozen=True)
class Scan:
    """An image on disk, seen in canonical voxel order and laid over the process grid.

    native    the grid as the files have it
    channels  one volume for each image channel, all on one grid, in canonical order
    layout    blocks of the padded volume
    inside    this rank's block without the padding; its size may be 0
    """

    native: Space
    channels: tuple[Volume, ...]
    layout: Layout
    block: Box
    inside: Box

    @property
    def space(self) -> Space:
        """The canonical grid, without padding."""
        return self.channels[0].space

    def read(self) -> list[np.ndarray]:
        """This rank's voxels of every channel, [d, h, w] each. Raises VolumeError for NaN and infinity."""
        arrays = []
        for volume in self.channels:
            array = volume.read(self.inside)
            volume.close()  # a data set of many cases would run out of file descriptors
            check_finite(array, self.inside, volume.path)
            arrays.append(array)
        return arrays


def lay_out(channels: Sequence[Volume], grid: ProcessGrid, multiple: int) -> Scan:
    """Open volumes as one scan over `grid`, padded up to a multiple of `multiple`.

    Raises PartitionError where the grid has more ranks than the volume can hold.
    """
    views = tuple(canonical(volume) for volume in channels)
    shape: Triple = views[0].shape
    layout = grid.layout(padded_shape(shape, multiple), multiple)
    block = grid.block(layout)
    return Scan(channels[0].space, views, layout, block, block.intersect(Box.whole(shape)))


def open_channels(paths: Sequence[Path]) -> tuple[Volume, ...]:
    """Open the channels of one scan. Raises VolumeError where they do not lie on one grid."""
    volumes = tuple(open_volume(path) for path in paths)
    for other in volumes[1:]:
        if not other.space.matches(volumes[0].space):
            raise VolumeError(f"{other.path}: another grid than {volumes[0].path}; resample the channels onto one grid")
    return volumes


def normalized_block(
    arrays: Sequence[np.ndarray], scan: Scan, schemes: Sequence[ChannelScheme], own: Sequence[Normalization | None]
) -> np.ndarray:
    """The network's input: [C, d, h, w] float32, zero in the padding.

    arrays   what `Scan.read` gave
    schemes  of the model, by channel
    own      each volume's own normalization where the scheme has no fixed one
    """
    block = np.zeros((len(arrays), *scan.block.shape), dtype=np.float32)
    place = scan.inside.relative_to(scan.block).slices
    for channel, (array, scheme, measured) in enumerate(zip(arrays, schemes, own, strict=True)):
        rule = scheme.fixed or measured
        assert rule is not None
        block[(channel, *place)] = rule.apply(array)
    return block


def own_normalization(
    arrays: Sequence[np.ndarray], schemes: Sequence[ChannelScheme], grid: ProcessGrid
) -> list[Normalization | None]:
    """Measure the channels whose scheme says "each volume's own". Collective."""
    return [
        None if scheme.fixed is not None else measure_volume(lambda a=array: [a], grid.communicator)  # type: ignore[misc]
        for array, scheme in zip(arrays, schemes, strict=True)
    ]
