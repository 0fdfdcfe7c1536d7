"""The grid of a CT series, from the positions of its slices.

Only ImagePositionPatient, ImageOrientationPatient and PixelSpacing count; SliceThickness says nothing about where
slices lie. Tolerances allow for decimals rounded in the files, and for nothing that would move a voxel visibly:
directions to 1e-3 (0.06 degrees), pixel spacing to 0.1 %, drift off the normal to a tenth of a pixel over the whole
stack, and every slice to 5 % of the spacing from its place on an even grid.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from volseg.errors import VolumeError
from volseg.volumes.dicom_series import Slice, name_some
from volseg.volumes.volume import Space

DIRECTION_TOLERANCE = 1e-3
PIXEL_TOLERANCE = 1e-3
DRIFT_TOLERANCE_PIXELS = 0.1
EVENNESS_TOLERANCE = 0.05
SAME_PLACE_MM = 1e-3


def place_slices(folder: Path, slices: list[Slice]) -> tuple[list[Slice], Space]:
    """The slices in order along their normal (columns x rows: a right-handed frame), and their grid.

    Raises VolumeError where a position is missing, where sizes or directions differ, and for gantry tilt, slices at
    one place, and uneven spacing.
    """
    positions = np.array([_numbers(image, "ImagePositionPatient", 3) for image in slices])
    across, down = _directions(folder, slices)
    pixel = _pixel_spacing(folder, slices)
    sizes = {(int(image.get("Rows")), int(image.get("Columns"))) for image in slices}
    if len(sizes) > 1:
        listed = ", ".join(f"{rows}x{columns}" for rows, columns in sorted(sizes))
        raise VolumeError(f"{folder}: slices of different sizes in one series: {listed}; give those of one size")
    heights = positions @ np.cross(across, down)
    order = np.argsort(heights, kind="stable")
    ordered, positions, heights = [slices[n] for n in order], positions[order], heights[order]
    _require_distinct(folder, ordered, heights)
    _require_upright(folder, positions, heights, float(pixel.min()))
    _require_even(folder, ordered, heights)
    affine = np.eye(4)
    affine[:3, 0] = across * pixel[1]
    affine[:3, 1] = down * pixel[0]
    affine[:3, 2] = np.cross(across, down) * (heights[-1] - heights[0]) / (len(slices) - 1)
    affine[:3, 3] = positions[0]
    ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine + 0.0  # DICOM's LPS to RAS; + 0.0 turns -0.0 into 0.0
    (rows, columns) = next(iter(sizes))
    return ordered, Space((len(slices), rows, columns), ras)


def _directions(folder: Path, slices: list[Slice]) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors along a row (towards higher columns) and down a column, made exactly perpendicular."""
    all_directions = np.array([_numbers(image, "ImageOrientationPatient", 6) for image in slices])
    far = np.abs(all_directions - all_directions[0]).max(axis=1) > DIRECTION_TOLERANCE
    if far.any():
        some = name_some(image for image, other in zip(slices, far, strict=True) if other)
        raise VolumeError(f"{folder}: slices of several orientations in one series: unlike the others are {some}")
    across, down = all_directions.mean(axis=0).reshape(2, 3)
    lengths = np.linalg.norm(across), np.linalg.norm(down)
    if max(abs(n - 1) for n in lengths) > DIRECTION_TOLERANCE or abs(across @ down) > DIRECTION_TOLERANCE:
        value = all_directions[0].tolist()
        raise VolumeError(f"{slices[0].path}: ImageOrientationPatient {value} is no pair of perpendicular directions")
    across = across / lengths[0]
    down = down - (down @ across) * across
    return across, down / np.linalg.norm(down)


def _pixel_spacing(folder: Path, slices: list[Slice]) -> np.ndarray:
    """(between rows, between columns) in mm."""
    spacings = np.array([_numbers(image, "PixelSpacing", 2) for image in slices])
    if spacings.min() <= 0:
        raise VolumeError(f"{folder}: PixelSpacing {spacings.min()} mm; it must be positive")
    if np.abs(spacings / spacings[0] - 1).max() > PIXEL_TOLERANCE:
        low, high = spacings.min(), spacings.max()
        raise VolumeError(f"{folder}: PixelSpacing differs within the series, {low} to {high} mm; give slices of one")
    first: np.ndarray = spacings[0]
    return first


def _require_distinct(folder: Path, slices: list[Slice], heights: np.ndarray) -> None:
    same = np.flatnonzero(np.diff(heights) < SAME_PLACE_MM)
    if same.size:
        first, second = slices[same[0]], slices[same[0] + 1]
        raise VolumeError(
            f"{folder}: {same.size} slices lie where another does ({first.path.name} and {second.path.name}): "
            "copies, or several phases in one series; give one of each"
        )


def _require_upright(folder: Path, positions: np.ndarray, heights: np.ndarray, pixel: float) -> None:
    """Slices must be stacked along their normal; a tilted gantry moves each sideways to the one before."""
    step = (positions[-1] - positions[0]) / (heights[-1] - heights[0])  # mm moved for each mm along the normal
    along = positions[0] + np.outer(heights - heights[0], step)
    sideways = float(np.sqrt(max(0.0, step @ step - 1.0)))
    limit = DRIFT_TOLERANCE_PIXELS * pixel
    drift = sideways * (heights[-1] - heights[0])
    if drift > limit:
        angle = np.degrees(np.arctan(sideways))
        raise VolumeError(
            f"{folder}: gantry tilt of {angle:.1f} degrees: slices drift {drift:.1f} mm off their normal, limit "
            f"{limit:.2g} mm; correct the tilt with another tool first"
        )
    wander = float(np.linalg.norm(positions - along, axis=1).max())
    if wander > limit:
        raise VolumeError(f"{folder}: slices are not in one line: {wander:.1f} mm off, limit {limit:.2g} mm")


def _require_even(folder: Path, slices: list[Slice], heights: np.ndarray) -> None:
    spacing = (heights[-1] - heights[0]) / (len(slices) - 1)
    off = np.abs(heights - heights[0] - spacing * np.arange(len(slices))).max()
    if off <= EVENNESS_TOLERANCE * spacing:
        return
    gaps = np.diff(heights)
    usual = float(np.median(gaps))
    worst = int(np.argmax(np.abs(gaps - usual)))
    between = f"{slices[worst].path.name} and {slices[worst + 1].path.name}"
    raise VolumeError(
        f"{folder}: uneven slices: {gaps[worst]:.4g} mm between {between}, mostly {usual:.4g} mm "
        f"({gaps.min():.4g} to {gaps.max():.4g}); find the missing slices, or resample with another tool"
    )


def _numbers(image: Slice, keyword: str, count: int) -> list[float]:
    value = image.get(keyword)
    try:
        numbers = [float(number) for number in value]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) != count or not np.isfinite(numbers).all():
        found = "no" if value is None else f"a wrong ({value})"
        raise VolumeError(f"{image.path}: {found} {keyword}; without it the slice has no place in the patient")
    return numbers
