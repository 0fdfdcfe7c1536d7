"""What segmenting holds: its steps, gone through with the basins and windows in which their tensors lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

from volseg.config import ModelConfig
from volseg.geometry import Triple
from volseg.networks.architectures import described
from volseg.networks.coverage import why_not_covered
from volseg.networks.description import IMAGE, Network, Normalization
from volseg.partition.agglomeration import NONE, Agglomeration
from volseg.partition.basin import Basin, Ghosts, basins
from volseg.partition.layout import Layout
from volseg.partition.share import Share, busy_shares
from volseg.partition.slabs import Lift, head_slab_planes, ranges, rolling_planes, up_slabs_of, window_planes
from volseg.partition.tiling import padded_channels
from volseg.planning.scratch import FLOAT, convolving
from volseg.planning.training_pass import HALOS, SLABS
from volseg.program.build import segment_program
from volseg.program.in_place import can_host
from volseg.program.recompute import halo_with_passes
from volseg.program.schedule import SPILL, Schedule
from volseg.program.step import (
    Add,
    Classify,
    Convolve,
    Gather,
    Interpolate,
    Lifted,
    Normalize,
    Pass,
    Place,
    Pool,
    Scatter,
    Step,
    Tensor,
    UpConvolve,
    View,
    lift_of,
)


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

    image  bytes of the image as it is stored, on this rank
    share  what the rank has of each stage

    basins   by stage
    ports    values of the tensors that go to, and come back from, a stage with a grid of its own
    moments  in the order of the steps
    held     bytes of tensors in each step
    """

    def __init__(self, network: Network, schedule: Schedule, share: Share, *, threads: int = 1, image: int = 0) -> None:
        self.network, self.threads, self.image = network, threads, image
        program = segment_program(network, schedule, share.merges, share.last)
        first = 1 if any(isinstance(step.op, Pass) for step in program.forward) else 0
        self.share = replace(share, halo=tuple(halo_with_passes(network, program.forward)))
        ghosts: list[Ghosts] = [
            (share if stage in share.merges else self.share).ghosts_of(stage, stage) for stage in range(share.last + 1)
        ]
        widths = [padded_channels(width) for width in network.widths]
        self.basins: dict[int, Basin] = basins(
            share.sides, ghosts, widths, first, reaches=[halo[0] for halo in network.halo],
            hosted=can_host(program.forward, first),
        )  # fmt: skip
        self.lanes: set[tuple[int, int]] = set()
        # Where a block is cut on H or W, packing its faces touches every page of a tensor.
        self.in_files = schedule is SPILL and not any(share.low[0][1:] + share.high[0][1:])
        self.moments: list[Moment] = []
        self.held: list[int] = []
        self.ports: dict[Tensor, int] = {}
        self._lying: dict[Tensor, Place] = {}
        self._summed: set[Tensor] = set()
        self._slab = self._messages = self._work = 0
        for step in program.forward:
            self._go_through(step)

    @property
    def peak(self) -> Moment:
        """The moment with most."""
        return max(self.moments, key=lambda moment: moment.total)

    @property
    def files(self) -> int:
        """Values of all basins and ports: what SPILL has in files."""
        sizes = (self.basins[stage] for stage, _ in self.lanes)
        return sum(basin.size for basin in sizes if basin.host is None) + sum(self.ports.values())

    @property
    def last(self) -> Moment:
        """When the mask is made."""
        return self.moments[-1]

    def _go_through(self, step: Step) -> None:
        for tensor, place in zip(step.writes, step.places, strict=True):
            self._lying[tensor] = place
            if place.end == "port":
                self.ports[tensor] = self._port(tensor, ghosts=place.ghosts)
            else:
                self.lanes.add((tensor.stage, place.lane))
        for before, after in step.renames:
            self._lying[after] = self._lying.pop(before)
        self.held.append(sum(self._held()))
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
                more = self._resident(op.output.stage) + self._resident_below(op.source.tensor)
                self._note(step.label, op.output.stage, more + self._slab)
            case Normalize(view=View(tensor=tensor, node=Normalization() as node)) if node.norm != "none":
                if tensor not in self._summed:
                    self._note(step.label, tensor.stage, self._sums(tensor) + self._slab)
            case Add() | Pool():
                self._note(step.label, step.op.output.stage, self._slab)
            case Classify():
                self._slab = 0
                self._note(step.label, 0, self._resident(0) + self.logits)
        for tensor in step.frees:
            self._lying.pop(tensor, None)

    # what is held

    def _held(self) -> list[int]:
        """Bytes of the tensors that are in memory, by stage."""
        held = [0] * (self.network.deepest + 1)
        if self.in_files:
            return held
        for stage, _ in {(tensor.stage, place.lane) for tensor, place in self._lying.items() if place.end != "port"}:
            basin = self.basins[stage]
            held[stage] += basin.size * FLOAT if basin.host is None else 0
        for tensor, place in self._lying.items():
            if place.end == "port":
                held[tensor.stage] += self.ports[tensor] * FLOAT
        return held

    def _note(self, operation: str, stage: int, more: int) -> None:
        held = self._held()
        lying = {(tensor.stage, place.lane) for tensor, place in self._lying.items() if place.end != "port"}
        halos = 0 if self.in_files else sum(self._halos(n) for n, _ in lying if self.basins[n].host is None)
        parts = {
            "tensors of the levels": sum(held) - halos,
            HALOS: halos,
            SLABS: more + self._messages,
            "image": self.image,
        }
        held[stage] += more
        held[0] += self.image + self._messages
        self.moments.append(Moment(operation, tuple(held), self._work, parts))

    def _halos(self, stage: int) -> int:
        """Bytes of the ghosts of a stage's largest tensor."""
        basin = self.basins[stage]
        return (basin.floats(basin.channels) - prod(basin.sides) * basin.channels) * FLOAT

    def _sides(self, tensor: Tensor) -> Triple:
        return self.share.sides_of(tensor.stage, tensor.grid)

    def _port(self, tensor: Tensor, *, ghosts: bool) -> int:
        sides = zip(self._sides(tensor), *self.share.ghosts_of(tensor.stage, tensor.grid), strict=True)
        return prod(n + ghosts * (a + b) for n, a, b in sides) * tensor.stored

    # operations

    def _convolved(self, label: str, op: Convolve) -> None:
        stage, more = op.output.stage, self._resident(op.output.stage, self._read(op))
        if op.statistics is not None:
            self._summed.add(op.output)
            more += self._sums(op.output)
        if any(source.tensor.name == IMAGE for source in op.sources):
            more += self._image_slab()
        for source in op.sources:
            if isinstance(source, Lifted):
                basin = self.basins[stage]
                planes = ranges(basin.sides[0], basin.planes)
                self._slab = max(self._slab, self._up_slab(source, planes, lift_of(op, source)))
                more += self._resident_below(source.tensor)
        if op.pooled is not None:
            more += self._resident_below(op.pooled)
        self._worked(op, self._sides(op.output))
        self._note(label, stage, more + self._slab)
        if any(source.tensor.name == IMAGE for source in op.sources):
            self.image = 0  # it has been read

    def _read(self, op: Convolve) -> int:
        """Channels, as stored, of the first tensor that is read."""
        first = op.sources[0].tensor
        return self.network.in_channels if first.name == IMAGE else first.stored

    def _passed(self, label: str, op: Pass) -> None:
        """Windows of a chain, one for each convolution."""
        sides, low, high = self.share.sides[0], self.share.low[0], self.share.high[0]
        step = rolling_planes(sides, op.chain[-1].output.stored)
        windows, widths, first = 0, op.widths(op.wanted), op.chain[0].node
        read = [*(convolution.node.reach[0] for convolution in op.chain[1:]), op.wanted[0]]
        for convolution, width, reach in zip(op.chain, widths, read, strict=True):
            _, h, w = self._wide(width)
            planes = window_planes(sides[0], width[0] * low[0], width[0] * high[0], width[0], reach, step)
            windows += planes * h * w * convolution.output.stored * FLOAT
            for source in convolution.sources:
                if isinstance(source, Lifted):
                    wanted = [(a - width[0], b + width[0]) for a, b in ranges(sides[0], step)]
                    windows += self._up_slab(source, wanted, lift_of(convolution, source))
            self._worked(convolution, sides)
        around = max(n + more for n, more in zip(widths[0][1:], first.reach[1:], strict=True))
        _, h, w = self._wide((0, around, around))
        windows += 3 * (step + 2 * first.reach[0]) * h * w * self.network.in_channels * FLOAT
        made = op.entering or op.chain[-1]
        self._worked(made, self._sides(made.output))
        if op.head is not None:
            windows += self.logits
        elif made.statistics is not None:
            windows += self._sums(made.output)
            self._summed.add(made.output)
        self._note(label, 0, windows)

    def _transferred(self, step: Step, stage: int, port: Tensor) -> None:
        """The whole tensor is touched on both grids, in files too."""
        self._messages = max(self._messages, self.share.message(stage, port.stored) * FLOAT)
        touched = 0
        if self.in_files:
            whole = self.basins[stage].floats(port.stored) if stage in self.basins else 0
            touched = (self.ports[port] + whole) * FLOAT
        self._note(step.label, stage, touched)

    def _resident_below(self, tensor: Tensor) -> int:
        """Of a tensor of the next stage, while a slab of this one is computed."""
        if self._lying[tensor].end == "port":  # all of it: it is small
            return max(self.ports.values()) * FLOAT if self.in_files else 0
        return self._resident(tensor.stage, tensor.stored, 0.5)

    def _resident(self, stage: int, channels: int | None = None, share: float = 1.0) -> int:
        """Of tensors in files: planes of what is read, and of what is written, in memory while a slab is computed."""
        if not self.in_files or stage not in self.basins:
            return 0
        basin = self.basins[stage]
        plane = basin.floats(basin.channels) // (basin.sides[0] + basin.low[0] + basin.high[0]) * FLOAT
        read = plane * (channels or basin.channels) // basin.channels
        planes = int(share * basin.planes)
        return min(basin.size * FLOAT, planes * plane + (planes + 2) * read if share == 1 else (planes + 2) * read)

    def _image_slab(self) -> int:
        reach = self.network.image_reach
        d, h, w = self._wide((reach, reach, reach))
        planes = min(d, self.basins[0].planes + 2 * reach)
        return 2 * planes * h * w * self.network.in_channels * FLOAT

    def _up_slab(self, source: Lifted, planes: Sequence[tuple[int, int]], lift: Lift) -> int:
        below = source.tensor
        slabs = up_slabs_of(planes, self._sides(below), *self.share.ghosts_of(below.stage, below.grid), lift)
        voxels = prod(source.node.factors) * max(d * h * w for _, (d, h, w) in slabs)
        return voxels * padded_channels(source.node.channels) * FLOAT

    def _sums(self, tensor: Tensor) -> int:
        """Of the bricks of a tensor of which statistics are taken."""
        factors = self.network.factors
        side = [a // b for a, b in zip(factors[-1], factors[tensor.stage], strict=True)]
        if max(side) == 1:
            return 0
        brick = prod(min(n, most) for n, most in zip(side, (8, 2, 8), strict=True))
        return prod(self._sides(tensor)) // brick * 2 * tensor.stored * FLOAT

    @property
    def logits(self) -> int:
        """Of a slab, and a copy of it on the way to the arg-max; no more planes than are computed together."""
        sides, classes = self.share.sides[0], self.network.classes
        rolling = rolling_planes(sides, padded_channels(self.network.widths[0]))
        planes = min(head_slab_planes(sides, classes), rolling)
        return 2 * planes * sides[1] * sides[2] * padded_channels(classes) * FLOAT

    def _wide(self, width: Triple) -> Triple:
        """The block with `width` voxels around it where the volume goes on."""
        ends = zip(self.share.sides[0], width, self.share.low[0], self.share.high[0], strict=True)
        d, h, w = (n + more * (a + b) for n, more, a, b in ends)
        return d, h, w

    def _worked(self, op: Convolve, sides: Triple) -> None:
        """The threads' scratch memory stays; so does that of the largest weight."""
        work = convolving(op, sides, self.network.in_channels, self.threads)
        self._work = max(self._work, (work.weights + self.threads * work.scratch) * FLOAT)


def scratch_bytes(model: ModelConfig, layout: Layout, agglomeration: Agglomeration = NONE) -> int:
    """Of files that SPILL has at once, on the busiest rank."""
    network = described(model)
    if why_not_covered(network):
        return 0
    shares = busy_shares(layout, network.factors, agglomeration, halo=network.halo)
    passes = [SegmentingPass(network, SPILL, share) for share in shares]
    return max(one.files for one in passes) * FLOAT
