"""Choosing the process grid: least halo surface, and what fits into memory."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import isqrt, prod

from volseg.config import TrainingConfig
from volseg.errors import PartitionError
from volseg.geometry import PerAxis, Triple, format_per_axis, format_triple, per_axis, quotient
from volseg.networks.description import (
    IMAGE,
    ONES,
    AveragePool,
    Convolution,
    Interpolation,
    MaxPool,
    Network,
    UpConvolution,
)
from volseg.partition.agglomeration import NONE, Agglomeration, gathered_voxels
from volseg.partition.ghosts import check_blocks
from volseg.partition.layout import Layout, padded_shape
from volseg.planning.agglomeration_choice import agglomeration_for
from volseg.planning.ledger import FLOAT
from volseg.planning.memory import (
    MemoryPlan,
    activations_without_halos,
    fixed_memory,
    segmenting_memories,
    surely_fits,
)
from volseg.planning.sampling import WHOLE, Sampling
from volseg.precision import FLOAT32, Precision
from volseg.program.schedule import Schedule, check_precision

_FINENESS = 128
"""Of the search for the fewest ranks: exact up to so many, above that within one part of it."""


def grids_of(ranks: int) -> Iterator[Triple]:
    """Every (Pz, Py, Px) with Pz * Py * Px = ranks."""
    small = [n for n in range(1, isqrt(ranks) + 1) if ranks % n == 0]
    divisors = small + [ranks // n for n in reversed(small) if n * n != ranks]
    for z in divisors:
        for y in (n for n in divisors if (ranks // z) % n == 0):
            yield z, y, ranks // z // y


def halo_voxels(layout: Layout, low: Triple = ONES, high: Triple = ONES) -> int:
    """Voxels that the busiest rank receives in one exchange: ghosts on cut sides only.

    low, high  ghosts before and after a block, on each axis
    """
    inner = layout.largest_block
    # Of two ranks on an axis each has a neighbour on one side.
    ghosts = [(0, max(a, b), a + b)[min(p - 1, 2)] for p, a, b in zip(layout.dims, low, high, strict=True)]
    return prod(n + g for n, g in zip(inner, ghosts, strict=True)) - prod(inner)


def choose_grid(shape: Triple, ranks: int, multiple: PerAxis, narrowest: Triple | None = None) -> Triple:
    """The grid of `ranks` over `shape` with the least halo, among those whose blocks are balanced.

    Balanced: the largest block is at most a sixteenth larger than the best grid's; a grid with less halo but much
    larger blocks would cost more time and memory than it saves. Ties go to the grid that cuts D first, so that blocks
    are runs of whole slices. `narrowest` are the shortest sides of all volumes that the same grid must hold; `shape`
    alone where it is left out.

    Raises PartitionError, naming the most ranks that work, where the volume cannot hold that many.
    """
    padded = padded_shape(shape, multiple)
    fitting = fitting_grids(narrowest or shape, ranks, multiple)
    return least_halo([Layout.even(padded, dims, multiple) for dims in fitting]).dims


def least_halo(layouts: Sequence[Layout]) -> Layout:
    """Of some layouts of as many ranks, of which there must be one, that of the grid that `choose_grid` takes."""
    limit = min(prod(layout.largest_block) for layout in layouts) * 17 // 16
    balanced = [layout for layout in layouts if prod(layout.largest_block) <= limit]
    return min(balanced, key=lambda layout: (halo_voxels(layout), layout.dims[2], layout.dims[1]))


def fitting_grids(shape: Triple, ranks: int, multiple: PerAxis) -> list[Triple]:
    """The grids of so many ranks that leave every rank a block.

    Raises PartitionError, naming the most ranks that work, where there is none.
    """
    padded = padded_shape(shape, multiple)
    fitting = [g for g in grids_of(ranks) if _fits(padded, g, multiple)]
    if not fitting:
        most = most_ranks(padded, ranks, multiple)
        largest = format_triple(quotient(padded, per_axis(multiple)))
        raise PartitionError(
            f"{format_triple(shape)} voxels cannot be split over {ranks} ranks in blocks of multiples of "
            f"{format_per_axis(multiple)}: the largest grid is {largest}; {most} rank{'s' if most > 1 else ''} would "
            "work"
        )
    return fitting


def suited_layouts(shape: Triple, network: Network, ranks: int, agglomerate: str = "none") -> list[Layout]:
    """On every grid of so many ranks that leaves each a block, and that the stages of `agglomerate` suit.

    Raises as `fitting_grids` and `agglomeration_for` do where there is none.
    """
    padded, multiple = padded_shape(shape, network.multiple), network.multiple
    layouts = [Layout.even(padded, dims, multiple) for dims in fitting_grids(shape, ranks, multiple)]
    if agglomerate in ("none", "auto") and max(map(max, network.halo)) <= 1:  # which any block is thick enough for
        return layouts
    found, refused = [], {}
    for layout in layouts:
        try:
            check_blocks([layout.coarser(factor) for factor in network.factors], network.halo)
            agglomeration_for(agglomerate, network, layout)
        except PartitionError as error:
            refused[layout.dims] = str(error)
        else:
            found.append(layout)
    if not found:
        others = f"; no other grid of {ranks} ranks suits it either" if len(set(refused.values())) > 1 else ""
        raise PartitionError(refused[least_halo(layouts).dims] + others)
    return found


def _fits(padded: Triple, dims: Triple, multiple: PerAxis) -> bool:
    return all(p * m <= n for p, m, n in zip(dims, per_axis(multiple), padded, strict=True))


def most_ranks(padded: Triple, below: int, multiple: PerAxis) -> int:
    """The largest number of ranks up to `below` for which some grid fits; 1 always does."""
    below = min(below, prod(quotient(padded, per_axis(multiple))))
    return next(n for n in range(below, 0, -1) if any(_fits(padded, g, multiple) for g in grids_of(n)))


def grid_named(text: str) -> Triple | None:
    """``1x2x2`` as a grid; None where `text` is none, such as "auto"."""
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)x([1-9]\d*)", text)
    if match is None:
        return None
    z, y, x = (int(n) for n in match.groups())
    return z, y, x


def parse_grid(text: str, ranks: int) -> Triple:
    """``1x2x2`` as a grid. Raises PartitionError where it is none, or does not match the ranks."""
    grid = grid_named(text)
    if grid is None:
        raise PartitionError(f"--partition {text}: give auto, or a grid Pz x Py x Px such as 1x2x2")
    z, y, x = grid
    if z * y * x != ranks:
        raise PartitionError(
            f"--partition {text} needs {z * y * x} ranks, this job has {ranks}: start it with mpirun -n {z * y * x}, "
            "or use --partition auto"
        )
    return z, y, x


def grid_for(partition: str, shape: Triple, ranks: int, multiple: PerAxis, narrowest: Triple | None = None) -> Triple:
    """The grid that ``--partition`` asks for: the one it names, or for "auto" the best (see `choose_grid`)."""
    return choose_grid(shape, ranks, multiple, narrowest) if partition == "auto" else parse_grid(partition, ranks)


@dataclass(frozen=True)
class Plan:
    """How a volume is split, and what each rank needs.

    memory        of the rank with the largest block
    halo_bytes    what that rank receives in one forward pass, over all its convolutions
    schedule      that `memory` is for, in segmenting; None in training
    by_schedule   memory by each of the schedules that there are, fastest first
    agglomeration  which levels only some of the ranks take part in
    """

    shape: Triple
    layout: Layout
    memory: MemoryPlan
    halo_bytes: int
    schedule: Schedule | None = None
    by_schedule: dict[Schedule, MemoryPlan] = field(default_factory=dict)
    agglomeration: Agglomeration = NONE

    def fits(self, limit: int, *, in_memory: bool = False) -> bool:
        """Whether it keeps to `limit` bytes a rank; with `in_memory` without files."""
        if self.schedule is None:
            return self.memory.peak <= limit
        return surely_fits(self.memory, limit) and (self.schedule.in_memory or not in_memory)


def make_plan(
    shape: Triple, network: Network, ranks: int, task: str, training: TrainingConfig, dims: Triple | None = None,
    limit: int | None = None, agglomerate: str = "none", threads: int = 1, sampling: Sampling = WHOLE,
) -> Plan:  # fmt: skip
    """The plan for `ranks` (on the grid `dims`, or the best one). `task` is "train" or "segment".

    limit  bytes a rank: of the schedules to segment by, the fastest that fits is chosen, in memory if one does; else
           the one that needs least. Without a limit the fastest
    agglomerate  as `agglomeration_for` reads it
    threads      of each rank
    sampling     what a training step sees of the volume

    Where no grid is named, it is the best of those that the stages suit.

    Raises PartitionError where the volume cannot be split, or the levels not agglomerated, so, and ConfigError where
    the network does not run in the precision of `training`.
    """
    check_precision(network, Precision(training.precision))
    seen = sampling.view(shape) if task == "train" else shape
    if dims is None:
        layout = least_halo(suited_layouts(seen, network, ranks, agglomerate))
    else:
        layout = Layout.even(padded_shape(seen, network.multiple), dims, network.multiple)
    stages = agglomeration_for(agglomerate, network, layout)
    halo = forward_halo_bytes(network, layout, stages, Precision(training.precision))
    if task == "train":
        memory = sampling.memory(network, training, layout, shape, threads, stages)
        return Plan(shape, layout, memory, halo, agglomeration=stages)
    plans = segmenting_memories(
        network, layout, threads=threads, agglomeration=stages, precision=Precision(training.precision)
    )
    fitting = [s for s, plan in plans.items() if limit is None or surely_fits(plan, limit)]
    schedule = fitting[0] if fitting else min(plans, key=lambda s: plans[s].peak)
    return Plan(shape, layout, plans[schedule], halo, schedule, plans, stages)


def forward_halo_bytes(
    network: Network, layout: Layout, agglomeration: Agglomeration = NONE, precision: Precision = FLOAT32
) -> int:
    """Bytes the busiest rank receives for one forward pass: the halos of all k > 1 convolutions, and merged blocks.

    Where stages are agglomerated, some ranks receive what goes to the coarser grid, the others what comes back.
    """
    layouts = agglomeration.layouts(layout, network.factors)
    halos = [_stage_halo_bytes(network, stage, here, precision) for stage, here in enumerate(layouts)]
    most, gathered, size = 0, 0, precision.size
    for stage, here in enumerate(layouts):
        if stage and here.dims != layouts[stage - 1].dims:
            before = layouts[stage - 1].coarser(network.strides[stage])
            pooling = (node for node in network.nodes if isinstance(node, (MaxPool, AveragePool)))
            down = sum(node.channels for node in pooling if node.stage == stage)
            up = sum(
                sum(network.inputs_of(node))
                for node in network.nodes
                if isinstance(node, (UpConvolution, Interpolation)) and node.stage == stage - 1
            )
            most = max(most, gathered + sum(halos[:stage]) + size * prod(before.largest_block) * up)
            gathered += size * gathered_voxels(before, here) * down
    return max(most, gathered + sum(halos))


def _stage_halo_bytes(network: Network, stage: int, layout: Layout, precision: Precision) -> int:
    """Of the convolutions that read tensors of a stage, which `layout` cuts."""
    total = 0
    for node in network.nodes:
        if isinstance(node, Convolution) and network.stage_of(node.reads[0]) == stage:
            low, high = _reach(node)
            size = FLOAT if node.reads[0] == IMAGE else precision.size
            total += size * halo_voxels(layout, low, high) * sum(network.inputs_of(node))
    return total


def _reach(node: Convolution) -> tuple[Triple, Triple]:
    """Voxels that a convolution reads before and after a block, on each axis."""
    d, h, w = (k // 2 for k in node.kernel)
    after = [max(0, k - s - k // 2) for k, s in zip(node.kernel, node.stride, strict=True)]
    return (d, h, w), (after[0], after[1], after[2])


def fewest_ranks(
    shape: Triple, network: Network, task: str, training: TrainingConfig, limit: int, threads: int = 1,
    agglomerate: str = "none", sampling: Sampling = WHOLE,
) -> Plan | None:  # fmt: skip
    """The plan with the fewest ranks whose peak stays within `limit` bytes a rank; None where no grid does.

    All in memory: with a scratch folder, fewer ranks segment the same. Above 128 ranks it may be a hundredth too many.

    Raises PartitionError where the stages of `agglomerate` suit no grid of any number of ranks.
    """

    def plan_on(ranks: int) -> Plan:
        return make_plan(shape, network, ranks, task, training, None, limit, agglomerate, threads, sampling)

    padded = padded_shape(sampling.view(shape) if task == "train" else shape, network.multiple)
    most = prod(quotient(padded, network.multiple))
    room = limit - fixed_memory(network, training if task == "train" else None)
    if room <= 0:
        return None
    finest, refusal = None, None
    try:
        finest = plan_on(most)
    except PartitionError as error:  # the stages do not suit it, but may suit another
        refusal = error
    if finest is not None and not finest.fits(limit, in_memory=True):
        # And so on any grid before it, but for one rank, which does without MPI.
        alone = make_plan(shape, network, 1, task, training, None, limit, "none", threads, sampling)
        return alone if agglomerate in ("none", "auto") and alone.fits(limit, in_memory=True) else None
    # Without halos and perfectly balanced, P ranks hold 1/P each: fewer ranks than this cannot do.
    first = max(1, -(-activations_without_halos(network, padded, task, Precision(training.precision)) // room))
    ranks, suited = first, finest is not None
    while ranks <= most:
        try:
            plan = plan_on(ranks)
        except PartitionError:
            pass  # no grid of so many, or none that the stages suit
        else:
            suited = True
            if plan.fits(limit, in_memory=True):
                return plan
        ranks += max(1, ranks // _FINENESS)
    if refusal is not None and not suited:
        raise refusal
    return finest
