"""Where the slices of a CT series lie, and whether they make a volume.

Only ImagePositionPatient, ImageOrientationPatient and PixelSpacing count; SliceThickness says nothing about where
slices lie, nor InstanceNumber about their order. Tolerances allow for decimals rounded in the files, and for nothing
that would move a voxel visibly: directions to 1e-3 (0.06 degrees), pixel spacing to 0.1 %, drift off the normal to a
tenth of a pixel over the whole stack, and every slice to 5 % of the spacing from its place on an even grid. None of
them is a length (see `volumes.tolerance`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from volseg.errors import VolumeError
from volseg.volumes.dicom.image import Image, name_some
from volseg.volumes.dicom.numbers import as_written, numbers
from volseg.volumes.tolerance import OFF_SLICE, SAME_PLACE
from volseg.volumes.volume import Space

DIRECTION_TOLERANCE = 1e-3
PIXEL_TOLERANCE = 1e-3
DRIFT_TOLERANCE_PIXELS = 0.1
MOST_SLACK_PIXELS = 0.25
EVENNESS_TOLERANCE = 0.05
FEWEST_DECIMALS, MOST_DECIMALS = 0, 6
FARTHEST_MM = 1e6
FINE_PIXEL_MM = 0.1  # below which messages need more digits


@dataclass(frozen=True, eq=False)
class Placement:
    """The slices of a series in order along their normal, and where they lie; mm, in DICOM's LPS frame.

    images     ordered along `normal`
    positions  [n, 3] centre of each slice's first pixel
    across, down, normal  unit vectors: towards higher columns, towards higher rows, and across x down (right-handed)
    pixel      (between rows, between columns)
    size       (rows, columns)
    """

    images: tuple[Image, ...]
    positions: np.ndarray
    across: np.ndarray
    down: np.ndarray
    pixel: tuple[float, float]
    size: tuple[int, int]

    @property
    def normal(self) -> np.ndarray:
        return np.cross(self.across, self.down)

    @property
    def same_place(self) -> float:
        """How near (mm) two slices of one position lie."""
        return SAME_PLACE * min(self.pixel)

    @property
    def heights(self) -> np.ndarray:
        """[n] along the normal, from the first slice."""
        heights: np.ndarray = (self.positions - self.positions[0]) @ self.normal
        return heights

    @property
    def gaps(self) -> np.ndarray:
        """[n - 1] between neighbours, along the normal."""
        return np.diff(self.heights)

    @property
    def shifts(self) -> np.ndarray:
        """[n, 2] (rows, columns) in pixels: how far each slice lies beside the first one's column along the normal."""
        moved = self.positions - self.positions[0]
        return np.stack([moved @ self.down / self.pixel[0], moved @ self.across / self.pixel[1]], axis=1)

    @property
    def drift(self) -> np.ndarray:
        """[2] (rows, columns) in pixels for each mm along the normal, from the first slice to the last."""
        drift: np.ndarray = self.shifts[-1] / self.heights[-1]
        return drift

    @property
    def tilt(self) -> float:
        """Degrees between the line of the slices and their normal."""
        return float(np.degrees(np.arctan(np.linalg.norm(self.drift * self.pixel))))

    @property
    def is_tilted(self) -> bool:
        """Whether the slices drift off their normal, over the whole stack, by more than the tolerance."""
        return bool((np.abs(self.shifts[-1]) > DRIFT_TOLERANCE_PIXELS + self.slack).any())

    @property
    def decimals(self) -> np.ndarray:
        """[3] mm: the power of ten that all positions are multiples of, along each axis; 0 where they do not differ."""
        return np.array([_decimal(places) for places in self.positions.T])

    @property
    def rounding(self) -> float:
        """How far apart (mm), along the normal, rounded decimals may bring two slices, or push them."""
        return float(np.abs(self.normal) @ self.decimals)

    @property
    def slack(self) -> np.ndarray:
        """[2] (rows, columns) in pixels: the same in plane; 0 where it is too much to be told from a tilt."""
        slack = np.abs([self.down, self.across]) @ self.decimals / self.pixel
        return np.where(slack <= MOST_SLACK_PIXELS, slack, 0.0)

    @property
    def is_even(self) -> bool:
        """Whether every slice lies near its place on an even grid from the first to the last, or is rounded off it."""
        return self._off_even <= EVENNESS_TOLERANCE or self.is_rounded

    @property
    def is_rounded(self) -> bool:
        """Whether slices lie off an even grid, and the decimals to which their positions are rounded explain it."""
        if not EVENNESS_TOLERANCE < self._off_even <= OFF_SLICE:
            return False
        numbers = np.arange(len(self.images))
        off = self.heights - np.polyval(np.polyfit(numbers, self.heights, 1), numbers)
        # Of the straight lines the one by least squares is not quite the one with the least range.
        return bool(np.ptp(off) <= 1.2 * self.rounding)

    @property
    def _off_even(self) -> float:
        """How far the slices lie off an even grid from the first to the last, in slices."""
        heights, count = self.heights, len(self.images)
        spacing = heights[-1] / (count - 1)
        return float(np.abs(heights / spacing - np.arange(count)).max()) if spacing > 0 else np.inf

    def space(self) -> Space:
        """The grid of slices that are neither tilted nor uneven."""
        spacing = self.heights[-1] / (len(self.images) - 1)
        return self.grid((len(self.images), *self.size), spacing, self.positions[0])

    def grid(self, shape: tuple[int, int, int], spacing: float, origin: np.ndarray) -> Space:
        """A grid of `shape` along this series' directions, its slices `spacing` apart from `origin` on."""
        affine = np.eye(4)
        affine[:3, 0] = self.across * self.pixel[1]
        affine[:3, 1] = self.down * self.pixel[0]
        affine[:3, 2] = self.normal * spacing
        affine[:3, 3] = origin
        return Space(shape, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine + 0.0)  # LPS to RAS; + 0.0 turns -0.0 into 0.0

    def name(self, index: int) -> str:
        """A slice for messages: its name and position, to digits in which neighbours differ."""
        digits = 4 if min(self.pixel) > FINE_PIXEL_MM else 8
        place = ", ".join(f"{n:.{digits}g}" for n in self.positions[index])
        return f"{self.images[index].short_name} at ({place})"


