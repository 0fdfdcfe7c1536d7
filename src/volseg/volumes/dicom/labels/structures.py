"""A DICOM structure set (RTSTRUCT) as a volume of labels: its closed contours, filled on the image's own slices.

ROIs get the values 1, 2, ... in the order of the file's list. Sources: DICOM PS3.3 C.8.8.5 (structure set) and C.8.8.6
(ROI contour: CLOSED_PLANAR with keyholes, CLOSEDPLANAR_XOR).

* A voxel belongs to an ROI if its centre lies inside (see `raster`).
* A slice takes the contours of the nearest plane, if that lies within half a slice. Where contours were drawn on every
  n-th slice only, half the distance between contour planes counts instead, and a warning says so.
* Contours in several items of one ROI are united; within an item, one inside another is a hole.
* ROIs may overlap (a body contour holds every organ). A voxel then goes to the smallest of them, unless another rule
  is asked for (see `overlap`), and a warning says so.
* On a series whose uneven slices were interpolated, contours fill the slices that they were drawn on first, and each
  new slice takes those of the nearest (see `slices`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from volseg.errors import VolumeError
from volseg.geometry import Box, format_triple
from volseg.volumes.audit import Audit, Dropped
from volseg.volumes.dicom.labels.contours import Drawn, read_rois
from volseg.volumes.dicom.labels.objects import check_bounds, damage, frame_of_reference_warning
from volseg.volumes.dicom.labels.raster import area, fill
from volseg.volumes.dicom.labels.slices import Slices, slices_of
from volseg.volumes.label_table import LabelTable, same_name_warning, table_of
from volseg.volumes.overlap import Overlap, overlap_warning, painting_order
from volseg.volumes.tolerance import OFF_GRID, OFF_SLICE, SAME_HEIGHT
from volseg.volumes.volume import Volume

MOST_BYTES = 256 << 20
FLATNESS = 0.1  # slices that the points of one contour may differ in
COARSER = 1e-6  # votes a mm: of axes with as many, that of the widest spacing
SPARSE = 1.5  # contour planes farther apart than that many slices were not drawn on every slice

BySlice = dict[int, tuple[np.ndarray, ...]]


@dataclass(frozen=True)
class Part:
    """A part of one structure in the image's voxels: most have one.

    heights  its contour planes, rising, along the axis of slices
    planes   for each its contours, float64 [points, 2], (row, column)
    """

    name: str
    value: int
    heights: np.ndarray
    planes: tuple[tuple[np.ndarray, ...], ...]

    def by_slice(self, slices: int, reach: float) -> BySlice:
        """The contours that each slice takes: those of the nearest plane, if within `reach` slices."""
        taken: BySlice = {}
        heights = self.heights.round(3)  # so that the noise of an affine does not decide a tie
        for index in range(slices):
            apart = index - heights
            near = np.flatnonzero((apart >= -reach) & (apart < reach))
            if near.size:
                # Of two planes equally far the one above: each slice gets one, and a plane halfway only one slice.
                best = min(near, key=lambda n: (abs(apart[n]), apart[n]))
                taken[index] = self.planes[best]
        return taken


def open_structures(path: Path, image: Volume, overlap: Overlap = "smallest") -> tuple[Volume, LabelTable]:
    """The RTSTRUCT at `path` on the grid of `image`, and its ROIs' names and colours.

    overlap  which ROI has a voxel of several

    Contours are filled when their slice is read. What encloses nothing (contours of one or two points, ROIs of points
    and lines) and what lies across the slices is left out and named in ``audit.warnings`` or ``audit.dropped``.

    Raises VolumeError where the file is damaged, where no contour is left, where none meets the image, and where ROIs
    overlap that must not.
    """
    check_bounds(path, MOST_BYTES)
    with damage(path):
        from pydicom import dcmread

        header = dcmread(path, force=True)
        rois, dropped, notes = read_rois(header, path)
        reference = _frame_of_reference(header)
    notes += frame_of_reference_warning(image, reference)
    axis = _axis(path, rois, image)
    rois = _along_slices(rois, axis, dropped, notes)
    others = [a for a in range(3) if a != axis]
    slices = _drawn_on(rois, image) if axis == 0 else None
    rows = [(value, roi.name, roi.colour) for value, roi in enumerate(rois, 1)]
    table = table_of(rows)
    names = {value: name for name, value in table.names.items()}
    notes += same_name_warning([row[:2] for row in rows], table, "ROIs")
    parts = [
        _part(names[value], value, contours, axis, others, slices, image, notes)
        for value, roi in enumerate(rois, 1) for contours in roi.parts
    ]  # fmt: skip
    reach = _reach(parts, notes)
    count = image.shape[axis] if slices is None else slices.space.shape[0]
    laid = [(part, part.by_slice(count, reach)) for part in parts]
    sides = (image.shape[others[0]], image.shape[others[1]])
    _check_extent(path, laid, image, count, sides, notes)
    notes += _between_slices(parts)
    laid = _ordered(laid, overlap)
    notes += overlap_warning(path, _overlaps(laid, sides), overlap, "ROIs")
    if slices is not None:
        laid = [(part, _on_grid(by_slice, slices)) for part, by_slice in laid]
    audit = Audit(
        used=(path.name,),
        inputs=(path,),
        dropped=tuple(dropped),
        warnings=tuple(notes),
        facts=(("labels from", f"RTSTRUCT, {len(rois)} ROIs"),),
    )
    return StructureVolume(path, image, axis, laid, audit), table


class StructureVolume(Volume):
    """Contours laid into a grid; a slice is filled when it is read, and only where it is wanted."""

    format = "DICOM RTSTRUCT"

    def __init__(
        self, path: Path, image: Volume, axis: int, laid: list[tuple[Part, BySlice]], audit: Audit
    ) -> None:  # fmt: skip
        self.path, self.space, self.audit = path, image.space, audit
        self.dtype = np.dtype(np.uint8 if max(part.value for part, _ in laid) <= 255 else np.uint16)
        self._axis, self._laid = axis, laid

    def read(self, box: Box) -> np.ndarray:
        out = np.zeros(box.shape, self.dtype)
        planes = np.moveaxis(out, self._axis, 0)
        row, column = (n for axis, n in enumerate(box.start) if axis != self._axis)
        for index, plane in enumerate(planes):
            for part, by_slice in self._laid:
                contours = by_slice.get(box.start[self._axis] + index)
                if contours is not None:
                    plane[fill(contours, (row, column), plane.shape)] = part.value
        return out


def _frame_of_reference(header: Any) -> str:
    items = header.get("StructureSetROISequence") or []
    return str(items[0].get("ReferencedFrameOfReferenceUID", "")) if items else ""


def _axis(path: Path, rois: list[Drawn], image: Volume) -> int:
    """The axis (of D, H, W) that most contours are flat along. Turns the contours into voxels (D, H, W), in place."""
    to_grid = np.linalg.inv(image.space.affine)
    votes = np.zeros(3)
    crossed, name = np.inf, ""
    for roi in rois:
        for contours in roi.parts:
            for number, points in enumerate(contours):
                voxels = (points @ to_grid[:3, :3].T + to_grid[:3, 3])[:, ::-1]
                contours[number] = voxels
                spread = np.ptp(voxels, axis=0)
                votes += spread <= FLATNESS
                if spread.min() < crossed:
                    crossed, name = float(spread.min()), roi.name
    if not votes.any():
        raise VolumeError(
            f"{path}: contours are not parallel to the slices of {image.path}: one of ROI {name} crosses {crossed:.2g} "
            f"slices, limit {FLATNESS}; give the series that they were drawn on"
        )
    return int(np.argmax(votes + COARSER * np.array(image.space.spacing)))


def _along_slices(rois: list[Drawn], axis: int, dropped: list[Dropped], notes: list[str]) -> list[Drawn]:
    """The ROIs with the contours that lie along the slices; what lies across them is left out and named."""
    kept = []
    for roi in rois:
        every = [points for contours in roi.parts for points in contours]
        crossed = [spread for spread in (float(np.ptp(points[:, axis])) for points in every) if spread > FLATNESS]
        if crossed:
            roi.parts = [[p for p in contours if np.ptp(p[:, axis]) <= FLATNESS] for contours in roi.parts]
            roi.parts = [contours for contours in roi.parts if contours]
            what = f"{len(crossed)} of {len(every)} contours" if roi.parts else "every contour"
            text = f"{what} not parallel to the slices (over up to {max(crossed):.2g} of them), left out"
            notes.append(f"ROI {roi.name}: {text}")
            if not roi.parts:
                dropped.append(Dropped(f"ROI {roi.name}", "its contours are not parallel to the slices"))
        if roi.parts:
            kept.append(roi)
    return kept


def _drawn_on(rois: list[Drawn], image: Volume) -> Slices | None:
    """The slices before a correction, where the contours were drawn on them rather than on the corrected grid."""
    slices = slices_of(image)
    if slices is None:
        return None
    planes = np.array([points[:, 0].mean() for roi in rois for contours in roi.parts for points in contours])
    before = slices.numbers(planes * image.space.spacing[0])
    fits = [int((np.abs(numbers - np.rint(numbers)) <= OFF_GRID).sum()) for numbers in (before, planes)]
    return slices if fits[0] >= fits[1] else None


def _on_grid(by_slice: BySlice, slices: Slices) -> BySlice:
    """The contours by slice of the corrected grid."""
    followed = enumerate(slices.nearest.tolist())
    return {index: by_slice[number] for index, number in followed if number in by_slice}


def _part(
    name: str, value: int, contours: list[np.ndarray], axis: int, others: list[int], slices: Slices | None,
    image: Volume, notes: list[str],
) -> Part:  # fmt: skip
    """The contours of a part, gathered by plane. One that is there twice would undo itself: once is enough."""
    heights = np.array([points[:, axis].mean() for points in contours])
    if slices is not None:
        heights = slices.numbers(heights * image.space.spacing[0])
    order = np.argsort(heights, kind="stable")
    planes: list[list[np.ndarray]] = []
    levels: list[float] = []
    twice = 0
    for number in order:
        if not levels or heights[number] - levels[-1] > SAME_HEIGHT:
            levels.append(float(heights[number]))
            planes.append([])
        flat = contours[number][:, others]
        if any(flat.shape == other.shape and np.array_equal(flat, other) for other in planes[-1]):
            twice += 1
        else:
            planes[-1].append(flat)
    if twice:
        notes.append(f"ROI {name}: {twice} contours are there twice; each is used once")
    return Part(name, value, np.array(levels), tuple(tuple(plane) for plane in planes))


def _reach(parts: list[Part], notes: list[str]) -> float:
    """How far, in slices, a contour plane counts: half a slice, or half the usual gap between planes if wider."""
    levels = np.unique(np.concatenate([part.heights for part in parts]).round(2))
    gap = float(np.median(np.diff(levels))) if levels.size > 2 else 1.0
    if gap <= SPARSE:
        return 0.5
    notes.append(f"contours lie {gap:.3g} slices apart; each slice between takes the nearest one's")
    return gap / 2


def _check_extent(
    path: Path, laid: list[tuple[Part, BySlice]], image: Volume, count: int, sides: tuple[int, int], notes: list[str]
) -> None:  # fmt: skip
    """Warn of contours beyond the image, of slices without any between others, and of ROIs without a voxel.

    Raises VolumeError where all lie beyond the image.
    """
    meets = False
    by_value: dict[int, list[tuple[Part, BySlice]]] = {}
    for part, by_slice in laid:
        by_value.setdefault(part.value, []).append((part, by_slice))
    for some in by_value.values():
        name, last = some[0][0].name, np.array(sides) - 1
        points = np.concatenate([c for part, _ in some for plane in part.planes for c in plane])
        low, high = points.min(axis=0), points.max(axis=0)
        filled = sorted({index for _, by_slice in some for index in by_slice})
        meets = meets or (bool(filled) and bool((high >= 0).all() and (low <= last).all()))
        heights = np.concatenate([part.heights for part, _ in some])
        above = (heights < -0.5) | (heights >= count - 0.5)
        if above.any() or (low < -0.5).any() or (high > last + 0.5).any():
            notes.append(f"ROI {name} reaches beyond the image ({int(above.sum())} contour planes of {len(above)})")
        missing = filled[-1] - filled[0] + 1 - len(filled) if filled else 0
        if missing:
            notes.append(f"ROI {name}: {missing} slices between its first and last have no contour; left empty")
        if not _has_voxel(some, sides):
            notes.append(f"ROI {name}: its contours enclose no voxel's centre, so its label has no voxel")
    if not meets:
        raise VolumeError(
            f"{path}: no contour meets {image.path} ({format_triple(image.shape)} voxels); is it of another series?"
        )


def _between_slices(parts: list[Part]) -> list[str]:
    """A warning for each ROI with contours well off the slices, where most contours of the set lie on them."""
    off = {id(part): np.abs(part.heights - np.rint(part.heights)) for part in parts}
    if np.mean(np.concatenate(list(off.values())) > OFF_SLICE) > 0.5:  # drawn on another series
        return []
    between: dict[str, list[float]] = {}
    for part in parts:
        between.setdefault(part.name, []).extend(off[id(part)][off[id(part)] > OFF_SLICE].tolist())
    return [
        f"ROI {name}: {len(some)} contour plane{'s lie' if len(some) > 1 else ' lies'} between the slices, "
        f"{max(some):.2g} of their distance off; the nearest slices take them"
        for name, some in between.items()
        if some
    ]


def _has_voxel(parts: list[tuple[Part, BySlice]], sides: tuple[int, int]) -> bool:
    """Whether a voxel's centre lies in the parts."""
    return any(
        _filled([contours], sides).any() for _, by_slice in parts for contours in by_slice.values()
    )  # fmt: skip


