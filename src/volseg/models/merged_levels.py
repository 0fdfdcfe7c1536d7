"""Where a level has a grid of its own, of fewer ranks: what goes down to it, and what comes up from it again.

A level's input is gathered from groups of ranks to those who lead them, and its output scattered back; backward the
output's gradient is gathered and the input's scattered. Ranks that do not lead wait meanwhile.
"""

from __future__ import annotations

import torch

from volseg.distributed.merging import LevelGrids, Merge
from volseg.models.layers import running_statistics, slope_of
from volseg.models.tape import Tape
from volseg.models.unet import UNet
from volseg.nn.fused import layer as fused
from volseg.nn.fused import merging
from volseg.nn.fused.buffers import Buffers
from volseg.nn.fused.layer import Held
from volseg.nn.kernels.rows import Rows
from volseg.partition.layout import Layout


class MergedLevels:
    """The transfers of a training step. All of them do nothing for levels whose grid is that of the level above."""

    def __init__(self, twin: UNet, grids: LevelGrids) -> None:
        self.twin, self.grids = twin, grids

    def gather_input(self, tape: Tape, level: int) -> None:
        """A level's input, which the level above left. Collective over the grid of that."""
        merge = self.grids.merges.get(level)
        if merge is None:
            return
        own, rows, buffers = tape.pooled.pop(level - 1), None, tape.works[0].buffers
        if level <= self.grids.last:
            rows = tape.works[level].rows(tape.layouts[level], own.channels)
        with merge.group.meter.during(f"level {level}, gathered"):
            merging.gather(merge, tape.before(level), own.rows, rows, buffers)
        buffers.give(own.rows)
        if rows is not None:
            whole = tape.pooled[level - 1] = Held(rows, own.channels, own.affine)
            tape.works[level].start_exchange(whole)

    def spread_output(self, tape: Tape, level: int) -> None:
        """A level's output. Collective over the grid of the level above."""
        merge = self.grids.merges.get(level)
        if merge is None:
            return
        above, layout, channels = tape.works[level - 1], tape.before(level), self.twin.config.widths[level]
        whole = tape.output(level).held if level <= self.grids.last else None
        spread = tape.spread[level] = Held(above.rows(layout, channels), channels)
        spread_output(self.twin, merge, level, layout, whole, spread, above.buffers)
        above.start_exchange(spread)

    def gather_gradient(self, tape: Tape, level: int) -> None:
        """The transpose of `spread_output`: before the activation, with its sums."""
        merge = self.grids.merges.get(level)
        if merge is None:
            return
        spread, buffers = tape.spread.pop(level), tape.works[0].buffers
        held = tape.output(level).held if level <= self.grids.last else None
        whole = None if held is None else fused.slot_before_activation(tape.works[level], held).rows
        assert spread.gradient is not None
        assert spread.sums is not None
        with merge.group.meter.during(f"level {level}, gathered, backward"):
            merging.gather(merge, tape.before(level), spread.gradient, whole, buffers)
            sums = torch.from_numpy(merge.group.reduce_all(spread.sums.numpy()))
        if held is not None:
            held.sums = sums
        buffers.give(spread.gradient)
        buffers.give(spread.rows)

    def input_gradient(self, tape: Tape, level: int) -> Rows:
        """The gradient of a level's input on the grid of the level above: the transpose of `gather_input`."""
        merge, buffers = self.grids.merges.get(level), tape.works[0].buffers
        small = tape.pooled.pop(level - 1, None)
        whole = None if small is None else small.gradient
        if small is not None:
            buffers.give(small.rows)
        if merge is None:
            assert whole is not None
            return whole
        layout = tape.before(level)
        found = tape.works[level - 1].rows(layout, self.twin.config.widths[level - 1])
        with merge.group.meter.during(f"level {level}, scattered, backward"):
            merging.scatter(merge, layout, whole, found, buffers)
        if whole is not None:
            buffers.give(whole)
        return found


def spread_output(
    twin: UNet, merge: Merge, level: int, layout: Layout, whole: Held | None, spread: Held, buffers: Buffers
) -> None:
    """Fill `spread` with a level's output, which the leaders of groups hold as `whole`. Collective over the groups.

    The others learn its coefficients, and the running statistics of the levels in which they did not take part.

    layout  of the level on the finer grid
    """
    with merge.group.meter.during(f"level {level}, scattered"):
        merging.scatter(merge, layout, None if whole is None else whole.rows, spread.rows, buffers)
        affine = None if whole is None else whole.affine
        spread.affine = merging.share_affine(merge, affine, spread.rows.channels, slope_of(twin))
        merge.share(running_statistics(twin, level))