def place(path: Path, images: Sequence[Image]) -> Placement:
    """The slices in order along their normal.

    Raises VolumeError where there is but one, where a position is missing, and, naming the slices, where their sizes,
    directions or pixel spacings differ.
    """
    if len(images) == 1:
        raise VolumeError(f"{images[0].name}: the only slice of its series; a volume needs two or more")
    positions = np.array([_numbers(image, "ImagePositionPatient", 3) for image in images])
    directions = np.array([_numbers(image, "ImageOrientationPatient", 6) for image in images])
    pixels = np.array([_numbers(image, "PixelSpacing", 2) for image in images])
    sizes = [(int(image.get("Rows")), int(image.get("Columns"))) for image in images]
    if pixels.min() <= 0:
        image = images[int(np.argmin(pixels.min(axis=1)))]
        raise VolumeError(f"{image.name}: PixelSpacing {pixels.min()} mm; it must be positive")
    faults = _different(images, positions, directions, pixels, sizes)
    if faults:
        raise VolumeError(f"{path}: {'; '.join(faults)}; give a folder without them, or one of each kind")
    across, down = _perpendicular(images[0], directions.mean(axis=0))
    order = np.argsort(positions @ np.cross(across, down), kind="stable")
    pixel = float(pixels[0, 0]), float(pixels[0, 1])
    return Placement(
        images=tuple(images[n] for n in order),
        positions=positions[order],
        across=across,
        down=down,
        pixel=pixel,
        size=sizes[0],
    )


def same_places(placement: Placement) -> list[tuple[int, int]]:
    """Pairs of neighbours (n, n + 1) that lie at one position."""
    apart = np.linalg.norm(np.diff(placement.positions, axis=0), axis=1)
    return [(int(n), int(n) + 1) for n in np.flatnonzero(apart < placement.same_place)]


def irregularities(placement: Placement) -> list[str]:
    """What no correction mends: slices at one height that lie elsewhere in plane, and slices out of line."""
    same = np.flatnonzero(placement.gaps < placement.same_place)
    if same.size:
        first = int(same[0])
        pair = f"{placement.name(first)} and {placement.name(first + 1)}"
        return [f"{same.size} slices lie at the height of another, as {pair}"]
    along = np.outer(placement.heights, placement.drift)
    wander = np.abs(placement.shifts - along).max(axis=1) * min(placement.pixel)
    limit = (DRIFT_TOLERANCE_PIXELS + float(placement.slack.max())) * min(placement.pixel)
    if wander.max() > limit:
        far = int(np.argmax(wander))
        return [f"slices are not in one line: {placement.name(far)} is {wander[far]:.3g} mm off, limit {limit:.2g} mm"]
    return []


def describe_tilt(placement: Placement) -> str:
    """The tilt in words, with the slices it is seen between."""
    drift = float(np.linalg.norm(placement.shifts[-1] * placement.pixel))
    return (
        f"gantry tilt of {placement.tilt:.1f} degrees: slices drift {drift:.3g} mm off their normal from "
        f"{placement.name(0)} to {placement.name(-1)}, limit {DRIFT_TOLERANCE_PIXELS * min(placement.pixel):.2g} mm"
    )


