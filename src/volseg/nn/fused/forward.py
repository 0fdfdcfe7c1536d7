"""The forward steps: each operation of a program, executed by the functions of a backend."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, cast

import torch
from torch import Tensor as TorchTensor
from torch import nn

from volseg.geometry import Triple
from volseg.networks.description import Interpolation, Normalization
from volseg.nn.dropout import PartitionedDropout3d
from volseg.nn.fused import merging
from volseg.nn.fused.backend import Packed
from volseg.nn.fused.normalization import normalize
from volseg.nn.fused.operand import Operand
from volseg.nn.fused.state import LogitSlabs, State
from volseg.nn.fused.up import Filling, InterpolatedFilling, Up, UpFilling
from volseg.nn.kernels.block_convolution import BrickSums, Pooled
from volseg.nn.kernels.reproducible import LARGEST_BRICK, brick_moments
from volseg.nn.kernels.rows import Rows
from volseg.partition.slabs import deep_slab_planes, head_slab_planes, ranges, rolling_planes
from volseg.partition.window import Range
from volseg.program.kinds import Kind
from volseg.program.ops import (
    Add,
    Average,
    Classify,
    Convolve,
    ConvolveBackward,
    Exchange,
    Gather,
    GatherTarget,
    Interpolate,
    Normalize,
    Pool,
    Scatter,
    SitOut,
    UpConvolve,
)
from volseg.program.tensors import Lifted

_NO_BRICK: Triple = (1, 1, 1)


def convolve(state: State, op: Convolve) -> None:
    """Fill the output slab by slab, and what is pooled of it; the sums of its bricks are kept for its norm."""
    convolve_slabs(state, op, _inputs(state, op))


def convolve_slabs(state: State, op: Convolve, slabs: Iterable[tuple[Range, list[Operand]]]) -> None:
    """`convolve` for planes of the output in turn, each with what the convolution reads there."""
    work, layout, rows = state.work(op.output), state.layout(op.output), state.rows[op.output]
    conv = cast(nn.Conv3d, state.layer(op.node.module))
    norm = None if op.statistics is None else state.layer(op.statistics.module)
    blocks, sums, pooled = state.backend.blocks, None, None
    if op.statistics is not None and op.statistics.name not in state.known and needs_statistics(norm):
        sums = brick_sums(rows.sides, rows.channels, state.bricks[op.output.stage], state.backend.device)
    if not op.again:
        state.bricks_of[op.output] = sums
    if op.pooled is not None:
        state.signs[op.output.name] = channel_signs(norm, rows.channels, state.backend.device)
        assert op.pooling is not None
        pooled = Pooled(state.rows[op.pooled], state.signs[op.output.name], op.pooling.window)
    weight: Packed | None = None
    for planes, inputs in slabs:
        with work.meter.doing(Kind.CONVOLUTION):
            sources = [x.channels for x in inputs]
            weight = weight or blocks.pack_weight(conv.weight, sources, op.node.stride, rows.buffer.dtype)
            blocks.forward(
                [x.activation for x in inputs], weight, stored_bias(conv, rows.channels), rows, planes=planes,
                origin=work.origin(layout), sums=sums, pooled=pooled,
                ghosts=state.pending(source.tensor for source in op.sources),
            )  # fmt: skip
        state.memory.computed([op.node.name], planes)
    assert weight is not None
    weight.release()


def _inputs(state: State, op: Convolve) -> Iterator[tuple[Range, list[Operand]]]:
    """Planes of the output, and there what the convolution reads."""
    slabs, work = state.memory.slabs(op), state.work(op.output)
    lifts = [lifted(state, op, source).slabs_of(work, slabs) for source in op.sources if isinstance(source, Lifted)]
    if lifts or state.memory.overwrites:
        for source in op.sources:
            state.wait(source.tensor)
    for planes in slabs:
        inputs, lifting = [], iter(lifts)
        for source in op.sources:
            if isinstance(source, Lifted):
                inputs.append(next(next(lifting))[1])
            else:
                inputs.append(state.memory.operand(source.tensor, planes) or state.operand(source))
        yield planes, inputs


def lifted(state: State, op: Convolve | ConvolveBackward, source: Lifted) -> Up:
    """A tensor that is never whole, with what it is made from, for the convolution that reads it."""
    node, below = source.node, state.operand(source.view)
    filling: Filling
    if isinstance(node, Interpolation):
        filling = InterpolatedFilling(node, state.backend.interpolation)
    else:
        module = cast(nn.ConvTranspose3d, state.layer(node.module))
        filling = UpFilling(module, below.rows.buffer.dtype, state.backend.points)
    return Up(filling, below, source.lift(op.node))


def up_convolve(state: State, op: UpConvolve) -> None:
    """An up-convolution's whole output, some planes at a time."""
    layer, x = cast(nn.ConvTranspose3d, state.layer(op.node.module)), state.operand(op.source)
    points = state.backend.points
    weight = points.pack_up(layer.weight, layer.bias, x.rows.buffer.dtype)
    for planes in ranges(x.rows.sides[0], rolling_planes(x.rows.sides, x.rows.channels)):
        with state.work(op.output).meter.doing(Kind.UP):
            points.apply(x.activation, weight, state.rows[op.output], planes)
        state.memory.computed([], planes)


