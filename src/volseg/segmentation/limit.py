"""Which schedule a scan is segmented by: the fastest whose planned peak stays within the memory limit."""

from __future__ import annotations

import os
import shutil
import socket
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from volseg.config import ModelConfig
from volseg.distributed.communicator import Communicator
from volseg.errors import PartitionError
from volseg.geometry import Triple, format_triple
from volseg.machine import available_memory, resident_memory
from volseg.partition.layout import Layout
from volseg.partition.memory import Beside, MemoryPlan, segmenting_memories, surely_fits
from volseg.partition.planner import fewest_ranks_to_segment
from volseg.partition.schedule import SPILL, Schedule
from volseg.partition.streamed_memory import scratch_bytes

_GIB = 2**30
_SHARE_OF_FREE = 0.9
"""Of what the machine has free: the plan may be wrong by a tenth."""


@dataclass(frozen=True)
class Choice:
    """How a scan will be segmented.

    plan     of the memory of the busiest rank
    limit    bytes a rank may use
    given    whether the user said so
    reason   in words: why this schedule
    planned  peak of every schedule, bytes
    """

    schedule: Schedule
    plan: MemoryPlan
    limit: int
    given: bool
    reason: str
    planned: dict[Schedule, int]


def memory_limit(communicator: Communicator) -> int:
    """Bytes a rank may use where nobody says: what its machine has free, shared among its ranks. Collective.

    The smallest of all ranks'. What a rank holds already counts as free to it.
    """
    ranks_here = Counter(communicator.gather_all(socket.gethostname()))[socket.gethostname()]
    own = available_memory() * _SHARE_OF_FREE / ranks_here + resident_memory()
    return int(communicator.reduce_all(np.array([own]), "min")[0])


def choose(
    model: ModelConfig, layout: Layout, beside: Beside, threads: int, communicator: Communicator, name: str, *,
    limit: int | None = None, schedule: Schedule | None = None, scratch: Path | None = None,
) -> Choice:  # fmt: skip
    """Choose a schedule, before any work. Collective.

    name      of the scan, for messages
    limit     bytes a rank may use; None: what is free
    schedule  the only one allowed
    scratch   folder for SPILL; without one it is not chosen

    Raises PartitionError, on all ranks, where nothing fits; it says what would.
    """
    plans = segmenting_memories(model, layout, threads=threads, beside=beside)
    given, limit = limit is not None, limit or memory_limit(communicator)
    room = _has_room(scratch, scratch_bytes(model, layout), communicator)
    allowed = {s: plan for s, plan in plans.items() if schedule in (None, s)}
    if not allowed:
        raise PartitionError(
            f"--schedule {schedule}: this network can only be run as {', '.join(plans)} (a kernel_size other than 3, "
            "or up other than transpose, is not streamed)"
        )
    refused = {}
    for candidate, plan in allowed.items():
        if not surely_fits(plan, limit):
            refused[candidate] = f"{candidate} needs {_gib(plan.peak)}"
        elif candidate is SPILL and not room:
            refused[candidate] = f"{candidate} needs {_gib(scratch_bytes(model, layout))} a rank in {scratch}"
        else:
            what = "asked for, and fits" if schedule else "the fastest that fits" if len(plans) > 1 else "fits"
            reason = ", ".join([f"{what} {_gib(limit)} a rank", *refused.values()])
            return Choice(candidate, plan, limit, given, reason, {s: p.peak for s, p in plans.items()})
    source = "--memory-limit" if given else "what is free"
    raise PartitionError(
        f"{name}: {format_triple(layout.shape)} voxels on {communicator.size} rank(s) do not fit {_gib(limit)} a rank "
        f"({source}): {', '.join(refused.values())}; {_remedy(model, layout.shape, limit, plans, refused, schedule)}"
    )


def _remedy(
    model: ModelConfig, shape: Triple, limit: int, plans: dict[Schedule, MemoryPlan], refused: dict[Schedule, str],
    schedule: Schedule | None,
) -> str:  # fmt: skip
    fits = next((s for s, plan in plans.items() if surely_fits(plan, limit) and s not in refused), None)
    if schedule is not None and fits is not None:
        return f"--schedule {fits} would fit"
    if SPILL in refused and surely_fits(plans[SPILL], limit):
        return "give a folder with more room: --scratch"
    ranks = fewest_ranks_to_segment(shape, model, limit)
    more = f"{ranks} ranks of {_gib(limit)} would do" if ranks else "no number of ranks would do"
    return f"{more}, or a coarser --spacing"


def _has_room(folder: Path | None, size: int, communicator: Communicator) -> bool:
    """Whether the folder, which ranks may share, has room for all of them. Collective."""
    if folder is None:
        return False
    free = shutil.disk_usage(folder).free if os.access(folder, os.W_OK) else 0
    return bool(communicator.reduce_all(np.array([float(free)]), "min")[0] >= size * communicator.size)


def _gib(size: int) -> str:
    return f"{size / _GIB:.2f} GiB" if size < 10 * _GIB else f"{size / _GIB:.1f} GiB"
