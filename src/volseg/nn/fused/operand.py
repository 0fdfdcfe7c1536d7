"""A tensor as a kernel reads it, and what layers share."""

from __future__ import annotations

from dataclasses import dataclass

from volseg.distributed.ghost_exchange import ghost_widths
from volseg.distributed.grid import ProcessGrid
from volseg.distributed.meter import Meter
from volseg.geometry import Triple
from volseg.nn.fused.backend import Backend
from volseg.nn.fused.buffers import Buffers
from volseg.nn.kernels.rows import Activation, Affine, Rows
from volseg.partition.layout import Layout
from volseg.partition.tiling import padded_channels


@dataclass(frozen=True)
class Operand:
    """Raw rows, and the norm and activation with which they are read.

    channels  that are there; rows may be stored with more
    """

    rows: Rows
    channels: int
    affine: Affine | None = None

    @property
    def activation(self) -> Activation:
        """As a kernel reads it."""
        return Activation(self.rows, self.affine)


@dataclass(frozen=True)
class Workplace:
    """What the layers of a stage share: its process grid, memory that is used again, and who computes."""

    grid: ProcessGrid
    buffers: Buffers
    backend: Backend

    @property
    def meter(self) -> Meter:
        """Of this rank."""
        return self.grid.communicator.meter

    def rows(self, layout: Layout, channels: int, halo: Triple) -> Rows:
        """Uninitialised rows of this rank's block of `layout`, `channels` rounded up.

        With room for ghosts of `halo` even where nobody needs them: tensors of one size can have each other's memory.
        """
        low, high = ghost_widths(self.grid, halo)
        return self.buffers.take(layout.block(self.grid.coords).shape, padded_channels(channels), low, high)

    def origin(self, layout: Layout) -> Triple:
        """-1 on D, H and W where the block begins at an odd coordinate."""
        z, y, x = layout.block(self.grid.coords).start
        return -(z % 2), -(y % 2), -(x % 2)
