"""Voxels of small blocks as channels, whole and partitioned."""

from __future__ import annotations

from torch import Tensor, nn

from volseg.errors import PartitionError
from volseg.geometry import Triple, format_triple
from volseg.nn.layer import LayerPlan, PartitionedLayer, fetch_window, strided_outputs, triple
from volseg.partition.layout import Layout
from volseg.partition.window import Range, plan_window


class Unshuffled(nn.Module):
    """Voxels of each block of `factors` as channels: the inverse of a pixel shuffle.

    x  [N, C, D, H, W]                            sides multiples of the factors
    y  [N, C * fd * fh * fw, D / fd, H / fh, W / fw]
    """

    def __init__(self, factors: Triple) -> None:
        super().__init__()
        self.factors = factors

    def forward(self, x: Tensor) -> Tensor:
        n, channels, *sides = x.shape
        a, b, c = self.factors
        d, h, w = (side // f for side, f in zip(sides, self.factors, strict=True))
        y = x.reshape(n, channels, d, a, h, b, w, c).permute(0, 1, 3, 5, 7, 2, 4, 6)
        return y.reshape(n, channels * a * b * c, d, h, w)


class PartitionedUnshuffled(Unshuffled, PartitionedLayer):
    """`Unshuffled` over one block; a block of factors that two ranks share goes to the one that has its first voxel."""

    def forward(self, x: Tensor) -> Tensor:
        plan = self.plan(x)
        return super().forward(fetch_window(x, plan.window, self.context.grid))

    def _plan(self, layout: Layout) -> LayerPlan:
        if any(n % f for n, f in zip(layout.shape, self.factors, strict=True)):
            raise PartitionError(
                f"a volume of {format_triple(layout.shape)} voxels is no whole number of blocks of "
                f"{format_triple(self.factors)}; pad the volume"
            )
        shape = triple([n // f for n, f in zip(layout.shape, self.factors, strict=True)])
        outputs = strided_outputs(layout, shape, self.factors)

        def needs(axis: int, r: Range) -> Range:
            return r[0] * self.factors[axis], r[1] * self.factors[axis]

        return LayerPlan(plan_window(layout, self.context.grid.coords, needs, outputs), layout, outputs)
