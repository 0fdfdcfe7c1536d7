"""Segment a scan: read, predict, clean, stitch, measure."""

from __future__ import annotations

import time
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from volseg.distributed.communicator import Communicator
from volseg.distributed.grid import ProcessGrid
from volseg.distributed.meter import communication_facts
from volseg.distributed.placement import placement_facts
from volseg.distributed.time_account import account_of_time
from volseg.distributed.trace import Trace
from volseg.events import Caution, Listener, Message, Progress, ignore
from volseg.geometry import Box, format_triple
from volseg.machine import gibibytes, peak_memory
from volseg.models.bringing_back import mask_type
from volseg.models.forecast import agglomeration_of_run, this_machine
from volseg.models.stored import ModelCard, load_model
from volseg.models.unet import UNet
from volseg.nn.fused.scratch import ScratchStore
from volseg.nn.kernels.jit.compiler import compile_seconds
from volseg.nn.kernels.winograd import available
from volseg.partition.agglomeration import Agglomeration
from volseg.planning.planner import grid_for
from volseg.planning.time_model import segmenting_time
from volseg.program.kinds import Kind
from volseg.program.schedule import LAYERS, SPILL, covers
from volseg.segmentation.inference import BlockResult, segment_block
from volseg.segmentation.job import (
    SegmentationJob,
    channel_files,
    check_outputs,
    input_files,
    plan_outputs,
    rehearse_outputs,
)
from volseg.segmentation.limit import BesideVoxels, Choice, choose
from volseg.segmentation.pictures import write_preview
from volseg.segmentation.postprocessing import clean
from volseg.segmentation.report import SegmentationReport, write_report
from volseg.segmentation.scale import strange_values
from volseg.segmentation.state import SegmentationState, digest_of
from volseg.segmentation.statistics import LabelStatistics, measure_labels, write_statistics
from volseg.segmentation.stitching import stitch
from volseg.volumes.dicom.options import DicomOptions
from volseg.volumes.intensity import is_ct
from volseg.volumes.label_table import LabelTable
from volseg.volumes.mask_names import alone
from volseg.volumes.resampling import Spacing
from volseg.volumes.scan import Scan, lay_out, open_channels, seen_space
from volseg.volumes.writing import SEGMENTATION_SUFFIX, all_or_none
from volseg.volumes.zarr.label_image import store_of

STEPS = 4
SEG_LIBRARIES = 120 * 2**20
"""What highdicom adds to the process that writes a DICOM SEG, measured on 20 x 512 x 512 voxels; its frames come on top
(see `dicom.seg.output`)."""
PICTURE_LIBRARIES = 30 * 2**20
"""What Pillow and a preview add to the process that draws it: 17 MiB with planes of 128² voxels, 46 with 700²."""


