"""The backward steps: each operation of a program, executed by the functions of a backend."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any, cast

import torch
from torch import nn

from volseg.networks.description import Convolution, Interpolation, Normalization
from volseg.nn.fused import merging
from volseg.nn.fused.backend import GradientSums, Packed
from volseg.nn.fused.forward import lifted, shifted
from volseg.nn.fused.normalization import Statistics, normalization_gradient
from volseg.nn.fused.operand import Operand
from volseg.nn.fused.state import State
from volseg.nn.fused.up import UpGradient, bias_sums
from volseg.nn.kernels.block_convolution import Target as GradientTarget
from volseg.nn.kernels.rows import Activation, Rows
from volseg.partition.tiling import padded_channels
from volseg.partition.window import Range
from volseg.program.kinds import Kind
from volseg.program.ops import (
    AddBackward,
    AverageBackward,
    ClassifyBackward,
    ConvolveBackward,
    GatherBackward,
    InterpolateBackward,
    NormalizeBackward,
    ScatterBackward,
    Target,
    Unpool,
    UpConvolveBackward,
)
from volseg.program.tensors import Lifted

_UP_MULTIPLE = 2


def classify_backward(state: State, op: ClassifyBackward) -> None:
    """The head's gradients, and its input's. A part that is added goes through the activation apart: that is linear."""
    head, x = cast(nn.Conv3d, state.layer(op.node.module)), state.operand(op.source)
    gradient, sums = state.rows[op.target.tensor], _target(state, op.target).sums
    stored = padded_channels(op.node.channels)
    points, device = state.backend.points, state.backend.device
    turned = points.pack_turned_point(head.weight, stored, gradient.buffer.dtype)
    weight = torch.zeros(stored, x.rows.channels, dtype=torch.float64, device=device)
    bias = torch.zeros(stored, dtype=torch.float64, device=device)
    for planes, given in state.logit_gradients[op.node.name]:
        with state.works[0].meter.doing(Kind.HEAD):
            bias += bias_sums(given)
            part = gradient
            if op.target.add:
                part = shifted(Rows.of(gradient.buffer.new_empty(*given.sides, x.rows.channels)), planes[0])
            upstream = shifted(given, planes[0])
            weight += points.gradients(x.activation, upstream, turned, part, sums, planes)[0]
            if op.target.add:
                gradient.own[planes[0] : planes[1]] += part.buffer
    k, c = head.weight.shape[:2]
    state.enter(head, weight[:k, :c].float().view_as(head.weight), bias[:k].float())


def unpool(state: State, op: Unpool) -> None:
    """A pooled tensor's gradient to where the largest values were."""
    tensor = op.target.tensor
    gradient = state.rows[tensor]
    if not op.target.add:
        gradient.own.zero_()
    signs = state.signs[op.source.tensor.name]
    with state.work(tensor).meter.doing(Kind.POOLING):
        x = state.operand(op.source).activation
        sums = None if op.target.through is None else state.zero_sums(tensor)
        state.backend.pooling.unpool(gradient, x, signs, state.rows[op.given], sums, op.node.window)


def normalize_backward(state: State, op: NormalizeBackward) -> None:
    """The gradient of the raw tensor in place of that before the activation; the norm's and the bias's gradients."""
    node, tensor = op.view.node, op.view.tensor
    gradient = state.rows[op.gradient if op.total is None or op.add else op.total]
    assert node is not None
    norm = state.layer(node.module) if node.module else nn.Identity()
    sums, statistics = state.sums.pop(op.gradient).cpu(), state.statistics.pop(node.name)
    with state.work(tensor).meter.doing(Kind.NORM):
        result = normalization_gradient(norm, statistics, sums, state.work(tensor).grid.communicator)
        if result.combination is not None:
            coefficients = (values.to(state.backend.device) for values in result.combination)
            state.backend.passes.combine(gradient, state.rows[tensor], *coefficients)
        if op.total is not None and op.add:
            state.rows[op.total].own.add_(gradient.own)
    state.enter(norm, result.weight, result.bias)
    if op.total is not None:  # the convolution has its bias's gradient from all parts
        return
    producer = state.twin.network.by_name[tensor.name]
    if isinstance(producer, Convolution) and producer.bias:
        bias = _bias_gradient(node, gradient, sums, statistics)[: tensor.channels]
        state.enter(state.layer(producer.module), None, bias.float())


