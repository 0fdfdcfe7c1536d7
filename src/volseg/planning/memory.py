"""The memory model: what a rank holds, operation by operation, in the order in which the program does them.

A pass goes through the steps that run (`training_pass.py`, `segmenting_pass.py`; for networks that the program does not
cover `layer_memory.py`): each tensor is entered when it is made and struck out when nobody reads it any more. The peak
is the largest sum, and the plan names the step at which it occurs. Nothing is fitted but the size of the process.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import prod

from volseg.config import TrainingConfig
from volseg.geometry import Triple
from volseg.networks.coverage import why_not_covered
from volseg.networks.description import Network
from volseg.partition.agglomeration import NONE, Agglomeration
from volseg.partition.layout import Layout
from volseg.partition.share import busy_shares
from volseg.planning.layer_memory import LayerWalk
from volseg.planning.scratch import FLOAT
from volseg.planning.segmenting_pass import SegmentingPass
from volseg.planning.training_pass import TrainingPass
from volseg.precision import FLOAT32, Precision
from volseg.program.build import train_program
from volseg.program.schedule import IN_PLACE, LAYERS, Schedule, schedules_of

TRAINING_PROCESS = 480 * 2**20
SEGMENTING_PROCESS = 334 * 2**20
COMPILER = 34 * 2**20
MPI = 19 * 2**20
"""Python, torch and their libraries, and with several ranks MPI: measured by running on small volumes (docs/memory.md).
Training has torch's optimizers, which bring its compiler along, and the pictures. Both are processes that compile their
kernels by LLVM, for which COMPILER is needed; `segment` takes it off where an earlier process kept them."""

FREED_HEAP = 64 * 2**20
"""What glibc may keep of freed memory (`machine.prepare_for_torch`); small tensors leave a tenth of the whole there."""

_MARGIN = 1.03
"""Plans of segmenting were within 3 % of what was measured where they were below it (benchmarks/RESULTS.md)."""

_OPTIMIZER_COPIES = {"sgd": 1, "adamw": 2}
"""Copies of the weights that the optimizer's state is."""


def _weight_copies(training: TrainingConfig) -> int:
    """Weights, gradients, their message buffer, the optimizer's state, and the weights' average.

    While gradients of several cases add up, those of the case at hand stand where the message buffer comes later.
    """
    return 3 + _OPTIMIZER_COPIES[training.optimizer] + (training.ema > 0)


@dataclass(frozen=True)
class MemoryPlan:
    """Predicted memory of the rank with the largest block, in bytes.

    process      the program itself, and, where layers allocate for themselves, freed memory that the allocator keeps
    weights      weights, and in training gradients, their message buffer and the optimizer's state
    activations  tensors at the moment of the peak, and free memory between them
    work         the kernels' own memory, and weights on their way to and from them
    by_level     of the activations, by level of the U-Net, finest first
    peak_at      the operation at which the peak occurs
    parts        the whole of it by what it is for, at the peak
    by_operation bytes of tensors held in each operation, in their order
    """

    process: int
    weights: int
    activations: int
    by_level: tuple[int, ...]
    peak_at: str
    work: int = 0
    parts: dict[str, int] = field(default_factory=dict)
    by_operation: dict[str, int] = field(default_factory=dict)

    @property
    def peak(self) -> int:
        """Everything together."""
        return self.process + self.weights + self.activations + self.work


def training_memory(
    network: Network, training: TrainingConfig, layout: Layout, threads: int = 1, agglomeration: Agglomeration = NONE
) -> MemoryPlan:
    """What a rank of so many threads needs to train on one case of `layout`.

    network  with the heads that are for the loss alone
    """
    process = TRAINING_PROCESS + _mpi(layout)
    walk = _walk_training(network, layout, training, threads, agglomeration)
    if isinstance(walk, LayerWalk):
        return _finish_layers(walk, process, fixed_memory(network, training) - TRAINING_PROCESS)
    return _finish_fused(walk, process, network.parameters(training=True) * FLOAT, training)


