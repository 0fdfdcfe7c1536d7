"""What the layers of one partitioned network share: the process grid, and how the tensor before each layer is laid out.

A layer gets a plain tensor, its rank's block, and must know where that block lies in the whole. It asks the ranks: one
small reduction tells every rank the sides of all blocks on each axis, whatever the network did before, and shows at
the same time that they fit together. Within a pass of the whole network the answers are remembered, by layer and
call, for the layout that the pass began with; so a second pass over a volume of the same shape asks once.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from volseg.distributed.grid import ProcessGrid
from volseg.errors import PartitionError
from volseg.geometry import PerAxis, Triple, format_per_axis, per_axis
from volseg.nn.kernels.reproducible import LARGEST_BRICK
from volseg.partition.layout import AXES, Layout


class PartitionContext:
    """Shared by all layers that one call of `partition_module` made.

    grid      the process grid
    multiple  the number, of each axis, that all block boundaries at the network's input are multiples of, on every
              grid the same network will run on (for a U-Net the product of its strides); 1 where nothing is known
    """

    def __init__(self, grid: ProcessGrid, multiple: PerAxis = 1) -> None:
        self.grid = grid
        self.multiple = per_axis(multiple)
        self._entry: Layout | None = None
        self._in_pass = False
        self._known: dict[tuple[Layout, int, int, Triple], Layout] = {}
        self._calls: dict[int, int] = {}

    @property
    def entry(self) -> Layout:
        """The layout of what the network was last called with."""
        assert self._entry is not None
        return self._entry

    def begin_pass(self, x: Tensor) -> None:
        """The network is called with block `x` [N, C, d, h, w]. Collective."""
        self.begin_pass_of(self._ask(_sides(x)))

    def begin_pass_of(self, layout: Layout) -> None:
        """The network is called with a tensor of this layout, the same on all ranks."""
        self._entry = layout
        self._in_pass = True
        self._calls.clear()

    def end_pass(self) -> None:
        """The network has returned or raised."""
        self._in_pass = False

    def layout_of(self, layer: nn.Module, x: Tensor) -> Layout:
        """The layout of the tensor that `layer` is called with. Collective the first time."""
        sides = _sides(x)
        if not self._in_pass or self._entry is None:
            return self._ask(sides)
        call = self._calls[id(layer)] = self._calls.get(id(layer), -1) + 1
        key = (self._entry, id(layer), call, sides)
        if key not in self._known:
            self._known[key] = self._ask(sides)
        return self._known[key]

    def brick(self, layout: Layout) -> tuple[Triple, int]:
        """The largest power-of-two brick, up to `LARGEST_BRICK`, that no block boundary of `layout` cuts on any grid.

        Its sides, and how many there are.

        It follows from global shapes alone: a tensor 2^j times smaller than the network's input has its boundaries
        on multiples of ``multiple / 2^j``.
        """
        if self._entry is None:
            return (1, 1, 1), layout.shape[0] * layout.shape[1] * layout.shape[2]
        sides, number = [], 1
        shapes = zip(layout.shape, self._entry.shape, layout.boundaries, self.multiple, LARGEST_BRICK, strict=True)
        for n, whole, cuts, multiple, most in shapes:
            side = multiple * n // whole if whole % n == 0 and multiple * n % whole == 0 else 1
            side = min(side & -side, most)
            while n % side:
                side //= 2
            if any(b % side for b in cuts):
                raise PartitionError(
                    f"the blocks {list(cuts)} do not lie on multiples of {side}, as "
                    f"multiple_of={format_per_axis(self.multiple)} promised: "
                    "cut the volume with the same multiple, or call partition_module without it"
                )
            sides.append(side)
            number *= n // side
        return (sides[0], sides[1], sides[2]), number

    def _ask(self, sides: Triple) -> Layout:
        """The layout whose block on this rank has `sides`; PartitionError on every rank where blocks do not fit."""
        dims, coords = self.grid.dims, self.grid.coords
        slots = np.full((2, sum(dims)), -(2**62), dtype=np.int64)
        for axis, offset in enumerate((0, dims[0], dims[0] + dims[1])):
            slots[:, offset + coords[axis]] = sides[axis], -sides[axis]
        slots = self.grid.communicator.reduce_all(slots, "max")
        if (slots[0] != -slots[1]).any():
            raise PartitionError(
                "the blocks of the ranks do not fit together: "
                "ranks at the same place on an axis must have the same side"
            )
        boundaries = []
        for axis, lengths in enumerate(np.split(slots[0], [dims[0], dims[0] + dims[1]])):
            if (lengths < 1).any():
                raise PartitionError(f"a rank has no voxels on axis {AXES[axis]}: sides {lengths.tolist()}")
            boundaries.append((0, *(int(b) for b in np.cumsum(lengths))))
        return Layout((boundaries[0], boundaries[1], boundaries[2]))


def _sides(x: Tensor) -> Triple:
    if x.dim() != 5:
        raise PartitionError(f"expected a block [N, C, D, H, W], got a tensor of shape {list(x.shape)}")
    return x.shape[2], x.shape[3], x.shape[4]
