"""A DICOM segmentation (SEG) as a volume of labels: its frames laid where their positions say, not in file order.

Segment numbers become label values (of a file that volseg wrote: the values that the mask had). Slices without a frame
are background; so a SEG may cover part of the image only.
Sources: DICOM PS3.3 A.51, C.8.20 (segmentation), C.8.20.2.3 (fractional and binary).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from volseg.errors import VolumeError
from volseg.geometry import Box, format_triple
from volseg.volumes.audit import Audit
from volseg.volumes.canonical import in_order_of
from volseg.volumes.dicom import limits
from volseg.volumes.dicom.labels.objects import NAMES, check_bounds, damage, frame_of_reference_warning
from volseg.volumes.dicom.labels.segment_frames import BACKGROUND, SegmentFrames
from volseg.volumes.label_table import Colour, LabelTable, table_of
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


def open_segmentation(path: Path, kind: str, image: Volume, *, own_grid: bool = False) -> tuple[Volume, LabelTable]:
    """The SEG at `path` (of SOP class `kind`) on the grid of `image`, and its segments' names and colours.

    BINARY and LABELMAP are read, and FRACTIONAL if it only says yes and no (0 and its maximum). Frames are decoded when
    their slice is read. With `own_grid` it is left on the grid that its frames form, for who wants to resample it.

    Raises VolumeError where the file is damaged, where a frame lies off the image's grid by more than a tenth of a
    voxel, or outside it, and, when that slice is read, where two segments overlap or a fraction is met.
    """
    check_bounds(path, MOST_BYTES)
    source = SegmentFrames(path)
    with damage(path):
        table, frames = _table(source.header), _frames(source.header)
        reference = str(source.header.get("FrameOfReferenceUID", ""))
    source.header = None  # a few kilobytes a frame
    if not frames:
        raise VolumeError(f"{path}: a SEG without frames")
    rows, columns = source.rows, source.columns
    if own_grid:
        space = _own_space(path, frames, rows, columns)
    else:
        space = in_order_of(image, Space((1, 1, 1), frames[0].affine)).space
    placed = _place(path, frames, rows, columns, space, image)
    audit = Audit(
        used=(path.name,),
        inputs=(path,),
        warnings=tuple(frame_of_reference_warning(image, reference)),
        facts=(("labels from", f"{NAMES[kind]}, {len(frames)} frames on {len(placed)} slices"),),
    )
    volume = SegmentationVolume(source, space, placed, table, audit)
    return (volume if own_grid else in_order_of(volume, image.space)), table


class SegmentationVolume(Volume):
    """Frames laid into a grid; a slice is decoded when it is read."""

    format = "DICOM SEG"
    whole_slices = True

    def __init__(
        self, source: SegmentFrames, space: Space, placed: dict[int, list[tuple[Frame, int, int]]], table: LabelTable,
        audit: Audit,
    ) -> None:  # fmt: skip
        self.path, self.space, self.audit = source.path, space, audit
        self.dtype = np.dtype(np.uint8 if max(table.names.values(), default=0) <= 255 else np.uint16)
        self._source, self._placed = source, placed
        self._names = {value: name for name, value in table.names.items()}

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
        for frame, row, column in self._placed[index]:
            labels = self._source.labels(frame.index, frame.label)
            window = plane[row : row + labels.shape[0], column : column + labels.shape[1]]
            self._check(labels, window, index)
            np.copyto(window, labels, where=labels != BACKGROUND, casting="unsafe")
        return plane

    def _check(self, labels: np.ndarray, window: np.ndarray, index: int) -> None:
        unknown = set(np.unique(labels).tolist()) - {BACKGROUND, *self._names}
        if unknown:
            raise VolumeError(f"{self.path}: label {min(unknown)} in slice {index} is none of its segments")
        both = (labels != BACKGROUND) & (window != BACKGROUND) & (labels != window)
        if both.any():
            first, second = (self._names[int(of[both][0])] for of in (window, labels))
            raise VolumeError(
                f"{self.path}: the segments {first} and {second} overlap ({int(both.sum())} voxels in slice {index}); "
                "a mask holds one label a voxel: store them as two files"
            )


def _table(header: Any) -> LabelTable:
    values = _values(header)
    return table_of(
        (values[int(item.SegmentNumber)], str(item.get("SegmentLabel", "") or f"segment {item.SegmentNumber}"),
         _colour(item))
        for item in header.SegmentSequence if int(item.SegmentNumber) != BACKGROUND
    )  # fmt: skip


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


def _frames(header: Any) -> list[Frame]:
    """Every frame that shows a segment, with its place; what a frame does not say, the shared groups say for all."""
    (shared,) = header.get("SharedFunctionalGroupsSequence") or [{}]
    label_map = header.get("SegmentationType") == "LABELMAP"
    values = _values(header)
    frames = []
    for index, own in enumerate(header.PerFrameFunctionalGroupsSequence):

        def group(name: str, own: Any = own) -> Any:
            items = own.get(name) or shared.get(name)
            if not items:
                raise ValueError(f"a frame without {name}")
            return items[0]

        position = np.array(group("PlanePositionSequence").ImagePositionPatient, dtype=np.float64)
        turn = np.array(group("PlaneOrientationSequence").ImageOrientationPatient, dtype=np.float64).reshape(2, 3)
        between_rows, between_columns = (float(n) for n in group("PixelMeasuresSequence").PixelSpacing)
        affine = np.eye(4)
        affine[:3, :3] = np.column_stack([turn[0] * between_columns, turn[1] * between_rows, np.cross(*turn)])
        affine[:3, 3] = position
        area = abs(between_columns * between_rows)
        if not (np.isfinite(affine).all() and abs(np.linalg.det(affine)) > 1e-6 * area > 0):
            raise ValueError(f"frame {index + 1} has no usable position")
        label = 0 if label_map else values[int(group("SegmentIdentificationSequence").ReferencedSegmentNumber)]
        frames.append(Frame(index, label, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine))  # DICOM's LPS to RAS
    return frames


def _place(
    path: Path, frames: list[Frame], rows: int, columns: int, space: Space, image: Volume
) -> dict[int, list[tuple[Frame, int, int]]]:
    """By slice of `space` its frames, each with the row and column of its first pixel."""
    to_grid = np.linalg.inv(space.affine)
    corners = np.array([[c, r, 0, 1] for c in (0, columns - 1) for r in (0, rows - 1)], dtype=np.float64).T
    placed: dict[int, list[tuple[Frame, int, int]]] = {}
    for frame in frames:
        lies = (to_grid @ frame.affine @ corners)[:3]
        first = np.rint(lies[:, 0])
        apart = np.abs(lies - first[:, None] - corners[:3]).max(axis=1)
        off = float(apart.max())
        if not (apart[:2].max() <= OFF_GRID and apart[2] <= OFF_SLICE):
            raise VolumeError(_elsewhere(path, frame, rows, columns, image, f"is {off:.3g} voxels off its grid"))
        column, row, index = (int(n) for n in first)
        d, h, w = space.shape
        if not (0 <= index < d and 0 <= row <= h - rows and 0 <= column <= w - columns):
            raise VolumeError(_elsewhere(path, frame, rows, columns, image, "lies outside it"))
        placed.setdefault(index, []).append((frame, row, column))
    return placed


def _elsewhere(path: Path, frame: Frame, rows: int, columns: int, image: Volume, how: str) -> str:
    sides = np.sqrt((frame.affine[:3, :2] ** 2).sum(axis=0))[::-1]
    place = ", ".join(f"{n:.4g}" for n in frame.affine[:3, 3])
    return (
        f"{path}: frame {frame.index + 1}, {rows}x{columns} pixels of {sides[0]:.4g}x{sides[1]:.4g} mm at RAS {place}, "
        f"{how}: {image.path} has {format_triple(image.shape)} voxels (D x H x W) of "
        f"{format_triple(tuple(f'{side:.4g}' for side in image.space.spacing))} mm; --resample-labels resamples"
    )


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
