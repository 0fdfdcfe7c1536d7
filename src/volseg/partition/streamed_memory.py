"""What the streamed U-Net of `models.streamed_unet` holds, operation by operation, in each of its schedules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from volseg.config import ModelConfig
from volseg.geometry import Triple
from volseg.partition.basin import Basin, Ghosts, basins, peak_of
from volseg.partition.fused_memory import FLOAT, busiest, convolution_work
from volseg.partition.layout import Layout
from volseg.partition.schedule import SPILL, Schedule
from volseg.partition.slabs import head_slab_planes, ranges, rolling_planes, up_slabs_of, window_planes
from volseg.partition.tiling import padded_channels


@dataclass(frozen=True)
class Moment:
    """What is held in one operation, in bytes.

    by_level  of tensors, finest level first
    work      the kernels' own memory, and weights on their way
    """

    operation: str
    by_level: tuple[int, ...]
    work: int

    @property
    def total(self) -> int:
        """Everything."""
        return sum(self.by_level) + self.work


class StreamedWalk:
    """The forward of the busiest rank, in the order of `StreamedUNet.run`.

    image  bytes of the image as it is stored, on this rank
    """

    def __init__(
        self, model: ModelConfig, layout: Layout, schedule: Schedule, threads: int = 1, image: int = 0,
        halos: bool = True,
    ) -> None:  # fmt: skip
        self.model, self.schedule, self.threads = model, schedule, threads
        self.image = image
        coords, self.low, self.high = busiest(layout, halos)
        self.sides = [layout.at_level(level).block(coords).shape for level in range(model.levels + 1)]
        self.widths = [padded_channels(width) for width in model.widths]
        self.inputs, self.classes = model.in_channels or 1, model.classes or 2
        self.top = schedule.finest_held if model.levels else 0
        ghosts: list[Ghosts] = [(self.low, self.high)] * len(self.sides)
        self.basins: dict[int, Basin] = basins(self.sides, ghosts, self.widths, self.top)
        # Where a block is cut on H or W, packing its faces touches every page of a tensor.
        self.in_files = schedule is SPILL and not any(self.low[1:] + self.high[1:])
        self.moments: list[Moment] = []
        self._held: dict[int, int] = {}
        self._work = 0

    def run(self) -> StreamedWalk:
        """Go through all operations; returns itself."""
        if self.top:
            self._chain("encoder 0, convolution 1", 1)
            self._take(1)
            self._chain("encoder 0, convolution 2", 2)
        else:
            self._encode(0)
        for level in range(1, self.model.levels + 1):
            self._encode(level)
        for level in reversed(range(max(1, self.top), self.model.levels)):
            self._decode(level)
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
            self._take(level + 1)
        small = self._resident(level + 1, self.widths[level], 0.5) if level < self.model.levels else 0
        self._convolved(f"encoder {level}, convolution 2", level, [self.widths[level]], self._resident(level) + small)

    def _decode(self, level: int) -> None:
        width = self.widths[level]
        planes = ranges(self.sides[level][0], self.basins[level].planes)
        slab = self._up_slab(level, planes)
        below = self._resident(level + 1, self.widths[level + 1], 0.5)
        label = f"decoder {level}, convolution"
        self._convolved(f"{label} 1", level, [width, width], slab + self._resident(level) + below)
        self._held.pop(level + 1, None)
        self._convolved(f"{label} 2", level, [width], slab + self._resident(level))

    def _head(self) -> None:
        self._note("head", 0, self._resident(0) + self._logits())

    def _take(self, level: int) -> None:
        if level in self.basins and self.basins[level].host is None and not self.in_files:
            self._held[level] = self.basins[level].size * FLOAT

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
        slabs = up_slabs_of(planes, self.sides[level + 1], self.low, self.high)
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
        held = [self._held.get(n, 0) for n in range(self.model.levels + 1)]
        held[level] += more
        held[0] += self.image
        self.moments.append(Moment(operation, tuple(held), self._work))


def scratch_bytes(model: ModelConfig, layout: Layout) -> int:
    """Of files that SPILL has at once, on the busiest rank."""
    return peak_of(StreamedWalk(model, layout, SPILL).basins) * FLOAT
