"""What segmenting holds a few planes at a time on one rank: planes of the image, windows, up-convolutions, logits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

from volseg.geometry import Triple
from volseg.networks.description import Network
from volseg.partition.share import Share
from volseg.partition.slabs import Lift, head_slab_planes, ranges, rolling_planes, up_slabs_of, window_planes
from volseg.partition.tiling import padded_channels
from volseg.planning.scratch import FLOAT
from volseg.precision import FLOAT32, Precision
from volseg.program.ops import Pass
from volseg.program.tensors import Lifted, Tensor

_BRICK = (8, 2, 8)
"""Voxels on D, H, W over which statistics are summed together (`nn.kernels.reproducible`)."""


class Slabs:
    """Bytes of what a rank holds a few planes at a time.

    share      what the rank has of each stage
    precision  in which tensors are stored; images, sums and logits are float32
    """

    def __init__(self, network: Network, share: Share, precision: Precision = FLOAT32) -> None:
        self.network, self.share, self._size = network, share, precision.size

    def image(self, planes: int) -> int:
        """Planes of the image that so many planes of a convolution read, and their copy as it is stored."""
        reach = self.network.image_reach
        d, h, w = self._wide((reach, reach, reach))
        return 2 * min(d, planes + 2 * reach) * h * w * self.network.in_channels * FLOAT

    def lifted(self, source: Lifted, planes: Sequence[tuple[int, int]], lift: Lift) -> int:
        """The largest slab of an up-convolution, of those that are read for ranges of planes."""
        below = source.tensor
        sides = self.share.sides_of(below.stage, below.grid)
        slabs = up_slabs_of(planes, sides, *self.share.ghosts_of(below.stage, below.grid), lift)
        voxels = prod(source.node.factors) * max(d * h * w for _, (d, h, w) in slabs)
        return voxels * padded_channels(source.node.channels) * self._size

    def sums(self, tensor: Tensor) -> int:
        """Of the bricks of a tensor of which statistics are taken: two values a channel."""
        side = self.network.factor_between(tensor.stage, self.network.deepest)
        if max(side) == 1:
            return 0
        brick = prod(min(n, most) for n, most in zip(side, _BRICK, strict=True))
        return prod(self.share.sides_of(tensor.stage, tensor.grid)) // brick * 2 * tensor.stored * FLOAT

    @property
    def logits(self) -> int:
        """A slab, and a copy of it on the way to the arg-max; no more planes than are computed together."""
        sides, classes = self.share.sides[0], self.network.classes
        rolling = rolling_planes(sides, padded_channels(self.network.widths[0]))
        planes = min(head_slab_planes(sides, classes), rolling)
        return 2 * planes * sides[1] * sides[2] * padded_channels(classes) * FLOAT

    def windows(self, op: Pass) -> int:
        """A window for each convolution of a chain, planes of the image, and what the last one makes."""
        step = rolling_planes(self.share.sides[0], op.chain[-1].output.stored, op.factor)
        width, first = op.widths(op.wanted)[0], op.chain[0].node
        around = max(n + more for n, more in zip(width[1:], first.reach[1:], strict=True))
        _, h, w = self._wide((0, around, around))
        image = 3 * (step + 2 * first.reach[0]) * h * w * self.network.in_channels * FLOAT
        total = sum(self._chained(op, step)) + image
        if op.head is not None:
            return total + self.logits
        return total + (0 if op.measured is None else self.sums(op.measured))

    def _chained(self, op: Pass, step: int) -> Iterator[int]:
        """Of each convolution of a chain that is computed `step` planes at a time: its window, and what it lifts."""
        sides, low, high = self.share.sides[0], self.share.low[0], self.share.high[0]
        read = [*(convolution.node.reach[0] for convolution in op.chain[1:]), op.wanted[0]]
        for convolution, width, reach in zip(op.chain, op.widths(op.wanted), read, strict=True):
            _, h, w = self._wide(width)
            planes = window_planes(sides[0], width[0] * low[0], width[0] * high[0], width[0], reach, step)
            yield planes * h * w * convolution.output.stored * self._size
            wanted = [(first - width[0], last + width[0]) for first, last in ranges(sides[0], step)]
            for source in convolution.sources:
                if isinstance(source, Lifted):
                    yield self.lifted(source, wanted, source.lift(convolution.node))

    def _wide(self, width: Triple) -> Triple:
        """The block with `width` voxels around it where the volume goes on."""
        ends = zip(self.share.sides[0], width, self.share.low[0], self.share.high[0], strict=True)
        d, h, w = (n + more * (a + b) for n, more, a, b in ends)
        return d, h, w