def interpolate(state: State, op: Interpolate) -> None:
    """An interpolation's whole output, some planes at a time."""
    state.wait(op.source.tensor)
    x = state.operand(op.source)
    for planes in ranges(x.rows.sides[0], rolling_planes(x.rows.sides, x.rows.channels)):
        with state.work(op.output).meter.doing(Kind.UP):
            state.backend.interpolation.interpolate(
                x.activation, op.node.factors, op.node.mode, state.rows[op.output], planes
            )
        state.memory.computed([], planes)


def pool(state: State, op: Pool) -> None:
    """The largest of each window of a tensor that is there already."""
    x = state.operand(op.source)
    pool_slabs(state, op, [((0, state.rows[op.output].sides[0]), [x])])


def pool_slabs(state: State, op: Pool, slabs: Iterable[tuple[Range, list[Operand]]]) -> None:
    """The same of what is there for some planes of the output at a time."""
    tensor, view = op.source.tensor, op.source.node
    norm = state.layer(view.module) if view is not None and view.module else None
    state.signs[tensor.name] = channel_signs(norm, tensor.stored, state.backend.device)
    for planes, (x,) in slabs:
        with state.work(tensor).meter.doing(Kind.POOLING):
            state.backend.pooling.pool(
                x.activation, op.node.window, state.rows[op.output], state.signs[tensor.name], planes
            )


def average(state: State, op: Average) -> None:
    """The mean of each window of a tensor that is there already."""
    with state.work(op.source.tensor).meter.doing(Kind.POOLING):
        state.backend.averaging.average(state.operand(op.source).activation, op.node.window, state.rows[op.output])


def add(state: State, op: Add) -> None:
    """The sum of two views; where the program renamed one of them, in its memory."""
    first, second = op.sources
    with state.work(op.output).meter.doing(Kind.NORM):
        rows = state.rows[op.output]
        x = Operand(rows, first.tensor.channels, state.affine(first)) if first.tensor not in state.rows else None
        x = x or state.operand(first)
        state.backend.addition.add(x.activation, state.operand(second).activation, rows, 1.0)


def exchange(state: State, op: Exchange) -> None:
    """Ghosts set out."""
    state.start_exchange(op.tensor)


def normalize_view(state: State, op: Normalize) -> None:
    """Coefficients from the sums that the convolution left, or from those of a tensor that no convolution made."""
    node, tensor = op.view.node, op.view.tensor
    assert node is not None
    sums, rows = state.bricks_of.pop(tensor, None), state.rows[tensor]
    if node.name in state.known:
        state.affines[node.name] = state.known[node.name]
        return
    norm = state.layer(node.module) if node.module else nn.Identity()
    with state.work(tensor).meter.doing(Kind.NORM):
        if sums is None and needs_statistics(norm):
            sums = sums_of_bricks(rows, state.bricks[tensor.stage])
        state.affines[node.name], state.statistics[node.name] = normalize(
            node, norm, rows.channels, lambda: raw_slabs(rows, sums), sums, state.layout(tensor).shape,
            kept_channels(state, node), state.work(tensor).grid.communicator, state.backend.device,
        )  # fmt: skip


def raw_slabs(rows: Rows, sums: BrickSums | None) -> Iterator[TorchTensor]:
    """The block in float32, some bricks thick at a time; whole where bricks are single voxels."""
    planes = rows.sides[0] if sums is None else LARGEST_BRICK[0]
    for first, last in ranges(rows.sides[0], planes):
        yield rows.own[first:last].float()


def gather(state: State, op: Gather) -> None:
    """A stage's input to those who lead."""
    merge, target = state.grids.merges[op.stage], None
    if op.target is not None:
        target = state.rows[op.target]
    merging.gather(merge, state.layout(op.source), state.rows[op.source], target, state.works[0].buffers)


def scatter(state: State, op: Scatter) -> None:
    """A stage's output from those who lead, its coefficients, and running statistics of the stages behind it."""
    merge, node, target = state.grids.merges[op.stage], op.target.node, op.target.tensor
    whole = None if op.source is None else state.operand(op.source)
    rows = state.rows[target]
    merging.scatter(merge, state.layout(target), None if whole is None else whole.rows, rows, state.works[0].buffers)
    affine = None if whole is None else whole.affine
    if node is not None:
        state.affines[node.name] = merging.share_affine(merge, affine, rows.channels, node, state.backend.device)
    merge.share(running_statistics(state.twin, op.stage))