def describe_gaps(placement: Placement, most: int = 3) -> str:
    """The uneven spacing in words, with the slices beside the gaps that are furthest from the usual one."""
    gaps = placement.gaps
    usual = float(np.median(gaps))
    odd = np.flatnonzero(np.abs(gaps / usual - 1) > max(EVENNESS_TOLERANCE, placement.rounding / usual * (1 + 1e-6)))
    if not odd.size:
        odd = np.flatnonzero(np.abs(gaps / usual - 1) > EVENNESS_TOLERANCE)
    ranked = [int(n) for n in np.argsort(-np.abs(gaps / usual - 1).round(3), kind="stable") if n in odd]
    # The widest and the narrowest come first, so that both kinds are seen.
    ends = [n for n in (int(np.argmax((gaps / usual).round(3))), int(np.argmin((gaps / usual).round(3)))) if n in odd]
    worst = sorted(list(dict.fromkeys([*ends, *ranked]))[:most])
    listed = ", ".join(
        f"{gaps[n]:.4g} mm between {placement.name(n)} and {placement.name(n + 1)}{_missing(gaps[n], usual)}"
        for n in worst
    )
    more = f" and {odd.size - most} more" if odd.size > most else ""
    return f"uneven slices: {listed}{more}; mostly {usual:.4g} mm ({gaps.min():.4g} to {gaps.max():.4g})"


def describe_rounding(placement: Placement) -> str:
    """What rounded positions were read as, in words."""
    spacing = placement.heights[-1] / (len(placement.images) - 1)
    gaps = placement.gaps
    return (
        f"slice positions are rounded to {placement.decimals.max():g} mm (they lie {gaps.min():.4g} to "
        f"{gaps.max():.4g} mm apart); read as evenly {spacing:.4g} mm apart"
    )


def _decimal(places: np.ndarray) -> float:
    if np.ptp(places) == 0:
        return 0.0
    for digits in range(FEWEST_DECIMALS, MOST_DECIMALS + 1):
        parts = places * 10.0**digits
        if np.abs(parts - np.rint(parts)).max() < 1e-4:
            return float(10.0**-digits)
    return 0.0


def _missing(gap: float, usual: float) -> str:
    count = round(gap / usual)
    if count < 2 or abs(gap / usual - count) > EVENNESS_TOLERANCE * count:
        return ""
    return f" ({count - 1} missing)"


def _different(
    images: Sequence[Image],
    positions: np.ndarray,
    directions: np.ndarray,
    pixels: np.ndarray,
    sizes: list[tuple[int, int]],
) -> list[str]:
    """In words, how some slices are unlike the others."""
    faults = []
    usual_size = Counter(sizes).most_common(1)[0][0]
    odd = [n for n, size in enumerate(sizes) if size != usual_size]
    if odd:
        listed = ", ".join(sorted({f"{rows}x{columns}" for rows, columns in sizes}))
        faults.append(f"slices of different sizes ({listed}): unlike the others are {_some(images, positions, odd)}")
    usual = np.median(directions, axis=0)
    odd = list(np.flatnonzero(np.abs(directions - usual).max(axis=1) > DIRECTION_TOLERANCE))
    if odd:
        faults.append(f"slices of several orientations: unlike the others are {_some(images, positions, odd)}")
    usual = np.median(pixels, axis=0)
    odd = list(np.flatnonzero(np.abs(pixels / usual - 1).max(axis=1) > PIXEL_TOLERANCE))
    if odd:
        listed = f"{pixels.min():.6g} to {pixels.max():.6g} mm"
        faults.append(f"PixelSpacing differs, {listed}: unlike the others are {_some(images, positions, odd)}")
    return faults


def _some(images: Sequence[Image], positions: np.ndarray, which: Sequence[int]) -> str:
    first = f" (the first at {', '.join(f'{n:.6g}' for n in positions[which[0]])})"
    return name_some([images[n] for n in which]) + first


def _perpendicular(first: Image, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors along a row (towards higher columns) and down a column, made exactly perpendicular."""
    across, down = directions.reshape(2, 3)
    lengths = np.linalg.norm(across), np.linalg.norm(down)
    if max(abs(n - 1) for n in lengths) > DIRECTION_TOLERANCE or abs(across @ down) > DIRECTION_TOLERANCE:
        value = [round(float(n), 6) for n in directions]
        raise VolumeError(f"{first.name}: ImageOrientationPatient {value} is no pair of perpendicular directions")
    across = across / lengths[0]
    down = down - (down @ across) * across
    return across, down / np.linalg.norm(down)


def _numbers(image: Image, keyword: str, count: int) -> list[float]:
    value = image.get(keyword)
    try:
        read = numbers(value)
    except ValueError:
        read = ()
    if len(read) != count or not np.isfinite(read).all() or max(map(abs, read)) > FARTHEST_MM:
        what = "no" if value is None else f"a wrong ({as_written(value)})"
        raise VolumeError(f"{image.name}: {what} {keyword}; without it the slice has no place in the patient")
    return list(read)
