"""Where the tensors of segmenting lie on one rank: basins, one for each lane of a stage, and ports between grids."""

from __future__ import annotations

from dataclasses import replace
from math import prod

from volseg.geometry import Triple
from volseg.networks.description import Network
from volseg.partition.basin import Basin, Ghosts, basins
from volseg.partition.share import Share
from volseg.partition.tiling import padded_channels
from volseg.precision import FLOAT32, Precision
from volseg.program.in_place import can_host
from volseg.program.ops import Pass
from volseg.program.recompute import halo_of_own_grids
from volseg.program.schedule import SPILL, Schedule
from volseg.program.step import Place, Program, Step
from volseg.program.tensors import Tensor


class Places:
    """The basins and ports of a rank, and which of them have a tensor at the moment.

    share      what the rank has of each stage, with the ghosts that passes over the image need
    precision  in which tensors are stored

    basins    by stage, that of each of its lanes
    ports     values of the tensors that go to, and come back from, a stage with a grid of its own
    in_files  whether all of them lie in files, of which a few planes are in memory at a time
    """

    def __init__(
        self, network: Network, program: Program, schedule: Schedule, share: Share, precision: Precision = FLOAT32
    ) -> None:  # fmt: skip
        self.network, self.share, self._size = network, share, precision.size
        first = 1 if any(isinstance(step.op, Pass) for step in program.forward) else 0
        own = replace(share, halo=tuple(halo_of_own_grids(network, share.halo, share.merges)))
        ghosts: list[Ghosts] = [own.ghosts_of(stage, stage) for stage in range(share.last + 1)]
        widths = [padded_channels(width) for width in network.widths]
        self.basins: dict[int, Basin] = basins(
            share.sides, ghosts, widths, first, reaches=[halo[0] for halo in network.halo],
            hosted=can_host(program.forward, first),
        )  # fmt: skip
        # Where a block is cut on H or W, packing its faces touches every page of a tensor.
        self.in_files = schedule is SPILL and not any(share.low[0][1:] + share.high[0][1:])
        self.ports: dict[Tensor, int] = {}
        self._used: set[tuple[int, int]] = set()
        self._lying: dict[Tensor, Place] = {}

    def begin(self, step: Step) -> None:
        """Enter what a step writes, and the new names of what it renames."""
        for tensor, place in zip(step.writes, step.places, strict=True):
            self._lying[tensor] = place
            if place.end == "port":
                self.ports[tensor] = self._port(tensor, ghosts=place.ghosts)
            else:
                self._used.add((tensor.stage, place.lane))
        for before, after in step.renames:
            self._lying[after] = self._lying.pop(before)

    def end(self, step: Step) -> None:
        """Strike out what a step frees."""
        for tensor in step.frees:
            self._lying.pop(tensor, None)

    @property
    def files(self) -> int:
        """Values of all basins and ports that any step used: what SPILL has in files."""
        used = (self.basins[stage] for stage, _ in self._used)
        return sum(basin.size for basin in used if basin.host is None) + sum(self.ports.values())

    def held(self) -> list[int]:
        """Bytes of the tensors that are in memory, by stage."""
        held = [0] * (self.network.deepest + 1)
        if self.in_files:
            return held
        for stage in self._full():
            basin = self.basins[stage]
            held[stage] += basin.size * self._size if basin.host is None else 0
        for tensor, place in self._lying.items():
            if place.end == "port":
                held[tensor.stage] += self.ports[tensor] * self._size
        return held

    def halos(self) -> int:
        """Bytes of the ghosts of each basin's largest tensor, of what is in memory."""
        full = [] if self.in_files else [self.basins[stage] for stage in self._full()]
        own = (basin for basin in full if basin.host is None)
        return sum((basin.values(basin.channels) - prod(basin.sides) * basin.channels) * self._size for basin in own)

    def sides(self, tensor: Tensor) -> Triple:
        """(D, H, W) of the rank's block of a tensor."""
        return self.share.sides_of(tensor.stage, tensor.grid)

    def moved(self, stage: int, port: Tensor) -> int:
        """Bytes in memory while a port in files is filled from, or emptied into, its stage: the whole tensor, twice."""
        if not self.in_files:
            return 0
        whole = self.basins[stage].values(port.stored) if stage in self.basins else 0
        return (self.ports[port] + whole) * self._size

    def slab_below(self, tensor: Tensor) -> int:
        """As `slab`, of a tensor of the next stage, while a slab of this one is computed."""
        if self._lying[tensor].end == "port":  # all of it: it is small
            return max(self.ports.values()) * self._size if self.in_files else 0
        return self.slab(tensor.stage, tensor.stored, 0.5)

    def slab(self, stage: int, channels: int | None = None, share: float = 1.0) -> int:
        """Bytes of files in memory while a slab is computed: planes of what is read, and of what is written.

        channels  stored, of what is read; None for the stage's widest tensor
        share     of the planes of a slab; below 1 nothing is written
        """
        if not self.in_files or stage not in self.basins:
            return 0
        basin = self.basins[stage]
        plane = basin.values(basin.channels) // (basin.sides[0] + basin.low[0] + basin.high[0]) * self._size
        read = plane * (channels or basin.channels) // basin.channels
        planes = int(share * basin.planes)
        return min(basin.size * self._size, planes * plane + (planes + 2) * read if share == 1 else (planes + 2) * read)

    def _full(self) -> list[int]:
        """The stage of each basin that has a tensor."""
        full = {(tensor.stage, place.lane) for tensor, place in self._lying.items() if place.end != "port"}
        return [stage for stage, _ in full]

    def _port(self, tensor: Tensor, *, ghosts: bool) -> int:
        sides = zip(self.sides(tensor), *self.share.ghosts_of(tensor.stage, tensor.grid), strict=True)
        return prod(n + ghosts * (a + b) for n, a, b in sides) * tensor.stored
