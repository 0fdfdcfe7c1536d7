"""Segment a scan: read, predict, clean, stitch, measure."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from volseg.distributed.communicator import Communicator
from volseg.distributed.grid import ProcessGrid
from volseg.distributed.meter import communication_facts
from volseg.distributed.placement import placement_facts
from volseg.errors import PartitionError
from volseg.events import Caution, Listener, Message, Progress, ignore
from volseg.geometry import Box, format_triple
from volseg.machine import peak_memory, physical_memory
from volseg.models.stored import ModelCard, load_model
from volseg.partition.memory import MemoryPlan, segmenting_memory
from volseg.partition.planner import grid_for
from volseg.segmentation.inference import BlockResult, read_input, segment_block
from volseg.segmentation.job import (
    SegmentationJob,
    channel_files,
    check_no_input,
    check_outputs,
    input_files,
    plan_outputs,
)
from volseg.segmentation.pictures import write_preview
from volseg.segmentation.postprocessing import clean
from volseg.segmentation.report import SegmentationReport, write_report
from volseg.segmentation.statistics import LabelStatistics, measure_labels, write_statistics
from volseg.segmentation.stitching import stitch
from volseg.volumes.dicom.options import DicomOptions
from volseg.volumes.dicom.seg.source import check_source
from volseg.volumes.label_table import LabelTable
from volseg.volumes.mask_names import alone
from volseg.volumes.resampling import Spacing
from volseg.volumes.scan import Scan, lay_out, open_channels, seen_space
from volseg.volumes.writing import SEGMENTATION_SUFFIX, all_or_none

STEPS = 5
SEG_LIBRARIES = 120 * 2**20
"""What highdicom adds to the process that writes a DICOM SEG, measured on 20 x 512 x 512 voxels; its frames come on top
(see `dicom.seg.output`)."""
PICTURE_LIBRARIES = 65 * 2**20
"""What matplotlib and a preview add to the process that draws it: 45 to 95 MiB, on a small scan and on the same."""


def segment(job: SegmentationJob, communicator: Communicator, listen: Listener = ignore) -> SegmentationReport:
    """Segment one scan over all ranks; the mask lies on the scan's own grid. Collective.

    Raises VolsegError, on all ranks, where scan, model, grid or output cannot be used; nothing is written then.
    """
    communicator.meter.reset()
    started = time.monotonic()
    model, card = load_model(job.model)
    labels = LabelTable(card.labels)
    outputs = plan_outputs(job, labels)
    with communicator.together():
        if communicator.is_root:
            check_outputs(outputs, input_files(job.scan, card.config.model.in_channels), job.overwrite)
    scan, grid = open_scan(job.scan, card, job.partition, communicator, job.spacing, job.dicom)
    looked_at = job.preview or job.statistics  # at the image, beside the mask
    planned = _plan_memory(job, outputs["mask"], scan, card, looked_at)
    with communicator.together():
        _check_against_scan(outputs, scan)
        _check_memory(planned, scan)
    _tell(job, scan, card, grid, listen)

    x, image = read_input(scan, card, grid)
    if not looked_at or scan.back is not None:
        image = np.empty(0, image.dtype)
    listen(_step(0, "network"))
    result = segment_block(model, x, scan, card, grid, probabilities=job.probabilities)
    del x
    listen(_step(1, "components"))
    removed = clean(result.mask, scan.boxes, scan.native.voxel_ml, job.cleaning, communicator)
    listen(_step(2, "mask"))
    _write_volumes(job, outputs, result, labels, scan, grid)
    listen(_step(3, "statistics"))
    if looked_at and scan.back is not None:
        with communicator.together():
            image = scan.read_image()
    rows = _measure(result.mask, image if job.statistics else None, scan, card, communicator)
    with communicator.together():
        if job.statistics and communicator.is_root:
            write_statistics(outputs["statistics"], rows)
    listen(_step(4, "preview" if job.preview else "report"))
    if job.preview:
        write_preview(outputs["preview"], image, result.mask, scan, grid, card.labels, job.scan.name)
    listen(_step(STEPS, ""))
    seconds = time.monotonic() - started
    report = SegmentationReport(
        tuple(outputs.values()),
        rows,
        removed,
        scan.native.shape,
        scan.space.shape,
        scan.space.spacing,
        grid.dims,
        seconds,
        tuple(communicator.gather_all(peak_memory())),
        planned.peak,
        scan.channels[0].audit,
        placement_facts(communicator, torch.get_num_threads()),
        communication_facts(communicator, seconds),
    )
    with communicator.together():
        if job.report is not None and communicator.is_root:
            write_report(job.report, report)
    return report


def open_scan(
    path: Path,
    card: ModelCard,
    partition: str,
    communicator: Communicator,
    spacing: Spacing | Literal["model", "native"] = "model",
    dicom: DicomOptions = DicomOptions(),  # noqa: B008  (frozen)
) -> tuple[Scan, ProcessGrid]:
    """The scan laid over a grid of all ranks, at the spacing of the model, its own, or one in mm. Collective.

    Raises VolumeError where it cannot be read, PartitionError where it cannot be split so.
    """
    if spacing == "model":
        spacing = card.spacing
    wanted = None if spacing == "native" else spacing
    volumes, seen = None, None
    with communicator.together():
        volumes = open_channels(channel_files(path, card.config.model.in_channels), dicom)
        seen = seen_space(volumes[0], wanted)
    assert volumes is not None
    assert seen is not None
    multiple = card.config.model.multiple
    grid = ProcessGrid(communicator, grid_for(partition, seen.shape, communicator.size, multiple))
    return lay_out(volumes, grid, multiple, wanted), grid


def _check_against_scan(outputs: dict[str, Path], scan: Scan) -> None:
    """What can only be said when the scan is known. Raises VolumeError."""
    inputs = [file for image in scan.images for file in image.audit.inputs]
    for kind, path in outputs.items():
        check_no_input(path, kind, inputs)
        if kind.startswith("mask") and path.suffix.lower() == SEGMENTATION_SUFFIX:
            check_source(path, scan.source, scan.native)


def _check_memory(planned: MemoryPlan, scan: Scan) -> None:
    """Raise PartitionError where one rank alone would need more than this machine has."""
    there = physical_memory()
    if planned.peak > there:
        raise PartitionError(
            f"{scan.source.path}: {format_triple(scan.space.shape)} voxels at {_mm(scan.space.spacing)} mm need "
            f"{planned.peak / 2**30:.1f} GiB a rank, this machine has {there / 2**30:.1f} GiB: use more ranks on more "
            "machines (volseg plan-partition says how many), or a coarser --spacing"
        )


def _write_volumes(
    job: SegmentationJob,
    outputs: dict[str, Path],
    result: BlockResult,
    labels: LabelTable,
    scan: Scan,
    grid: ProcessGrid,
) -> None:
    """The mask, a mask for each label and the probabilities, as far as they are asked for: all or none. Collective."""
    with all_or_none() as written:
        mask = result.mask
        written.append(stitch(outputs["mask"], mask, scan, grid, overwrite=job.overwrite, labels=labels))
        for value, name in labels.foreground:
            path = outputs.get(f"mask of {name}")
            if path is not None:
                one = (mask == value).astype(np.uint8)
                table = alone(labels, value)
                written.append(stitch(path, one, scan, grid, overwrite=job.overwrite, labels=table))
        if result.probabilities is not None:
            names = sorted(labels.names, key=lambda name: labels.names[name])
            path, values = outputs["probabilities"], result.probabilities
            written.append(stitch(path, values, scan, grid, overwrite=job.overwrite, names=names))


def _measure(
    mask: np.ndarray, image: np.ndarray | None, scan: Scan, card: ModelCard, communicator: Communicator
) -> tuple[LabelStatistics, ...]:
    """What each label holds; intensities where there is an image, [d, h, w] under this rank's mask. Collective."""

    def values(box: Box) -> np.ndarray:
        assert image is not None
        part: np.ndarray = image[box.relative_to(scan.mask_box).slices]
        return part

    read = None if image is None else values
    return tuple(measure_labels(mask, scan.mask_box, scan.native, card.labels, communicator, read))


