"""Tensors of a forward pass that overwrite each other, in the basins of `partition.basin`."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import Tensor as TorchTensor

from volseg.distributed.halo import ghost_widths
from volseg.geometry import Triple
from volseg.networks.description import IMAGE, Network
from volseg.nn.fused.image import Image, read_planes
from volseg.nn.fused.operand import Operand, Workplace
from volseg.nn.fused.progress import Progress
from volseg.nn.fused.scratch import Store
from volseg.nn.kernels.rows import Rows
from volseg.partition.basin import Basin, basins
from volseg.partition.layout import Layout
from volseg.partition.slabs import ranges
from volseg.partition.tiling import padded_channels
from volseg.partition.window import Range
from volseg.program.in_place import HIGH, PORTS
from volseg.program.kinds import Kind
from volseg.program.step import Convolve, Pass, Place, Program, Tensor


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
        self._beyond = beyond if passes else 0
        sides = [self._sides(layout, work) for work, layout in zip(works, layouts, strict=False)]
        ghosts = [
            ghost_widths(work.grid, 1 if level in program.merges else self._ghosts_of(level))
            for level, work in enumerate(works)
        ]
        stored = [padded_channels(width) for width in network.widths]
        self.basins: dict[int, Basin] = basins(sides, ghosts, stored, 1 if passes else 0)
        self._memory: dict[int, TorchTensor] = {}
        self._lying: dict[int, set[Tensor]] = {stage: set() for stage in self.basins}
        self._ends: dict[Tensor, Place] = {}

    @staticmethod
    def _sides(layout: Layout, work: Workplace) -> Triple:
        return layout.block(work.grid.coords).shape

    def _ghosts_of(self, stage: int) -> int:
        """Voxels around its block that the up-convolution from a stage reads, where the volume goes on."""
        return 1 + self._beyond * (stage == 1)

    def take(self, tensor: Tensor, place: Place | None) -> Rows:
        """As `Memory.take`, where the program planned it."""
        assert place is not None
        if place in PORTS:
            return self._port(tensor, self._ghosts_of(tensor.stage) if place.ghosts else 0)
        basin = self.basins[tensor.stage]
        begin = basin.at_high_end(tensor.stored) if place == HIGH else 0
        shape = (*(n + a + b for n, a, b in zip(basin.sides, basin.low, basin.high, strict=True)), tensor.stored)
        buffer = self._of_stage(tensor.stage)[begin : begin + basin.floats(tensor.stored)].view(shape)
        self._lying[tensor.stage].add(tensor)
        self._ends[tensor] = place
        return Rows(buffer, basin.low, basin.sides)

    def _of_stage(self, stage: int) -> TorchTensor:
        """The memory of a basin, which may lie in that of another."""
        basin = self.basins[stage]
        if stage not in self._memory:
            if basin.host is None:
                self._memory[stage] = self.store.take(basin.size)
            else:
                self._memory[stage] = self._memory[basin.host][basin.offset : basin.offset + basin.size]
        return self._memory[stage]

    def _port(self, tensor: Tensor, ghosts: int) -> Rows:
        """Memory of its own, on the grid that the tensor lies on, with so many ghosts where that is cut."""
        work = self.works[tensor.grid]
        factor = self.network.factor_between(tensor.grid, tensor.stage)
        sides = self._sides(self.layouts[tensor.grid].coarser(factor), work)
        low, high = ghost_widths(work.grid, ghosts)
        shape = (*(n + a + b for n, a, b in zip(sides, low, high, strict=True)), tensor.stored)
        return Rows(self.store.take(prod(shape)).view(shape), low, sides)

    def give(self, tensor: Tensor, rows: Rows) -> None:
        """As `Memory.give`; a basin in which nothing lies goes back."""
        lying = self._lying.get(tensor.stage, set())
        lying.discard(tensor)
        if not lying:
            self._memory.pop(tensor.stage, None)

    def slabs(self, op: Convolve) -> Sequence[Range]:
        """As `Memory.slabs`: rising where the output lies at the low end, else falling."""
        basin = self.basins[op.output.stage]
        rising = ranges(basin.sides[0], basin.planes)
        return rising[::-1] if self._ends[op.output] == HIGH else rising

    def operand(self, tensor: Tensor, planes: Range) -> Operand | None:
        """As `Memory.operand`: the image is read where it is needed."""
        if tensor.name != IMAGE:
            return None
        with self.works[0].meter.doing(Kind.FILES):
            return read_planes(self.image, self.layouts[0], self.works[0].grid.coords, planes)

    def computed(self, names: Sequence[str], planes: Range) -> None:
        """As `Memory.computed`."""
        self.progress.count(names, planes)
        self.store.relax()
