"""What each label of a mask holds: voxels, millilitres, intensities, and where it lies; and the files that say so."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from volseg.distributed.communicator import Communicator
from volseg.errors import VolumeError
from volseg.files import write_text
from volseg.geometry import Box, Triple
from volseg.segmentation.label_sums import LabelSums, ReadBox, sum_labels
from volseg.volumes.canonical import Orientation
from volseg.volumes.volume import Space


@dataclass(frozen=True)
class LabelStatistics:
    """One label of a mask. What was not measured, and what an empty label does not have, is None.

    voxels, ml      how much of it there is
    mean_hu, sd_hu  of the image's values in it, as the image has them: HU for CT; the population's deviation
    min_hu, max_hu  likewise
    centroid_mm     mean place of its voxels' centres, RAS+ millimetres (x, y, z)
    start, stop     its bounding box, start <= index < stop, (D, H, W) in the scan's own voxel order
    """

    label: int
    name: str
    voxels: int
    ml: float
    mean_hu: float | None = None
    sd_hu: float | None = None
    min_hu: float | None = None
    max_hu: float | None = None
    centroid_mm: tuple[float, float, float] | None = None
    start: Triple | None = None
    stop: Triple | None = None

    def record(self) -> dict[str, Any]:
        """The row as files have it: one plain value a column, rounded to nine digits, 1e-4 HU and 1 nm."""
        columns: dict[str, Any] = {"label": self.label, "name": self.name, "voxels": self.voxels}
        columns["ml"] = float(f"{self.ml:.9g}")
        for name in ("mean_hu", "sd_hu", "min_hu", "max_hu"):
            columns[name] = _rounded(getattr(self, name), 4)
        for name, place in zip("xyz", self.centroid_mm or (None, None, None), strict=True):
            columns[f"centroid_{name}_mm"] = _rounded(place, 6)
        for axis, name in enumerate("dhw"):
            columns[f"{name}_start"] = self.start[axis] if self.start else None
            columns[f"{name}_stop"] = self.stop[axis] if self.stop else None
        return columns


def measure_labels(
    mask: np.ndarray,
    box: Box,
    space: Space,
    names: Mapping[str, int],
    communicator: Communicator,
    read: ReadBox | None = None,
) -> list[LabelStatistics]:
    """Rows by label value, background left out, of the mask that the ranks hold together. Collective.

    mask   [d, h, w] of an unsigned type: this rank's block, in canonical order
    box    where it lies in the canonical order of `space`; the ranks' boxes tile the volume, some may be empty
    space  the scan's grid, in its own order
    names  name -> value
    read   the image's values in a box of the canonical grid; called for slabs of this rank's box that hold
           foreground, so it must not communicate. None: no intensities

    The rows are the same on all ranks, and on any number of ranks (fractional intensities: to 1e-9 of them).
    Raises VolumeError, on all ranks, for a label above all names; and what `read` raises.
    """
    sums = sum_labels(mask, box, max(names.values(), default=0) + 1, communicator, read)
    return [
        _with_place(_with_intensities(row, sums), sums, space) if row.voxels else row
        for row in label_statistics(sums.voxels, space, names)
    ]


def label_statistics(counts: np.ndarray, space: Space, names: Mapping[str, int]) -> list[LabelStatistics]:
    """Rows of voxels and ml by label value, background left out, from the whole volume's `counts`.

    names  name -> value; a label without a name gets its number for one
    """
    by_value = {value: name for name, value in names.items()}
    return [
        LabelStatistics(
            label=label,
            name=by_value.get(label, str(label)),
            voxels=int(voxels),
            ml=float(int(voxels) * space.voxel_ml),
        )
        for label, voxels in enumerate(counts)
        if label != 0
    ]


def write_statistics(path: str | Path, rows: Sequence[LabelStatistics]) -> None:
    """Write the rows as CSV or JSON, by the suffix of `path`, whole or not at all; None is empty or null.

    Raises VolumeError for another suffix, VolsegError where the file cannot be written.
    """
    path = Path(path)
    records = [row.record() for row in rows]
    if path.suffix == ".json":
        write_text(path, json.dumps(records, indent=2) + "\n")
    elif path.suffix == ".csv":
        text = io.StringIO()
        table = csv.DictWriter(
            text, list(LabelStatistics(label=0, name="", voxels=0, ml=0.0).record()), lineterminator="\n"
        )
        table.writeheader()
        table.writerows(records)
        write_text(path, text.getvalue())
    else:
        raise VolumeError(f"{path}: statistics are written as .csv or .json, not {path.suffix or 'a file without one'}")


def _with_intensities(row: LabelStatistics, sums: LabelSums) -> LabelStatistics:
    label, n = row.label, row.voxels
    least, most = float(sums.least[label]), float(sums.most[label])
    total, squares = (float(part) for part in sums.inexact[:, label])
    if least > most or not math.isfinite(total + squares):  # not measured, or values that are no numbers
        return row
    whole, whole_squares = (int(part) for part in sums.exact[:, label])
    if total == squares == 0:  # in integers of any size, so without cancellation
        mean, variance = whole / n, (n * whole_squares - whole * whole) / (n * n)
    else:
        mean = (whole + total) / n
        variance = max(0.0, (whole_squares + squares) / n - mean * mean)
    return replace(row, mean_hu=mean, sd_hu=math.sqrt(variance), min_hu=least, max_hu=most)


def _with_place(row: LabelStatistics, sums: LabelSums, space: Space) -> LabelStatistics:
    orientation = Orientation.of(space)
    d, h, w = (int(total) / row.voxels for total in sums.indices[:, row.label])
    x, y, z, _ = orientation.canonical_space(space).affine @ (w, h, d, 1.0)
    (d0, h0, w0), (d1, h1, w1) = sums.low[:, row.label].tolist(), (sums.high[:, row.label] + 1).tolist()
    box = orientation.box_from_canonical(Box((d0, h0, w0), (d1, h1, w1)))
    return replace(row, centroid_mm=(float(x), float(y), float(z)), start=box.start, stop=box.stop)


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits) + 0.0  # no -0.0
