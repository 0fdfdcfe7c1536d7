"""Segment a scan: read, predict, stitch, count."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from volseg.distributed.communicator import Communicator
from volseg.distributed.grid import ProcessGrid
from volseg.errors import VolumeError
from volseg.events import Caution, Listener, Message, Progress, ignore
from volseg.files import write_text
from volseg.geometry import Triple, format_triple
from volseg.machine import peak_memory
from volseg.models.stored import ModelCard, load_model
from volseg.partition.memory import segmenting_memory
from volseg.partition.planner import grid_for
from volseg.segmentation.inference import read_input, segment_block
from volseg.segmentation.pictures import write_preview
from volseg.segmentation.statistics import LabelStatistics, count_labels, label_statistics, write_statistics
from volseg.segmentation.stitching import write_stitched
from volseg.volumes.canonical import canonical
from volseg.volumes.dataset import image_name
from volseg.volumes.scan import Scan, lay_out, open_channels
from volseg.volumes.writing import SUFFIXES, check_output, check_small_output, volume_suffix

STEPS = 4


@dataclass(frozen=True)
class SegmentationJob:
    """What to segment, with which model, and what to write.

    output         the mask: .nii.gz, .nii or .zarr; None: SCAN_mask.nii.gz beside the scan
    probabilities  also MASK_probabilities, float32, classes last (first in .zarr)
    statistics     also MASK_statistics.csv
    preview        also MASK_preview.png
    report         also a JSON report here: files, labels, grid, seconds, planned and measured memory
    """

    scan: Path
    model: Path
    output: Path | None = None
    partition: str = "auto"
    probabilities: bool = False
    statistics: bool = False
    preview: bool = False
    report: Path | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class SegmentationReport:
    """What was written, what the mask holds, and whether the memory plan came true.

    peaks    measured peak memory by rank, bytes
    planned  predicted peak of the busiest rank, bytes
    """

    files: tuple[Path, ...]
    statistics: tuple[LabelStatistics, ...]
    grid: Triple
    seconds: float
    peaks: tuple[int, ...]
    planned: int


def segment(job: SegmentationJob, communicator: Communicator, listen: Listener = ignore) -> SegmentationReport:
    """Segment one scan over all ranks; the mask lies on the scan's own grid. Collective.

    Raises VolsegError, on all ranks, where scan, model, grid or output cannot be used; nothing is written then.
    """
    started = time.monotonic()
    mask_path, outputs = plan_outputs(job)
    model, card = load_model(job.model)
    with communicator.together():
        if communicator.is_root:
            check_outputs(outputs, input_files(job.scan, card.config.model.in_channels), job.overwrite)
    scan, grid = open_scan(job.scan, card, job.partition, communicator)
    planned = segmenting_memory(card.config.model, scan.layout)
    ranks = communicator.size
    x, image = read_input(scan, card, grid)
    listen(
        Message(
            f"{job.scan}: {format_triple(scan.native.shape)} voxels on {ranks} rank{'s' if ranks > 1 else ''} as "
            f"{format_triple(grid.dims)}, {torch.get_num_threads()} threads each"
        )
    )
    _warn_of_spacing(scan, card, listen)

    listen(Progress("segment", 0, STEPS, "steps", {"now": "network"}))
    result = segment_block(model, x, scan, card, grid, probabilities=job.probabilities)
    del x
    listen(Progress("segment", 1, STEPS, "steps", {"now": "mask"}))
    write_stitched(mask_path, result.mask, scan, grid, overwrite=job.overwrite)
    listen(Progress("segment", 2, STEPS, "steps", {"now": "probabilities" if job.probabilities else "statistics"}))
    if result.probabilities is not None:
        names = sorted(card.labels, key=lambda name: card.labels[name])
        path = outputs["probabilities"]
        write_stitched(path, result.probabilities, scan, grid, overwrite=job.overwrite, names=names)
    listen(Progress("segment", 3, STEPS, "steps", {"now": "statistics"}))
    counts = communicator.reduce_all(count_labels(result.mask, len(card.labels)))
    rows = tuple(label_statistics(counts, scan.native, card.labels))
    with communicator.together():
        if job.statistics and communicator.is_root:
            write_statistics(outputs["statistics"], rows)
    if job.preview:
        write_preview(outputs["preview"], image, result.mask, scan, grid, card.labels, job.scan.name)
    listen(Progress("segment", STEPS, STEPS, "steps", {}))
    peaks = tuple(communicator.gather_all(peak_memory()))
    seconds = time.monotonic() - started
    report = SegmentationReport(tuple(outputs.values()), rows, grid.dims, seconds, peaks, planned.peak)
    with communicator.together():
        if job.report is not None and communicator.is_root:
            write_report(job.report, report)
    return report


def open_scan(path: Path, card: ModelCard, partition: str, communicator: Communicator) -> tuple[Scan, ProcessGrid]:
    """The scan laid over a grid of all ranks. Collective.

    Raises VolumeError where it cannot be read, PartitionError where it cannot be split so.
    """
    volumes = None
    with communicator.together():
        volumes = open_channels(channel_files(path, card.config.model.in_channels))
    assert volumes is not None
    shape = canonical(volumes[0]).shape
    multiple = card.config.model.multiple
    grid = ProcessGrid(communicator, grid_for(partition, shape, communicator.size, multiple))
    return lay_out(volumes, grid, multiple), grid


def channel_files(path: Path, channels: int) -> list[Path]:
    """The scan's files: ``CASE_0000`` stands for all its channels where the model wants several."""
    for suffix in SUFFIXES:
        if channels > 1 and path.name.endswith(f"_0000{suffix}"):
            case = path.name.removesuffix(f"_0000{suffix}")
            files = [path.with_name(image_name(case, channel, suffix)) for channel in range(channels)]
            if all(file.exists() for file in files):
                return files
    return [path]


