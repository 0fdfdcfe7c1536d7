"""Tensors of a forward pass that overwrite each other, in the basins of `partition.basin`."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import Tensor as TorchTensor

from volseg.distributed.ghost_exchange import ghost_widths
from volseg.geometry import Triple
from volseg.networks.description import IMAGE, Network
from volseg.nn.fused.image import Image, read_planes
from volseg.nn.fused.operand import Operand, Workplace
from volseg.nn.fused.progress import Progress
from volseg.nn.fused.scratch import Store
from volseg.nn.kernels.rows import Rows
from volseg.partition.basin import Basin, basins
from volseg.partition.layout import Layout
from volseg.partition.slabs import ranges, rolling_planes
from volseg.partition.tiling import padded_channels
from volseg.partition.window import Range
from volseg.program.in_place import can_host
from volseg.program.kinds import Kind
from volseg.program.ops import Convolve, Pass
from volseg.program.recompute import halo_of_own_grids, halo_with_passes
from volseg.program.step import Place, Program
from volseg.program.tensors import Tensor, layout_of


class BasinMemory:
    """Memory of a program that segments (`nn.fused.state.Memory`).

    network  whose tensors they are
    beyond   voxels around the block that are wanted of what the head reads, where the volume goes on
    image    what the network reads, some planes at a time
    store    memory, or files
    """

    overwrites = True

    def __init__(
        self, network: Network, program: Program, works: Sequence[Workplace], layouts: Sequence[Layout], image: Image,
        store: Store, progress: Progress, beyond: int = 0,
    ) -> None:  # fmt: skip
        self.network = network
        self.works, self.layouts, self.image, self.store, self.progress = works, layouts, image, store, progress
        passes = [step.op for step in program.forward if isinstance(step.op, Pass)]
        self._halo = halo_with_passes(network, program.forward, beyond)
        sides = [self._sides(layout, work) for work, layout in zip(works, layouts, strict=False)]
        halo = halo_of_own_grids(network, self._halo, program.merges)
        ghosts = [ghost_widths(work.grid, halo[level]) for level, work in enumerate(works)]
        stored, first = [padded_channels(width) for width in network.widths], 1 if passes else 0
        self.basins: dict[int, Basin] = basins(
            sides, ghosts, stored, first, reaches=[halo[0] for halo in network.halo],
            hosted=can_host(program.forward, first),
        )  # fmt: skip
        self._stored, self._dtype = stored, works[0].buffers.dtype
        self._memory: dict[tuple[int, int], TorchTensor] = {}
        self._places: dict[Tensor, Place] = {}

    @staticmethod
    def _sides(layout: Layout, work: Workplace) -> Triple:
        return layout.block(work.grid.coords).shape

    def _sides_of(self, tensor: Tensor) -> Triple:
        """Of this rank's block of a tensor."""
        return self._sides(layout_of(tensor, self.network, self.layouts), self.works[tensor.grid])

    def take(self, tensor: Tensor, place: Place | None) -> Rows:
        """As `Memory.take`, where the program planned it."""
        assert place is not None
        self._places[tensor] = place
        if place.end == "port":
            return self._port(tensor, self._halo[tensor.stage] if place.ghosts else (0, 0, 0))
        basin = self.basins[tensor.stage]
        begin = basin.at_high_end(tensor.stored) if place.end == "high" else 0
        shape = (*(n + a + b for n, a, b in zip(basin.sides, basin.low, basin.high, strict=True)), tensor.stored)
        buffer = self._lane(tensor.stage, place.lane)[begin : begin + basin.values(tensor.stored)].view(shape)
        return Rows(buffer, basin.low, basin.sides)

    def _lane(self, stage: int, lane: int) -> TorchTensor:
        """The memory of a basin, which may lie in that of another."""
        basin = self.basins[stage]
        if (stage, lane) not in self._memory:
            if basin.host is None:
                self._memory[stage, lane] = self.store.take(basin.size, self._dtype)
            else:
                self._memory[stage, lane] = self._memory[basin.host, 0][basin.offset : basin.offset + basin.size]
        return self._memory[stage, lane]

    def _port(self, tensor: Tensor, ghosts: Triple) -> Rows:
        """Memory of its own, on the grid that the tensor lies on, with so many ghosts where that is cut."""
        work, sides = self.works[tensor.grid], self._sides_of(tensor)
        low, high = ghost_widths(work.grid, ghosts)
        shape = (*(n + a + b for n, a, b in zip(sides, low, high, strict=True)), tensor.stored)
        return Rows(self.store.take(prod(shape), self._dtype).view(shape), low, sides)

    def give(self, tensor: Tensor, rows: Rows) -> None:
        """As `Memory.give`; a basin in which nothing lies goes back."""
        lane = self._places.pop(tensor).lane
        lying = {(other.stage, place.lane) for other, place in self._places.items() if place.end != "port"}
        if (tensor.stage, lane) not in lying:
            self._memory.pop((tensor.stage, lane), None)

    def rename(self, before: Tensor, after: Tensor) -> None:
        """As `Memory.rename`."""
        self._places[after] = self._places.pop(before)

    def slabs(self, op: Convolve) -> Sequence[Range]:
        """As `Memory.slabs`: rising where the output lies at the low end, else falling."""
        sides = self._sides_of(op.output)
        rising = ranges(sides[0], rolling_planes(sides, self._stored[op.output.stage]))
        return rising[::-1] if self._places[op.output].end == "high" else rising

    def operand(self, tensor: Tensor, planes: Range) -> Operand | None:
        """As `Memory.operand`: the image is read where it is needed."""
        if tensor.name != IMAGE:
            return None
        reach = self.network.image_reach
        with self.works[0].meter.doing(Kind.FILES):
            return read_planes(self.image, self.layouts[0], self.works[0], planes, reach, reach)

    def computed(self, names: Sequence[str], planes: Range) -> None:
        """As `Memory.computed`."""
        self.progress.count(names, planes)
        self.store.relax()