def gather_target(state: State, op: GatherTarget) -> None:
    """What a head's loss compares with, to those who lead; nothing where there is no loss."""
    own = state.targets.pop(op.node.name, None)
    if own is None:
        return
    whole = None
    if op.target is not None:
        sides = state.layout(op.target).block(state.work(op.target).grid.coords).shape
        whole = state.targets[op.node.name] = torch.empty(sides, dtype=own.dtype, device=own.device)
    merging.gather_classes(state.grids.merges[op.stage], state.layout(op.source), own, whole)


def sit_out(state: State, op: SitOut) -> None:
    """Draw what others draw: the random state is that of all ranks together."""
    for node in op.nodes:
        kept_channels(state, node)


def classify(state: State, op: Classify) -> None:
    """Logits go to the caller, some planes at a time."""
    assert state.consume is not None
    state.consume(op.node.name, op.node.stage, logits(state, op))


def logits(state: State, op: Classify) -> LogitSlabs:
    """Logits of some planes after the others."""
    head, x = cast(nn.Conv3d, state.layer(op.node.module)), state.operand(op.source)
    points, device = state.backend.points, state.backend.device
    weight = points.pack_point(head.weight, head.bias, x.rows.buffer.dtype)
    d, h, w = x.rows.sides
    step = head_slab_planes((d, h, w), op.node.channels)
    if op.node.stage:
        step = deep_slab_planes((d, h, w), op.node.channels, x.rows.channels)
    for planes in ranges(d, step):
        with state.works[0].meter.doing(Kind.HEAD):
            slab = Rows.of(torch.empty(planes[1] - planes[0], h, w, weight.channels, device=device))
            points.apply(x.activation, weight, shifted(slab, planes[0]), planes)
        yield planes, slab


def shifted(rows: Rows, first: int) -> Rows:
    """Rows that hold the planes from `first` on, addressed by the planes of the whole block."""
    return Rows(rows.buffer, (-first, 0, 0), rows.sides)


def needs_statistics(norm: nn.Module | None) -> bool:
    """Whether a norm takes statistics of its input now: not if there is none, nor a batch norm with running ones."""
    if norm is None or isinstance(norm, nn.Identity):
        return False
    return norm.training or not isinstance(norm, nn.BatchNorm3d) or norm.running_mean is None


def brick_sums(sides: Triple, channels: int, brick: Triple, device: torch.device) -> BrickSums | None:
    """Room for the sums of a block's bricks; None where these are single voxels."""
    if brick == _NO_BRICK:
        return None
    counts = [n // b for n, b in zip(sides, brick, strict=True)]
    return BrickSums(torch.empty(*counts, 2, channels, device=device), brick)


def sums_of_bricks(rows: Rows, brick: Triple) -> BrickSums | None:
    """The sums of a block's bricks; None where these are single voxels."""
    sums = brick_sums(rows.sides, rows.channels, brick, rows.buffer.device)
    if sums is not None:
        for number, slab in enumerate(raw_slabs(rows, sums)):
            layers = slab.shape[0] // brick[0]
            whole = sums.sums[number * (LARGEST_BRICK[0] // brick[0]) :][:layers]
            whole.copy_(brick_moments(slab, brick).view_as(whole))
    return sums


def channel_signs(norm: nn.Module | None, stored: int, device: torch.device) -> TorchTensor:
    """-1 for channels whose activation falls as the raw value rises, else 1."""
    signs = torch.ones(stored, device=device)
    weight = getattr(norm, "weight", None)
    if isinstance(weight, TorchTensor):
        signs[: weight.shape[0]][weight.detach() < 0] = -1
    return signs


def stored_bias(conv: nn.Conv3d, stored: int) -> TorchTensor | None:
    """The bias, with zeros for channels that are stored and not there."""
    if conv.bias is None:
        return None
    return torch.nn.functional.pad(conv.bias.detach(), [0, stored - conv.bias.shape[0]])


def kept_channels(state: State, node: Normalization) -> TorchTensor | None:
    """What channel dropout multiplies by in this pass, [C]; None without it."""
    layer = state.layer(node.dropping) if node.dropping else None
    if not isinstance(layer, PartitionedDropout3d):
        return None
    return layer.factors(node.channels, torch.device("cpu"))


def running_statistics(twin: Any, stage: int) -> list[TorchTensor]:
    """What a pass changes of the batch norms of the stages from `stage` on; nothing where none is training."""
    nodes = [node for node in twin.network.nodes if isinstance(node, Normalization) and node.norm == "batch"]
    norms = [twin.get_submodule(node.module) for node in nodes if node.stage >= stage]
    return [tensor for norm in norms if norm.training for tensor in norm.buffers()]


FORWARD: dict[type, Any] = {
    Convolve: convolve, Exchange: exchange, Normalize: normalize_view, Gather: gather, Scatter: scatter,
    SitOut: sit_out, GatherTarget: gather_target, Classify: classify, Pool: pool, Average: average, Add: add,
    UpConvolve: up_convolve, Interpolate: interpolate,
}  # fmt: skip
"""The functions that execute forward operations."""
