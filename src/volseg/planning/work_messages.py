"""Messages that steps make necessary: ghosts, sums over ranks, blocks that go to fewer ranks and come back."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from volseg.geometry import Triple
from volseg.networks.description import IMAGE, Network
from volseg.partition.layout import Layout
from volseg.partition.tiling import padded_channels
from volseg.planning.operations import Exchange, Reduction, Transfer, Work
from volseg.planning.scratch import FLOAT
from volseg.program.tensors import Tensor, layout_of


class Messages:
    """Enters the messages of the ranks that lead in all stages.

    layouts  of each stage, finest first
    size     bytes of a value of a tensor
    done     where they are entered

    halo     widths of the ghosts of each stage; `own` on the stage's own process grid
    """

    def __init__(self, network: Network, layouts: Sequence[Layout], size: int, done: Work) -> None:
        self.network, self.layouts, self._size, self.done = network, layouts, size, done
        self.ranks = [prod(layout.dims) for layout in layouts]
        self.halo: Sequence[Triple] = network.halo
        self.own: Sequence[Triple] = network.halo
        self._ghosts: dict[tuple[int, int], list[tuple[int, int, int]]] = {}

    def reduce(self, layer: str, grid: int, size: int) -> None:
        """Enter a reduction of so many bytes over the ranks of a stage's grid."""
        if self.ranks[grid] > 1:
            self.done.reductions.append(Reduction(layer, grid, size, self.ranks[grid]))

    def exchange(self, layer: str, tensor: Tensor, stored: int) -> None:
        """Enter the ghosts of a tensor of so many stored channels."""
        where = tensor.stage, tensor.grid
        if where not in self._ghosts:
            self._ghosts[where] = self._ghosts_of(tensor)
        size = stored * (FLOAT if tensor.name == IMAGE else self._size)
        if axes := tuple((axis, messages, voxels * size) for axis, messages, voxels in self._ghosts[where]):
            self.done.exchanges.append(Exchange(layer, tensor.stage, axes, tensor.grid))

    def _ghosts_of(self, tensor: Tensor) -> list[tuple[int, int, int]]:
        """Axes on which a tensor's ghosts come from neighbours, how many these are, and how many voxels they send."""
        layout = layout_of(tensor, self.network, self.layouts)
        halo = self.own if tensor.grid == tensor.stage else self.halo
        sides, axes = list(layout.largest_block), []
        for axis, (parts, width) in enumerate(zip(layout.dims, halo[tensor.stage], strict=True)):
            if parts == 1 or not width:
                continue
            neighbours = min(2, parts - 1)
            axes.append((axis, neighbours, neighbours * width * (prod(sides) // sides[axis])))
            sides[axis] += neighbours * width
        return axes

    def _merged(self, stage: int) -> int:
        """Ranks of the stage above whose blocks make one here."""
        return self.ranks[stage - 1] // self.ranks[stage]

    def transfer(self, layer: str, stage: int, tensor: Tensor) -> None:
        """Enter a tensor's block of a leader, made of its group's or cut into them."""
        self.moved(
            layer, stage, prod(self.layouts[stage].largest_block) * padded_channels(tensor.channels) * self._size
        )

    def moved(self, layer: str, stage: int, size: int) -> None:
        """Enter a leader's block of so many bytes, made of its group's."""
        merged = self._merged(stage)
        self.done.transfers.append(Transfer(layer, stage, merged - 1, size * (merged - 1) // merged))

    def tell_group(self, layer: str, stage: int, size: int) -> None:
        """Enter something small, from a leader to its group or summed over it."""
        self.done.reductions.append(Reduction(layer, stage, size, self._merged(stage), group=True))
