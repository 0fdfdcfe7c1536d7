"""A step that passes over the image: the finest stage's convolutions as a chain of windows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from torch import Tensor as TorchTensor
from torch import nn

from volseg.geometry import Triple
from volseg.nn.fused.chain import Chain, Stage
from volseg.nn.fused.forward import (
    brick_sums,
    channel_signs,
    convolve_slabs,
    kept_channels,
    lifted,
    needs_statistics,
    pool_slabs,
)
from volseg.nn.fused.image import Image
from volseg.nn.fused.normalization import normalize
from volseg.nn.fused.operand import Operand
from volseg.nn.fused.state import State
from volseg.nn.kernels.block_convolution import Pooled
from volseg.nn.kernels.rows import Rows
from volseg.partition.slabs import rolling_planes
from volseg.partition.window import Range
from volseg.program.kinds import Kind
from volseg.program.ops import Convolve, Pass
from volseg.program.tensors import Lifted


def find_coefficients(state: State, op: Pass, image: Image) -> None:
    """A pass that finds the last convolution's coefficients, and its output pooled. Collective."""
    view, work, chain = op.views[-1], state.works[0], _chain(state, op, image, op.wanted)
    node, tensor = view.node, view.tensor
    assert node is not None
    norm = state.layer(node.module) if node.module else nn.Identity()
    sides = state.layout(tensor).block(work.grid.coords).shape
    sums = brick_sums(sides, tensor.stored, state.bricks[0], work.backend.device) if needs_statistics(norm) else None
    pooled = None
    if op.pooled is not None:
        pooling = op.chain[-1].pooling
        assert pooling is not None
        pooled = Pooled(state.rows[op.pooled], channel_signs(norm, tensor.stored, work.backend.device), pooling.window)
    if sums is not None or pooled is not None:
        for planes, _ in chain.run(sums, pooled):
            state.memory.computed([convolution.node.name for convolution in op.chain], planes)
        image.settled()

    def raw() -> Iterator[TorchTensor]:
        for planes, part in chain.run():
            yield part_of(part.rows, planes, (0, 0, 0)).own.float()

    with work.meter.doing(Kind.NORM):
        state.affines[node.name], _ = normalize(
            node, norm, tensor.stored, raw, sums, state.layout(tensor).shape, kept_channels(state, node),
            work.grid.communicator, work.backend.device,
        )  # fmt: skip
    if op.clears:
        work.buffers.clear()


def enter_stage(state: State, op: Pass, image: Image) -> None:
    """A pass whose last output goes into a whole tensor, by a convolution with a stride or a pooling. Collective."""
    entering = op.entering
    assert entering is not None

    def slabs() -> Iterator[tuple[Range, list[Operand]]]:
        for (first, last), operand in _chain(state, op, image, op.wanted).run():
            yield (first // op.factor, last // op.factor), [operand]
            state.memory.computed([convolution.node.name for convolution in op.chain], (first, last))

    if isinstance(entering, Convolve):
        convolve_slabs(state, entering, slabs())
    else:
        pool_slabs(state, entering, slabs())
    image.settled()
    if op.clears:
        state.works[0].buffers.clear()


def features(state: State, op: Pass, image: Image, beyond: int) -> Iterator[tuple[Range, Operand]]:
    """Ranges of this rank's planes, and there what the head reads, good until the next are asked for."""
    for planes, operand in _chain(state, op, image, (beyond, beyond, beyond)).run():
        state.memory.computed([convolution.node.name for convolution in op.chain], planes)
        yield planes, operand


def _chain(state: State, op: Pass, image: Image, beyond: Triple) -> Chain:
    stages = []
    for convolution, view in zip(op.chain, op.views, strict=True):
        lifts = (lifted(state, convolution, s) for s in convolution.sources if isinstance(s, Lifted))
        up = next(lifts, None)
        node = view.node
        assert node is not None
        conv = cast(nn.Conv3d, state.layer(convolution.node.module))
        up_first = isinstance(convolution.sources[0], Lifted)
        stages.append(Stage(conv, state.affines.get(node.name), up, up_first))
        if up is not None:
            state.wait(next(s.tensor for s in convolution.sources if isinstance(s, Lifted)))
    layout, last = state.layouts[0], op.chain[-1].output
    step = rolling_planes(layout.block(state.works[0].grid.coords).shape, last.stored, op.factor)
    return Chain(state.works[0], layout, image, stages, step, beyond)


def part_of(rows: Rows, planes: Range, high: tuple[int, int, int]) -> Rows:
    """Some planes of a block with the voxels after it on H and W, as a block of its own."""
    sides = planes[1] - planes[0], rows.sides[1] + high[1], rows.sides[2] + high[2]
    cut = [
        slice(low + first, low + first + side)
        for low, first, side in zip(rows.low, (planes[0], 0, 0), sides, strict=True)
    ]
    return Rows(rows.buffer[tuple(cut)], (0, 0, 0), sides)
