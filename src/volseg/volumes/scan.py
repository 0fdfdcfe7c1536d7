"""A scan as a network sees it: canonical order, its spacing, padded, laid over the process grid, normalised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from volseg.distributed.communicator import Communicator
from volseg.distributed.grid import ProcessGrid
from volseg.errors import VolumeError
from volseg.geometry import Box, PerAxis, Triple
from volseg.partition.layout import Layout, padded_shape
from volseg.volumes.canonical import canonical
from volseg.volumes.checks import check_finite
from volseg.volumes.image_file import ImageFile
from volseg.volumes.intensity import UNCHANGED, ChannelScheme, Normalization, Pieces, measure_by
from volseg.volumes.interpolation import AxisMap
from volseg.volumes.open_options import OpenOptions
from volseg.volumes.reading_order import Reading
from volseg.volumes.resampling import Spacing, axis_maps, kept_where_close, resampled, resampled_space
from volseg.volumes.volume import Space, Volume


@dataclass(frozen=True, kw_only=True)
class Scan:
    """An image on disk, seen in canonical voxel order and laid over the process grid.

    source    the first channel as its file has it
    images    one volume for each image channel, all on that grid, in canonical order
    channels  the same as the network sees them: resampled where it wants another spacing, else `images`
    layout    blocks of the padded volume that the network sees
    block     this rank's block of it
    inside    this rank's block without the padding; its size may be 0
    boxes     by rank: the box of the mask, on the canonical native grid, that it computes. They tile it; some may be
              empty where the mask is coarser than what the network sees
    rank      this rank
    back      where the voxels of the mask that the network sees lie on its grid; None where nothing is resampled
    reading   which voxels those are, where the network sees others than the whole scan in canonical order; its
              `channels` are in its own order then
    normalized  whether `channels` are normalised already
    """

    source: Volume
    images: tuple[Volume, ...]
    channels: tuple[Volume, ...]
    layout: Layout
    block: Box
    inside: Box
    boxes: tuple[Box, ...]
    rank: int
    back: tuple[AxisMap, AxisMap, AxisMap] | None
    reading: Reading | None = None
    normalized: bool = False

    @property
    def native(self) -> Space:
        """The grid as the files have it."""
        return self.source.space

    @property
    def space(self) -> Space:
        """The grid that the network sees, without padding."""
        return self.channels[0].space

    @property
    def mask_space(self) -> Space:
        """The native grid in canonical order: what `boxes` are boxes of."""
        return self.images[0].space

    @property
    def mask_box(self) -> Box:
        """This rank's box of the mask."""
        return self.boxes[self.rank]

    @property
    def seen_box(self) -> Box:
        """What of this rank's box of the mask the network sees: in its order, counted from the first voxel it sees."""
        return self.mask_box if self.reading is None else self.reading.seen_box(self.mask_box)

    def seen(self, array: np.ndarray) -> np.ndarray:
        """A view of the voxels of `seen_box` in `array` [..., d, h, w] of this rank's box of the mask."""
        return array if self.reading is None else self.reading.seen(array, self.mask_box)

    def rules(self, schemes: Sequence[ChannelScheme]) -> list[ChannelScheme]:
        """How `channels` are still to be normalised for a model of `schemes`."""
        return [replace(scheme, fixed=UNCHANGED) if self.normalized else scheme for scheme in schemes]

    def read(self, box: Box | None = None) -> list[np.ndarray]:
        """This rank's voxels of every channel, or those of any box of what the network sees, [d, h, w] each.

        The files stay open until `close`. Raises VolumeError for NaN and infinity.
        """
        return [_read(volume, box or self.inside) for volume in self.channels]

    def read_image(self) -> np.ndarray:
        """The voxels of the first channel under this rank's box of the mask, [d, h, w], as stored."""
        array = _read(self.images[0], self.mask_box)
        self.images[0].close()
        return array

    def close(self) -> None:
        """Let go of open files, and of where a compressed one could be entered again; a later read opens them."""
        for volume in self.channels:
            volume.close()


def _read(volume: Volume, box: Box) -> np.ndarray:
    array = volume.read(box)
    check_finite(array, box, volume.path)
    return array


def seen_space(volume: Volume, spacing: Spacing | None) -> Space:
    """The grid, without padding, on which a network at `spacing` mm (canonical D, H, W) sees `volume`."""
    return space_at(canonical(volume).space, spacing)


def space_at(space: Space, spacing: Spacing | None) -> Space:
    """The same of a grid in canonical order, which is returned itself where nothing changes.

    Axes whose spacing is within 1 % of it stay as they are; None: the volume's own spacing.
    """
    wanted = space.spacing if spacing is None else kept_where_close(space.spacing, spacing)
    return space if wanted == space.spacing else resampled_space(space, wanted)


