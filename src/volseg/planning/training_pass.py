"""What a training step holds: its steps, gone through with the pieces of an arena that they take and give back."""

from __future__ import annotations

from math import prod

from volseg.geometry import Triple
from volseg.networks.description import IMAGE, Network, UpConvolution
from volseg.partition.arena import Arena, Piece
from volseg.partition.share import Share
from volseg.partition.slabs import deep_slab_planes, head_slab_planes, up_slabs
from volseg.partition.tiling import padded_channels
from volseg.planning.scratch import FLOAT, Work, convolving, convolving_backward, loss_floats
from volseg.precision import FLOAT32, Precision
from volseg.program.ops import (
    Classify,
    Convolve,
    ConvolveBackward,
    Gather,
    GatherBackward,
    Scatter,
    ScatterBackward,
)
from volseg.program.step import Program, Step
from volseg.program.tensors import Lifted, Tensor

SLABS, HALOS = "slabs and windows", "halos"
"""Parts of a plan: what exists a few planes at a time, and ghosts."""

_UP_MULTIPLE = 2


class TrainingPass:
    """The memory of one rank.

    share      what it has of each stage
    precision  in which tensors are stored; what the kernels work in is float32

    arena    of the activations and their gradients
    by_level what of it was held, in bytes, when most was
    peak_at  where that was
    work     bytes of the kernels' own memory, and of weights on their way, at the layer with most of it
    by_operation  bytes of tensors held in each operation at most, in their order
    held          the same in each step
    """

    def __init__(
        self, network: Network, program: Program, share: Share, threads: int = 1, precision: Precision = FLOAT32
    ) -> None:  # fmt: skip
        self.network, self.share, self.threads, self.precision = network, share, threads, precision
        self.arena = Arena()
        self.peak_at = ""
        self.by_level: dict[int, int] = {}
        self.work = 0
        self.by_operation: dict[str, int] = {}
        self.held: list[int] = []
        self._pieces: dict[Tensor, Piece] = {}
        self._most = 0
        self._at_most: dict[str, int] = {}
        self._scratch = self._targets = 0
        self._largest_slab = self._largest_gradient = self._largest_message = 0
        for step in program.steps:
            self._go_through(step)

    @property
    def tensors(self) -> int:
        """Bytes of all tensors, and of what is free between them when most is held."""
        return (self.arena.total + self._slabs) * self.precision.size

    @property
    def _slabs(self) -> int:
        return self._largest_slab + self._largest_gradient + self._largest_message

    @property
    def parts(self) -> dict[str, int]:
        """Bytes of `tensors`, when most is held, by what they are for."""
        free = self.arena.total - self._most
        parts = {**self._at_most, SLABS: self._slabs, "free between tensors": free}
        return {name: n * self.precision.size for name, n in parts.items()}

    @property
    def total(self) -> int:
        """Bytes of everything but what does not depend on the rank."""
        return self.tensors + self.image + self.work

    @property
    def image(self) -> int:
        """Bytes of the image on this rank, of its copy with ghosts where the volume is cut, and of the targets."""
        own, (low, high) = prod(self.share.sides[0]), self.share.ghosts_of(0, 0)
        copies = own + (prod(self._with_ghosts(Tensor(IMAGE, 0, 0, 1))) if any(low + high) else 0)
        return self.network.in_channels * copies * FLOAT + own + self._targets

    def _go_through(self, step: Step) -> None:
        for tensor in step.writes:
            self._take(tensor, step.label)
        for before, after in step.renames:
            self._pieces[after] = self._pieces.pop(before)
        self.held.append(sum(piece.size for piece in self._pieces.values()) * self.precision.size)
        match step.op:
            case Convolve() as op:
                self._up_slab(op, op.output, self._brick_depth(op.output.stage))
                sides = self._sides(op.output)
                self._worked(convolving(op, sides, self.network.in_channels, self.threads, self.precision))
            case ConvolveBackward() as op:
                self._up_slab(op, op.gradient, _UP_MULTIPLE, with_gradient=True)
                sides = self._sides(op.gradient)
                self._worked(convolving_backward(op, sides, self.network.in_channels, self.threads, self.precision))
            case Classify() as op:
                self._worked(self._loss(op))
                if any(merge <= op.node.stage for merge in self.share.merges):
                    self._targets += prod(self.share.sides[op.node.stage])
            case Gather() as op:
                self._sent(op.stage, op.source)
            case Scatter() as op:
                self._sent(op.stage, op.target.tensor)
            case GatherBackward() as op:
                self._sent(op.stage, op.target)
            case ScatterBackward() as op:
                self._sent(op.stage, op.source)
        for tensor in step.frees:
            self.arena.give(self._pieces.pop(tensor))

    def _sides(self, tensor: Tensor) -> Triple:
        """Of the rank's block of a tensor."""
        return self.share.sides_of(tensor.stage, tensor.grid)

    def _with_ghosts(self, tensor: Tensor) -> Triple:
        ends = self.share.ghosts_of(tensor.stage, tensor.grid)
        d, h, w = (n + a + b for n, a, b in zip(self._sides(tensor), *ends, strict=True))
        return d, h, w

    def _take(self, tensor: Tensor, label: str) -> None:
        sides = self._with_ghosts(tensor)
        self._pieces[tensor] = self.arena.take(prod(sides) * tensor.stored)
        total = sum(piece.size for piece in self._pieces.values())
        self.by_operation[label] = max(self.by_operation.get(label, 0), total * self.precision.size)
        if total > self._most:
            self._most, self.peak_at = total, label
            self.by_level, self._at_most = {}, {"activations kept": 0, "their gradients": 0, HALOS: 0}
            for other, piece in self._pieces.items():
                values = prod(self._sides(other)) * other.stored
                self.by_level[other.stage] = self.by_level.get(other.stage, 0) + piece.size * self.precision.size
                self._at_most["their gradients" if other.is_gradient else "activations kept"] += values
                self._at_most[HALOS] += piece.size - values

    def _brick_depth(self, stage: int) -> int:
        return min(8, self.network.factors[-1][0] // self.network.factors[stage][0])

    def _up_slab(
        self, op: Convolve | ConvolveBackward, output: Tensor, multiple: int, *, with_gradient: bool = False
    ) -> None:
        """Enter the largest slab of a lifted tensor, which has memory of its own (`Buffers.slab`).

        Its gradient's, too, of an up-convolution's output; that of an interpolation's is a tensor.
        """
        grid = output.grid
        _, h, w = self.share.sides[grid]
        for source in op.sources:
            if not isinstance(source, Lifted):
                continue
            width, below = padded_channels(source.node.channels), self._sides(source.tensor)
            ends = self.share.ghosts_of(source.tensor.stage, source.tensor.grid)
            slabs = up_slabs(below, *ends, width, multiple, source.lift(op.node))
            for planes, made_from in slabs:
                self._largest_slab = max(self._largest_slab, prod(source.node.factors) * prod(made_from) * width)
                if with_gradient and isinstance(source.node, UpConvolution):
                    self._largest_gradient = max(self._largest_gradient, (planes[1] - planes[0]) * h * w * width)

    def _sent(self, stage: int, tensor: Tensor) -> None:
        """A message between a group and its leader, which has memory of its own."""
        self._largest_message = max(self._largest_message, self.share.message(stage, tensor.stored))

    def _loss(self, op: Classify) -> Work:
        """A slab of logits, its gradient, and what the loss works in; deeper, the input's gradient, too."""
        sides, classes, width = self.share.sides[op.node.stage], op.node.channels, op.source.tensor.stored
        deep = op.node.stage > 0
        planes = deep_slab_planes(sides, classes, width) if deep else head_slab_planes(sides, classes)
        voxels = planes * sides[1] * sides[2]
        logits = voxels * (2 * padded_channels(classes) + width * deep)
        return Work(logits, loss_floats(classes))

    def _worked(self, work: Work) -> None:
        """The threads' scratch memory stays from layer to layer."""
        self._scratch = max(self._scratch, work.scratch)
        self.work = max(self.work, (work.weights + self.threads * self._scratch) * FLOAT)
