"""Segment a scan: open it, lay it over the ranks, choose how, run the network, write what was asked for, report."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from volseg.distributed.communicator import Communicator
from volseg.distributed.devices import device_facts
from volseg.distributed.meter import communication_facts
from volseg.distributed.placement import placement_facts
from volseg.distributed.time_account import account_of_time
from volseg.distributed.trace import Trace
from volseg.errors import CheckpointError
from volseg.events import Caution, Listener, ignore
from volseg.geometry import Box
from volseg.machine import peak_memory
from volseg.planning.time_model import TimePlan, segmenting_time
from volseg.program.kinds import Kind
from volseg.program.schedule import LAYERS
from volseg.segmentation.announcing import STEPS, announce, tell_step
from volseg.segmentation.choosing import choose_way
from volseg.segmentation.filling import BlockResult
from volseg.segmentation.job import SegmentationJob
from volseg.segmentation.opening import LaidOut, Opened, lay_out_over_ranks, open_job
from volseg.segmentation.pictures import write_preview
from volseg.segmentation.postprocessing import LabelCleaning, clean
from volseg.segmentation.report import SegmentationReport, write_report
from volseg.segmentation.running import Prepared, Ran, run_all
from volseg.segmentation.statistics import LabelStatistics, measure_labels, write_statistics
from volseg.segmentation.stitching import stitch
from volseg.volumes.intensity import is_ct
from volseg.volumes.mask_names import alone
from volseg.volumes.writing import all_or_none


@dataclass(frozen=True)
class Written:
    """What was made of the mask: what was removed from it, and what each label of the rest holds."""

    removed: tuple[LabelCleaning, ...]
    statistics: tuple[LabelStatistics, ...]


def segment(job: SegmentationJob, communicator: Communicator, listen: Listener = ignore) -> SegmentationReport:
    """Segment one scan over all ranks; the mask lies on the scan's own grid. Collective.

    Raises VolsegError, on all ranks, where scan, model, grid or output cannot be used; nothing is written then.
    """
    meter, trace = communicator.meter, None if job.trace is None else Trace(communicator)
    meter.reset()
    meter.enter("preparation")
    started = time.monotonic()
    parts = _prepare(job, communicator)
    largest = max(parts, key=lambda part: part.chosen.choice.plan.peak)
    opened, laid, chosen = largest.opened, largest.laid, largest.chosen
    announce(job, opened, laid, chosen, listen)
    ran = run_all(job, parts, listen)
    written = _write(job, opened, laid, ran.result, listen)
    if ran.state is not None:
        ran.state.remove()
    report = _report(parts, largest, ran, written, time.monotonic() - started)
    if job.trace is not None and trace is not None:
        lost = trace.write(job.trace, "segment", laid.grid)
        if lost:
            listen(Caution(f"{job.trace}: {lost} pieces of work were too many to keep"))
    if job.report is not None:
        communicator.on_root(partial(write_report, job.report, report))
    for line in chosen.strange:  # once more, where whoever comes back to the finished work looks
        listen(Caution(line))
    return report


def _prepare(job: SegmentationJob, communicator: Communicator) -> list[Prepared]:
    """Open each model, lay the scan over the ranks, and settle how it is run. Collective."""
    several, parts = open_job(job, communicator), list[Prepared]()
    for opened in several:
        with communicator.meter.doing(Kind.FILES):
            laid = lay_out_over_ranks(
                opened.channels, opened.card, job.partition, job.spacing, communicator, opened.windows is not None,
                opened.multiple,
            )  # fmt: skip
        if parts and laid.scan.boxes != parts[0].laid.scan.boxes:
            raise CheckpointError(
                f"{job.model}: its parts see scans on different grids, so that they share no mask: segment with each "
                "for itself (--model RUN/part_1)"
            )
        before = parts[0].chosen if parts else None
        parts.append(Prepared(opened=opened, laid=laid, chosen=choose_way(job, opened, laid, communicator, before)))
    return parts


def _write(job: SegmentationJob, opened: Opened, laid: LaidOut, result: BlockResult, listen: Listener) -> Written:
    """Clean the mask, in place, and write it with all else that the job asks for. Collective."""
    scan, communicator = laid.scan, laid.grid.communicator
    meter = communicator.meter
    meter.enter("components")
    tell_step(0, "components", listen)
    with meter.doing(Kind.LABELS):
        removed = clean(result.mask, scan.boxes, scan.native.voxel_ml, job.cleaning, communicator)
    meter.enter("mask")
    tell_step(1, "mask", listen)
    with meter.doing(Kind.FILES):
        _write_volumes(job, opened, laid, result)
    meter.enter("statistics")
    tell_step(2, "statistics", listen)
    image = np.empty(0, scan.images[0].dtype)
    if job.looks_at_image:
        with communicator.together(), meter.doing(Kind.FILES):
            image = scan.read_image()
    with meter.doing(Kind.LABELS):
        rows = _measure(result.mask, image if job.statistics else None, opened, laid)
    if job.statistics:
        communicator.on_root(partial(write_statistics, opened.outputs["statistics"], rows))
    meter.enter("preview")
    tell_step(3, "preview" if job.preview else "report", listen)
    if job.preview:
        write_preview(
            opened.outputs["preview"], image, result.mask, scan, laid.grid, opened.labels.names, job.scan.name
        )
    meter.enter("")
    tell_step(len(STEPS), "", listen)
    return Written(removed, rows)


def _write_volumes(job: SegmentationJob, opened: Opened, laid: LaidOut, result: BlockResult) -> None:
    """The mask, a mask for each label and the probabilities, as far as they are asked for: all or none. Collective."""
    labels, outputs, mask = opened.labels, opened.outputs, result.mask
    put = partial(stitch, scan=laid.scan, grid=laid.grid, overwrite=job.overwrite)
    with all_or_none() as written:
        written.append(put(opened.mask, mask, labels=labels))
        for value, name in labels.foreground:
            path = outputs.get(f"mask of {name}")
            if path is not None:
                written.append(put(path, (mask == value).astype(np.uint8), labels=alone(labels, value)))
        if result.probabilities is not None:
            written.append(put(outputs["probabilities"], result.probabilities, names=opened.card.outputs))


def _measure(mask: np.ndarray, image: np.ndarray | None, opened: Opened, laid: LaidOut) -> tuple[LabelStatistics, ...]:
    """What each label holds; intensities where there is an image, [d, h, w] under this rank's mask. Collective."""
    scan = laid.scan

    def values(box: Box) -> np.ndarray:
        assert image is not None
        part: np.ndarray = image[box.relative_to(scan.mask_box).slices]
        return part

    read = None if image is None else values
    communicator = laid.grid.communicator
    return tuple(measure_labels(mask, scan.mask_box, scan.native, opened.labels.names, communicator, read))