def _ordered(laid: list[tuple[Part, BySlice]], overlap: Overlap) -> list[tuple[Part, BySlice]]:
    """The parts in the order in which they are painted."""
    sizes: dict[int, float] = {}
    for part, by_slice in laid:
        sizes[part.value] = sizes.get(part.value, 0.0) + sum(area(contours) for contours in by_slice.values())
    order = painting_order(list(sizes), sizes, overlap)
    return sorted(laid, key=lambda pair: order.index(pair[0].value))


def _overlaps(laid: list[tuple[Part, BySlice]], sides: tuple[int, int]) -> list[tuple[str, str]]:
    """Names of the ROIs with a voxel in common, the one painted later first. Stops at a pair's first such slice."""
    found: dict[tuple[str, str], None] = {}
    for (lower, of_lower), (upper, of_upper) in combinations(laid, 2):
        pair = (upper.name, lower.name)
        if upper.value == lower.value or pair in found:
            continue
        if any(_filled([of_lower[n], of_upper[n]], sides).any() for n in sorted(of_upper.keys() & of_lower.keys())):
            found[pair] = None
    return list(found)


def _filled(shapes: Sequence[tuple[np.ndarray, ...]], sides: tuple[int, int]) -> np.ndarray:
    """Bool: the voxels of a plane of `sides` inside all of the shapes, within the window that all of them meet."""
    start = np.max([_corner(contours, np.min) for contours in shapes], axis=0).clip(0)
    stop = np.min([_corner(contours, np.max) + 1 for contours in shapes], axis=0).clip(None, sides)
    if (stop <= start).any():
        return np.zeros((0, 0), bool)
    begin, window = (int(start[0]), int(start[1])), (int(stop[0] - start[0]), int(stop[1] - start[1]))
    inside = fill(shapes[0], begin, window)
    for contours in shapes[1:]:
        inside &= fill(contours, begin, window)
    return inside


def _corner(contours: tuple[np.ndarray, ...], which: Any) -> np.ndarray:
    corner: np.ndarray = np.floor(which([which(points, axis=0) for points in contours], axis=0)).clip(-1, 1 << 20)
    return corner.astype(np.int64)
