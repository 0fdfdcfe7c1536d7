"""Several convolutions one after the other in one pass over a block: of each tensor a few planes exist at a time.

Each stage computes what the next one reads: on the sides where the volume goes on, as many voxels more as those that
follow it reach. So the image is the only thing that is fetched from other ranks, and no tensor is ever whole. Nothing
is computed twice along D; the windows keep the planes that the next step needs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import nn

from volseg.geometry import Triple
from volseg.nn.fused.backend import Packed
from volseg.nn.fused.forward import stored_bias
from volseg.nn.fused.image import Image, reach, read_planes
from volseg.nn.fused.operand import Operand, Workplace
from volseg.nn.fused.up import Up
from volseg.nn.kernels.block_convolution import BrickSums, Pooled
from volseg.nn.kernels.rows import Activation, Affine, Rows
from volseg.partition.layout import Layout
from volseg.partition.slabs import chain_widths, ranges, window_planes
from volseg.partition.tiling import padded_channels
from volseg.partition.window import Range
from volseg.program.kinds import Kind

_T = TypeVar("_T")


@dataclass
class Stage:
    """A convolution of a chain.

    affine  its norm's coefficients; None as long as they are not known, which only the last stage's may be
    up      what it reads beside the stage before, or, with `up_first`, before that
    """

    conv: nn.Conv3d
    affine: Affine | None = None
    up: Up | None = None
    up_first: bool = False

    @property
    def channels(self) -> int:
        """Of its output."""
        return int(self.conv.weight.shape[0])

    @property
    def reach(self) -> Triple:
        """Voxels that it reads before and after a voxel."""
        d, h, w = (int(side) // 2 for side in self.conv.weight.shape[2:])
        return d, h, w

    def side_by_side(self, before: list[_T], up: list[_T]) -> list[_T]:
        """What belongs to its inputs, in their order."""
        return up + before if self.up_first else before + up


class _Window:
    """The planes first ... stop of a stage's output, and `width` voxels around the block on H and W.

    reach  planes on either side that are read of it
    """

    def __init__(
        self, work: Workplace, name: str, stage: Stage, layout: Layout, width: Triple, reach_on_d: int, step: int
    ) -> None:
        coords = work.grid.coords
        self.low, self.high = reach(layout, coords, width)
        self.sides = layout.block(coords).shape
        self.stage = stage
        channels = padded_channels(stage.channels)
        planes = window_planes(self.sides[0], self.low[0], self.high[0], width[0], reach_on_d, step)
        shape = (planes, *(n + a + b for n, a, b in zip(self.sides, self.low, self.high, strict=True)))
        self.buffer = work.buffers.slab(name, (shape[0], shape[2], shape[3]), channels).buffer
        self.first = self.stop = -self.low[0]

    @property
    def operand(self) -> Operand:
        rows = Rows(self.buffer[: self.stop - self.first], (-self.first, *self.low[1:]), self.sides)
        return Operand(rows, self.stage.channels, self.stage.affine)

    def make_room(self, keep_from: int, stop: int) -> Range:
        """Forget the planes before `keep_from`; the planes that are to be filled now."""
        gone = min(max(keep_from, self.first), self.stop) - self.first
        kept = self.stop - self.first - gone
        if gone and kept:
            source = self.buffer[gone : gone + kept]
            self.buffer[:kept].copy_(source.clone() if gone < kept else source)
        self.first += gone
        filled = self.stop, stop
        self.stop = stop
        assert self.stop - self.first <= len(self.buffer), "a window too small"
        return filled


class Chain:
    """The pass, planned once.

    stages  the first one reads the image
    step    planes of the last stage's output at a time; a multiple of the bricks'
    beyond  voxels around the block that are wanted of it, where the volume goes on
    """

    def __init__(
        self, work: Workplace, layout: Layout, image: Image, stages: Sequence[Stage], step: int, beyond: Triple
    ) -> None:  # fmt: skip
        self.work, self.layout, self.image, self.stages, self.step = work, layout, image, stages, step
        self.widths = chain_widths([stage.reach for stage in stages], beyond)
        self.read_on_d = [*(stage.reach[0] for stage in stages[1:]), beyond[0]]

    def run(self, sums: BrickSums | None = None, pooled: Pooled | None = None) -> Iterator[tuple[Range, Operand]]:
        """Ranges of this rank's planes, and the last stage's output there, good until the next are asked for. Local.

        sums, pooled  of the last stage
        """
        windows = [
            _Window(self.work, f"window {n}", stage, self.layout, width, read, self.step)
            for n, (stage, width, read) in enumerate(zip(self.stages, self.widths, self.read_on_d, strict=True))
        ]
        stored, blocks = self.work.buffers.dtype, self.work.backend.blocks
        weights = [
            blocks.pack_weight(s.conv.weight, self._sources(n), stored=stored) for n, s in enumerate(self.stages)
        ]
        depth = self.layout.block(self.work.grid.coords).shape[0]
        last_stage = len(windows) - 1
        for first, last in ranges(depth, self.step):
            for n, (window, width) in enumerate(zip(windows, self.widths, strict=True)):
                keep = (windows[n + 1].stop if n < last_stage else first) - self.read_on_d[n]
                planes = window.make_room(keep, min(last + width[0], depth + window.high[0]))
                if planes[1] > planes[0]:
                    at_end = n == last_stage
                    self._compute(windows, n, planes, weights[n], sums if at_end else None, pooled if at_end else None)
            yield (first, last), windows[-1].operand
        for weight in weights:
            weight.release()

    def _sources(self, number: int) -> list[int]:
        stage = self.stages[number]
        before = self.image.channels if number == 0 else self.stages[number - 1].channels
        return stage.side_by_side([before], [] if stage.up is None else [stage.up.channels])

    def _compute(
        self, windows: Sequence[_Window], number: int, planes: Range, weight: Packed,
        sums: BrickSums | None, pooled: Pooled | None,
    ) -> None:  # fmt: skip
        window, stage = windows[number], self.stages[number]
        low, high = window.low, window.high
        if number == 0:
            with self.work.meter.doing(Kind.FILES):
                around = max(n + more for n, more in zip(self.widths[0][1:], stage.reach[1:], strict=True))
                read = read_planes(self.image, self.layout, self.work, planes, around, stage.reach[0])
                inputs = [read]
        else:
            inputs = [windows[number - 1].operand]
        if stage.up is not None:
            inputs = stage.side_by_side(inputs, [lifted for _, lifted in stage.up.slabs_of(self.work, [planes])])
        # The kernel sees a block that is wider on H and W; planes are counted as always.
        origin, sides = (0, -low[1], -low[2]), tuple(n + a + b for n, a, b in zip(window.sides, low, high, strict=True))
        start = self.layout.block(self.work.grid.coords).start
        with self.work.meter.doing(Kind.CONVOLUTION):
            self.work.backend.blocks.forward(
                [Activation(x.rows.seen_from(origin, x.rows.sides), x.affine) for x in inputs], weight,
                stored_bias(stage.conv, window.buffer.shape[3]),
                window.operand.rows.seen_from(origin, (window.sides[0], sides[1], sides[2])), planes=planes,
                origin=(-(start[0] % 2), -((start[1] - low[1]) % 2), -((start[2] - low[2]) % 2)), sums=sums,
                pooled=pooled,
            )  # fmt: skip
