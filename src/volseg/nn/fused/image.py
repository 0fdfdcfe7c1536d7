"""What a network reads: an image around a rank's block, some planes at a time."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from volseg.distributed.grid import ProcessGrid
from volseg.distributed.halo import exchange_window
from volseg.geometry import PerAxis, Triple, per_axis
from volseg.networks.description import Convolution, Network
from volseg.nn.fused.operand import Operand, Workplace
from volseg.nn.kernels.rows import Rows
from volseg.partition.layout import Layout
from volseg.partition.window import Range, plan_window
from volseg.program.schedule import LAYERS, RECOMPUTE, Schedule


class Image(Protocol):
    """What a network reads: this rank's block of an image, and what lies around it.

    channels  of the image
    """

    channels: int

    def planes(self, wanted: Range, width: int) -> Tensor:
        """Planes [n, h', w', C] float32, with up to `width` voxels around the block where the volume goes on.

        wanted  counted from the block's first plane
        """

    def settled(self) -> None:
        """A pass over all planes is done. Collective. Raises, on all ranks, what went wrong on any."""

    def close(self) -> None:
        """No planes will be asked for any more."""


def reach(layout: Layout, coords: Triple, width: PerAxis) -> tuple[Triple, Triple]:
    """Voxels before and after a block, at most `width`, up to the faces of the volume."""
    block, whole, widths = layout.block(coords), layout.shape, per_axis(width)
    low = tuple(min(most, start) for most, start in zip(widths, block.start, strict=True))
    high = tuple(min(most, n - stop) for most, n, stop in zip(widths, whole, block.stop, strict=True))
    return (low[0], low[1], low[2]), (high[0], high[1], high[2])


def read_planes(
    image: Image, layout: Layout, work: Workplace, planes: Range, width: int = 1, beside: int = 1
) -> Operand:
    """The image where a convolution of `planes` reads it, and `beside` planes before and after them, on the device.

    width  voxels around the block on H and W
    """
    coords = work.grid.coords
    low, high = reach(layout, coords, (layout.shape[0], width, width))
    sides = layout.block(coords).shape
    wanted = max(planes[0] - beside, -low[0]), min(planes[1] + beside, sides[0] + high[0])
    there = image.planes(wanted, width).to(work.backend.device)
    return Operand(Rows(there, (-wanted[0], low[1], low[2]), sides), image.channels)


class TensorImage:
    """An image that is there as a tensor: this rank's block [1, C, d, h, w]. To make one is collective.

    width  voxels around the block that will be asked for, where the volume goes on
    """

    def __init__(self, x: Tensor, layout: Layout, grid: ProcessGrid, width: int) -> None:
        self.channels = int(x.shape[1])
        self._low, self._high = reach(layout, grid.coords, width)
        if self._low == self._high == (0, 0, 0):
            wide = x.detach()
        else:

            def needs(axis: int, own: Range) -> Range:
                return max(0, own[0] - width), min(layout.shape[axis], own[1] + width)

            wide = exchange_window(x.detach(), plan_window(layout, grid.coords, needs, layout), grid)
        self._rows = wide[0].permute(1, 2, 3, 0)

    def settled(self) -> None:
        """Nothing can go wrong."""

    def close(self) -> None:
        """The tensor is the caller's."""

    def planes(self, wanted: Range, width: int) -> Tensor:
        """As `nn.fused.image.Image.planes`."""
        cut = [slice(wanted[0] + self._low[0], wanted[1] + self._low[0])]
        for low, high, side in zip(self._low[1:], self._high[1:], self._rows.shape[1:3], strict=True):
            cut.append(slice(low - min(low, width), side - high + min(high, width)))
        return self._rows[tuple(cut)].contiguous()


def image_width(network: Network, schedule: Schedule, beyond: int = 0) -> int:
    """Voxels around a block that the image is asked for, where the volume goes on.

    beyond  voxels around the block that are wanted of what the head reads
    """
    if schedule is RECOMPUTE:
        convolutions = [node for node in network.nodes if isinstance(node, Convolution)]
        finest = sum(max(node.reach) for node in convolutions if node.stage == 0)
        entering = (max(node.reach) for node in convolutions if node.stage == 1 and max(node.stride) > 1)
        return finest + max([beyond, *entering])
    return 0 if schedule is LAYERS else network.image_reach