def _plan_memory(job: SegmentationJob, mask: Path, scan: Scan, card: ModelCard, looked_at: bool) -> MemoryPlan:
    """What the busiest rank will hold, the mask and what lies beside it included."""
    image = scan.images[0].dtype.itemsize if looked_at else 0
    beside = 1 + int(job.split) + (4 * card.config.model.classes if job.probabilities else 0)
    if not job.cleaning.removes_nothing:
        beside += 4  # the components' numbers
    resampled = scan.back is not None
    voxels = max(box.size for box in scan.boxes)
    libraries = SEG_LIBRARIES if mask.suffix.lower() == SEGMENTATION_SUFFIX else 0
    libraries += PICTURE_LIBRARIES if job.preview else 0
    return segmenting_memory(
        card.config.model,
        scan.layout,
        threads=torch.get_num_threads(),
        kept_bytes=0 if resampled else voxels * image,
        mask_bytes=voxels * (beside + (image if resampled else 0)),
        afterwards=libraries,
    )


def _tell(job: SegmentationJob, scan: Scan, card: ModelCard, grid: ProcessGrid, listen: Listener) -> None:
    """What the user should know before the work begins."""
    ranks = grid.communicator.size
    listen(
        Message(
            f"{job.scan}: {format_triple(scan.native.shape)} voxels on {ranks} rank{'s' if ranks > 1 else ''} as "
            f"{format_triple(grid.dims)}, {torch.get_num_threads()} threads each"
        )
    )
    for channel in scan.channels:
        for line in channel.audit.warnings:
            listen(Caution(f"{channel.path}: {line}"))
        for line in channel.audit.fixes:
            listen(Message(f"{channel.path}: {line}"))
    ratios = np.divide(scan.space.spacing, card.spacing)
    if np.abs(np.log(ratios)).max() > np.log(1.25):
        listen(
            Caution(
                f"{scan.channels[0].path}: spacing {_mm(scan.space.spacing)} mm, but the model learned at "
                f"{_mm(card.spacing)} mm; expect a poor mask, or let the scan be resampled: --spacing model"
            )
        )


def _step(done: int, now: str) -> Progress:
    return Progress("segment", done, STEPS, "steps", {"now": now} if now else {})


def _mm(spacing: tuple[float, float, float]) -> str:
    return " x ".join(f"{side:.3g}" for side in spacing)
