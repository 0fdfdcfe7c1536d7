"""Opt-in corrections of a series' geometry: gantry tilt sheared back, uneven slices interpolated onto an even grid.

Both are linear: a sheared slice moves in plane by a fraction of a pixel, a slice between two others is their weighted
mean. They are made in one step, in float64, and rounded once, slice by slice as boxes are read: a box costs only the
slices it meets, and has the same values whatever its size. Nothing is cut off: the slices grow, and what they did not
cover is air (-1024 HU). A pixel reaches half its size beyond its centre.

dcm2niix (nii_saveNII3Dtilt, nii_saveNII3Deq, both read for this) does the same in two steps of float32, with a rounding
after each; fills with the lowest value found, which may be a padding value below air; takes the angle from the header,
with its sign by rules for each manufacturer, where positions are used here; keeps to row shifts; and chooses the finest
gap as the spacing, or where that would more than double the slices, the spacing that just doubles them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from volseg.errors import VolumeError
from volseg.geometry import Box
from volseg.volumes.dicom import limits
from volseg.volumes.dicom.geometry import EVENNESS_TOLERANCE, Placement
from volseg.volumes.dicom.pixels.hounsfield import AIR_HU
from volseg.volumes.dicom.pixels.stack import SliceStack
from volseg.volumes.tolerance import OFF_SLICE
from volseg.volumes.volume import Space

MAX_TILT_DEGREES = 45.0
"""Gantries tilt by 30 degrees at most; beyond this the positions are wrong."""

MAX_GAP_SPACINGS, MAX_GAP_MM = 3.0, 15.0
HARMLESS_GAP_MM, HARMLESS_GAP_PIXELS = 5.0, 16.0
"""Two slices in a row may be missing, not more, unless the gap is within 5 mm, the thickness of an ordinary slice, and
within 16 pixels, for in a scan of a tooth 5 mm are all there is; and none above 15 mm: what is interpolated across is
made up, and findings of a centimetre would be lost in it."""

USUAL_SHARE = 0.1
"""The finest spacing that at least this share of the gaps have is the one to keep."""

PIXEL_SNAP, GAP_SNAP = 1e-3, 0.02
"""Fractions of a pixel or of a gap below this count as none, so that slices that need not move stay as they are."""


@dataclass(frozen=True, eq=False)
class Plan:
    """How a corrected volume follows from the slices.

    space    its grid
    corner   (row, column) of its first pixel, in pixels of the first slice
    shifts   [n, 2] rows and columns by which each slice lies off the normal through the first
    lower    [D] the slice at or below each new one
    weights  [D] weight of the slice above that; the lower one has the rest
    fixes    what is done, in words, for the audit
    """

    space: Space
    corner: tuple[int, int]
    shifts: np.ndarray
    lower: np.ndarray
    weights: np.ndarray
    fixes: tuple[str, ...]


def plan_corrections(path: Path, placement: Placement, *, tilt: bool, gaps: bool) -> Plan:
    """The corrections of a tilt, of gaps, or of both.

    Raises VolumeError where a tilt or a gap is too great to be corrected.
    """
    fixes = []
    shifts = np.zeros((len(placement.images), 2))
    corner, size = (0, 0), placement.size
    if tilt:
        shifts = _snapped(placement.shifts)
        corner, size = _extended(path, placement, shifts)
        fixes.append(
            f"gantry tilt of {placement.tilt:.2f} degrees sheared back: slices moved in plane by up to "
            f"{np.abs(shifts[:, 0]).max():.2f} rows and {np.abs(shifts[:, 1]).max():.2f} columns (linear); slices of "
            f"{placement.size[0]} x {placement.size[1]} extended to {size[0]} x {size[1]} with air"
        )
    count, spacing = len(placement.images), placement.heights[-1] / (len(placement.images) - 1)
    lower, weights = np.arange(count), np.zeros(count)
    if gaps:
        _require_bridgeable(path, placement)
        count, spacing = even_grid(placement.gaps, placement.rounding)
        snap = _snap(placement, spacing)
        lower, weights = _neighbours(placement.heights, spacing * np.arange(count), snap)
        fixes.append(
            f"uneven slices interpolated (linear): {len(placement.images)} slices {placement.gaps.min():.4g} to "
            f"{placement.gaps.max():.4g} mm apart became {count} slices {spacing:.4g} mm apart, "
            f"{int((weights == 0).sum())} of them unchanged"
        )
    origin = (
        placement.positions[0]
        + placement.down * placement.pixel[0] * corner[0]
        + placement.across * placement.pixel[1] * corner[1]
    )
    space = placement.grid((count, *size), spacing, origin)
    return Plan(space=space, corner=corner, shifts=shifts, lower=lower, weights=weights, fixes=tuple(fixes))


def even_grid(gaps: np.ndarray, rounding: float = 0.0) -> tuple[int, float]:
    """(slices, spacing in mm) of the even grid from the first slice to the last.

    Its spacing is the finest that a tenth of the gaps have, so that no detail of any stretch is thinned out, stretched
    to end on the last slice. Where slices are missing that is the usual spacing, and all others stay as they are.

    rounding  mm by which decimals may have changed a gap; those that differ by no more have one spacing, their mean
    """
    fine = np.quantile(gaps, USUAL_SHARE, method="higher")
    usual = float(np.median(gaps[np.abs(gaps / fine - 1) <= EVENNESS_TOLERANCE]))
    if EVENNESS_TOLERANCE * fine < rounding <= OFF_SLICE * fine:
        usual = float(np.mean(gaps[np.abs(gaps - fine) <= rounding * (1 + 1e-6)]))
    length = float(gaps.sum())
    count = max(1, round(length / usual))
    return count + 1, length / count


def interpolated_slices(stack: SliceStack, plan: Plan, box: Box, out: np.ndarray) -> np.ndarray:
    """The voxels of `box` of the corrected grid, made from the slices of `stack`, in `out` [d, h, w].

    A voxel's value does not depend on the box it is read in.
    """
    for index in range(box.shape[0]):
        lower, weight = int(plan.lower[box.start[0] + index]), float(plan.weights[box.start[0] + index])
        plane = _sheared(stack, plan, lower, box)
        if weight:
            plane = (1 - weight) * plane + weight * _sheared(stack, plan, lower + 1, box)
        out[index] = np.rint(plane) if out.dtype.kind == "i" else plane
    return out


def _sheared(stack: SliceStack, plan: Plan, number: int, box: Box) -> np.ndarray:
    """A slice moved in plane, float64, within the box's rows and columns."""
    plane = stack.read(number).astype(np.float64)
    for axis in (0, 1):
        start = plan.corner[axis] - plan.shifts[number, axis]
        plane = _interpolated(plane, axis, np.arange(box.start[axis + 1], box.stop[axis + 1]) + start)
    return plane


