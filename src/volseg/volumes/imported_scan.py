"""A scan as an imported network sees it: in its tool's order, cropped, normalised and then resampled, as nnU-Net does.

nnU-Net normalises the voxels of the scan itself and resamples what comes of it; it sees the box that holds the voxels
other than zero, and calls all else background (Isensee et al., Nature Methods 2021; its `DefaultPreprocessor`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from volseg.distributed.communicator import Communicator
from volseg.distributed.grid import ProcessGrid
from volseg.errors import VolumeError
from volseg.geometry import Box, PerAxis, Triple, format_triple
from volseg.partition.layout import padded_shape
from volseg.volumes.canonical import Orientation, canonical, reordered
from volseg.volumes.checks import check_finite
from volseg.volumes.cubic import Range, maps_between, resized, resized_shape, slice_axis
from volseg.volumes.intensity import ChannelScheme, Normalization, measure_by
from volseg.volumes.interpolation import AxisMap
from volseg.volumes.reading_order import Reading, from_canonical_order, order_of
from volseg.volumes.resampling import Spacing, axis_maps, resampled, resampled_space, space_from_first
from volseg.volumes.scan import Scan, boxes_between, mask_cuts
from volseg.volumes.volume import Space, Volume

_PLANES = 8
_AS_IT_IS = Normalization(-np.inf, np.inf, 0.0, 1.0)


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


@dataclass(frozen=True, kw_only=True)
class ImportedView:
    """A scan as an imported network sees it, not yet laid over a grid.

    images    as files have them, in canonical order
    channels  on the network's grid, normalised unless the tool does that afterwards
    """

    source: Volume
    images: tuple[Volume, ...]
    channels: tuple[Volume, ...]
    reading: Reading
    back: Maps | None
    normalized: bool


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
    share = _Share(files, communicator)
    crop = share.nonzero_box() if manner.crop else Box.whole(files[0].shape)
    seen = order.box_to_canonical(crop)
    space = cropped_space(order.canonical_space(files[0].space), seen)
    sides = stored_sides(files[0])
    own = (sides[order.axes[0]], sides[order.axes[1]], sides[order.axes[2]])
    target = _seen_grid(space, manner, own, spacing)
    axis = None if spacing is None else slice_axis(own, spacing)
    views: list[Volume] = []
    for number, scheme in enumerate(schemes):
        masked = scheme.fixed is None and scheme.method == "zscore_nonzero" and not manner.late
        rule = _AS_IT_IS if manner.late else scheme.fixed or share.measure(number, crop, scheme)
        others = [reordered(file, order) for file in files] if masked else []
        view: Volume = _NormalizedView(reordered(files[number], order), seen, space, rule, others)
        if manner.cubic and target is not space:
            limits = share.limits(number, crop, rule, order, axis, masked)
            view = resized(view, target.shape, axis, limits)
        elif target is not space:
            view = resampled(view, target, "linear", outside=None if manner.first else 0)
        views.append(view)
    back: Maps | None = None
    if target is not space:
        there = slice_axis(spacing or own, own)
        back = maps_between(target.shape, space.shape, there) if manner.cubic else axis_maps(views[0].space, space)
        assert back is not None  # the directions are the same
        if manner.nearest:
            back = back[0].to_nearest, back[1].to_nearest, back[2].to_nearest
    if manner.above is not None:
        views, back, seen = _cropped(views, back, seen, manner.above, communicator)
    reading = Reading(from_canonical_order(files[0].space, order), seen)
    images = tuple(canonical(file) for file in files)
    return ImportedView(
        source=files[0], images=images, channels=tuple(views), reading=reading, back=back, normalized=not manner.late
    )  # fmt: skip


def _cropped(
    views: Sequence[Volume], back: Maps | None, seen: Box, above: float, communicator: Communicator
) -> tuple[list[Volume], Maps | None, Box]:
    """Channels cropped to what lies above a value in one of them, and which voxels of the scan that is. Collective.

    seen  of the voxels of the scan, which `back` maps to those of `views`

    A voxel of the scan is seen where one of those it is interpolated between is. Nothing is cropped where none lies
    above.
    """

    def above_it(box: Box) -> np.ndarray:
        there: np.ndarray = np.logical_or.reduce([view.read(box) > above for view in views])
        return there

    whole = Box.whole(views[0].shape)
    box = _bounds(_shared(whole, communicator), above_it, views[0].shape, communicator)
    if box == whole:
        return list(views), back, seen
    space = cropped_space(views[0].space, box)
    cut: list[Volume] = [_NormalizedView(view, box, space, _AS_IT_IS, ()) for view in views]
    if back is None:
        return cut, None, box.shift(seen.start)
    maps, ends = [], []
    for axis, first, stop in zip(back, box.start, box.stop, strict=True):
        places = axis.low + axis.weight
        (near,) = np.nonzero((places > first - 1) & (places < stop))
        low, high = int(near[0]), int(near[-1]) + 1
        maps.append(axis[low:high].relative_to(first, stop - first))
        ends.append((low, high))
    (d, e), (h, i), (w, x) = ends
    return cut, (maps[0], maps[1], maps[2]), Box((d, h, w), (e, i, x)).shift(seen.start)


def _seen_grid(space: Space, manner: Manner, own: Spacing, spacing: Spacing | None) -> Space:
    """The grid that the network sees at `spacing`, along its axes; `space` itself where nothing is resampled.

    own  voxel sides of `space`, mm
    """
    if spacing is None:
        return space
    if manner.cubic:
        shape = resized_shape(space.shape, own, spacing)
        return space if shape == space.shape else Space(shape, space.affine)
    grid = space_from_first(space, spacing) if manner.first else resampled_space(space, spacing)
    same = grid.shape == space.shape and (not manner.first or np.allclose(own, spacing, rtol=1e-5, atol=0))
    return space if same else grid


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


def cropped_space(space: Space, box: Box) -> Space:
    """The grid of the voxels of `box` alone."""
    if box == Box.whole(space.shape):
        return space
    moved = np.eye(4)
    moved[:3, 3] = box.start[::-1]
    return Space(box.shape, np.asarray(space.affine, dtype=np.float64) @ moved)


class _NormalizedView(Volume):
    """The voxels of a box of a volume, normalised, float32.

    others  channels of which one at least is other than zero where a voxel is normalised; elsewhere it is 0
    """

    def __init__(self, volume: Volume, crop: Box, space: Space, rule: Normalization, others: Sequence[Volume]) -> None:
        self.path, self.format, self.dtype = volume.path, volume.format, np.dtype(np.float32)
        self.whole_slices, self.rising_slices = volume.whole_slices, volume.rising_slices
        self.space, self.audit = space, volume.audit
        if space.shape != volume.shape:
            what = f"cropped to the {format_triple(space.shape)} voxels that the model's own tool looks at"
            self.audit = replace(volume.audit, fixes=(*volume.audit.fixes, what))
        self._volume, self._first, self._rule, self._others = volume, crop.start, rule, others

    def close(self) -> None:
        self._volume.close()
        for other in self._others:
            other.close()

    def read(self, box: Box) -> np.ndarray:
        there = box.shift(self._first)
        values = self._volume.read(there)
        check_finite(values, there, self.path)
        out = self._rule.apply(values)
        if self._others:
            out *= _any_nonzero(volume.read(there) for volume in self._others)
        return out


def _any_nonzero(channels: Iterable[np.ndarray]) -> np.ndarray:
    """Where one of the channels, [d, h, w] each, is other than zero."""
    there: np.ndarray = np.logical_or.reduce([values != 0 for values in channels])
    return there


def _shared(crop: Box, communicator: Communicator) -> Iterator[Box]:
    """This rank's part of a box, some planes at a time."""
    size, rank = communicator.size, communicator.rank
    first, last = (crop.start[0] + crop.shape[0] * n // size for n in (rank, rank + 1))
    for start in range(first, last, _PLANES):
        yield Box((start, *crop.start[1:]), (min(start + _PLANES, last), *crop.stop[1:]))


def _bounds(
    boxes: Iterable[Box], inside: Callable[[Box], np.ndarray], shape: Triple, communicator: Communicator
) -> Box:  # fmt: skip
    """The smallest box around the voxels that are `inside`; the whole of `shape` where none is. Collective.

    boxes   this rank's
    inside  of the voxels of a box, [d, h, w]
    """
    ends = np.array([[*shape], [0, 0, 0]], dtype=np.float64)
    with communicator.together():
        for box in boxes:
            there = inside(box)
            for axis in range(3):
                others = tuple(n for n in range(3) if n != axis)
                (hits,) = np.nonzero(there.any(axis=others))
                if hits.size:
                    ends[0, axis] = min(ends[0, axis], box.start[axis] + hits[0])
                    ends[1, axis] = max(ends[1, axis], box.start[axis] + hits[-1] + 1)
    low, high = communicator.reduce_all(ends[0], "min"), communicator.reduce_all(ends[1], "max")
    if (high <= low).any():
        return Box.whole(shape)
    (d, h, w), (e, f, g) = ([int(n) for n in side] for side in (low, high))
    return Box((d, h, w), (e, f, g))


class _Share:
    """The file's own slices that this rank looks at, so that all ranks together look at each voxel once."""

    def __init__(self, files: Sequence[Volume], communicator: Communicator) -> None:
        self._files, self._communicator = files, communicator

    def nonzero_box(self) -> Box:
        """The smallest box, in the file's order, that holds all voxels other than zero; the whole where all are zero.

        Collective, as the others.
        """
        shape = self._files[0].shape

        def nonzero(box: Box) -> np.ndarray:
            return _any_nonzero(self._read(file, box) for file in self._files)

        return _bounds(self._boxes(Box.whole(shape)), nonzero, shape, self._communicator)

    def measure(self, number: int, crop: Box, scheme: ChannelScheme) -> Normalization:
        """How channel `number` is normalised by its own voxels in `crop`."""
        masked = scheme.method == "zscore_nonzero"
        errors: list[Exception] = []

        def pieces() -> Iterator[np.ndarray]:
            try:
                for values, inside, _ in self._pieces(number, crop, masked):
                    yield values[inside] if masked else values
            except Exception as error:  # raised below, so that no rank waits for this one
                errors.append(error)

        try:
            rule = measure_by("zscore" if masked else scheme.method, pieces, self._communicator, scheme.span)
        except VolumeError as error:  # on all ranks: nothing was read on any
            errors.append(error)
        self._communicator.raise_together(errors[0] if errors else None)
        return rule

    def limits(
        self, number: int, crop: Box, rule: Normalization, order: Orientation, axis: int | None, masked: bool
    ) -> Range:
        """Range of the normalised voxels of a channel: of the whole crop, or of each slice across the network's `axis`.

        masked  voxels that are zero in all channels are 0, not normalised
        """
        own = 0 if axis is None else order.axes[axis]
        low, high = (np.full(crop.shape[own], end, np.float64) for end in (np.inf, -np.inf))
        with self._communicator.together():
            for values, inside, box in self._pieces(number, crop, masked):
                normal = rule.apply(values) * inside if masked else rule.apply(values)
                others = tuple(n for n in range(3) if n != own)
                planes = box.relative_to(crop).slices[own]
                low[planes] = np.minimum(low[planes], normal.min(axis=others))
                high[planes] = np.maximum(high[planes], normal.max(axis=others))
        low = self._communicator.reduce_all(low, "min").astype(np.float32)
        high = self._communicator.reduce_all(high, "max").astype(np.float32)
        if axis is None:
            return Range(low.min(keepdims=True), high.max(keepdims=True))
        return Range(low[::-1], high[::-1], axis) if order.flips[axis] else Range(low, high, axis)

    def _pieces(self, number: int, crop: Box, masked: bool) -> Iterator[tuple[np.ndarray, np.ndarray, Box]]:
        """Voxels of a channel, where one channel at least is other than zero if that matters, and their box."""
        for box in self._boxes(crop):
            values = self._read(self._files[number], box)
            inside = _any_nonzero(self._read(file, box) for file in self._files) if masked else values
            yield values, inside, box

    def _boxes(self, crop: Box) -> Iterator[Box]:
        """This rank's part of `crop`, some slices at a time."""
        return _shared(crop, self._communicator)

    def _read(self, file: Volume, box: Box) -> np.ndarray:
        values = file.read(box)
        check_finite(values, box, file.path)
        return values