def segment(job: SegmentationJob, communicator: Communicator, listen: Listener = ignore) -> SegmentationReport:
    """Segment one scan over all ranks; the mask lies on the scan's own grid. Collective.

    Raises VolsegError, on all ranks, where scan, model, grid or output cannot be used; nothing is written then.
    """
    meter, trace = communicator.meter, None if job.trace is None else Trace(communicator)
    meter.reset()
    meter.enter("preparation")
    started = time.monotonic()
    model, card = load_model(job.model)
    labels = LabelTable(card.labels)
    outputs = plan_outputs(job, labels)
    with communicator.together():
        if communicator.is_root:
            check_outputs(outputs, input_files(job.scan, card.config.model.in_channels), job.overwrite)
    with meter.doing(Kind.FILES):
        scan, grid = open_scan(job.scan, card, job.partition, communicator, job.spacing, job.dicom)
    looked_at = job.preview or job.statistics  # at the image, beside the mask
    model_config = card.config.model
    machine = this_machine(model_config, communicator) if covers(model_config) else None
    stages = agglomeration_of_run(
        job.agglomerate, "segment", model_config, card.config.training, scan.layout, machine, communicator
    )  # fmt: skip
    choice = _choose(job, outputs["mask"], scan, card, stages, communicator, looked_at)
    remarks: list[str] = []
    with communicator.together():
        if communicator.is_root:
            remarks = rehearse_outputs(job, outputs, labels, scan, model_config)
    with meter.doing(Kind.FILES):
        strange = strange_values(scan, card, communicator)
    _tell(job, scan, card, grid, stages, choice, listen)
    for line in (*remarks, *strange):
        listen(Caution(line))

    meter.enter("network")
    compiled_before = compile_seconds()
    store = ScratchStore(_scratch(job, outputs["mask"])) if choice.schedule is SPILL else None
    tell = _NetworkProgress(scan, communicator, listen)
    state = None
    if job.go_on and choice.schedule is not LAYERS and card.config.model.levels:
        state = _state(job, outputs["mask"], model, scan, card, communicator, listen)
    elif job.go_on:
        listen(Caution("--continue: of this network nothing is kept; an interrupted run starts anew"))
    result = segment_block(
        model, scan, card, grid, probabilities=job.probabilities, schedule=choice.schedule, store=store, tell=tell,
        journal=state, agglomeration=stages,
    )  # fmt: skip
    compiling = compile_seconds() - compiled_before
    meter.enter("components")
    listen(_step(0, "components"))
    with meter.doing(Kind.LABELS):
        removed = clean(result.mask, scan.boxes, scan.native.voxel_ml, job.cleaning, communicator)
    meter.enter("mask")
    listen(_step(1, "mask"))
    with meter.doing(Kind.FILES):
        _write_volumes(job, outputs, result, labels, scan, grid)
    meter.enter("statistics")
    listen(_step(2, "statistics"))
    image = np.empty(0, scan.images[0].dtype)
    if looked_at:
        with communicator.together(), meter.doing(Kind.FILES):
            image = scan.read_image()
    with meter.doing(Kind.LABELS):
        rows = _measure(result.mask, image if job.statistics else None, scan, card, communicator)
    with communicator.together():
        if job.statistics and communicator.is_root:
            write_statistics(outputs["statistics"], rows)
    meter.enter("preview")
    listen(_step(3, "preview" if job.preview else "report"))
    if job.preview:
        write_preview(outputs["preview"], image, result.mask, scan, grid, card.labels, job.scan.name)
    meter.enter("")
    listen(_step(STEPS, ""))
    if state is not None:
        state.remove()
    seconds = time.monotonic() - started
    communication = communication_facts(communicator, seconds)
    phases: dict[str, Any] = {phase: round(taken, 3) for phase, taken in meter.by_phase().items()}
    phases["network_by_layer"] = {label: round(taken, 3) for label, taken in result.seconds.items()}
    account = account_of_time(communicator)
    network = max(communicator.gather_all(meter.by_phase().get("network", 0.0) - compiling))
    phases["compiling"] = round(compiling, 3)
    planned = None
    if machine is not None and choice.schedule is not LAYERS:
        layouts = stages.layouts(scan.layout, model_config.factors)
        planned = segmenting_time(model_config, layouts, machine.profile, choice.schedule, machine.placing)
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
        choice,
        phases,
        scan.channels[0].audit,
        placement_facts(communicator, torch.get_num_threads()),
        communication,
        account,
        network,
        (planned, machine),
        str(stages),
        is_ct(card.schemes[0].name),
        strange,
    )
    if job.trace is not None and trace is not None:
        lost = trace.write(job.trace, "segment", grid)
        if lost:
            listen(Caution(f"{job.trace}: {lost} pieces of work were too many to keep"))
    with communicator.together():
        if job.report is not None and communicator.is_root:
            write_report(job.report, report)
    for line in strange:  # once more, where whoever comes back to the finished work looks
        listen(Caution(line))
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
    wanted = card.seen_at if spacing == "model" else None if spacing == "native" else spacing
    volumes, seen = None, None
    with communicator.together():
        volumes = open_channels(channel_files(path, card.config.model.in_channels), dicom)
        seen = seen_space(volumes[0], wanted)
    assert volumes is not None
    assert seen is not None
    multiple = card.config.model.multiple
    grid = ProcessGrid(communicator, grid_for(partition, seen.shape, communicator.size, multiple))
    return lay_out(volumes, grid, multiple, wanted), grid


def _state(
    job: SegmentationJob, mask: Path, model: UNet, scan: Scan, card: ModelCard, communicator: Communicator,
    listen: Listener,
) -> SegmentationState:  # fmt: skip
    """What an interrupted run left. Collective."""
    state = SegmentationState(mask, scan, card, digest_of(model.state_dict()), communicator)
    if state.found:
        listen(Message(f"going on from {state.folder}: {state.described}"))
    elif state.refused:
        listen(Caution(f"{state.folder}: {state.refused}; starting anew"))
    return state


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
            path, values = outputs["probabilities"], result.probabilities
            written.append(stitch(path, values, scan, grid, overwrite=job.overwrite, names=labels.ordered))


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


