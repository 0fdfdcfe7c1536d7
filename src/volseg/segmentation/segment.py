"""Segment a scan: open it, lay it over the ranks, choose how, run the network, write what was asked for, report."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from volseg.distributed.communicator import Communicator
from volseg.distributed.meter import communication_facts
from volseg.distributed.placement import placement_facts
from volseg.distributed.time_account import account_of_time
from volseg.distributed.trace import Trace
from volseg.events import Caution, Listener, Message, ignore
from volseg.geometry import Box
from volseg.machine import peak_memory
from volseg.nn.fused.scratch import ScratchStore
from volseg.nn.kernels.jit.compiler import compile_seconds
from volseg.planning.time_model import TimePlan, segmenting_time
from volseg.program.kinds import Kind
from volseg.program.schedule import LAYERS, SPILL
from volseg.segmentation.announcing import STEPS, NetworkProgress, announce, tell_step
from volseg.segmentation.choosing import Chosen, choose_way
from volseg.segmentation.filling import BlockResult
from volseg.segmentation.inference import segment_block
from volseg.segmentation.job import SegmentationJob
from volseg.segmentation.opening import LaidOut, Opened, lay_out_over_ranks, open_job
from volseg.segmentation.pictures import write_preview
from volseg.segmentation.postprocessing import LabelCleaning, clean
from volseg.segmentation.report import SegmentationReport, write_report
from volseg.segmentation.state import SegmentationState, digest_of
from volseg.segmentation.statistics import LabelStatistics, measure_labels, write_statistics
from volseg.segmentation.stitching import stitch
from volseg.segmentation.windows.sweep import segment_by_windows
from volseg.volumes.intensity import is_ct
from volseg.volumes.mask_names import alone
from volseg.volumes.writing import all_or_none


@dataclass(frozen=True)
class Ran:
    """What the network gave.

    result     on this rank's box of the mask
    compiling  seconds that kernels took to compile
    state      what an interruption would have left; None where nothing is kept
    """

    result: BlockResult
    compiling: float
    state: SegmentationState | None


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
    opened = open_job(job, communicator)
    with meter.doing(Kind.FILES):
        laid = lay_out_over_ranks(
            opened.channels, opened.card, job.partition, job.spacing, communicator, opened.windows is not None
        )
    chosen = choose_way(job, opened, laid, communicator)
    announce(job, opened.card, laid, chosen, listen)
    ran = _run(job, opened, laid, chosen, listen)
    written = _write(job, opened, laid, ran.result, listen)
    if ran.state is not None:
        ran.state.remove()
    report = _report(opened, laid, chosen, ran, written, time.monotonic() - started)
    if job.trace is not None and trace is not None:
        lost = trace.write(job.trace, "segment", laid.grid)
        if lost:
            listen(Caution(f"{job.trace}: {lost} pieces of work were too many to keep"))
    if job.report is not None:
        communicator.on_root(partial(write_report, job.report, report))
    for line in chosen.strange:  # once more, where whoever comes back to the finished work looks
        listen(Caution(line))
    return report


def _run(job: SegmentationJob, opened: Opened, laid: LaidOut, chosen: Chosen, listen: Listener) -> Ran:
    """Run the network over the scan. Collective."""
    communicator, schedule = laid.grid.communicator, chosen.choice.schedule
    communicator.meter.enter("network")
    compiled_before = compile_seconds()
    store = ScratchStore(chosen.scratch) if schedule is SPILL else None
    tell = NetworkProgress(laid.scan, communicator, listen)
    if opened.windows is not None:
        if job.go_on:
            listen(Caution("--continue: of windows nothing is kept; an interrupted run starts anew"))
        result = segment_by_windows(
            opened.models, laid.scan, opened.card, laid.grid, opened.windows, probabilities=job.probabilities,
            tell=tell, precision=opened.precision,
        )  # fmt: skip
        return Ran(result, compile_seconds() - compiled_before, None)
    state = None
    if job.go_on and schedule is not LAYERS and opened.model.network.deepest:
        state = _state(opened, laid, listen)
    elif job.go_on:
        listen(Caution("--continue: of this network nothing is kept; an interrupted run starts anew"))
    result = segment_block(
        opened.model, laid.scan, opened.card, laid.grid, probabilities=job.probabilities, schedule=schedule,
        store=store, tell=tell, journal=state, agglomeration=chosen.stages, precision=opened.precision,
    )  # fmt: skip
    return Ran(result, compile_seconds() - compiled_before, state)


def _state(opened: Opened, laid: LaidOut, listen: Listener) -> SegmentationState:
    """What an interrupted run left. Collective."""
    weights = digest_of(opened.model.state_dict())
    state = SegmentationState(opened.mask, laid.scan, opened.card, weights, laid.grid.communicator, opened.precision)
    if state.found:
        listen(Message(f"going on from {state.folder}: {state.described}"))
    elif state.refused:
        listen(Caution(f"{state.folder}: {state.refused}; starting anew"))
    return state


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
        labels = opened.card.labels
        write_preview(opened.outputs["preview"], image, result.mask, scan, laid.grid, labels, job.scan.name)
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
    return tuple(measure_labels(mask, scan.mask_box, scan.native, opened.card.labels, communicator, read))


def _report(
    opened: Opened, laid: LaidOut, chosen: Chosen, ran: Ran, written: Written, seconds: float
) -> SegmentationReport:
    """What was done, and how it agrees with what was planned. Collective."""
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
        network_planned=(_planned_time(opened, laid, chosen), chosen.machine),
        agglomeration=str(chosen.stages),
        precision=opened.precision,
        windows=opened.windows,
        folds=len(opened.models),
        is_ct=is_ct(opened.card.schemes[0].name),
        warnings=chosen.strange,
    )


def _planned_time(opened: Opened, laid: LaidOut, chosen: Chosen) -> TimePlan | None:
    """How long the network was to take; None where that could not be foretold."""
    network, machine, schedule = opened.model.network, chosen.machine, chosen.choice.schedule
    if machine is None or schedule is LAYERS:
        return None
    layouts = chosen.stages.layouts(laid.scan.layout, network.factors)
    return segmenting_time(network, layouts, machine.profile, schedule, machine.placing, opened.precision)
