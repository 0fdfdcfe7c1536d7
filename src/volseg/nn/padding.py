"""Partitioned padding and cropping: voxels of one value around the volume, or fewer of its own."""

from __future__ import annotations

from torch import Tensor, nn

from volseg.nn.layer import LayerPlan, PartitionedLayer, fetch_window, strided_outputs, triple
from volseg.partition.layout import Layout
from volseg.partition.window import Range, plan_window


class PartitionedConstantPad3d(nn.ConstantPad3d, PartitionedLayer):
    """nn.ConstantPad3d over one block, exactly; numbers below zero cut voxels off.

    x  [N, C, D, H, W]                       this rank's block
    y  [N, C, D + before + after, ...]       this rank's block of the padded volume

    Blocks begin in the padded volume at the indices at which they begin in the volume: so a padded tensor meets, block
    by block, those that have its number of voxels without padding.
    """

    def forward(self, x: Tensor) -> Tensor:
        plan = self.plan(x)
        return fetch_window(x, plan.window, self.context.grid, fill=float(self.value))

    def _plan(self, layout: Layout) -> LayerPlan:
        w, right, h, low, d, back = self.padding
        before, after = (d, h, w), (back, low, right)
        shape = triple([n + a + b for n, a, b in zip(layout.shape, before, after, strict=True)])
        outputs = strided_outputs(layout, shape, (1, 1, 1))

        def needs(axis: int, r: Range) -> Range:
            return r[0] - before[axis], r[1] - before[axis]

        return LayerPlan(plan_window(layout, self.context.grid.coords, needs, outputs), layout, outputs)