def _bias_gradient(
    node: Normalization, gradient: Rows, sums: torch.Tensor, statistics: Statistics | None
) -> torch.Tensor:  # fmt: skip
    """The gradient of the bias that was added before a norm, or an activation alone; [C as stored] float64.

    gradient    of the raw tensor
    sums        [2, C] of the gradient before the activation, as `normalization_gradient` takes them
    """
    if node.norm == "none":
        keep = None if statistics is None else statistics.keep
        return sums[0] if keep is None else sums[0, : keep.shape[0]] * keep
    if node.norm != "group" and statistics is not None and statistics.pooling is not None:
        return torch.zeros_like(sums[0])  # the norm takes away again what is added to a whole channel
    return bias_sums(gradient)


def convolve_backward(state: State, op: ConvolveBackward) -> None:
    """The gradient of the weight, and of the sources to their targets."""
    conv, gradient = cast(nn.Conv3d, state.layer(op.node.module)), state.rows[op.gradient]
    blocks, work, voxels = state.backend.blocks, state.work(op.gradient), prod(gradient.sides)
    pending, stored = state.pending([op.gradient]), gradient.buffer.dtype
    sums: GradientSums | None = None
    turned: Packed | None = None
    for planes, inputs, targets in _slabs(state, op):
        sizes = [x.channels for x in inputs]
        sums = sums or blocks.weight_sums(conv.weight, sizes, voxels, op.node.stride, not targets, stored)
        with work.meter.doing(Kind.CONVOLUTION):
            activations = [x.activation for x in inputs]
            if not targets:
                blocks.add_for_image(activations[0], gradient, sums)
                continue
            turned = turned or blocks.pack_turned_weight(conv.weight, sizes, op.node.stride, stored)
            blocks.backward(activations, gradient, turned, targets, sums, planes=planes, ghosts=pending)
    for exchange in pending:
        exchange.wait()
    assert sums is not None
    if turned is not None:
        turned.release()
    with work.meter.doing(Kind.CONVOLUTION):
        bias = bias_sums(gradient)[: op.node.channels].float() if op.bias else None
        state.enter(conv, sums.finish(), bias)


_Slab = tuple[Range, list[Operand], Sequence[GradientTarget]]


def _slabs(state: State, op: ConvolveBackward) -> Iterator[_Slab]:
    """Planes, the sources there, and where their gradients go: all at once, but for what is made slab by slab."""
    whole: Range = (0, state.rows[op.gradient].sides[0])
    lifts = [source for source in op.sources if isinstance(source, Lifted)]
    if not lifts:
        for source in op.sources:
            state.wait(source.tensor)
        inputs = [state.operand(source) for source in op.sources if not isinstance(source, Lifted)]
        yield whole, inputs, [_target(state, target) for target in op.targets]
        return
    (source,) = lifts
    place = op.sources.index(source)
    inputs = [state.operand(other) for other in op.sources if not isinstance(other, Lifted)]
    slots = [_target(state, target) for target in op.targets]
    up, target = lifted(state, op, source), slots.pop(place)

    def with_slab(planes: Range, slab: Operand, slot: GradientTarget) -> _Slab:
        return planes, [*inputs[:place], slab, *inputs[place:]], [*slots[:place], slot, *slots[place:]]

    slabs = up.slabs(state.work(op.gradient), _UP_MULTIPLE)
    if isinstance(source.node, Interpolation):  # goes on from a gradient that is whole: it needs the one of neighbours
        for planes, slab in slabs:
            yield with_slab(planes, slab, target)
        return
    module = cast(nn.ConvTranspose3d, state.layer(source.node.module))
    through = UpGradient(module, up.below.activation, target, state.backend.points)
    for planes, slab in slabs:
        slot = _slab_gradient(state, op, planes, slab)
        yield with_slab(planes, slab, GradientTarget(slot))
        with state.work(op.gradient).meter.doing(Kind.UP):
            through.add(planes, slot)
    state.enter(module, *through.finished())


