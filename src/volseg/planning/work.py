"""What the busiest rank does in a training step, and in segmenting a scan: the steps of its program as work."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from math import prod

from volseg.geometry import Triple
from volseg.networks.description import IMAGE, Interpolation, Network, Normalization
from volseg.partition.layout import Layout
from volseg.partition.tiling import Taps, is_thin, padded_channels
from volseg.planning.operations import DOUBLE, GRADIENTS, Family, Operation, Reduction, Work
from volseg.planning.scratch import FLOAT, is_minimal, on_tiles, stored_inputs
from volseg.planning.work_messages import Messages
from volseg.precision import FLOAT32, Precision
from volseg.program import ops
from volseg.program.build import segment_program, train_program
from volseg.program.kinds import Kind
from volseg.program.ops import Convolve
from volseg.program.recompute import halo_of_own_grids, halo_with_passes
from volseg.program.schedule import IN_PLACE, Schedule
from volseg.program.step import Step
from volseg.program.tensors import Lifted, Tensor, View, layout_of

_SEGMENTING = {
    Family.FORWARD: Family.SEGMENT_FORWARD, Family.UP: Family.SEGMENT_UP, Family.NORM: Family.SEGMENT_NORM,
}  # fmt: skip


def training_work(
    network: Network, layouts: Sequence[Layout], checkpoint_stages: Collection[int] = (), replicas: int = 1,
    precision: Precision = FLOAT32,
) -> Work:  # fmt: skip
    """A training step on one case of each replica.

    layouts    of each stage, finest first
    precision  in which tensors are stored, and so sent
    """
    program = train_program(network, merges_of(layouts), checkpoint_stages=frozenset(checkpoint_stages))
    work = _WorkPass(network, layouts, segmenting=False, precision=precision)
    parameters = network.parameters(training=True)
    work.operate("other", Kind.FILES, Family.LOAD, 0, network.in_channels, 1)
    work.messages.reduce("other", 0, 2 * sum(layouts[0].dims) * DOUBLE)  # where the blocks lie
    work.messages.exchange("other", Tensor(IMAGE, 0, 0, network.in_channels), network.in_channels)
    for step in program.steps:
        work.go_through(step)
    ranks = prod(layouts[0].dims) * replicas
    if ranks > 1:
        work.done.reductions.append(Reduction(GRADIENTS, 0, parameters * FLOAT, ranks))
    if replicas > 1:  # loss and Dice of all cases, and running statistics
        work.done.reductions.append(Reduction(GRADIENTS, 0, 3 * replicas * DOUBLE, replicas))
    work.operate("other", Kind.OPTIMIZER, Family.OPTIMIZER, 0, 1, 1, parameters)
    work.operate("other", Kind.OTHER, Family.REST, 0, network.in_channels, network.widths[0])
    return work.done


def segmenting_work(
    network: Network, layouts: Sequence[Layout], schedule: Schedule = IN_PLACE, precision: Precision = FLOAT32
) -> Work:
    """The network's part of segmenting one scan.

    layouts  of each stage, finest first
    """
    work = _WorkPass(network, layouts, segmenting=True, precision=precision)
    steps = segment_program(network, schedule, merges_of(layouts)).steps
    work.widen_ghosts(steps)
    for step in steps:
        work.go_through(step)
    work.operate("other", Kind.OTHER, Family.SEGMENT_REST, 0, network.in_channels, network.widths[0])
    return work.done


def work_of_step(
    network: Network, layouts: Sequence[Layout], step: Step, *, segmenting: bool, precision: Precision = FLOAT32
) -> Work:
    """One step of a program."""
    work = _WorkPass(network, layouts, segmenting=segmenting, precision=precision)
    work.go_through(step)
    return work.done


def merges_of(layouts: Sequence[Layout]) -> frozenset[int]:
    """The stages whose process grid is coarser than that of the stage before."""
    return frozenset(n for n in range(1, len(layouts)) if layouts[n].dims != layouts[n - 1].dims)


_DIRECT, _UNPAIRED = 2.25, 1.5
"""Products of a direct sum for each of minimal filtering on H and W, and of that for each of one on D as well."""


def effort(op: Convolve | ops.ConvolveBackward, image: int, precision: Precision) -> float:
    """The time of a convolution, product for product, over that of a 3x3x3 one of its channels with stride 1.

    That is what machines are measured by, and what has the kernel that its channels get: direct sums on an image of few
    channels or on tiles of bfloat16, else minimal filtering, from some channels on over pairs of planes, too.

    image  channels of the image
    """
    node, inputs = op.node, stored_inputs(op.sources, image)
    of_image = isinstance(op, Convolve) or not op.targets
    if on_tiles(op.sources, image, precision) or (of_image and is_thin(inputs)):
        return 1.0
    unpaired = _UNPAIRED if Taps.of(3, 1, sum(inputs), padded_channels(node.channels)).paired else 1.0
    if is_minimal(node.kernel, node.stride):
        return 1.0 if node.kernel[0] == 3 else unpaired
    return _DIRECT * unpaired


class _WorkPass:
    """Goes through the steps of the ranks that lead in all stages."""

    def __init__(
        self, network: Network, layouts: Sequence[Layout], *, segmenting: bool, precision: Precision
    ) -> None:  # fmt: skip
        self.network, self.layouts, self.segmenting, self.precision = network, layouts, segmenting, precision
        self.voxels = [prod(layout.largest_block) for layout in layouts]
        self.done = Work()
        self.messages = Messages(network, layouts, precision.size, self.done)

    def widen_ghosts(self, steps: Sequence[Step]) -> None:
        """Widen the ghosts by those that passes among these steps read."""
        self.messages.halo = halo_with_passes(self.network, steps)
        self.messages.own = halo_of_own_grids(self.network, self.messages.halo, merges_of(self.layouts))

    def go_through(self, step: Step) -> None:
        """Enter the work of a step."""
        label = step.label
        match step.op:
            case Convolve() as op:
                if self.segmenting and any(source.tensor.name == IMAGE for source in op.sources):
                    self._load(label)
                self._convolve(label, op)
            case ops.Pass() as op:
                self._pass(label, op)
            case ops.UpConvolve() as op:
                self._up(label, Family.UP, op.source, op.output)
            case ops.UpConvolveBackward() as op:
                self._up(label, Family.UP_BACKWARD, op.source, op.gradient)
            case ops.Interpolate() as op:
                self._pass_over(label, Kind.UP, op.output)
            case ops.InterpolateBackward() as op:
                self._pass_over(label, Kind.UP, op.gradient)
            case ops.Exchange() as op:
                self.messages.exchange(label, op.tensor, op.tensor.stored)
            case ops.Normalize() as op:
                self._normalize(label, op.view.node, op.view.tensor)
            case ops.Classify() as op:
                self._classify(label, op)
            case ops.NormalizeBackward() as op if op.view.node is not None and op.view.node.norm != "none":
                tensor = op.view.tensor
                self.operate(label, Kind.NORM, Family.NORM_BACKWARD, tensor.stage, 1, tensor.channels)
                self.messages.reduce(label, tensor.grid, 2 * tensor.channels * DOUBLE)
            case ops.ConvolveBackward() as op:
                self._convolve_backward(label, op)
            case ops.Add() as op:
                self._pass_over(label, Kind.NORM, op.output)
            case ops.AddBackward() as op:
                self._pass_over(label, Kind.NORM, op.gradient)
            case ops.Pool() as op:
                self._pass_over(label, Kind.POOLING, op.source.tensor)
            case ops.Average() as op:
                self._pass_over(label, Kind.POOLING, op.source.tensor)
            case ops.AverageBackward() as op:
                self._pass_over(label, Kind.POOLING, op.target.tensor)
            case ops.Unpool() as op:
                tensor = op.target.tensor
                self.operate(label, Kind.POOLING, Family.POOLING, tensor.stage, 1, tensor.channels)
            case ops.Gather() as op:
                self.messages.transfer(label, op.stage, op.source)
            case ops.GatherTarget() as op:
                voxels = layout_of(replace(op.source, grid=op.stage), self.network, self.layouts).largest_block
                self.messages.moved(label, op.stage, prod(voxels))
            case ops.GatherBackward() as op:
                self.messages.transfer(label, op.stage, op.target)
            case ops.Scatter() as op:
                self.messages.transfer(label, op.stage, op.target.tensor)
                if op.target.node is not None:
                    self.messages.tell_group(label, op.stage, 2 * op.target.tensor.stored * FLOAT)
            case ops.ScatterBackward() as op:
                self.messages.transfer(label, op.stage, op.source)
                if op.through:
                    self.messages.tell_group(label, op.stage, 2 * op.source.stored * DOUBLE)

    def operate(
        self, layer: str, kind: Kind, family: Family, stage: int, inputs: int, outputs: int, voxels: int | None = None,
        times: float = 1.0, effort: float = 1.0,
    ) -> None:  # fmt: skip
        """Enter an operation on the largest block of a stage."""
        family = _SEGMENTING.get(family, family) if self.segmenting else family
        count = self.voxels[stage] if voxels is None else voxels
        self.done.operations.append(Operation(layer, kind, family, stage, inputs, outputs, count, times, effort))

    def _convolve(self, label: str, op: Convolve, times: float = 1.0) -> None:
        """A convolution, and the up-convolution or interpolation that it reads."""
        for source in op.sources:
            if isinstance(source, Lifted):
                self._lift(label, Family.UP, source, times)
        self._products(label, Family.FORWARD, op, times)

    def _products(self, label: str, family: Family, op: Convolve | ops.ConvolveBackward, times: float = 1.0) -> None:
        node, inputs = op.node, sum(self.network.inputs_of(op.node))
        self.operate(
            label, Kind.CONVOLUTION, family, node.stage, inputs, node.channels, times=times * prod(node.kernel) / 27,
            effort=effort(op, self.network.in_channels, self.precision),
        )  # fmt: skip

    def _lift(self, label: str, family: Family, source: Lifted, times: float = 1.0) -> None:
        """What a convolution reads of a tensor that is never whole, made for it; an interpolation's is made again."""
        node = source.node
        if isinstance(node, Interpolation):
            self._pass_over(label, Kind.UP, source.whole, times)
        else:
            self.operate(label, Kind.UP, family, node.stage, source.tensor.channels, node.channels, times=times)

    def _up(self, label: str, family: Family, source: View, output: Tensor) -> None:
        self.operate(label, Kind.UP, family, output.stage, source.tensor.channels, output.channels)

    def _load(self, label: str) -> None:
        self.operate(label, Kind.FILES, Family.SEGMENT_LOAD, 0, self.network.in_channels, 1)

    def _pass(self, label: str, op: ops.Pass) -> None:
        """Each convolution on more voxels than the one behind it."""
        last = op.views[-1]
        if not (op.head or op.pooled or op.entering or self._takes_statistics(last.node)):
            return  # nothing to find out
        self._load(label)
        for convolution, width in zip(op.chain, op.widths(op.wanted), strict=True):
            self._convolve(label, convolution, self._wider(width))
        match op.entering:
            case Convolve() as entering:
                self._convolve(label, entering)
                return
            case ops.Pool() as entering:
                self._pass_over(label, Kind.POOLING, entering.source.tensor)
                return
        if op.head is not None:
            self.operate(label, Kind.HEAD, Family.SEGMENT_HEAD, 0, last.tensor.channels, op.head.channels)
            return
        self._normalize(label, last.node, last.tensor)

    def _wider(self, width: Triple) -> float:
        """How many times a block's voxels a convolution computes that reaches `width` voxels beyond it."""
        dims, sides = self.layouts[0].dims, self.layouts[0].largest_block
        wide = (n + more * min(2, p - 1) for n, more, p in zip(sides, width, dims, strict=True))
        return prod(wide) / prod(sides)

    def _takes_statistics(self, node: Normalization | None) -> bool:
        """Whether a norm takes the statistics of what it is given; batch norms have theirs when segmenting."""
        return node is not None and node.norm != "none" and not (self.segmenting and node.norm == "batch")

    def _normalize(self, label: str, node: Normalization | None, tensor: Tensor) -> None:
        """The largest sum, and the sum."""
        if self._takes_statistics(node):
            self.operate(label, Kind.NORM, Family.NORM, tensor.stage, 1, tensor.channels)
            for _ in range(2):
                self.messages.reduce(label, tensor.grid, 2 * tensor.channels * DOUBLE)

    def _pass_over(self, label: str, kind: Kind, tensor: Tensor, times: float = 1.0) -> None:
        """Enter a pass that reads two tensors and writes one, as the backward of a norm does."""
        self.operate(label, kind, Family.NORM_BACKWARD, tensor.stage, 1, tensor.channels, times=times)

    def _classify(self, label: str, op: ops.Classify) -> None:
        channels, classes = op.source.tensor.channels, op.node.channels
        if self.segmenting:
            self.operate(label, Kind.HEAD, Family.SEGMENT_HEAD, 0, channels, classes)
            return
        self.operate(label, Kind.HEAD, Family.HEAD, op.node.stage, channels, classes)
        self.messages.reduce(label, 0, (2 + 4 * classes) * DOUBLE)  # of all ranks, wherever the logits are

    def _convolve_backward(self, label: str, op: ops.ConvolveBackward) -> None:
        self._products(label, Family.BACKWARD if op.targets else Family.IMAGE_BACKWARD, op)
        for source in op.sources:
            if isinstance(source, Lifted):
                self._lift(label, Family.UP_BACKWARD, source)
