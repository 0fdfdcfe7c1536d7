"""The memory model: what a rank holds, operation by operation, in the order in which the program does them.

A walk goes through the same steps as the network (`fused_memory.py`; for networks that the fused layers do not cover
`layer_memory.py`): each tensor is entered when it is made and struck out when its last reference goes. The peak is the
largest sum, and the plan names the operation at which it occurs. Nothing is fitted but the size of the process itself.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from math import prod

from volseg.config import ModelConfig, TrainingConfig
from volseg.geometry import Triple
from volseg.partition.fused_memory import FusedWalk, covers
from volseg.partition.layer_memory import LayerWalk
from volseg.partition.layout import Layout

FLOAT = 4
TRAINING_PROCESS = 488 * 2**20
SEGMENTING_PROCESS = 398 * 2**20
"""Python, torch, MPI and their libraries, measured by running on small volumes (see docs/memory.md). Training has
torch's optimizers, which bring its compiler along, and the pictures."""

FREED_HEAP = 64 * 2**20
"""What glibc may keep of freed memory (`machine.prepare_for_torch`); small tensors leave a tenth of the whole there."""

_WEIGHT_COPIES = {"sgd": 4, "adamw": 5}
"""Weights, gradients, their message buffer, and the optimizer's state."""


@dataclass(frozen=True)
class MemoryPlan:
    """Predicted memory of the rank with the largest block, in bytes.

    process      the program itself, and, where layers allocate for themselves, freed memory that the allocator keeps
    weights      weights, and in training gradients, their message buffer and the optimizer's state
    activations  tensors at the moment of the peak, and free memory between them
    work         the kernels' own memory, and weights on their way to and from them
    by_level     of the activations, by level of the U-Net, finest first
    peak_at      the operation at which the peak occurs
    """

    process: int
    weights: int
    activations: int
    by_level: tuple[int, ...]
    peak_at: str
    work: int = 0

    @property
    def peak(self) -> int:
        """Everything together."""
        return self.process + self.weights + self.activations + self.work


def parameter_count(model: ModelConfig) -> int:
    """Weights of the U-Net of `models.unet`."""
    cube, widths = model.kernel_size**3, model.widths
    affine = 0 if model.norm == "none" else 2
    bias = 1 if model.norm == "none" else 0
    below = (model.in_channels or 1, *widths[:-1])
    count = 0
    for level, width in enumerate(widths):
        pairs = [(below[level], width), (width, width)]
        if level < model.levels:
            pairs += [(2 * width, width), (width, width)]
            count += widths[level + 1] * width * (8 if model.up == "transpose" else 1) + width
        count += sum(a * b * cube + b * (affine + bias) for a, b in pairs)
    return count + widths[0] * (model.classes or 2) + (model.classes or 2)


def training_memory(model: ModelConfig, training: TrainingConfig, layout: Layout, threads: int = 1) -> MemoryPlan:
    """What a rank of so many threads needs to train on one case of `layout`."""
    fixed = fixed_memory(model, training.optimizer, "train") - TRAINING_PROCESS
    walk = _walk_training(model, layout, training.checkpoint_levels, threads)
    if isinstance(walk, LayerWalk):
        return _finish_layers(walk, TRAINING_PROCESS, fixed)
    return _finish_fused(walk, TRAINING_PROCESS, fixed, walk.image)


def _walk_training(
    model: ModelConfig, layout: Layout, checkpoint_levels: Collection[int] = (), threads: int = 1, halos: bool = True
) -> FusedWalk | LayerWalk:
    if covers(model):
        walk = FusedWalk(model, layout, True, checkpoint_levels, threads, halos)
        walk.forward()
        walk.backward()
        return walk
    layers = LayerWalk(model, layout, training=True, halos=halos)
    layers.forward()
    layers.loss()
    layers.backward()
    return layers


def segmenting_memory(
    model: ModelConfig, layout: Layout, *, threads: int = 1, kept_bytes: int = 0, mask_bytes: int | None = None,
    afterwards: int = 0,
) -> MemoryPlan:  # fmt: skip
    """What a rank of so many threads needs to segment one scan of `layout`.

    kept_bytes  held from the beginning to the end: the image, where it is drawn or measured
    mask_bytes  made beside the network's last features: the mask (by default a byte a voxel) and what goes with it
    afterwards  made when the network is done and its memory given back
    """
    fixed = fixed_memory(model, "", "segment") - SEGMENTING_PROCESS
    mask = prod(layout.largest_block) if mask_bytes is None else mask_bytes
    if covers(model):
        walk = FusedWalk(model, layout, False, threads=threads)
        walk.forward()
        plan = _finish_fused(walk, SEGMENTING_PROCESS, fixed, walk.image + kept_bytes + mask)
        return _with_afterwards(plan, walk.tensors, afterwards)
    layers = LayerWalk(model, layout, training=False)
    layers.ledger.make("kept", 0, -(-kept_bytes // FLOAT))
    layers.forward()
    layers.ledger.operation = "mask"
    layers.ledger.make("mask", 0, -(-mask // FLOAT))
    plan = _finish_layers(layers, SEGMENTING_PROCESS, fixed)
    return _with_afterwards(plan, plan.activations - kept_bytes - mask, afterwards)


def _with_afterwards(plan: MemoryPlan, network: int, afterwards: int) -> MemoryPlan:
    """The plan where what comes after the network may need more than its tensors did."""
    if afterwards <= network:
        return plan
    more = afterwards - network
    by_level = (plan.by_level[0] + more, *plan.by_level[1:])
    return replace(plan, activations=plan.activations + more, by_level=by_level, peak_at="output")


def activations_without_halos(model: ModelConfig, padded: Triple, task: str) -> int:
    """Bytes of activations of a whole volume as if windows had no halos: P ranks hold at least 1/P of it each."""
    layout = Layout.even(padded, (1, 1, 1), model.multiple)
    if task == "train":
        walk = _walk_training(model, layout, halos=False)
        return walk.ledger.peak if isinstance(walk, LayerWalk) else sum(walk.by_level.values())
    if covers(model):
        fused = FusedWalk(model, layout, False, halos=False)
        fused.forward()
        return sum(fused.by_level.values())
    layers = LayerWalk(model, layout, training=False, halos=False)
    layers.forward()
    return layers.ledger.peak


def fixed_memory(model: ModelConfig, optimizer: str, task: str) -> int:
    """Bytes that more ranks do not lessen: the process and the weights with what belongs to them."""
    copies = _WEIGHT_COPIES.get(optimizer, 5) if task == "train" else 1
    process = TRAINING_PROCESS if task == "train" else SEGMENTING_PROCESS
    return process + copies * parameter_count(model) * FLOAT


def _finish_layers(walk: LayerWalk, process: int, weights: int) -> MemoryPlan:
    book = walk.ledger
    by_level = tuple(book.at_peak.get(level, 0) for level in range(walk.model.levels + 1))
    return MemoryPlan(process + min(FREED_HEAP, book.peak // 10), weights, book.peak, by_level, book.peak_at)


def _finish_fused(walk: FusedWalk, process: int, weights: int, beside: int) -> MemoryPlan:
    """The plan with `beside` bytes more at full resolution; so is what the arena has free when most is held."""
    activations = walk.tensors + beside
    deeper = [walk.by_level.get(level, 0) for level in range(1, walk.model.levels + 1)]
    by_level = (activations - sum(deeper), *deeper)
    return MemoryPlan(process, weights, activations, by_level, walk.peak_at, walk.work)