def _slab_gradient(state: State, op: ConvolveBackward, planes: Range, slab: Operand) -> Rows:
    """Room for the gradient of a slab of an up-convolution's output, addressed by the planes of the whole block."""
    sides = (planes[1] - planes[0], *slab.rows.sides[1:])
    return shifted(state.work(op.gradient).buffers.slab("its gradient", sides, slab.rows.channels), planes[0])


def _target(state: State, target: Target) -> GradientTarget:
    sums = None if target.through is None else state.zero_sums(target.tensor)
    return GradientTarget(state.rows[target.tensor], sums, target.add)


def up_convolve_backward(state: State, op: UpConvolveBackward) -> None:
    """The gradients of an up-convolution's weight and bias, and of its input."""
    module, gradient = cast(nn.ConvTranspose3d, state.layer(op.node.module)), state.rows[op.gradient]
    through = UpGradient(module, state.operand(op.source).activation, _target(state, op.target), state.backend.points)
    with state.work(op.gradient).meter.doing(Kind.UP):
        through.add((0, gradient.sides[0]), gradient)
        state.enter(module, *through.finished())


def interpolate_backward(state: State, op: InterpolateBackward) -> None:
    """The gradient of an interpolation's input, which needs the voxels beside the block of the output's."""
    state.wait(op.gradient)
    target = _target(state, op.target)
    with state.work(op.gradient).meter.doing(Kind.UP):
        x = None if target.sums is None else state.operand(op.source).activation
        state.backend.interpolation.gradient(
            state.rows[op.gradient], x, op.node.factors, op.node.mode, target.rows, target.sums, add=target.add
        )


def average_backward(state: State, op: AverageBackward) -> None:
    """The gradient of what was averaged."""
    target = _target(state, op.target)
    with state.work(op.target.tensor).meter.doing(Kind.POOLING):
        x = None if target.sums is None else state.operand(op.source).activation
        state.backend.averaging.gradient(
            state.rows[op.gradient], x, op.node.window, target.rows, target.sums, add=target.add
        )


def add_backward(state: State, op: AddBackward) -> None:
    """A sum's gradient, which lies where the first term's is to be, divided among both."""
    first, second = op.targets
    gradient = state.rows[first.tensor]
    x, other = (
        Activation(gradient) if target.through is None else state.operand(source).activation
        for source, target in zip(op.sources, op.targets, strict=True)
    )
    x_sums, other_sums = (_target(state, target).sums for target in op.targets)
    with state.work(first.tensor).meter.doing(Kind.NORM):
        state.backend.addition.divide(
            gradient, gradient, 1.0, x, other, x_sums=x_sums, other_sums=other_sums, copy=state.rows[second.tensor],
            adding=second.add,
        )  # fmt: skip


def gather_backward(state: State, op: GatherBackward) -> None:
    """The gradient of a stage's input back to the ranks that gave it."""
    merge, target = state.grids.merges[op.stage], state.rows[op.target]
    whole = None if op.source is None else state.rows[op.source]
    merging.scatter(merge, state.layout(op.target), whole, target, state.works[0].buffers)
    if op.source is not None and op.source in state.sums:
        state.sums[op.target] = state.sums.pop(op.source)  # those who lead have them for their groups
    elif op.through:
        state.zero_sums(op.target)


def scatter_backward(state: State, op: ScatterBackward) -> None:
    """The gradient of a stage's output, and its sums, to those who lead."""
    merge, own = state.grids.merges[op.stage], state.rows[op.source]
    whole = None if op.target is None else state.rows[op.target]
    merging.gather(merge, state.layout(op.source), own, whole, state.works[0].buffers)
    if not op.through:
        return
    sums = torch.from_numpy(merge.group.reduce_all(state.sums.pop(op.source).cpu().numpy()))
    if op.target is not None:
        state.sums[op.target] = sums.to(state.backend.device)


BACKWARD: dict[type, Any] = {
    ClassifyBackward: classify_backward, AddBackward: add_backward, Unpool: unpool, AverageBackward: average_backward,
    NormalizeBackward: normalize_backward, ConvolveBackward: convolve_backward,
    GatherBackward: gather_backward, ScatterBackward: scatter_backward, UpConvolveBackward: up_convolve_backward,
    InterpolateBackward: interpolate_backward,
}  # fmt: skip
"""The functions that execute backward operations."""