def _choose(
    job: SegmentationJob, mask: Path, scan: Scan, card: ModelCard, stages: Agglomeration, communicator: Communicator,
    looked_at: bool,
) -> Choice:  # fmt: skip
    """The schedule, from what the busiest rank will hold: the mask and what lies beside it included. Collective."""
    model = card.config.model
    voxels = max(box.size for box in scan.boxes)
    stored = sum(volume.dtype.itemsize for volume in scan.channels)
    label = mask_type(model.classes).itemsize
    afterwards = label * int(job.split) + (scan.images[0].dtype.itemsize if looked_at else 0)
    if not job.cleaning.removes_nothing:
        afterwards = max(afterwards, 4)  # the components' numbers
    libraries = SEG_LIBRARIES if mask.suffix.lower() == SEGMENTATION_SUFFIX else 0
    libraries += PICTURE_LIBRARIES if job.preview else 0
    blocks = prod(scan.layout.largest_block)
    beside = BesideVoxels(
        image=stored,
        mask=(label + (4 * model.classes if job.probabilities else 0)) * voxels / blocks,
        afterwards=afterwards * voxels / blocks,
        once=libraries,
    )
    return choose(
        model, scan.layout, beside, torch.get_num_threads(), communicator, str(job.scan), kernels=available(),
        limit=job.memory_limit, schedule=job.schedule, scratch=_scratch(job, mask), agglomeration=stages,
    )  # fmt: skip


def _scratch(job: SegmentationJob, mask: Path) -> Path:
    """The folder for what does not fit into memory: beside the mask, unless the user names one."""
    if job.scratch is not None:
        return job.scratch
    store = store_of(mask)
    return (store or mask).parent


def _tell(
    job: SegmentationJob, scan: Scan, card: ModelCard, grid: ProcessGrid, stages: Agglomeration, choice: Choice,
    listen: Listener,
) -> None:  # fmt: skip
    """What the user should know before the work begins."""
    ranks = grid.communicator.size
    listen(
        Message(
            f"{job.scan}: {format_triple(scan.native.shape)} voxels on {ranks} rank{'s' if ranks > 1 else ''} as "
            f"{format_triple(grid.dims)}{stages.described}, {torch.get_num_threads()} threads each"
        )
    )
    listen(Message(f"{choice.schedule}: {choice.reason}; planned {gibibytes(choice.plan.peak)}"))
    for channel in scan.channels:
        for line in channel.audit.warnings:
            listen(Caution(f"{channel.path}: {line}"))
    fixes = {line: channel.path for channel in reversed(scan.channels) for line in channel.audit.fixes}
    for line, path in fixes.items():  # what holds for all channels, once
        listen(Message(f"{path}: {line}"))
    ratios = np.divide(scan.space.spacing, card.spacing)
    if np.abs(np.log(ratios)).max() > np.log(1.25):
        listen(
            Caution(
                f"{scan.channels[0].path}: spacing {_mm(scan.space.spacing)} mm, but the model learned at "
                f"{_mm(card.spacing)} mm; expect a poor mask, or let the scan be resampled: --spacing model"
            )
        )


def _step(done: int, now: str) -> Progress:
    return Progress("outputs", done, STEPS, "steps", {"now": now} if now else {})


class _NetworkProgress:
    """Tells how many voxels are done, as a share of the network's arithmetic, and how many a second; on the root."""

    def __init__(self, scan: Scan, communicator: Communicator, listen: Listener) -> None:
        self._voxels, self._listen = prod(scan.space.shape), listen if communicator.is_root else ignore
        self._begin = time.monotonic()

    def __call__(self, share: float) -> None:
        done = share * self._voxels
        speed = done / max(time.monotonic() - self._begin, 1e-9)
        figures = {"speed": f"{speed / 1e6:.2f} million voxels/s"}
        self._listen(Progress("network", round(done), self._voxels, "voxels", figures))


def _mm(spacing: tuple[float, float, float]) -> str:
    return " x ".join(f"{side:.3g}" for side in spacing)
