"""A DICOM segmentation (SEG) as a volume of labels: its frames laid where their positions say, not in file order.

Segment numbers become label values (of a file that volseg wrote: the values that the mask had). Slices without a frame
are background; so a SEG may cover part of the image only. Where segments overlap, one rule says which has the voxel
(see `overlap`), and a warning names them.
Sources: DICOM PS3.3 A.51, C.8.20 (segmentation), C.8.20.2.3 (fractional and binary).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from volseg.errors import VolumeError
from volseg.geometry import Box, format_triple
from volseg.volumes.audit import Audit
from volseg.volumes.canonical import in_order_of
from volseg.volumes.dicom import limits
from volseg.volumes.dicom.labels.objects import NAMES, check_bounds, damage, decimals, frame_of_reference_warning
from volseg.volumes.dicom.labels.segment_frames import BACKGROUND, SegmentFrames
from volseg.volumes.dicom.labels.segment_overlaps import Placed, ordered, overlapping
from volseg.volumes.dicom.labels.slices import EvenGrid, Slices, slices_of
from volseg.volumes.label_table import Colour, LabelTable, same_name_warning, table_of
from volseg.volumes.overlap import Overlap, overlap_warning
from volseg.volumes.tolerance import OFF_GRID, OFF_SLICE, SAME_HEIGHT
from volseg.volumes.volume import Space, Volume

MOST_BYTES = 16 << 30
OWN_VALUE = re.compile(r"label (\d{1,5}) of the mask")


@dataclass(frozen=True)
class Frame:
    """One frame: its number (from 0), the label it shows (0 for all of a label map), and (c, r, normal) to RAS mm."""

    index: int
    label: int
    affine: np.ndarray


def open_segmentation(
    path: Path, kind: str, image: Volume, *, own_grid: bool = False, overlap: Overlap = "smallest"
) -> tuple[Volume, LabelTable]:  # fmt: skip
    """The SEG at `path` (of SOP class `kind`) on the grid of `image`, and its segments' names and colours.

    own_grid  leave it on the grid that its frames form, for who wants to resample it
    overlap   which segment has a voxel of several

    BINARY and LABELMAP are read, and FRACTIONAL if it only says yes and no (0 and its maximum). Frames are decoded when
    their slice is read, and once before where several segments share a slice. On a series that was corrected (see
    `slices`), frames are laid on the scanner's slices and take the same way as they.

    Raises VolumeError where the file is damaged, where a frame lies off the image's grid by more than a tenth of a
    voxel, or outside it, where segments overlap that must not, and, when that slice is read, where a fraction is met.
    """
    check_bounds(path, MOST_BYTES)
    source = SegmentFrames(path)
    with damage(path):
        rows, (frames, commas) = _rows(source.header), _frames(source.header)
        reference = str(source.header.get("FrameOfReferenceUID", ""))
    table = table_of(rows)
    notes = [*commas, *same_name_warning([row[:2] for row in rows], table, "segments")]
    source.header = None  # a few kilobytes a frame
    if not frames:
        raise VolumeError(f"{path}: a SEG without frames")
    notes += source.settle([frame.label for frame in frames])
    grids = [EvenGrid(_own_space(path, frames, source.rows, source.columns))] if own_grid else _grids(image, frames)
    grid, placed = _place_on_any(path, frames, source, grids, image, remedy=not own_grid)
    if source.kind != "LABELMAP":
        notes += _overlaps(source, placed, grid.space.shape[1:], table, overlap)
    audit = Audit(
        used=(path.name,),
        inputs=(path,),
        warnings=(*notes, *frame_of_reference_warning(image, reference)),
        facts=(("labels from", f"{NAMES[kind]}, {len(frames)} frames on {len(placed)} slices"),),
    )
    volume = SegmentationVolume(source, grid.space, placed, table, audit)
    if isinstance(grid, Slices):
        return grid.corrected(volume), table
    return (volume if own_grid else in_order_of(volume, image.space)), table


class SegmentationVolume(Volume):
    """Frames laid into a grid, the last one uppermost; a slice is decoded when it is read."""

    format = "DICOM SEG"
    whole_slices = True

    def __init__(
        self, source: SegmentFrames, space: Space, placed: dict[int, list[Placed]], table: LabelTable, audit: Audit
    ) -> None:  # fmt: skip
        self.path, self.space, self.audit = source.path, space, audit
        self.dtype = np.dtype(np.uint8 if max(table.names.values(), default=0) <= 255 else np.uint16)
        self._source, self._placed = source, placed
        self._known = {BACKGROUND, *table.names.values()}

    def read(self, box: Box) -> np.ndarray:
        out = np.zeros(box.shape, self.dtype)
        if out.size:
            for index in range(box.shape[0]):
                if box.start[0] + index in self._placed:
                    out[index] = self._slice(box.start[0] + index)[box.slices[1:]]
        return out

    def close(self) -> None:
        self._source.close()

    def _slice(self, index: int) -> np.ndarray:
        plane = np.zeros(self.shape[1:], self.dtype)
        for number, label, row, column in self._placed[index]:
            labels = self._source.labels(number, label)
            unknown = set(np.unique(labels).tolist()) - self._known if self._source.kind == "LABELMAP" else ()
            if unknown:
                raise VolumeError(f"{self.path}: label {min(unknown)} in slice {index} is none of its segments")
            window = plane[row : row + labels.shape[0], column : column + labels.shape[1]]
            np.copyto(window, labels, where=labels != BACKGROUND, casting="unsafe")
        return plane


def _rows(header: Any) -> list[tuple[int, str, Colour | None]]:
    """(value, name, colour) of each segment."""
    values = _values(header)
    return [
        (values[int(item.SegmentNumber)], str(item.get("SegmentLabel", "") or f"segment {item.SegmentNumber}"),
         _colour(item))
        for item in header.SegmentSequence if int(item.SegmentNumber) != BACKGROUND
    ]  # fmt: skip


def _values(header: Any) -> dict[int, int]:
    """Label value by segment number: the number itself, or what volseg wrote beside it (see `seg.output`)."""
    numbers = [int(item.SegmentNumber) for item in header.SegmentSequence]
    told = [OWN_VALUE.fullmatch(str(item.get("SegmentDescription", ""))) for item in header.SegmentSequence]
    if header.get("Manufacturer") != "volseg" or not all(told):
        return dict(zip(numbers, numbers, strict=True))
    return {number: int(match[1]) for number, match in zip(numbers, told, strict=True) if match}


def _colour(item: Any) -> Colour | None:
    from highdicom.color import CIELabColor

    value = item.get("RecommendedDisplayCIELabValue")
    if value is None or len(value) != 3:
        return None
    red, green, blue = CIELabColor.from_dicom_value([int(n) for n in value]).to_rgb(clip=True)
    return int(red), int(green), int(blue)


def _frames(header: Any) -> tuple[list[Frame], list[str]]:
    """Every frame that shows a segment, with its place, and warnings.

    What a frame does not say, the shared groups say for all.
    """
    (shared,) = header.get("SharedFunctionalGroupsSequence") or [{}]
    label_map = header.get("SegmentationType") == "LABELMAP"
    values = _values(header)
    frames: list[Frame] = []
    notes: dict[str, None] = {}
    for index, own in enumerate(header.PerFrameFunctionalGroupsSequence):

        def group(name: str, own: Any = own) -> Any:
            items = own.get(name) or shared.get(name)
            if not items:
                raise ValueError(f"a frame without {name}")
            return items[0]

        position = np.array(decimals(group("PlanePositionSequence"), "ImagePositionPatient", notes))
        turn = np.array(decimals(group("PlaneOrientationSequence"), "ImageOrientationPatient", notes)).reshape(2, 3)
        between_rows, between_columns = decimals(group("PixelMeasuresSequence"), "PixelSpacing", notes)
        affine = np.eye(4)
        affine[:3, :3] = np.column_stack([turn[0] * between_columns, turn[1] * between_rows, np.cross(*turn)])
        affine[:3, 3] = position
        area = abs(between_columns * between_rows)
        if not (np.isfinite(affine).all() and abs(np.linalg.det(affine)) > 1e-6 * area > 0):
            raise ValueError(f"frame {index + 1} has no usable position")
        label = 0 if label_map else values[int(group("SegmentIdentificationSequence").ReferencedSegmentNumber)]
        frames.append(Frame(index, label, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine))  # DICOM's LPS to RAS
    return frames, list(notes)


def _grids(image: Volume, frames: list[Frame]) -> Sequence[EvenGrid | Slices]:
    """The grids that frames may lie on: the scanner's slices, where the series was corrected, and the image's own."""
    slices = slices_of(image)
    own = EvenGrid(in_order_of(image, Space((1, 1, 1), frames[0].affine)).space)
    return [own] if slices is None else [slices, own]


def _place_on_any(
    path: Path, frames: list[Frame], source: SegmentFrames, grids: Sequence[EvenGrid | Slices], image: Volume,
    *, remedy: bool,
) -> tuple[EvenGrid | Slices, dict[int, list[Placed]]]:  # fmt: skip
    """The first of `grids` that all frames fit, and the frames by slice. Raises VolumeError of the first one else."""
    first: VolumeError | None = None
    for grid in grids:
        try:
            return grid, _place(path, frames, source.rows, source.columns, grid, image, remedy)
        except VolumeError as error:
            first = first or error
    assert first is not None
    raise first


def _place(
    path: Path, frames: list[Frame], rows: int, columns: int, grid: EvenGrid | Slices, image: Volume, remedy: bool
) -> dict[int, list[Placed]]:
    """By slice of `grid` its frames, each with the row and column of its first pixel."""
    corners = np.array([[c, r, 0, 1] for c in (0, columns - 1) for r in (0, rows - 1)], dtype=np.float64).T
    apart = corners[[2, 1, 0]].T  # (slice, row, column) from the first pixel
    placed: dict[int, list[Placed]] = {}
    for frame in frames:
        lies = grid.voxels((frame.affine @ corners)[:3].T)
        first = np.rint(lies[0])
        off = np.abs(lies - first - apart).max(axis=0)
        if not (off[0] <= OFF_SLICE and off[1:].max() <= OFF_GRID):
            where = f"is {off.max():.3g} voxels off its grid"
            raise VolumeError(_elsewhere(path, frame, rows, columns, image, where, remedy))
        index, row, column = (int(n) for n in first)
        d, h, w = grid.space.shape
        if not (0 <= index < d and 0 <= row <= h - rows and 0 <= column <= w - columns):
            raise VolumeError(_elsewhere(path, frame, rows, columns, image, "lies outside it", remedy))
        placed.setdefault(index, []).append((frame.index, frame.label, row, column))
    return placed


def _overlaps(
    source: SegmentFrames, placed: dict[int, list[Placed]], shape: tuple[int, int], table: LabelTable, overlap: Overlap
) -> list[str]:  # fmt: skip
    """A warning that names segments that overlap. Sorts the frames of each slice so that the right one is on top."""
    pairs = overlapping(source, placed, shape)
    if not pairs:
        return []
    names = {value: name for name, value in table.names.items()}
    order = ordered(source, placed, pairs, overlap) if overlap != "error" else sorted({n for p in pairs for n in p})
    named = [(names[max(pair, key=order.index)], names[min(pair, key=order.index)]) for pair in sorted(pairs)]
    return overlap_warning(source.path, named, overlap, "segments")


def _elsewhere(path: Path, frame: Frame, rows: int, columns: int, image: Volume, how: str, remedy: bool) -> str:
    sides = np.sqrt((frame.affine[:3, :2] ** 2).sum(axis=0))[::-1]
    place = ", ".join(f"{n:.4g}" for n in frame.affine[:3, 3])
    text = (
        f"{path}: frame {frame.index + 1}, {rows}x{columns} pixels of {sides[0]:.4g}x{sides[1]:.4g} mm at RAS {place}, "
        f"{how}: {image.path} has {format_triple(image.shape)} voxels (D x H x W) of "
        f"{format_triple(tuple(f'{side:.4g}' for side in image.space.spacing))} mm; "
    )
    return text + ("--resample-labels resamples" if remedy else "give the series that the SEG was made on")


def _own_space(path: Path, frames: list[Frame], rows: int, columns: int) -> Space:
    """The even grid that the frames form among themselves; the smallest step between slices is its spacing."""
    first = frames[0].affine
    normal = first[:3, 2] / np.linalg.norm(first[:3, 2])
    heights = np.array([normal @ (frame.affine[:3, 3] - first[:3, 3]) for frame in frames])
    apart = np.diff(np.sort(heights))
    apart = apart[apart > SAME_HEIGHT * np.sqrt((first[:3, :2] ** 2).sum(axis=0)).min()]
    if not apart.size:
        raise VolumeError(f"{path}: frames at one position only, so its slices have no known spacing to resample from")
    count = round(float((heights.max() - heights.min()) / apart.min()))
    step = float(heights.max() - heights.min()) / count
    numbers = (heights - heights.min()) / step
    if np.abs(numbers - numbers.round()).max() > OFF_GRID:
        raise VolumeError(f"{path}: its frames lie {apart.min():.4g} to {apart.max():.4g} mm apart, on no even grid")
    if count >= limits.MAX_FRAMES:
        raise VolumeError(f"{path}: its frames span {count} slices; is a position wrong?")
    affine = first.copy()
    affine[:3, 2] = normal * step
    affine[:3, 3] = first[:3, 3] + normal * heights.min()
    return Space((count + 1, rows, columns), affine)
