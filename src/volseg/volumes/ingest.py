"""Bring a scan into one volume file: NIfTI, zarr or a DICOM series in, NIfTI or OME-Zarr out, every voxel looked at."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from volseg.distributed.communicator import Communicator
from volseg.errors import VolumeError
from volseg.events import Caution, Listener, Progress, ignore
from volseg.geometry import Box, Triple, format_triple
from volseg.volumes.canonical import in_order_of
from volseg.volumes.checks import check_finite
from volseg.volumes.output import Unit
from volseg.volumes.reading import open_volume
from volseg.volumes.volume import Volume
from volseg.volumes.writing import check_output, volume_suffix, write_volume


@dataclass(frozen=True)
class IngestReport:
    """What was written.

    shape    (D, H, W) voxels
    spacing  mm along D, H, W
    minimum, maximum  of all voxels, HU for CT
    labels   where the mask went, None where there was none
    """

    source: Path
    format: str
    output: Path
    shape: Triple
    spacing: tuple[float, float, float]
    dtype: str
    minimum: float
    maximum: float
    labels: Path | None = None


def ingest(
    source: str | Path,
    output: str | Path,
    communicator: Communicator,
    listen: Listener = ignore,
    *,
    labels: str | Path | None = None,
    overwrite: bool = False,
) -> IngestReport:
    """Copy the volume at `source` to `output` (.nii.gz, .nii or .zarr), on its own grid and with its own values.

    Collective; each voxel is read by the rank that writes it. A mask in `labels`, of the same voxels (in whatever
    order: it is brought into the image's), is written beside the output (`labels_path`).

    Raises VolumeError where the source cannot be read faithfully or holds NaN or infinity, where the mask lies on
    another grid or holds anything but whole numbers, and where an output cannot be written. Nothing is left then.
    """
    output = Path(output)
    error: Exception | None = None
    volume, mask = None, None
    try:
        check_output(output, overwrite)
        volume = open_volume(source)
        if labels is not None:
            check_output(labels_path(output), overwrite)
            mask = in_order_of(open_volume(labels), volume.space)
            check_same_grid(volume, mask)
    except Exception as raised:
        error = raised
    communicator.raise_together(error)
    assert volume is not None
    minimum, maximum = _copy(volume, output, communicator, listen, overwrite)
    if minimum == maximum:
        listen(Caution(f"{source}: every voxel is {minimum:g}"))
    if mask is not None:
        _copy(_WholeNumbers(mask), labels_path(output), communicator, listen, overwrite)
    return IngestReport(
        Path(source),
        volume.format,
        output,
        volume.shape,
        volume.space.spacing,
        str(volume.dtype),
        minimum,
        maximum,
        None if mask is None else labels_path(output),
    )


def labels_path(output: Path) -> Path:
    """Where the mask of the volume `output` goes: ``scan.nii.gz`` to ``scan_labels.nii.gz``."""
    suffix = volume_suffix(output)
    return output.with_name(output.name[: -len(suffix)] + "_labels" + suffix)


def check_same_grid(volume: Volume, mask: Volume) -> None:
    """Raise VolumeError unless `mask` lies on the grid of `volume`, to a hundredth of a millimetre."""
    if volume.shape != mask.shape:
        sizes = f"{format_triple(mask.shape)} voxels (D x H x W), the image {format_triple(volume.shape)}"
        raise VolumeError(f"{mask.path}: labels of {sizes}; give labels on the grid of {volume.path}")
    if not volume.space.matches(mask.space):
        raise VolumeError(
            f"{mask.path}: its affine is not that of {volume.path}: origin or directions differ; resample the labels "
            "onto the image's grid"
        )


class SliceKeeper:
    """Reads boxes of a volume, keeping the last slices of a compressed one for the boxes beside.

    Boxes that share slices then cost one inflation or decoding of these slices, for the memory they take.
    """

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._box: Box | None = None
        self._slices = np.empty(0)

    def read(self, box: Box) -> np.ndarray:
        """The voxels of `box`."""
        _, h, w = self._volume.shape
        slices = Box((box.start[0], 0, 0), (box.stop[0], h, w))
        if not self._volume.whole_slices or box == slices:
            return self._volume.read(box)
        if self._box != slices:
            self._slices = self._volume.read(slices)
            self._box = slices
        return self._slices[box.relative_to(slices).slices]


class _WholeNumbers(Volume):
    """A mask, which some tools store as floats, as integers."""

    def __init__(self, mask: Volume) -> None:
        self.path, self.space, self.format, self.whole_slices = mask.path, mask.space, mask.format, mask.whole_slices
        self.dtype = mask.dtype if mask.dtype.kind in "iu" else np.dtype(np.int16)
        self._mask = mask

    def read(self, box: Box) -> np.ndarray:
        values = self._mask.read(box)
        if values.dtype == self.dtype:
            return values
        check_finite(values, box, self.path)
        rounded: np.ndarray = np.rint(values)
        if (rounded != values).any() or np.abs(rounded).max(initial=0) > np.iinfo(np.int16).max:
            raise VolumeError(f"{self.path}: labels must be whole numbers up to 32767; it holds {values.max():g}")
        return rounded.astype(self.dtype)


def _copy(
    volume: Volume, output: Path, communicator: Communicator, listen: Listener, overwrite: bool
) -> tuple[float, float]:
    """Write `volume` to `output`; its smallest and largest value, on every rank."""
    keeper, total = SliceKeeper(volume), float(np.prod(volume.shape))  # voxels
    extremes = np.array([-np.inf, -np.inf])  # of minus the smallest, and of the largest
    done = 0.0

    def produce(units: list[Unit | None]) -> np.ndarray | None:
        nonlocal done
        done += sum(unit.box.size for unit in units if unit is not None)
        mine, voxels = units[communicator.rank], None
        if mine is not None:
            voxels = keeper.read(mine.box)
            check_finite(voxels, mine.box, volume.path)
            np.maximum(extremes, [-float(voxels.min()), float(voxels.max())], out=extremes)
        listen(Progress(f"writing {output.name}", round(done / 1e6, 2), round(total / 1e6, 2), "Mvoxels"))
        return voxels

    write_volume(output, volume.space, volume.dtype, produce, communicator, overwrite=overwrite)
    communicator.reduce_all_in_place(extremes, "max")
    negated, largest = extremes.tolist()
    return -negated, largest


def report_rows(report: IngestReport) -> list[tuple[str, Any]]:
    """The report as (name, value) pairs, in reading order."""
    rows: list[tuple[str, Any]] = [
        ("from", f"{report.source} ({report.format})"),
        ("to", str(report.output)),
        ("voxels D x H x W", format_triple(report.shape)),
        ("spacing mm", format_triple(tuple(f"{side:.4g}" for side in report.spacing))),
        ("values", f"{report.minimum:g} to {report.maximum:g}, {report.dtype}"),
    ]
    return rows if report.labels is None else [*rows, ("labels", str(report.labels))]
