"""What the streamed U-Net of `models.streamed_unet` holds, operation by operation, in each of its schedules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from volseg.config import ModelConfig
from volseg.geometry import Triple
from volseg.partition.agglomeration import NONE, Agglomeration
from volseg.partition.basin import Basin, Ghosts, basins, peak_of
from volseg.partition.layout import Layout
from volseg.partition.share import Share, busy_shares
from volseg.partition.slabs import head_slab_planes, ranges, rolling_planes, up_slabs_of, window_planes
from volseg.partition.tiling import padded_channels
from volseg.planning.fused_memory import FLOAT, HALOS, SLABS, convolution_work
from volseg.program.schedule import SPILL, Schedule


@dataclass(frozen=True)
class Moment:
    """What is held in one operation, in bytes.

    by_level  of tensors, finest level first
    work      the kernels' own memory, and weights on their way
    parts     of the tensors by what they are for
    """

    operation: str
    by_level: tuple[int, ...]
    work: int
    parts: Mapping[str, int]

    @property
    def total(self) -> int:
        """Everything."""
        return sum(self.by_level) + self.work


class StreamedWalk:
    """The forward of a rank, in the order of `StreamedNetwork.run`.

    image  bytes of the image as it is stored, on this rank
    share  of the rank; by default of the busiest where all ranks take part in all levels
    ports  values of the tensors that go to, and come back from, a level with a grid of its own
    """

    def __init__(
        self, model: ModelConfig, layout: Layout, schedule: Schedule, threads: int = 1, image: int = 0,
        share: Share | None = None,
    ) -> None:  # fmt: skip
        self.model, self.schedule, self.threads = model, schedule, threads
        self.image = image
        self.share = share or busy_shares(layout, model.factors)[0]
        self.sides, self.low, self.high = self.share.sides, self.share.low[0], self.share.high[0]
        self.widths = [padded_channels(width) for width in model.widths]
        self.inputs, self.classes = model.in_channels or 1, model.classes or 2
        self.top = schedule.finest_held if model.levels else 0
        ghosts: list[Ghosts] = list(zip(self.share.low, self.share.high, strict=True))
        self.basins: dict[int, Basin] = basins(self.sides, ghosts, self.widths, self.top)
        # Where a block is cut on H or W, packing its faces touches every page of a tensor.
        self.in_files = schedule is SPILL and not any(self.low[1:] + self.high[1:])
        self.moments: list[Moment] = []
        self.ports: dict[str, int] = {}
        self._held: dict[int, int] = {}
        self._ports: dict[int, int] = {}
        self._messages = 0
        self._work = 0

    def run(self) -> StreamedWalk:
        """Go through all operations; returns itself."""
        if self.top:
            self._chain("encoder 0, convolution 1", 1)
            self._take_pooled(1)
            self._chain("encoder 0, convolution 2", 2)
        else:
            self._encode(0)
        top, last = self.model.levels, self.share.last
        for level in range(1, last + 1):
            self._gathered(level)
            self._encode(level)
        if last < top:
            self._gathered(last + 1)
        for level in reversed(range(1, min(last + 1, top))):
            self._spread(level + 1)
            self._decode(level)
        if top:
            self._spread(1)
        if self.top:
            self._chain("decoder 0, convolution 1", 3)
            self._chain("decoder 0, convolution 2", 4)
            self._chain("head", 4)
        else:
            if self.model.levels:
                self._decode(0)
            self._head()
        return self

    @property
    def peak(self) -> Moment:
        """The moment with most."""
        return max(self.moments, key=lambda moment: moment.total)

    @property
    def last(self) -> Moment:
        """When the mask is made."""
        return self.moments[-1]

    def _encode(self, level: int) -> None:
        above = (self.inputs, *self.widths)[level]
        self._take(level)
        first = self._image_slab() if level == 0 else 0
        self._convolved(f"encoder {level}, convolution 1", level, [above], self._resident(level, above) + first)
        if level == 0:
            self.image = 0  # has been read
        if level < self.model.levels:
            self._take_pooled(level + 1)
        small = self._resident_below(level, self.widths[level]) if level < self.model.levels else 0
        self._convolved(f"encoder {level}, convolution 2", level, [self.widths[level]], self._resident(level) + small)

    def _decode(self, level: int) -> None:
        width = self.widths[level]
        planes = ranges(self.sides[level][0], self.basins[level].planes)
        slab = self._up_slab(level, planes)
        below = self._resident_below(level, self.widths[level + 1])
        label = f"decoder {level}, convolution"
        self._convolved(f"{label} 1", level, [width, width], slab + self._resident(level) + below)
        self._held.pop(level + 1, None)
        self._ports.pop(level + 1, None)
        self._convolved(f"{label} 2", level, [width], slab + self._resident(level))

    def _head(self) -> None:
        self._note("head", 0, self._resident(0) + self._logits())

    def _take(self, level: int) -> None:
        if level in self.basins and self.basins[level].host is None and not self.in_files:
            self._held[level] = self.basins[level].size * FLOAT

    # levels with a grid of their own

    def _take_pooled(self, level: int) -> None:
        """Room for what a level reads of the one above."""
        if level in self.share.merges:
            self._take_port("pooled", level, prod(self.share.below(level - 1)) * self.widths[level - 1])
        else:
            self._take(level)

    def _take_port(self, name: str, level: int, floats: int) -> None:
        self.ports[f"{name} {level}"] = floats
        self._ports[level] = 0 if self.in_files else floats * FLOAT

    def _gathered(self, level: int) -> None:
        if level not in self.share.merges:
            return
        self._take(level)
        self._transferred(f"level {level}, gathered", "pooled", level, self.widths[level - 1])
        del self._ports[level]

    def _spread(self, level: int) -> None:
        if level not in self.share.merges:
            return
        above = level - 1
        sides = zip(self.share.below(above), self.share.low[above], self.share.high[above], strict=True)
        self._take_port("spread", level, prod(map(sum, sides)) * self.widths[level])
        self._transferred(f"level {level}, scattered", "spread", level, self.widths[level])
        self._held.pop(level, None)

    def _transferred(self, operation: str, port: str, level: int, channels: int) -> None:
        """The whole tensor is touched on both grids, in files too."""
        self._messages = max(self._messages, self.share.message(level, channels) * FLOAT)
        touched = 0
        if self.in_files:
            whole = self.basins[level].floats(channels) if level in self.basins else 0
            touched = (self.ports[f"{port} {level}"] + whole) * FLOAT
        self._note(operation, level, touched)

    def _resident_below(self, level: int, channels: int) -> int:
        """Of the next level's tensor on the grid of `level`, while a slab of `level` is computed."""
        if level + 1 in self.share.merges:  # all of it: it is small
            return max(self.ports.values()) * FLOAT if self.in_files else 0
        return self._resident(level + 1, channels, 0.5)

    def _resident(self, level: int, channels: int | None = None, share: float = 1.0) -> int:
        """Of tensors in files: planes of what is read, and of what is written, in memory while a slab is computed."""
        if not self.in_files or level not in self.basins:
            return 0
        basin = self.basins[level]
        plane = basin.floats(basin.channels) // (basin.sides[0] + basin.low[0] + basin.high[0]) * FLOAT
        read = plane * (channels or basin.channels) // basin.channels
        planes = int(share * basin.planes)
        return min(basin.size * FLOAT, planes * plane + (planes + 2) * read if share == 1 else (planes + 2) * read)

    def _image_slab(self) -> int:
        d, h, w = self._wide(1)
        planes = min(d, self.basins[0].planes + 2)
        return 2 * planes * h * w * self.inputs * FLOAT

    def _up_slab(self, level: int, planes: Sequence[tuple[int, int]]) -> int:
        share = self.share
        slabs = up_slabs_of(planes, share.below(level), share.low[level], share.high[level])
        voxels = max(8 * d * h * w for _, (d, h, w) in slabs)
        return voxels * self.widths[level] * FLOAT

    def _sums(self, level: int) -> int:
        """Of bricks of a level."""
        side = 1 << (self.model.levels - level)
        if self.model.norm == "none" or side == 1:
            return 0
        return prod(self.sides[level]) // (min(8, side) * min(2, side) * min(8, side)) * 2 * self.widths[level] * FLOAT

    def _logits(self) -> int:
        """Of a slab, and a copy of it on the way to the arg-max; no more planes than are computed together."""
        _, h, w = self.sides[0]
        planes = min(head_slab_planes(self.sides[0], self.classes), rolling_planes(self.sides[0], self.widths[0]))
        return 2 * planes * h * w * padded_channels(self.classes) * FLOAT

    def _wide(self, width: int) -> Triple:
        """The block with `width` voxels around it where the volume goes on."""
        d, h, w = (n + width * (a + b) for n, a, b in zip(self.sides[0], self.low, self.high, strict=True))
        return d, h, w

    def _chain(self, operation: str, count: int) -> None:
        """A pass of so many stages."""
        width0, step = self.widths[0], rolling_planes(self.sides[0], self.widths[0])
        windows = 0
        for number in range(count):
            width = count - 1 - number
            _, h, w = self._wide(width)
            low, high = width * self.low[0], width * self.high[0]
            windows += window_planes(self.sides[0][0], low, high, width, step) * h * w * width0 * FLOAT
        _, h, w = self._wide(count)
        windows += 3 * (step + 2) * h * w * self.inputs * FLOAT
        if count > 2:
            windows += self._up_slab(0, [(first - 1, last + 1) for first, last in ranges(self.sides[0][0], step)])
        windows += self._logits() if operation == "head" else self._sums(0)
        inputs = [[self.inputs], [width0], [width0, width0], [width0]]
        for sources in inputs[:count]:
            self._worked(0, sources)
        self._note(operation, 0, windows)

    def _convolved(self, operation: str, level: int, inputs: list[int], more: int) -> None:
        self._worked(level, inputs)
        self._note(operation, level, more + self._sums(level))

    def _worked(self, level: int, inputs: list[int]) -> None:
        """The threads' scratch memory stays; so does that of the largest weight."""
        self._work = max(self._work, convolution_work(self.sides[level], inputs, self.widths[level], self.threads))

    def _note(self, operation: str, level: int, more: int) -> None:
        held = [self._held.get(n, 0) + self._ports.get(n, 0) for n in range(self.model.levels + 1)]
        halos = sum(self._halos(n) for n in self._held)
        parts = {
            "tensors of the levels": sum(held) - halos,
            HALOS: halos,
            SLABS: more + self._messages,
            "image": self.image,
        }
        held[level] += more
        held[0] += self.image + self._messages
        self.moments.append(Moment(operation, tuple(held), self._work, parts))

    def _halos(self, level: int) -> int:
        """Bytes of the ghosts of a level's largest tensor."""
        basin = self.basins[level]
        return (basin.floats(basin.channels) - prod(basin.sides) * basin.channels) * FLOAT


def scratch_bytes(model: ModelConfig, layout: Layout, agglomeration: Agglomeration = NONE) -> int:
    """Of files that SPILL has at once, on the busiest rank."""
    walks = [
        StreamedWalk(model, layout, SPILL, share=share).run()
        for share in busy_shares(layout, model.factors, agglomeration)
    ]
    return max(peak_of(walk.basins) + sum(walk.ports.values()) for walk in walks) * FLOAT