def lay_out(channels: Sequence[Volume], grid: ProcessGrid, multiple: PerAxis, spacing: Spacing | None = None) -> Scan:
    """Open volumes as one scan over `grid`, padded up to a multiple of `multiple`.

    spacing  mm (canonical D, H, W) at which the network is to see them (`seen_space`); None: their own

    Raises PartitionError where the grid has more ranks than the volume can hold.
    """
    images = tuple(canonical(volume) for volume in channels)
    seen = seen_space(images[0], spacing)
    back = None
    views = images
    if seen is not images[0].space:
        views = tuple(resampled(image, seen, "linear") for image in images)
        back = axis_maps(seen, images[0].space)
        assert back is not None  # `resampled_space` keeps the directions
    return _laid_out(channels[0], images, views, back, grid, multiple)


def lay_out_seen(channels: Sequence[Volume], grid: ProcessGrid, multiple: PerAxis) -> Scan:
    """Volumes as a network sees them, in their own voxel order, as one scan over `grid`.

    Raises PartitionError as `lay_out`.
    """
    return _laid_out(channels[0], tuple(channels), tuple(channels), None, grid, multiple)


def _laid_out(
    source: Volume, images: tuple[Volume, ...], channels: tuple[Volume, ...],
    back: tuple[AxisMap, AxisMap, AxisMap] | None, grid: ProcessGrid, multiple: PerAxis,
) -> Scan:  # fmt: skip
    shape = channels[0].shape
    layout = grid.layout(padded_shape(shape, multiple), multiple)
    block = grid.block(layout)
    return Scan(
        source=source,
        images=images,
        channels=channels,
        layout=layout,
        block=block,
        inside=block.intersect(Box.whole(shape)),
        boxes=tuple(mask_boxes(layout, images[0].shape, back)),
        rank=grid.communicator.rank,
        back=back,
    )


def mask_boxes(layout: Layout, shape: Triple, back: Sequence[AxisMap] | None) -> list[Box]:
    """By rank, the voxels of a mask of `shape` that its block computes; without padding where nothing is resampled.

    back  where the mask's voxels lie in the volume of `layout`. A voxel belongs to the block that holds its lower
          neighbour; that is monotone along each axis, so a rank's voxels are a box, and the boxes tile the mask
    """
    return boxes_between(*mask_cuts(layout, shape, back))


def mask_cuts(layout: Layout, shape: Triple, back: Sequence[AxisMap] | None) -> list[list[int]]:
    """Of each axis of the mask, where the boxes of `mask_boxes` begin, and the end of the last."""
    if back is None:
        return [[min(n, side) for n in blocks] for blocks, side in zip(layout.boundaries, shape, strict=True)]
    return [
        [int(n) for n in np.searchsorted(axis.low, blocks)]
        for axis, blocks in zip(back, layout.boundaries, strict=True)
    ]


def boxes_between(d: Sequence[int], h: Sequence[int], w: Sequence[int]) -> list[Box]:
    """The boxes between cuts on each axis, W the fastest."""
    return [
        Box((d[z], h[y], w[x]), (d[z + 1], h[y + 1], w[x + 1]))
        for z, y, x in np.ndindex(len(d) - 1, len(h) - 1, len(w) - 1)
    ]


def open_channels(files: Sequence[ImageFile], options: OpenOptions = OpenOptions()) -> tuple[Volume, ...]:  # noqa: B008
    """Open the channels of one scan. Raises VolumeError where they do not lie on one grid."""
    volumes = tuple(file.open(options) for file in files)
    for other in volumes[1:]:
        if not other.space.matches(volumes[0].space):
            raise VolumeError(f"{other.path}: another grid than {volumes[0].path}; resample the channels onto one grid")
    return volumes


def normalized_block(arrays: Sequence[np.ndarray], scan: Scan, rules: Sequence[Normalization]) -> np.ndarray:
    """The network's input: [C, d, h, w] float32, zero in the padding.

    arrays  what `Scan.read` gave
    rules   of each channel
    """
    block = np.zeros((len(arrays), *scan.block.shape), dtype=np.float32)
    place = scan.inside.relative_to(scan.block).slices
    for channel, (array, rule) in enumerate(zip(arrays, rules, strict=True)):
        block[(channel, *place)] = rule.apply(array)
    return block


def own_normalization(
    pieces: Sequence[Pieces], schemes: Sequence[ChannelScheme], communicator: Communicator
) -> list[Normalization | None]:
    """Measure the channels whose scheme says "each volume's own". Collective.

    pieces  of each channel, this rank's voxels
    """
    return [
        None if scheme.fixed is not None else measure_by(scheme.method, own, communicator, scheme.span)
        for own, scheme in zip(pieces, schemes, strict=True)
    ]