def _walk_training(
    network: Network, layout: Layout, training: TrainingConfig, threads: int = 1,
    agglomeration: Agglomeration = NONE, halos: bool = True,
) -> TrainingPass | LayerWalk:  # fmt: skip
    """Of the rank that needs most."""
    if not why_not_covered(network):
        checkpoints = frozenset(training.checkpoint_levels)
        precision, passes = Precision(training.precision), []
        for share in busy_shares(layout, network.factors, agglomeration, halo=network.halo, halos=halos):
            program = train_program(network, share.merges, share.last, checkpoints)
            passes.append(TrainingPass(network, program, share, threads, precision))
        return max(passes, key=lambda one: one.total)
    layers = LayerWalk(network, layout, training=True, halos=halos)
    layers.forward()
    layers.loss()
    layers.backward()
    return layers


@dataclass(frozen=True)
class Beside:
    """What `segment` holds beside the network, in bytes on the busiest rank.

    image       the image as it is stored; held as long as the network reads it
    mask        made as the network's last layer is: the mask, probabilities
    afterwards  made when the network is done and its memory given back
    """

    image: int = 0
    mask: int = 0
    afterwards: int = 0


def segmenting_memory(
    network: Network, layout: Layout, schedule: Schedule = IN_PLACE, *, threads: int = 1,
    beside: Beside | None = None, agglomeration: Agglomeration = NONE, precision: Precision = FLOAT32,
) -> MemoryPlan:  # fmt: skip
    """What a rank of so many threads needs to segment one scan of `layout`.

    beside     by default an image of 2 bytes and a mask of 1 byte a voxel
    precision  in which tensors are stored, where the program runs the network
    """
    voxels = prod(layout.largest_block)
    beside = beside or Beside(image=2 * voxels * network.in_channels, mask=voxels)
    fixed = fixed_memory(network) - SEGMENTING_PROCESS
    process = SEGMENTING_PROCESS + _mpi(layout)
    if schedule is LAYERS or why_not_covered(network):
        layers = LayerWalk(network, layout, training=False)
        layers.ledger.make("kept", 0, -(-beside.image // FLOAT))
        layers.forward()
        layers.ledger.operation = "mask"
        layers.ledger.make("mask", 0, -(-beside.mask // FLOAT))
        plan = _finish_layers(layers, process, fixed)
    else:
        walk = max(
            (
                SegmentingPass(network, schedule, share, threads=threads, image=beside.image, precision=precision)
                for share in busy_shares(layout, network.factors, agglomeration, halo=network.halo)
            ),
            key=lambda one: one.peak.total,
        )
        peak, last = walk.peak, walk.last
        if last.total + beside.mask > peak.total:
            by_level = (last.by_level[0] + beside.mask, *last.by_level[1:])
            peak = replace(last, by_level=by_level, parts={**last.parts, "mask": beside.mask})
        parts = {"process": process, "weights": fixed, **peak.parts, "kernels": peak.work}
        plan = MemoryPlan(
            process, fixed, sum(peak.by_level), peak.by_level, peak.operation, peak.work, parts,
            {moment.operation: sum(moment.by_level) for moment in walk.moments},
        )  # fmt: skip
    more = beside.mask + beside.afterwards
    if more <= plan.activations + plan.work:
        return plan
    parts = {"process": plan.process, "weights": plan.weights, "mask": beside.mask, "output": beside.afterwards}
    return replace(
        plan, activations=more, work=0, by_level=(more, *(0,) * network.deepest), peak_at="output", parts=parts
    )  # fmt: skip


def validation_memory(
    network: Network, training: TrainingConfig, layout: Layout, threads: int = 1, agglomeration: Agglomeration = NONE
) -> MemoryPlan:  # fmt: skip
    """What a rank needs during training to segment one whole case of `layout`; nothing else of a step is held then."""
    voxels = prod(layout.largest_block)
    beside = Beside(image=(network.in_channels * FLOAT + 1) * voxels, mask=voxels)
    plan = segmenting_memory(
        network, layout, threads=threads, beside=beside, agglomeration=agglomeration,
        precision=Precision(training.precision),
    )  # fmt: skip
    process = plan.process - SEGMENTING_PROCESS + TRAINING_PROCESS
    weights = fixed_memory(network, training) - TRAINING_PROCESS
    parts = plan.parts | {"process": process, "weights": weights}
    return replace(plan, process=process, weights=weights, peak_at=f"validation, {plan.peak_at}", parts=parts)


def among_replicas(plan: MemoryPlan, dims: Triple, replicas: int) -> MemoryPlan:
    """The plan of one of several replicas, on a grid of `dims` each: a single rank then has MPI all the same."""
    if replicas == 1 or prod(dims) > 1:
        return plan
    process = plan.process + MPI
    return replace(plan, process=process, parts=plan.parts | {"process": process})


def surely_fits(plan: MemoryPlan, limit: int) -> bool:
    """Whether a run that must keep to `limit` bytes may go by this plan, which may be a little wrong."""
    return plan.peak * _MARGIN <= limit


def segmenting_memories(
    network: Network, layout: Layout, *, threads: int = 1, beside: Beside | None = None,
    agglomeration: Agglomeration = NONE, precision: Precision = FLOAT32,
) -> dict[Schedule, MemoryPlan]:  # fmt: skip
    """Every schedule that the network can be run by, fastest first."""
    return {
        schedule: segmenting_memory(
            network, layout, schedule, threads=threads, beside=beside, agglomeration=agglomeration, precision=precision
        )
        for schedule in schedules_of(network)
    }


def activations_without_halos(network: Network, padded: Triple, task: str, precision: Precision = FLOAT32) -> int:
    """Bytes of activations of a whole volume as if windows had no halos: P ranks hold at least 1/P of it each."""
    layout = Layout.even(padded, (1, 1, 1), network.multiple)
    if task == "train":
        walk = _walk_training(network, layout, TrainingConfig(precision=precision.value), halos=False)
        return walk.ledger.peak if isinstance(walk, LayerWalk) else sum(walk.by_level.values())
    if not why_not_covered(network):
        (share,) = busy_shares(layout, network.factors, halo=network.halo, halos=False)
        walks = [SegmentingPass(network, s, share, precision=precision) for s in schedules_of(network) if s.in_memory]
        # Windows and the planes that basins have to spare need not be in step with the volume.
        return min(sum(walk.peak.by_level) for walk in walks) * 3 // 4
    layers = LayerWalk(network, layout, training=False, halos=False)
    layers.forward()
    return layers.ledger.peak


def _mpi(layout: Layout) -> int:
    return MPI if prod(layout.dims) > 1 else 0


def fixed_memory(network: Network, training: TrainingConfig | None = None) -> int:
    """Bytes that more ranks do not lessen: the process and the weights with what belongs to them.

    training  how it is trained; None to segment
    """
    if training is None:
        return SEGMENTING_PROCESS + network.parameters() * FLOAT
    return TRAINING_PROCESS + _weight_copies(training) * network.parameters(training=True) * FLOAT


def _finish_layers(walk: LayerWalk, process: int, weights: int) -> MemoryPlan:
    book = walk.ledger
    by_level = tuple(book.at_peak.get(level, 0) for level in range(walk.network.deepest + 1))
    whole = process + min(FREED_HEAP, book.peak // 10)
    parts = {"process": whole, "weights": weights, "tensors": book.peak}
    return MemoryPlan(whole, weights, book.peak, by_level, book.peak_at, parts=parts)


def _finish_fused(walk: TrainingPass, process: int, weights: int, training: TrainingConfig) -> MemoryPlan:
    """The plan; what the arena has free when most is held counts at full resolution.

    weights  bytes of one copy of them
    """
    copies = _weight_copies(training)
    activations = walk.tensors + walk.image
    deeper = [walk.by_level.get(level, 0) for level in range(1, walk.network.deepest + 1)]
    by_level = (activations - sum(deeper), *deeper)
    average = {"their average": weights} if training.ema > 0 else {}
    parts = {
        "process": process, "weights": weights, "gradients of weights": weights, "their message": weights,
        "optimizer": _OPTIMIZER_COPIES[training.optimizer] * weights, **average, **walk.parts,
        "image and labels": walk.image, "kernels": walk.work,
    }  # fmt: skip
    return MemoryPlan(
        process, copies * weights, activations, by_level, walk.peak_at, walk.work, parts, walk.by_operation
    )
