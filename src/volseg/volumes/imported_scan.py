"""A scan as an imported network sees it: in its tool's order, cropped, normalised and then resampled, as nnU-Net does.

nnU-Net normalises the voxels of the scan itself and resamples what comes of it; it sees the box that holds the voxels
other than zero, and calls all else background (Isensee et al., Nature Methods 2021; its `DefaultPreprocessor`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from volseg.distributed.communicator import Communicator
from volseg.distributed.grid import ProcessGrid
from volseg.errors import VolumeError
from volseg.geometry import Box, PerAxis, Triple
from volseg.partition.layout import padded_shape
from volseg.volumes.canonical import Orientation, canonical, in_order_of, reordered
from volseg.volumes.checks import check_finite, check_same_grid
from volseg.volumes.cropped import cropped, cropped_space
from volseg.volumes.cubic import maps_between, resized, resized_shape, resized_space, slice_axis
from volseg.volumes.intensity import UNCHANGED, ChannelScheme, Normalization
from volseg.volumes.interpolation import AxisMap
from volseg.volumes.reading_order import Reading, from_canonical_order, order_of
from volseg.volumes.resampling import (
    Spacing,
    along_maps,
    axis_maps,
    resampled,
    resampled_space,
    space_from_first,
)
from volseg.volumes.scan import Scan, boxes_between, mask_cuts
from volseg.volumes.scan_share import ScanShare, bounds_of
from volseg.volumes.volume import Space, Volume

Maps = tuple[AxisMap, AxisMap, AxisMap]


@dataclass(frozen=True, kw_only=True)
class Manner:
    """How a tool reads a scan (`models.origin.Origin`).

    stored     in the order of the file; else the canonical one
    transpose  the network's axis n runs along axis ``transpose[n]`` of that order
    crop       the box that holds the voxels other than zero alone
    cubic      images are resampled by cubic splines; else linearly
    first      in resampling linearly the first voxel's centre stays where it is; else the volume's
    late       normalised after it is resampled; else before
    above      then it is cropped to the box that holds what lies above this in a channel; None: it is not
    nearest    a voxel of the mask is the nearest of those that the network sees; else between them
    """

    stored: bool
    transpose: Triple
    crop: bool
    cubic: bool
    first: bool = False
    late: bool = False
    nearest: bool = False
    above: float | None = None

    def on_network_axes(self, spacing: Spacing | None) -> Spacing | None:
        """A model's spacing in mm along the network's axes: it is of those already, or of the canonical ones."""
        return spacing if spacing is None or self.stored else along(spacing, self.transpose)


def along(spacing: Spacing, axes: Triple) -> Spacing:
    """Axis n has the spacing of axis ``axes[n]``."""
    d, h, w = (spacing[axis] for axis in axes)
    return d, h, w


@dataclass(frozen=True, kw_only=True)
class ImportedView:
    """A scan as an imported network sees it, not yet laid over a grid.

    images    as files have them, in canonical order
    channels    on the network's grid, normalised unless the tool does that afterwards
    there       where the voxels of that grid lie on the scan's own, in the network's order and cropped, by which labels
                are resampled; None where nothing is
    back        where the voxels of the scan's own lie on that grid
    normalized  whether `channels` are
    """

    source: Volume
    images: tuple[Volume, ...]
    channels: tuple[Volume, ...]
    reading: Reading
    there: Maps | None
    back: Maps | None
    normalized: bool

    def own_labels(self, labels: Volume) -> Volume:
        """Labels of the scan, in any voxel order, in the network's order and cropped, but not resampled.

        Raises VolumeError where they lie on another grid than the scan.
        """
        labels = in_order_of(labels, self.images[0].space)
        check_same_grid(self.images[0], labels)
        return cropped(reordered(labels, self.reading.order), self.reading.crop)

    def labels(self, labels: Volume) -> Volume:
        """The same on the network's grid: the label whose linearly interpolated indicator is largest.

        nnU-Net takes the last of those that have at least half, and where none has, the background; the two differ
        where three labels meet. Raises VolumeError as `own_labels`.
        """
        own = self.own_labels(labels)
        return own if self.there is None else along_maps(own, self.channels[0].space, self.there, "labels")

    def crop_in(self, space: Space) -> Box:
        """What the network sees of the scan, as a box of its grid in the voxel order of `space`."""
        return Orientation.of(space).box_from_canonical(self.reading.order.box_from_canonical(self.reading.crop))


def view_as_imported(
    files: Sequence[Volume], manner: Manner, spacing: Spacing | None, schemes: Sequence[ChannelScheme],
    communicator: Communicator,
) -> ImportedView:  # fmt: skip
    """What an imported network sees of a scan. Collective: ranks share what has to be read of it for that.

    files    the channels as files have them
    spacing  mm along the network's axes at which it is to see them; None: their own
    schemes  of the channels

    Raises VolumeError, on all ranks, where the files cannot be read or hold nothing to be normalised by.
    """
    if len(files) != len(schemes):
        raise VolumeError(
            f"{files[0].path}: {len(files)} image channel(s), but the model was trained with {len(schemes)} "
            f"({', '.join(scheme.name for scheme in schemes)}); name the first of files CASE_0000, CASE_0001, ..."
        )
    order = order_of(files[0].space, manner.stored, manner.transpose)
    share = ScanShare(files, communicator)
    crop = share.nonzero_box() if manner.crop else Box.whole(files[0].shape)
    space = cropped_space(order.canonical_space(files[0].space), order.box_to_canonical(crop))
    sides = stored_sides(files[0])
    own = (sides[order.axes[0]], sides[order.axes[1]], sides[order.axes[2]])
    grids = _Grids(space, own, spacing or own, manner)
    channels = tuple(_channel(share, number, scheme, crop, order, grids) for number, scheme in enumerate(schemes))
    view = ImportedView(
        source=files[0],
        images=tuple(canonical(file) for file in files),
        channels=channels,
        reading=Reading(from_canonical_order(files[0].space, order), order.box_to_canonical(crop)),
        there=grids.there,
        back=grids.back,
        normalized=not manner.late,
    )
    return view if manner.above is None else _cropped_above(view, manner.above, communicator)


@dataclass(frozen=True)
class _Grids:
    """The scan's own grid, in the network's order and cropped, and that on which the network sees it.

    own    the scan's grid
    sides  mm of its voxels, as `stored_sides` has them
    new    mm of the network's
    """

    own: Space
    sides: Spacing
    new: Spacing
    manner: Manner

    @cached_property
    def seen(self) -> Space:
        """The network's grid; the scan's own where nothing is resampled."""
        if self.manner.cubic:
            shape = resized_shape(self.own.shape, self.sides, self.new)
            return self.own if shape == self.own.shape else resized_space(self.own, shape)
        if self.manner.first:
            same = np.allclose(self.sides, self.new, rtol=1e-5, atol=0)
            return self.own if same else space_from_first(self.own, self.new)
        grid = resampled_space(self.own, self.new)
        return self.own if grid.shape == self.own.shape else grid

    @property
    def axis(self) -> int | None:
        """The axis along which images and labels are those of the nearest slice."""
        return slice_axis(self.sides, self.new) if self.manner.cubic else None

    @property
    def there(self) -> Maps | None:
        """As `ImportedView.there`."""
        return self._maps(self.own, self.seen, self.axis)

    @property
    def back(self) -> Maps | None:
        """As `ImportedView.back`."""
        maps = self._maps(self.seen, self.own, slice_axis(self.new, self.sides))
        if maps is None or not self.manner.nearest:
            return maps
        return maps[0].to_nearest, maps[1].to_nearest, maps[2].to_nearest

    def _maps(self, source: Space, target: Space, axis: int | None) -> Maps | None:
        if self.seen is self.own:
            return None
        return maps_between(source.shape, target.shape, axis) if self.manner.cubic else axis_maps(source, target)


def _channel(
    share: ScanShare, number: int, scheme: ChannelScheme, crop: Box, order: Orientation, grids: _Grids
) -> Volume:  # fmt: skip
    """A channel as the network sees it. Collective."""
    manner = grids.manner
    rule = UNCHANGED if manner.late else scheme.fixed or share.measure(number, crop, scheme)
    masked = scheme.fixed is None and scheme.method == "zscore_nonzero" and not manner.late
    seen = order.box_to_canonical(crop)
    inside = cropped(reordered(share.inside, order), seen) if masked else None
    view: Volume = _NormalizedView(cropped(reordered(share.files[number], order), seen), rule, inside)
    if grids.seen is grids.own:
        return view
    if not manner.cubic:
        return resampled(view, grids.seen, "linear", outside=None if manner.first else 0)
    return resized(view, grids.seen.shape, grids.axis, share.limits(number, crop, rule, order, grids.axis, masked))


def _cropped_above(view: ImportedView, above: float, communicator: Communicator) -> ImportedView:
    """A view cropped to what lies above a value in one of its channels; all of it where nothing does. Collective.

    A voxel of the scan is seen where one of those it is interpolated between is. What the network sees has no labels
    of its own: it is not trained on.
    """
    channels, back, seen = view.channels, view.back, view.reading.crop

    def above_it(box: Box) -> np.ndarray:
        there: np.ndarray = np.logical_or.reduce([channel.read(box) > above for channel in channels])
        return there

    whole = Box.whole(channels[0].shape)
    box = bounds_of(above_it, channels[0].shape, communicator)
    if box == whole:
        return view
    cut = tuple(cropped(channel, box, f"that hold more than {above:g}") for channel in channels)
    if back is None:
        maps, own = None, box
    else:
        axes, ends = [], []
        for axis, first, stop in zip(back, box.start, box.stop, strict=True):
            places = axis.low + axis.weight
            (near,) = np.nonzero((places > first - 1) & (places < stop))
            low, high = int(near[0]), int(near[-1]) + 1
            axes.append(axis[low:high].relative_to(first, stop - first))
            ends.append((low, high))
        (d, e), (h, i), (w, x) = ends
        maps, own = (axes[0], axes[1], axes[2]), Box((d, h, w), (e, i, x))
    reading = replace(view.reading, crop=own.shift(seen.start))
    return replace(view, channels=cut, there=None, back=maps, reading=reading)


def lay_out_imported(view: ImportedView, grid: ProcessGrid, multiple: PerAxis) -> Scan:
    """Lay a scan over `grid`, padded up to a multiple of `multiple`, as `volumes.scan.lay_out` does.

    Raises PartitionError where the grid has more ranks than the volume can hold.
    """
    crop, order = view.reading.crop, view.reading.order
    layout = grid.layout(padded_shape(view.channels[0].shape, multiple), multiple)
    block = grid.block(layout)
    cuts = []
    for axis, own in enumerate(mask_cuts(layout, crop.shape, view.back)):
        moved = [n + crop.start[axis] for n in own]
        # What lies before and behind the crop belongs to the outermost ranks: their boxes tile the whole mask.
        cuts.append([0, *moved[1:-1], order.canonical_shape[axis]])
    boxes = [order.box_from_canonical(box) for box in boxes_between(*cuts)]
    return Scan(
        source=view.source,
        images=view.images,
        channels=view.channels,
        layout=layout,
        block=block,
        inside=block.intersect(Box.whole(view.channels[0].shape)),
        boxes=tuple(boxes),
        rank=grid.communicator.rank,
        back=view.back,
        reading=view.reading,
        normalized=view.normalized,
    )


def stored_sides(volume: Volume) -> Spacing:
    """Voxel sides in mm along a volume's own D, H, W, as its header stores them.

    Where a side of another shape lies halfway between two numbers of voxels, the last bit of a voxel's side decides:
    SimpleITK, and so nnU-Net, reads a NIfTI header's `pixdim`, not the lengths of its affine's columns.
    """
    sides = volume.space.spacing
    if volume.forms is None:
        return sides
    w, h, d = volume.forms.pixdim[1:4]
    return (d, h, w) if np.allclose((d, h, w), sides, rtol=1e-4, atol=0) else sides


class _NormalizedView(Volume):
    """The voxels of a volume, normalised, float32.

    inside  0 where a voxel is not normalised but 0; None: all are
    """

    def __init__(self, volume: Volume, rule: Normalization, inside: Volume | None) -> None:
        self.path, self.format, self.dtype = volume.path, volume.format, np.dtype(np.float32)
        self.whole_slices, self.rising_slices = volume.whole_slices, volume.rising_slices
        self.space, self.audit = volume.space, volume.audit
        self._volume, self._rule, self._inside = volume, rule, inside

    def close(self) -> None:
        self._volume.close()
        if self._inside is not None:
            self._inside.close()

    def read(self, box: Box) -> np.ndarray:
        values = self._volume.read(box)
        check_finite(values, box, self.path)
        out = self._rule.apply(values)
        if self._inside is not None:
            out *= self._inside.read(box)
        return out
