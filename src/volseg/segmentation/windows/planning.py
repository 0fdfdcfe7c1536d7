"""What sliding windows need: a grid that cuts the planes among ranks, and memory."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import numpy as np

from volseg.distributed.communicator import Communicator
from volseg.errors import PartitionError
from volseg.geometry import Triple, format_triple
from volseg.machine import gibibytes
from volseg.networks.description import Network
from volseg.partition.layout import Layout
from volseg.planning.ledger import FLOAT
from volseg.planning.memory import MPI, MemoryPlan, segmenting_memories, surely_fits
from volseg.planning.planner import parse_grid
from volseg.precision import FLOAT32, Precision
from volseg.program.schedule import IN_PLACE, LAYERS
from volseg.segmentation.limit import BesideVoxels, Choice, memory_limit
from volseg.segmentation.windows.sweep import Windows


def grid_of_columns(partition: str, shape: Triple, ranks: int) -> Triple:
    """The grid 1 x Py x Px whose largest block is smallest; of equals the one with the shortest borders.

    partition  ``auto``, or the grid that the user names

    Raises PartitionError where it cuts the volume along D, or is finer than it.
    """
    if partition != "auto":
        dims = parse_grid(partition, ranks)
        if dims[0] != 1:
            raise PartitionError(
                f"--partition {partition}: windows go through the scan along D, which is not cut: give 1xPyxPx, or auto"
            )
        return dims
    rated = []
    for py in range(1, ranks + 1):
        px = ranks // py
        if py * px == ranks and py <= shape[1] and px <= shape[2]:
            h, w = -(-shape[1] // py), -(-shape[2] // px)
            rated.append((h * w, h + w, py))
    if not rated:
        raise PartitionError(
            f"{ranks} ranks are too many for windows over {format_triple(shape)} voxels, whose planes are cut among "
            f"them: use at most {max(shape[1:])}"
        )
    _, _, py = min(rated)
    return 1, py, ranks // py


def choose_windows(
    network: Network, layout: Layout, windows: Windows, models: int, beside: BesideVoxels, threads: int,
    communicator: Communicator, name: str, *, limit: int | None = None,
    precision: Precision = FLOAT32,
) -> Choice:  # fmt: skip
    """Check, before any work, that windows fit the memory. Collective.

    models   how many take turns
    beside   what is held beside the network
    name     of the scan, for messages
    limit    bytes a rank may use; None: what is free
    precision  in which the networks' tensors are stored

    Raises PartitionError, on all ranks, where they do not; it says what would.
    """
    threads = int(communicator.reduce_all(np.array([threads]), "max")[0])

    def plan_of(size: Triple, dims: Triple) -> MemoryPlan:
        there = Layout.even(layout.shape, dims)
        return _plan(network, there, replace(windows, size=size), models, beside, threads, precision)

    plan = plan_of(windows.size, layout.dims)
    given, limit = limit is not None, limit or memory_limit(communicator)
    if not surely_fits(plan, limit):
        remedy = "give --memory-limit more, or --whole, which needs less a voxel"
        for ranks in (communicator.size * 2**n for n in range(1, 8)):
            if ranks <= max(layout.shape[1:]) and surely_fits(
                plan_of(windows.size, grid_of_columns("auto", layout.shape, ranks)), limit
            ):
                remedy = f"{ranks} ranks of {gibibytes(limit)} would do"
                break
        raise PartitionError(
            f"{name}: windows of {format_triple(windows.size)} over {format_triple(layout.shape)} voxels on "
            f"{communicator.size} rank(s) need {gibibytes(plan.peak)} a rank, more than {gibibytes(limit)} "
            f"({'--memory-limit' if given else 'what is free'}); {remedy}"
        )
    count = len(windows.boxes(layout.shape))
    reason = f"{count} windows of {format_triple(windows.size)}, fits {gibibytes(limit)} a rank"
    return Choice(schedule=IN_PLACE, plan=plan, limit=limit, given=given, reason=reason, planned={IN_PLACE: plan.peak})


def _plan(
    network: Network, layout: Layout, windows: Windows, models: int, beside: BesideVoxels, threads: int,
    precision: Precision,
) -> MemoryPlan:  # fmt: skip
    """Memory of the rank with the largest part of the planes."""
    window = Layout.even(windows.size, (1, 1, 1), network.multiple)
    plans = segmenting_memories(network, window, threads=threads, beside=BesideVoxels().of(0), precision=precision)
    plan = plans.get(IN_PLACE) or plans[LAYERS]
    depth, area, ranks = min(windows.size[0], layout.shape[0]), prod(layout.largest_block[1:]), prod(layout.dims)
    apart = max(1, round(windows.size[0] * windows.step))
    sums = FLOAT * (network.classes + 1) * windows.size[0] * area
    image = 2 * FLOAT * network.in_channels * (depth + apart) * area
    # A window's logits and those of its mirror image or of another fold, and other ranks' parts of theirs.
    logits = FLOAT * network.classes * prod(windows.size)
    passing = logits * (1 + (bool(windows.mirrored) or models > 1)) + logits * (ranks > 1)
    held = {
        "sums of windows": sums,
        "image": image + FLOAT * network.in_channels * prod(windows.size),
        "logits of windows": passing,
        "mask": beside.of(prod(layout.largest_block)).mask,
    }
    more, weights = sum(held.values()), plan.weights * models
    process = plan.process + (MPI if ranks > 1 else 0)
    parts = {**plan.parts, **{what: plan.parts.get(what, 0) + size for what, size in held.items()}}
    parts |= {"process": process, "weights": weights}
    later = beside.of(prod(layout.largest_block))
    activations = max(plan.activations + more, later.mask + later.afterwards - plan.work)
    plan = replace(
        plan, process=process, weights=weights, activations=activations, parts=parts,
        by_level=(plan.by_level[0] + activations - plan.activations, *plan.by_level[1:]),
    )  # fmt: skip
    return beside.in_process(plan)