def input_files(path: Path, channels: int) -> list[Path]:
    """All that is read of the scan: its channels' files (or folders), and both halves of a .hdr/.img pair."""
    files = channel_files(path, channels)
    pairs = [file.with_suffix(half) for file in files for half in (".hdr", ".img") if file.suffix in (".hdr", ".img")]
    return list(dict.fromkeys(files + pairs))


def plan_outputs(job: SegmentationJob) -> tuple[Path, dict[str, Path]]:
    """The mask's path, and all paths that will be written, the mask first."""
    scan = Path(os.path.abspath(job.scan))  # "." and ".." have a name too, and links stay where they are
    stem = scan.name
    for suffix in (*SUFFIXES, ".hdr", ".img"):
        stem = stem.removesuffix(suffix)
    mask = job.output or scan.with_name(f"{stem}_mask.nii.gz")
    base = mask.name[: -len(volume_suffix(mask))]
    outputs = {"mask": mask}
    if job.probabilities:
        outputs["probabilities"] = mask.with_name(f"{base}_probabilities{volume_suffix(mask)}")
    if job.statistics:
        outputs["statistics"] = mask.with_name(f"{base}_statistics.csv")
    if job.preview:
        outputs["preview"] = mask.with_name(f"{base}_preview.png")
    if job.report is not None:
        outputs["report"] = job.report
    return mask, outputs


def check_outputs(outputs: dict[str, Path], inputs: list[Path], overwrite: bool) -> None:
    """Raise VolumeError where an output exists (without `overwrite`), cannot be written, or is another one or an input.

    outputs  their paths by kind, as `plan_outputs` gives them
    """
    kinds: dict[Path, str] = {}
    for kind, path in outputs.items():
        option = "--report" if kind == "report" else "-o"
        place = path.parent.resolve() / path.name  # a link is replaced, not what it points to
        if place in kinds:
            raise VolumeError(f"{path}: would hold both {kinds[place]} and {kind}; give another name with {option}")
        kinds[place] = kind
        if path.exists() and any(file.exists() and path.samefile(file) for file in inputs):
            raise VolumeError(f"{path}: is the scan itself; give the {kind} another name with {option}")
        if kind in ("mask", "probabilities"):
            check_output(path, overwrite)
        else:
            check_small_output(path, overwrite)


def _warn_of_spacing(scan: Scan, card: ModelCard, listen: Listener) -> None:
    ratios = np.divide(scan.space.spacing, card.spacing)
    if np.abs(np.log(ratios)).max() > np.log(1.25):
        listen(
            Caution(
                f"{scan.channels[0].path}: spacing {_mm(scan.space.spacing)} mm, but the model learned at "
                f"{_mm(card.spacing)} mm; expect a poor mask unless the scan is resampled first"
            )
        )


def _mm(spacing: Triple | tuple[float, float, float]) -> str:
    return " x ".join(f"{side:.3g}" for side in spacing)


def write_report(path: Path, report: SegmentationReport) -> None:
    """The report as JSON, whole or not at all."""
    content = {
        "command": "segment",
        "files": [str(file) for file in report.files],
        "ranks": len(report.peaks),
        "grid": list(report.grid),
        "seconds": round(report.seconds, 3),
        "peak_bytes_by_rank": list(report.peaks),
        "planned_bytes": report.planned,
        "labels": [vars(row) for row in report.statistics],
    }
    write_text(path, json.dumps(content, indent=2) + "\n")