def _report(
    parts: Sequence[Prepared], largest: Prepared, ran: Ran, written: Written, seconds: float
) -> SegmentationReport:
    """What was done, and how it agrees with what was planned for the model that needs most. Collective."""
    opened, laid, chosen = largest.opened, largest.laid, largest.chosen
    scan, communicator = laid.scan, laid.grid.communicator
    communication, account = communication_facts(communicator, seconds), account_of_time(communicator)
    by_phase = communicator.meter.by_phase()
    phases: dict[str, Any] = {phase: round(taken, 3) for phase, taken in by_phase.items()}
    phases["network_by_layer"] = {label: round(taken, 3) for label, taken in ran.result.seconds.items()}
    phases["compiling"] = round(ran.compiling, 3)
    return SegmentationReport(
        files=tuple(opened.outputs.values()),
        statistics=written.statistics,
        removed=written.removed,
        shape=scan.native.shape,
        seen=scan.space.shape,
        spacing=scan.space.spacing,
        grid=laid.grid.dims,
        seconds=seconds,
        peaks=tuple(communicator.gather_all(peak_memory())),
        choice=chosen.choice,
        phases=phases,
        audit=scan.channels[0].audit,
        placement=placement_facts(communicator, torch.get_num_threads()),
        communication=communication,
        time=account,
        network_seconds=max(communicator.gather_all(by_phase.get("network", 0.0) - ran.compiling)),
        network_planned=(_planned_time(parts), chosen.machine),
        agglomeration=str(chosen.stages),
        precision=opened.precision,
        devices=device_facts(opened.device, communicator),
        mpi_library=communicator.library,
        windows=opened.windows,
        folds=opened.folds,
        mirrored=opened.mirrored,
        parts=len(parts),
        is_ct=is_ct(opened.card.schemes[0].name),
        warnings=chosen.strange,
    )


def _planned_time(parts: Sequence[Prepared]) -> TimePlan | None:
    """How long the network was to take; None where that could not be foretold, and of several models."""
    opened, laid, chosen = parts[0].opened, parts[0].laid, parts[0].chosen
    network, machine, schedule = opened.network, chosen.machine, chosen.choice.schedule
    if machine is None or schedule is LAYERS or len(parts) > 1:
        return None
    layouts = chosen.stages.layouts(laid.scan.layout, network.factors)
    once = segmenting_time(network, layouts, machine.profile, schedule, machine.placing, opened.precision)
    return once if once is None or opened.passes == 1 else once.scaled(opened.passes)
