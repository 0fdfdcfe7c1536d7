"""Tensors of a training step, in pieces of an arena."""

from __future__ import annotations

from collections.abc import Sequence

from volseg.distributed.ghost_exchange import ghost_widths
from volseg.geometry import Triple
from volseg.networks.description import Network
from volseg.nn.fused.operand import Operand, Workplace
from volseg.nn.kernels.rows import Rows
from volseg.partition.layout import Layout
from volseg.partition.slabs import up_slabs
from volseg.partition.tiling import padded_channels
from volseg.partition.window import Range
from volseg.program.ops import Convolve
from volseg.program.step import Place
from volseg.program.tensors import Lifted, Tensor, layout_of


class ArenaMemory:
    """Memory that all tensors of a step share (`nn.fused.state.Memory`).

    network                 whose tensors they are
    works, layouts, bricks  of the stages that this rank takes part in
    """

    overwrites = False

    def __init__(
        self, network: Network, works: Sequence[Workplace], layouts: Sequence[Layout], bricks: Sequence[Triple]
    ) -> None:
        self.network, self.works, self.layouts, self.bricks = network, works, layouts, bricks

    def _layout(self, tensor: Tensor) -> Layout:
        return layout_of(tensor, self.network, self.layouts)

    def take(self, tensor: Tensor, place: Place | None) -> Rows:
        """As `Memory.take`."""
        return self.works[tensor.grid].rows(self._layout(tensor), tensor.channels, self.network.halo[tensor.stage])

    def give(self, tensor: Tensor, rows: Rows) -> None:
        """As `Memory.give`."""
        self.works[tensor.grid].buffers.give(rows)

    def rename(self, before: Tensor, after: Tensor) -> None:
        """As `Memory.rename`."""

    def slabs(self, op: Convolve) -> Sequence[Range]:
        """As `Memory.slabs`: the whole block, but for what an up-convolution makes slab by slab."""
        grid = self.works[op.output.grid].grid
        for source in op.sources:
            if isinstance(source, Lifted):
                below = self._layout(source.tensor).block(grid.coords).shape
                low, high = ghost_widths(grid, self.network.halo[source.tensor.stage])
                multiple = self.bricks[op.output.stage][0]
                stored = padded_channels(source.node.channels)
                return [planes for planes, _ in up_slabs(below, low, high, stored, multiple, source.lift(op.node))]
        return [(0, self._layout(op.output).block(grid.coords).shape[0])]

    def operand(self, tensor: Tensor, planes: Range) -> Operand | None:
        """As `Memory.operand`: all tensors are whole."""
        return None

    def computed(self, names: Sequence[str], planes: Range) -> None:
        """As `Memory.computed`."""