def _interpolated(plane: np.ndarray, axis: int, places: np.ndarray) -> np.ndarray:
    """`plane` at fractional `places` along `axis`; its last pixels reach half a pixel on, then air begins."""
    last = plane.shape[axis] - 1
    inside = np.clip(places, 0, last)
    low = np.floor(inside).astype(np.intp)
    weight = np.expand_dims(inside - low, 1 - axis)
    values: np.ndarray = plane.take(low, axis)
    if weight.any():
        values = (1 - weight) * values + weight * plane.take(np.minimum(low + 1, last), axis)
    beyond = np.abs(places - inside) > 0.5
    values[beyond if axis == 0 else (slice(None), beyond)] = AIR_HU
    return values


def _extended(path: Path, placement: Placement, shifts: np.ndarray) -> tuple[tuple[int, int], tuple[int, int]]:
    """The corner and size of slices that hold all of every shifted one."""
    if placement.tilt > MAX_TILT_DEGREES:
        raise VolumeError(
            f"{path}: slices lie {placement.tilt:.1f} degrees off their normal, more than any gantry tilts (limit "
            f"{MAX_TILT_DEGREES:g}); their positions cannot be right"
        )
    first, last = np.floor(shifts.min(axis=0)), np.ceil(shifts.max(axis=0))
    rows, columns = (int(n) for n in np.array(placement.size) + last - first)
    if rows * columns > limits.MAX_SLICE_PIXELS:
        raise VolumeError(f"{path}: sheared back, its slices would have {rows} x {columns} pixels; too many")
    return (int(first[0]), int(first[1])), (rows, columns)


def _snapped(shifts: np.ndarray) -> np.ndarray:
    whole = np.rint(shifts)
    return np.where(np.abs(shifts - whole) < PIXEL_SNAP, whole, shifts)


def widest_gap_bridged(placement: Placement) -> float:
    """How far apart (mm) neighbouring slices may lie for `plan_corrections` to interpolate between them."""
    usual = float(np.median(placement.gaps))
    harmless = min(HARMLESS_GAP_MM, HARMLESS_GAP_PIXELS * min(placement.pixel))
    return min(MAX_GAP_MM, max(MAX_GAP_SPACINGS * usual, harmless)) * (1 + EVENNESS_TOLERANCE)


def _require_bridgeable(path: Path, placement: Placement) -> None:
    gaps, limit = placement.gaps, widest_gap_bridged(placement)
    widest = int(np.argmax(gaps))
    if gaps[widest] > limit:
        raise VolumeError(
            f"{path}: {gaps[widest]:.4g} mm between {placement.name(widest)} and {placement.name(widest + 1)} are too "
            f"wide to interpolate across, limit {limit:.4g} mm: find the missing slices, or give one side of the gap"
        )


def _snap(placement: Placement, spacing: float) -> float:
    """Slices that one may lie off the grid and stay as it is: more where nothing but rounding puts it there."""
    numbers = placement.heights / spacing
    rounding = placement.rounding / spacing
    rounded = rounding <= OFF_SLICE and np.abs(numbers - np.rint(numbers)).max() <= rounding * (1 + 1e-6)
    return max(GAP_SNAP, rounding * (1 + 1e-6)) if rounded else GAP_SNAP


def _neighbours(heights: np.ndarray, wanted: np.ndarray, snap: float) -> tuple[np.ndarray, np.ndarray]:
    """For each wanted height the slice at or below it, and the weight of the next."""
    lower = np.clip(np.searchsorted(heights, wanted, side="right") - 1, 0, len(heights) - 2)
    weights = np.clip((wanted - heights[lower]) / np.diff(heights)[lower], 0, 1)
    near = np.minimum(0.5, snap * np.median(np.diff(heights)) / np.diff(heights)[lower])
    above = weights > 1 - near
    return np.where(above, lower + 1, lower), np.where(above | (weights < near), 0.0, weights)
