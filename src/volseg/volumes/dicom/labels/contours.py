"""The ROIs of a structure set (RTSTRUCT) as the file has them, and which of their contours enclose anything.

Planning systems leave contours of one or two points at the tips of organs, empty ones, and ROIs of points and lines.
Each encloses no voxel; it is left out and named, and the rest is read.
Sources: DICOM PS3.3 C.8.8.5 (structure set) and C.8.8.6 (ROI contour).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from volseg.errors import VolumeError, first_few
from volseg.volumes.audit import Dropped
from volseg.volumes.dicom.labels.objects import decimals
from volseg.volumes.label_table import Colour

CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
FARTHEST_MM = 1e9  # and NaN is none below it
LINE = 1e-4  # width of a contour, by its length, that counts as none


@dataclass
class Drawn:
    """One ROI as the file has it.

    parts  its closed contours, float64 [points, 3] in RAS mm, by item of ROIContourSequence: most ROIs have one item
    empty  how many contours enclose nothing, by the reason in words
    kinds  how many contours of other geometric types, by these
    """

    name: str = ""
    colour: Colour | None = None
    parts: list[list[np.ndarray]] = field(default_factory=list)
    empty: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)


def read_rois(header: Any, path: Path) -> tuple[list[Drawn], list[Dropped], list[str]]:
    """The ROIs with closed contours in the order of the file's list, those left out, and warnings.

    Raises VolumeError where no ROI has a closed contour that encloses anything.
    """
    commas: dict[str, None] = {}
    by_number = _contours_by_number(header, commas)
    notes = list(commas)
    rois: list[Drawn] = []
    dropped: list[Dropped] = []
    listed: set[int] = set()
    for item in header.get("StructureSetROISequence") or []:
        number = int(item.ROINumber)
        name = str(item.get("ROIName", "") or f"ROI {number}")
        if number in listed:
            notes.append(f"ROI {name}: its number, {number}, is that of another ROI, which has the contours; left out")
            continue
        listed.add(number)
        roi = by_number.get(number, Drawn())
        roi.name = name
        rois.append(roi)
    for number, roi in by_number.items():
        if number not in listed:
            roi.name = f"ROI {number}"
            notes.append(f"ROI {number}: contours of an ROI that the structure set does not list; taken by that name")
            rois.append(roi)
    kept = [roi for roi in rois if any(roi.parts)]
    lines = [roi.name for roi in rois if roi.kinds and not any(roi.parts)]
    if lines and kept:
        notes.append(f"ROIs of points or lines, which enclose no voxel, left out: {first_few(lines)}")
    for roi in rois:
        dropped += _left_out(roi)
        if any(roi.parts):
            roi.empty.update(f"of type {kind}" for kind in roi.kinds.elements())
        if roi.empty:
            notes.append(f"ROI {roi.name}: {contours_left_out(roi.empty)}{'' if any(roi.parts) else ', all it has'}")
    if not kept:
        why = f" ({notes[0]})" if notes else ""
        raise VolumeError(f"{path}: {len(rois)} ROIs, none with closed contours; there is nothing to fill{why}")
    return kept, dropped, notes


def contours_left_out(reasons: Mapping[str, int]) -> str:
    """``2 contours left out: 1 of one point, 1 of two points``."""
    total = sum(reasons.values())
    listed = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
    return f"{total} contour{'s' if total != 1 else ''} left out: {listed}"


def _contours_by_number(header: Any, commas: dict[str, None]) -> dict[int, Drawn]:
    """Contours by ROI number; several items of one number are parts of one ROI."""
    found: dict[int, Drawn] = {}
    for item in header.get("ROIContourSequence") or []:
        roi = found.setdefault(int(item.ReferencedROINumber), Drawn())
        roi.colour = roi.colour or _colour(item)
        contours = []
        for contour in item.get("ContourSequence") or []:
            kind = str(contour.get("ContourGeometricType", ""))
            if kind not in CLOSED:
                roi.kinds[kind or "unnamed"] += 1
                continue
            points, fault = _points(contour, commas)
            if points is None:
                roi.empty[fault] += 1
            else:
                contours.append(points)
        if contours:
            roi.parts.append(contours)
    return found


def _left_out(roi: Drawn) -> list[Dropped]:
    name = f"ROI {roi.name}"
    if roi.kinds:
        return [Dropped(name, f"its {', '.join(sorted(roi.kinds))} contours enclose no voxel")]
    if any(roi.parts):
        return []
    if roi.empty:
        return [Dropped(name, contours_left_out(roi.empty))]
    return [Dropped(name, "without a contour it encloses no voxel")]


def _points(contour: Any, commas: dict[str, None]) -> tuple[np.ndarray | None, str]:
    """The points of a contour, RAS mm; None, and why, where they enclose nothing."""
    try:
        data = np.array(decimals(contour, "ContourData", commas))
    except ValueError:
        data = np.array([np.nan])
    if not (np.abs(data) < FARTHEST_MM).all():
        return None, "of coordinates that are no numbers"
    if data.size % 3:
        return None, f"of {data.size} coordinates, which make no points"
    if data.size < 9:
        return None, ("of no point", "of one point", "of two points")[data.size // 3]
    points = data.reshape(-1, 3)
    sizes = np.linalg.svd(points - points.mean(axis=0), compute_uv=False)
    if sizes[1] <= LINE * sizes[0]:
        return None, "whose points lie on one line"
    return points * (-1, -1, 1), ""  # DICOM's LPS to RAS


def _colour(item: Any) -> Colour | None:
    value = item.get("ROIDisplayColor")
    if value is None or len(value) != 3:
        return None
    red, green, blue = (min(255, max(0, int(n))) for n in value)
    return red, green, blue
