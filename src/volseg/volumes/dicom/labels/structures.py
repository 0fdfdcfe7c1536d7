"""A DICOM structure set (RTSTRUCT) as a volume of labels: its closed contours, filled on the image's own slices.

ROIs get the values 1, 2, ... in the order of the file's list. Sources: DICOM PS3.3 C.8.8.5 (structure set) and C.8.8.6
(ROI contour: CLOSED_PLANAR with keyholes, CLOSEDPLANAR_XOR).

* A voxel belongs to an ROI if its centre lies inside (see `raster`).
* A slice takes the contours of the nearest plane, if that lies within half a slice. Where contours were drawn on every
  n-th slice only, half the distance between contour planes counts instead, and a warning says so.
* ROIs may overlap (a body contour holds every organ). A voxel then goes to the smallest of them, and a warning says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from volseg.errors import VolumeError
from volseg.geometry import Box, format_triple
from volseg.volumes.audit import Audit, Dropped
from volseg.volumes.dicom.labels.objects import check_bounds, damage, frame_of_reference_warning
from volseg.volumes.dicom.labels.raster import area, fill
from volseg.volumes.label_table import Colour, LabelTable, table_of
from volseg.volumes.tolerance import SAME_HEIGHT
from volseg.volumes.volume import Volume

MOST_BYTES = 256 << 20
CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
FLATNESS = 0.1  # slices that the points of one contour may differ in
SPARSE = 1.5  # contour planes farther apart than that many slices were not drawn on every slice
NAMED = 3


@dataclass(frozen=True)
class Roi:
    """One structure in the image's voxels.

    heights  its contour planes, rising, along the axis of slices
    planes   for each its contours, float64 [points, 2], (row, column)
    """

    name: str
    value: int
    heights: np.ndarray
    planes: tuple[tuple[np.ndarray, ...], ...]

    def by_slice(self, slices: int, reach: float) -> dict[int, tuple[np.ndarray, ...]]:
        """The contours that each slice takes: those of the nearest plane, if within `reach` slices."""
        taken: dict[int, tuple[np.ndarray, ...]] = {}
        heights = self.heights.round(3)  # so that the noise of an affine does not decide a tie
        for index in range(slices):
            apart = index - heights
            near = np.flatnonzero((apart >= -reach) & (apart < reach))
            if near.size:
                # Of two planes equally far the one above: each slice gets one, and a plane halfway only one slice.
                best = min(near, key=lambda n: (abs(apart[n]), apart[n]))
                taken[index] = self.planes[best]
        return taken


def open_structures(path: Path, image: Volume) -> tuple[Volume, LabelTable]:
    """The RTSTRUCT at `path` on the grid of `image`, and its ROIs' names and colours.

    Contours are filled when their slice is read. ROIs without closed contours (points, lines) are left out and listed
    in ``audit.dropped``.

    Raises VolumeError where the file is damaged, holds no closed contour, where contours are not parallel to a face of
    the image's grid, or where none meets the image.
    """
    check_bounds(path, MOST_BYTES)
    with damage(path):
        from pydicom import dcmread

        header = dcmread(path, force=True)
        drawn, table, dropped = _rois(header, path)
        reference = _frame_of_reference(header)
    axis = _axis(path, drawn, image)
    notes: list[str] = frame_of_reference_warning(image, reference)
    others = [a for a in range(3) if a != axis]
    rois = []
    for value, (name, contours) in enumerate(drawn, 1):
        rois.append(_roi(name, value, contours, axis, others, notes))
    reach = _reach(rois, notes)
    slices = image.shape[axis]
    laid = [(roi, roi.by_slice(slices, reach)) for roi in rois]
    _check_extent(path, laid, image, axis, others, notes)
    laid.sort(key=lambda pair: -sum(area(contours) for contours in pair[1].values()))  # the smallest is painted last
    sides = (image.shape[others[0]], image.shape[others[1]])
    notes += _overlaps(laid, sides)
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
        self, path: Path, image: Volume, axis: int, laid: list[tuple[Roi, dict[int, tuple[np.ndarray, ...]]]],
        audit: Audit,
    ) -> None:  # fmt: skip
        self.path, self.space, self.audit = path, image.space, audit
        self.dtype = np.dtype(np.uint8 if len(laid) <= 255 else np.uint16)
        self._axis, self._laid = axis, laid

    def read(self, box: Box) -> np.ndarray:
        out = np.zeros(box.shape, self.dtype)
        planes = np.moveaxis(out, self._axis, 0)
        row, column = (n for axis, n in enumerate(box.start) if axis != self._axis)
        for index, plane in enumerate(planes):
            for roi, by_slice in self._laid:
                contours = by_slice.get(box.start[self._axis] + index)
                if contours is not None:
                    plane[fill(contours, (row, column), plane.shape)] = roi.value
        return out


def _rois(header: Any, path: Path) -> tuple[list[tuple[str, list[np.ndarray]]], LabelTable, list[Dropped]]:
    """(name, contours in RAS mm) of each ROI with closed contours, the table, and the ROIs left out."""
    drawn_by_number: dict[int, tuple[list[np.ndarray], set[str], Colour | None]] = {}
    for item in header.get("ROIContourSequence") or []:
        contours, kinds = [], set()
        for contour in item.get("ContourSequence") or []:
            kind = str(contour.get("ContourGeometricType", ""))
            if kind in CLOSED:
                contours.append(_points(contour))
            else:
                kinds.add(kind or "unnamed")
        drawn_by_number[int(item.ReferencedROINumber)] = contours, kinds, _colour(item)
    listed = header.get("StructureSetROISequence") or []
    drawn: list[tuple[str, list[np.ndarray]]] = []
    rows: list[tuple[int, str, Colour | None]] = []
    dropped = []
    for item in listed:
        name = str(item.get("ROIName", "") or f"ROI {item.ROINumber}")
        contours, kinds, colour = drawn_by_number.get(int(item.ROINumber), ([], set(), None))
        if kinds or not contours:
            what = f"its {', '.join(sorted(kinds))} contours enclose" if kinds else "without a contour it encloses"
            dropped.append(Dropped(f"ROI {name}", f"{what} no voxel"))
        if contours:
            drawn.append((name, contours))
            rows.append((len(drawn), name, colour))
    if not drawn:
        raise VolumeError(f"{path}: {len(listed)} ROIs, none with closed contours; there is nothing to fill")
    return drawn, table_of(rows), dropped


def _points(contour: Any) -> np.ndarray:
    data = np.array(contour.ContourData, dtype=np.float64)
    if data.size < 9 or data.size % 3 or not np.isfinite(data).all():
        raise ValueError(f"a closed contour of {data.size} coordinates")
    return data.reshape(-1, 3) * (-1, -1, 1)  # DICOM's LPS to RAS


def _colour(item: Any) -> Colour | None:
    value = item.get("ROIDisplayColor")
    if value is None or len(value) != 3:
        return None
    red, green, blue = (min(255, max(0, int(n))) for n in value)
    return red, green, blue


def _frame_of_reference(header: Any) -> str:
    items = header.get("StructureSetROISequence") or []
    return str(items[0].get("ReferencedFrameOfReferenceUID", "")) if items else ""


def _axis(path: Path, drawn: list[tuple[str, list[np.ndarray]]], image: Volume) -> int:
    """The axis (of D, H, W) that all contours are flat along. Turns the contours into voxels (D, H, W), in place."""
    to_grid = np.linalg.inv(image.space.affine)
    spread = np.zeros(3)
    for _, contours in drawn:
        for number, points in enumerate(contours):
            voxels = (points @ to_grid[:3, :3].T + to_grid[:3, 3])[:, ::-1]
            contours[number] = voxels
            spread = np.maximum(spread, np.ptp(voxels, axis=0))
    axis = int(np.argmin(spread))
    if spread[axis] > FLATNESS:
        raise VolumeError(
            f"{path}: contours are not parallel to the slices of {image.path}: one crosses {spread[axis]:.2g} slices, "
            f"limit {FLATNESS}; give the series that they were drawn on"
        )
    return axis


def _roi(
    name: str, value: int, contours: list[np.ndarray], axis: int, others: list[int], notes: list[str]
) -> Roi:  # fmt: skip
    """The contours of one ROI, gathered by plane. A contour that is there twice would undo itself: once is enough."""
    heights = np.array([points[:, axis].mean() for points in contours])
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
    return Roi(name, value, np.array(levels), tuple(tuple(plane) for plane in planes))


def _reach(rois: list[Roi], notes: list[str]) -> float:
    """How far, in slices, a contour plane counts: half a slice, or half the usual gap between planes if wider."""
    levels = np.unique(np.concatenate([roi.heights for roi in rois]).round(2))
    gap = float(np.median(np.diff(levels))) if levels.size > 2 else 1.0
    if gap <= SPARSE:
        return 0.5
    notes.append(f"contours lie {gap:.3g} slices apart; each slice between takes the nearest one's")
    return gap / 2


def _check_extent(
    path: Path, laid: list[tuple[Roi, dict[int, tuple[np.ndarray, ...]]]], image: Volume, axis: int, others: list[int],
    notes: list[str],
) -> None:  # fmt: skip
    """Warn of contours beyond the image and of slices without any between others; all beyond it is an error."""
    sides = np.array([image.shape[a] for a in others])
    meets = False
    for roi, by_slice in laid:
        points = np.concatenate([c for plane in roi.planes for c in plane])
        low, high = points.min(axis=0), points.max(axis=0)
        touches = bool(by_slice) and bool((high >= 0).all() and (low <= sides - 1).all())
        meets = meets or touches
        above = (roi.heights < -0.5) | (roi.heights >= image.shape[axis] - 0.5)
        if above.any() or (low < -0.5).any() or (high > sides - 0.5).any():
            notes.append(f"ROI {roi.name} reaches beyond the image ({int(above.sum())} contour planes of {len(above)})")
        missing = max(by_slice) - min(by_slice) + 1 - len(by_slice) if by_slice else 0
        if missing:
            notes.append(f"ROI {roi.name}: {missing} slices between its first and last have no contour; left empty")
    if not meets:
        raise VolumeError(
            f"{path}: no contour meets {image.path} ({format_triple(image.shape)} voxels); is it of another series?"
        )


def _overlaps(laid: list[tuple[Roi, dict[int, tuple[np.ndarray, ...]]]], sides: tuple[int, int]) -> list[str]:
    """A warning that names ROIs with a voxel in common, the smaller one first. Stops at a pair's first such slice."""
    found = []
    for (large, of_large), (small, of_small) in combinations(laid, 2):
        for index in sorted(of_small.keys() & of_large.keys()):
            one, two = of_large[index], of_small[index]
            start = np.maximum(_corner(one, np.min), _corner(two, np.min)).clip(0)
            stop = np.minimum(_corner(one, np.max) + 1, _corner(two, np.max) + 1).clip(None, sides)
            if (stop <= start).any():
                continue
            begin, shape = (int(start[0]), int(start[1])), tuple(int(n) for n in stop - start)
            if (fill(one, begin, (shape[0], shape[1])) & fill(two, begin, (shape[0], shape[1]))).any():
                found.append(f"{small.name} in {large.name}")
                break
    if not found:
        return []
    more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
    return [f"ROIs overlap, and a voxel of several goes to the smallest: {', '.join(found[:NAMED])}{more}"]


def _corner(contours: tuple[np.ndarray, ...], which: Any) -> np.ndarray:
    corner: np.ndarray = np.floor(which([which(points, axis=0) for points in contours], axis=0)).clip(-1, 1 << 20)
    return corner.astype(np.int64)
