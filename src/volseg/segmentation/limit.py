"""Which schedule a scan is segmented by: the fastest whose planned peak stays within the memory limit."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import numpy as np

from volseg.distributed.communicator import Communicator
from volseg.distributed.placement import ranks_on_this_machine
from volseg.errors import PartitionError
from volseg.geometry import Triple, format_triple
from volseg.machine import available_memory, gibibytes, resident_memory
from volseg.networks.coverage import why_not_covered
from volseg.networks.description import Network
from volseg.partition.agglomeration import NONE, Agglomeration
from volseg.partition.layout import Layout
from volseg.planning.memory import Beside, MemoryPlan, segmenting_memories, surely_fits
from volseg.planning.planner import choose_grid, most_ranks
from volseg.planning.segmenting_pass import scratch_bytes
from volseg.precision import FLOAT32, Precision
from volseg.program.schedule import SPILL, Schedule

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


@dataclass(frozen=True)
class BesideVoxels:
    """What is held beside the network (`planning.memory.Beside`), in bytes a voxel of a rank's block.

    once        bytes whatever the block, when the network is done
    process     bytes that the process has from beginning to end, more than plans count or, below 0, fewer
    throughout  held from the beginning of the work to its end
    folds       models whose weights are held, of which one at a time is run
    """

    image: float = 0
    mask: float = 0
    afterwards: float = 0
    once: int = 0
    process: int = 0
    throughout: float = 0
    folds: int = 1

    def of(self, voxels: int) -> Beside:
        """For a block of so many voxels."""
        return Beside(int(self.image * voxels), int(self.mask * voxels), int(self.afterwards * voxels) + self.once)

    def added_to(self, plan: MemoryPlan, voxels: int) -> MemoryPlan:
        """The plan of a pass over a block of so many voxels, with what is there beside every pass."""
        sums, others = int(self.throughout * voxels), plan.weights * (self.folds - 1)
        if sums + others:
            parts = {**plan.parts, "sums of passes": sums, "weights": plan.weights + others}
            plan = replace(
                plan, weights=plan.weights + others, activations=plan.activations + sums,
                by_level=(plan.by_level[0] + sums, *plan.by_level[1:]), parts=parts,
            )  # fmt: skip
        return self.in_process(plan)

    def in_process(self, plan: MemoryPlan) -> MemoryPlan:
        """The plan for a process that has `process` bytes more."""
        whole = plan.process + self.process
        return replace(plan, process=whole, parts={**plan.parts, "process": whole}) if self.process else plan


def memory_limit(communicator: Communicator) -> int:
    """Bytes a rank may use where nobody says: what its machine has free, shared among its ranks. Collective.

    The smallest of all ranks'. What a rank holds already counts as free to it.
    """
    own = available_memory() * _SHARE_OF_FREE / ranks_on_this_machine(communicator) + resident_memory()
    return int(communicator.reduce_all(np.array([own]), "min")[0])


def choose(
    network: Network, layout: Layout, beside: BesideVoxels, threads: int, communicator: Communicator, name: str, *,
    limit: int | None = None, schedule: Schedule | None = None, scratch: Path | None = None,
    agglomeration: Agglomeration = NONE, precision: Precision = FLOAT32,
) -> Choice:  # fmt: skip
    """Choose a schedule, before any work. Collective; all arguments but `threads` the same on all ranks.

    beside    what is held beside the network
    name      of the scan, for messages
    limit     bytes a rank may use; None: what is free
    schedule  the only one allowed
    scratch   folder for SPILL; without one it is not chosen
    agglomeration  which levels run on fewer ranks
    precision  in which the network's tensors are stored

    Raises PartitionError, on all ranks, where nothing fits; it says what would.
    """
    threads = int(communicator.reduce_all(np.array([threads]), "max")[0])
    plan_of = _Planner(network, layout.shape, beside, threads, precision)
    plans = plan_of(layout, agglomeration)
    given, limit = limit is not None, limit or memory_limit(communicator)
    files = scratch_bytes(network, layout, agglomeration, precision)
    room = _has_room(scratch, files, communicator)
    allowed = {s: plan for s, plan in plans.items() if schedule in (None, s)}
    if not allowed:
        raise PartitionError(f"--schedule {schedule}: this network runs as {', '.join(plans)}, {_why(network)}")
    refused = {}
    for candidate, plan in allowed.items():
        if not surely_fits(plan, limit):
            refused[candidate] = f"{candidate} needs {gibibytes(plan.peak)}"
        elif candidate is SPILL and not room:
            refused[candidate] = f"{candidate} needs {gibibytes(files)} a rank on a disk ({_disk(scratch)})"
        else:
            what = "asked for, and fits" if schedule else "the fastest that fits" if len(plans) > 1 else "fits"
            reason = ", ".join([f"{what} {gibibytes(limit)} a rank", *refused.values()])
            return Choice(
                schedule=candidate,
                plan=plan,
                limit=limit,
                given=given,
                reason=reason,
                planned={s: p.peak for s, p in plans.items()},
            )
    others = [s for s, p in plans.items() if s not in allowed and surely_fits(p, limit) and (s is not SPILL or room)]
    if others:
        remedy = f"--schedule {others[0]} would fit"
    else:
        ranks = plan_of.ranks_that_fit(limit, communicator.size)
        remedy = f"{ranks} ranks of {gibibytes(limit)} would do" if ranks else "no number of ranks would do"
        if SPILL in refused and surely_fits(plans[SPILL], limit):
            remedy = f"give a folder with more room, --scratch, or more ranks: {remedy}"
        remedy += ", or a coarser --spacing"
    source = "--memory-limit" if given else "what is free"
    raise PartitionError(
        f"{name}: {format_triple(layout.shape)} voxels on {communicator.size} rank(s) do not fit {gibibytes(limit)} a "
        f"rank ({source}): {', '.join(refused.values())}; {remedy}"
    )


def _why(network: Network) -> str:
    if network.deepest == 0:
        return "for it has but one level"
    reason = why_not_covered(network)
    return f"for {reason}, which is not streamed" if reason else "for its finest level is no chain of convolutions"


class _Planner:
    """Plans of one job for any layout."""

    def __init__(
        self, network: Network, shape: Triple, beside: BesideVoxels, threads: int, precision: Precision
    ) -> None:  # fmt: skip
        self._network, self._shape, self._beside, self._precision = network, shape, beside, precision
        self._threads = threads

    def __call__(self, layout: Layout, agglomeration: Agglomeration = NONE) -> dict[Schedule, MemoryPlan]:
        """By schedule."""
        voxels = prod(layout.largest_block)
        plans = segmenting_memories(
            self._network, layout, threads=self._threads, beside=self._beside.of(voxels),
            agglomeration=agglomeration, precision=self._precision,
        )  # fmt: skip
        return {schedule: self._beside.added_to(plan, voxels) for schedule, plan in plans.items()}

    def ranks_that_fit(self, limit: int, more_than: int) -> int | None:
        """A number of ranks that would do, in memory: `more_than` doubled until it does; None where none does."""
        ranks, multiple = 2 * more_than, self._network.multiple
        while ranks <= most_ranks(self._shape, ranks, multiple):
            layout = Layout.even(self._shape, choose_grid(self._shape, ranks, multiple), multiple)
            if any(surely_fits(plan, limit) for s, plan in self(layout).items() if s.in_memory):
                return ranks
            ranks *= 2
        return None


def _disk(folder: Path | None) -> str:
    if folder is None:
        return "no folder was given"
    return f"{folder} has less" if folder.is_dir() else f"{folder} is no folder"


def _has_room(folder: Path | None, size: int, communicator: Communicator) -> bool:
    """Whether the folder, which ranks may share, has room for all of them. Collective."""
    if folder is None:
        return False
    free = shutil.disk_usage(folder).free if os.access(folder, os.W_OK) else 0
    return bool(communicator.reduce_all(np.array([float(free)]), "min")[0] >= size * communicator.size)
