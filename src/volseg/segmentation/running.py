"""Running the network of one model over a scan, or those of several that share a mask."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from volseg.events import Caution, Listener, Message
from volseg.nn.fused.scratch import ScratchStore
from volseg.nn.kernels.jit.compiler import compile_seconds
from volseg.program.schedule import LAYERS, SPILL
from volseg.segmentation.announcing import NetworkProgress
from volseg.segmentation.averaging import PassOptions, segment_by_passes
from volseg.segmentation.choosing import Chosen
from volseg.segmentation.filling import BlockResult
from volseg.segmentation.inference import segment_block
from volseg.segmentation.job import SegmentationJob
from volseg.segmentation.opening import LaidOut, Opened
from volseg.segmentation.state import SegmentationState, digest_of
from volseg.segmentation.windows.sweep import segment_by_windows

Tell = Callable[[float], None]


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A model that is ready to go over its scan."""

    opened: Opened
    laid: LaidOut
    chosen: Chosen


@dataclass(frozen=True)
class Ran:
    """What the networks gave.

    result     on this rank's box of the mask
    compiling  seconds that kernels took to compile
    state      what an interruption would have left; None where nothing is kept
    """

    result: BlockResult
    compiling: float
    state: SegmentationState | None


def run_all(job: SegmentationJob, parts: Sequence[Prepared], listen: Listener) -> Ran:
    """Run each model over the scan in its turn, and put what they find into one mask. Collective."""
    compiled_before = compile_seconds()
    tell = NetworkProgress(parts[0].laid.scan, parts[0].laid.grid.communicator, listen)
    parts[0].laid.grid.communicator.meter.enter("network")
    result, state = _run(job, parts[0], tell_of_part(tell, 0, len(parts)), listen)
    first = parts[0].opened
    if first.values is not None:
        mask = np.zeros(result.mask.shape, first.mask_type)
        put_labels(mask, result.mask, first.values)
        seconds = dict(result.seconds)
        for number, part in enumerate(parts[1:], 1):
            own, _ = _run(job, part, tell_of_part(tell, number, len(parts)), listen)
            assert part.opened.values is not None, "all parts are joined, or there is one"
            put_labels(mask, own.mask, part.opened.values)
            for label, taken in own.seconds.items():
                seconds[label] = seconds.get(label, 0.0) + taken
        result = BlockResult(mask, None, seconds)
    return Ran(result, compile_seconds() - compiled_before, state)


def put_labels(mask: np.ndarray, own: np.ndarray, values: Mapping[int, int]) -> None:
    """Put the labels of a part's mask `own` over `mask`, both [d, h, w], as `values`; its background stays out."""
    table = np.zeros(max([int(own.max(initial=0)), *values]) + 1, mask.dtype)
    for label, value in values.items():
        table[label] = value
    np.copyto(mask, table[own], where=own != 0)


def tell_of_part(tell: Tell, number: int, count: int) -> Tell:
    """What tells of the share of part `number` of `count` as one of the whole."""
    return lambda share: tell((number + share) / count)


def _run(
    job: SegmentationJob, part: Prepared, tell: Tell, listen: Listener
) -> tuple[BlockResult, SegmentationState | None]:
    """Run one model. Collective."""
    opened, laid, chosen, schedule = part.opened, part.laid, part.chosen, part.chosen.choice.schedule
    models = opened.load()
    store = ScratchStore(chosen.scratch) if schedule is SPILL else None
    kept = job.go_on and schedule is not LAYERS and opened.network.deepest > 0
    if job.go_on and (opened.windows is not None or opened.averaged or opened.values is not None or not kept):
        what = "windows" if opened.windows is not None else "this network" if not kept else "several passes"
        listen(Caution(f"--continue: of {what} nothing is kept; an interrupted run starts anew"))
        kept = False
    if opened.windows is not None:
        result = segment_by_windows(
            models, laid.scan, opened.card, laid.grid, opened.windows, probabilities=job.probabilities, tell=tell,
            precision=opened.precision,
        )  # fmt: skip
        return result, None
    if opened.averaged:
        options = PassOptions(
            schedule=schedule, store=store, agglomeration=chosen.stages, precision=opened.precision
        )  # fmt: skip
        result = segment_by_passes(
            models, opened.mirrored, laid.scan, opened.card, laid.grid, options, probabilities=job.probabilities,
            tell=tell,
        )  # fmt: skip
        return result, None
    state = _state(part, digest_of(models[0].state_dict()), listen) if kept else None
    result = segment_block(
        models[0], laid.scan, opened.card, laid.grid, probabilities=job.probabilities, schedule=schedule,
        store=store, tell=tell, journal=state, agglomeration=chosen.stages, precision=opened.precision,
    )  # fmt: skip
    return result, state


def _state(part: Prepared, weights: str, listen: Listener) -> SegmentationState:
    """What an interrupted run left. Collective."""
    opened, laid = part.opened, part.laid
    state = SegmentationState(opened.mask, laid.scan, opened.card, weights, laid.grid.communicator, opened.precision)
    if state.found:
        listen(Message(f"going on from {state.folder}: {state.described}"))
    elif state.refused:
        listen(Caution(f"{state.folder}: {state.refused}; starting anew"))
    return state
