"""What segmenting holds: its steps, gone through with the basins and windows in which their tensors lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from volseg.networks.coverage import why_not_covered
from volseg.networks.description import IMAGE, Network, Normalization
from volseg.partition.agglomeration import NONE, Agglomeration
from volseg.partition.layout import Layout
from volseg.partition.share import Share, busy_shares
from volseg.partition.slabs import ranges
from volseg.planning.scratch import FLOAT, convolving
from volseg.planning.segmenting_places import Places
from volseg.planning.segmenting_slabs import Slabs
from volseg.planning.training_pass import HALOS, SLABS
from volseg.precision import FLOAT32, Precision
from volseg.program.build import segment_program
from volseg.program.ops import (
    Add,
    Average,
    Classify,
    Convolve,
    Gather,
    Interpolate,
    Normalize,
    Pass,
    Pool,
    Scatter,
    UpConvolve,
)
from volseg.program.recompute import halo_with_passes
from volseg.program.schedule import SPILL, Schedule
from volseg.program.step import Step
from volseg.program.tensors import Lifted, Tensor, View


@dataclass(frozen=True)
class Moment:
    """What is held in one operation, in bytes.

    by_level  of tensors, finest stage first
    work      the kernels' own memory, and weights on their way
    parts     of the tensors by what they are for
    """

    operation: str
    by_level: tuple[int, ...]
    work: int
    parts: Mapping[str, int]

    @property
    def total(self) -> int:
        """Everything."""
        return sum(self.by_level) + self.work


class SegmentingPass:
    """The memory of one rank.

    image      bytes of the image as it is stored, on this rank
    share      what the rank has of each stage
    precision  in which tensors are stored

    places   where its tensors lie
    moments  in the order of the steps
    held     bytes of tensors in each step
    """

    def __init__(
        self, network: Network, schedule: Schedule, share: Share, *, threads: int = 1, image: int = 0,
        precision: Precision = FLOAT32,
    ) -> None:  # fmt: skip
        self.network, self.threads, self.image, self.precision = network, threads, image, precision
        program = segment_program(network, schedule, share.merges, share.last)
        self.share = replace(share, halo=tuple(halo_with_passes(network, program.forward)))
        self.places = Places(network, program, schedule, self.share, precision)
        self.slabs = Slabs(network, self.share, precision)
        self.moments: list[Moment] = []
        self.held: list[int] = []
        self._summed: set[Tensor] = set()
        self._slab = self._messages = self._work = 0
        for step in program.forward:
            self._go_through(step)

    @property
    def peak(self) -> Moment:
        """The moment with most."""
        return max(self.moments, key=lambda moment: moment.total)

    @property
    def last(self) -> Moment:
        """When the mask is made."""
        return self.moments[-1]

    def _go_through(self, step: Step) -> None:
        self.places.begin(step)
        self.held.append(sum(self.places.held()))
        match step.op:
            case Convolve() as op:
                self._convolved(step.label, op)
            case Pass() as op:
                self._passed(step.label, op)
            case Gather() as op:
                self._transferred(step, op.stage, op.source)
            case Scatter() as op:
                self._transferred(step, op.stage, op.target.tensor)
            case UpConvolve() | Interpolate() as op:
                more = self.places.slab(op.output.stage) + self.places.slab_below(op.source.tensor)
                self._note(step.label, op.output.stage, more + self._slab)
            case Normalize(view=View(tensor=tensor, node=Normalization() as node)) if node.norm != "none":
                if tensor not in self._summed:
                    self._note(step.label, tensor.stage, self.slabs.sums(tensor) + self._slab)
            case Add() | Pool() | Average():
                self._note(step.label, step.op.output.stage, self._slab)
            case Classify():
                self._slab = 0
                self._note(step.label, 0, self.places.slab(0) + self.slabs.logits)
        self.places.end(step)

    def _note(self, operation: str, stage: int, more: int) -> None:
        """Enter a moment: what lies in memory, and so many bytes of slabs of a stage."""
        held, halos = self.places.held(), self.places.halos()
        parts = {
            "tensors of the levels": sum(held) - halos,
            HALOS: halos,
            SLABS: more + self._messages,
            "image": self.image,
        }
        held[stage] += more
        held[0] += self.image + self._messages
        self.moments.append(Moment(operation, tuple(held), self._work, parts))

    def _convolved(self, label: str, op: Convolve) -> None:
        stage, basins, slabs = op.output.stage, self.places.basins, self.slabs
        first = op.sources[0].tensor
        read = self.network.in_channels if first.name == IMAGE else first.stored
        more, reads_image = self.places.slab(stage, read), any(s.tensor.name == IMAGE for s in op.sources)
        if op.statistics is not None:
            self._summed.add(op.output)
            more += slabs.sums(op.output)
        if reads_image:
            more += slabs.image(basins[0].planes)
        for source in op.sources:
            if isinstance(source, Lifted):
                planes = ranges(basins[stage].sides[0], basins[stage].planes)
                self._slab = max(self._slab, slabs.lifted(source, planes, source.lift(op.node)))
                more += self.places.slab_below(source.tensor)
        if op.pooled is not None:
            more += self.places.slab_below(op.pooled)
        self._worked(op)
        self._note(label, stage, more + self._slab)
        if reads_image:
            self.image = 0  # it has been read

    def _passed(self, label: str, op: Pass) -> None:
        for convolution in op.convolutions:
            self._worked(convolution)
        if op.measured is not None:
            self._summed.add(op.measured)
        self._note(label, 0, self.slabs.windows(op))

    def _transferred(self, step: Step, stage: int, port: Tensor) -> None:
        self._messages = max(self._messages, self.share.message(stage, port.stored) * self.precision.size)
        self._note(step.label, stage, self.places.moved(stage, port))

    def _worked(self, op: Convolve) -> None:
        """The threads' scratch memory stays; so does that of the largest weight."""
        sides, image = self.places.sides(op.output), self.network.in_channels
        work = convolving(op, sides, image, self.threads, self.precision)
        self._work = max(self._work, (work.weights + self.threads * work.scratch) * FLOAT)


def scratch_bytes(
    network: Network, layout: Layout, agglomeration: Agglomeration = NONE, precision: Precision = FLOAT32
) -> int:
    """Of files that SPILL has at once, on the busiest rank."""
    if why_not_covered(network):
        return 0
    shares = busy_shares(layout, network.factors, agglomeration, halo=network.halo)
    passes = [SegmentingPass(network, SPILL, share) for share in shares]
    return max(one.places.files for one in passes) * precision.size
