"""Whole-volume inference averaged over models and mirror images: each goes over the whole scan in its turn.

The mean is of logits, as nnU-Net averages folds and mirror images (Isensee et al., Nature Methods 2021). A pass over a
mirror image reads the scan mirrored, lays it over the same grid, and sends its logits to the ranks whose voxels they
are. Each voxel's sum is made alone and in the order of the passes, so its bits depend neither on grid nor on schedule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from volseg.distributed.grid import ProcessGrid
from volseg.distributed.redistribute import redistribute
from volseg.geometry import Box, Triple
from volseg.models.stored import ModelCard
from volseg.models.unet import UNet
from volseg.nn.fused.scratch import Store
from volseg.partition.agglomeration import NONE, Agglomeration
from volseg.partition.slabs import head_slab_planes, ranges
from volseg.partition.window import Range
from volseg.precision import FLOAT32, Precision
from volseg.program.schedule import IN_PLACE, Schedule
from volseg.segmentation.filling import BlockResult, Logits, fill_mask
from volseg.segmentation.inference import BlockNetwork
from volseg.volumes.canonical import Orientation, reordered
from volseg.volumes.scan import Scan

_CLASSES_AT_ONCE = 8  # that ranks send each other


def flips_of(mirrored: Sequence[int]) -> list[tuple[int, ...]]:
    """The mirror images over `mirrored` axes, alone and together, as nnU-Net takes them; the first is none."""
    return [flips for count in range(len(mirrored) + 1) for flips in combinations(mirrored, count)]


def passes_bytes(classes: int) -> int:
    """Bytes a voxel of a block that are held beside the network: the sums, and the logits of a pass."""
    return 4 * (2 * classes + 2 * min(classes, _CLASSES_AT_ONCE))


@dataclass(frozen=True, kw_only=True)
class PassOptions:
    """How each pass is run: arguments of `BlockNetwork`."""

    schedule: Schedule = IN_PLACE
    store: Store | None = None
    agglomeration: Agglomeration = NONE
    precision: Precision = FLOAT32


class AveragedNetwork(Logits):
    """The mean logits of models of one architecture over mirror images of a scan, whole. To make one is collective.

    mirrored  the network's axes, of D, H, W, that are mirrored
    tell      is called with the share of the passes that is done

    Raises VolumeError, on all ranks, where the models want another number of channels.
    """

    def __init__(
        self, models: Sequence[UNet], mirrored: Sequence[int], scan: Scan, card: ModelCard, grid: ProcessGrid,
        options: PassOptions, tell: Callable[[float], None] | None = None,
    ) -> None:  # fmt: skip
        self._scan, self._grid, self._card, self._options, self._tell = scan, grid, card, options, tell
        self._passes = [(model, flips) for model in models for flips in flips_of(mirrored)]
        self._classes = models[0].network.classes
        self._seconds: dict[str, float] = {}
        whole = Box.whole(scan.space.shape)
        self._blocks = [block.intersect(whole) for block in scan.layout.blocks()]
        beyond = int(scan.back is not None)
        self._wider = [_wider(block, beyond, scan.space.shape) for block in self._blocks]

    @property
    def head(self) -> tuple[None, None]:
        """What comes out are logits."""
        return None, None

    @property
    def seconds(self) -> dict[str, float]:
        """By layer, of all passes."""
        return self._seconds

    def logit_slabs(self) -> Iterator[tuple[int, Tensor]]:
        """As `Logits.logit_slabs`, without the padding."""
        for (first, last), logits in self._slabs(0):
            yield first, logits[:, :, : last - first]

    def feature_slabs(self) -> Iterator[tuple[Range, Tensor]]:
        """As `Logits.feature_slabs`, without the padding; they are logits."""
        yield from self._slabs(1)

    def _slabs(self, beyond: int) -> Iterator[tuple[Range, Tensor]]:
        sums = torch.from_numpy(self._mean()).unsqueeze(0)
        depth = self._blocks[self._grid.communicator.rank].shape[0]
        _, _, *plane = sums.shape[1:]
        if not sums.numel():
            return
        for first, last in ranges(depth, head_slab_planes((depth, plane[0], plane[1]), self._classes)):
            yield (first, last), sums[:, :, first : last + beyond]

    def _mean(self) -> np.ndarray:
        """Of this rank's block and what lies beyond it, [K, d, h, w]. Collective."""
        communicator = self._grid.communicator
        mine, sides = self._wider[communicator.rank], self._scan.space.shape
        sums = np.zeros((self._classes, *mine.shape), np.float32)
        for number, (model, flips) in enumerate(self._passes):
            logits = self._logits_of(number, model, flips)
            wanted = [_mirrored(box, flips, sides) for box in self._wider]
            for first in range(0, self._classes, _CLASSES_AT_ONCE):
                some = slice(first, first + _CLASSES_AT_ONCE)
                part = redistribute(logits[some], self._blocks, wanted, communicator)
                assert part is not None
                sums[some] += np.flip(part, tuple(axis + 1 for axis in flips))
        if len(self._passes) > 1:
            sums /= np.float32(len(self._passes))
        return sums

    def _logits_of(self, number: int, model: UNet, flips: tuple[int, ...]) -> np.ndarray:
        """Logits of this rank's block of a mirror image, [K, d, h, w]. Collective."""
        scan, tell = self._scan, self._tell
        if flips:
            order = Orientation((0, 1, 2), (0 in flips, 1 in flips, 2 in flips), scan.space.shape)
            scan = replace(scan, channels=tuple(reordered(channel, order) for channel in scan.channels))
        count, options = len(self._passes), self._options
        network = BlockNetwork(
            model, scan, self._card, self._grid, options.schedule, options.store,
            None if tell is None else lambda share: tell((number + share) / count), agglomeration=options.agglomeration,
            precision=options.precision,
        )  # fmt: skip
        logits = network.block_logits()
        for label, seconds in network.seconds.items():
            self._seconds[label] = self._seconds.get(label, 0.0) + seconds
        return logits


@torch.inference_mode()
def segment_by_passes(
    models: Sequence[UNet], mirrored: Sequence[int], scan: Scan, card: ModelCard, grid: ProcessGrid,
    options: PassOptions, *, probabilities: bool = False, tell: Callable[[float], None] | None = None,
) -> BlockResult:  # fmt: skip
    """Segment this rank's box of the mask by the mean logits of several passes (`AveragedNetwork`). Collective.

    Raises VolumeError, on all ranks, where the scan does not suit the models or cannot be read.
    """
    network = AveragedNetwork(models, mirrored, scan, card, grid, options, tell)
    return fill_mask(network, scan, card, grid, probabilities)


def _wider(block: Box, beyond: int, whole: Triple) -> Box:
    """A block and what lies behind it, up to the faces of the volume; nothing where the block is empty."""
    if not block.size:
        return block
    d, h, w = (min(stop + beyond, side) for stop, side in zip(block.stop, whole, strict=True))
    return Box(block.start, (d, h, w))


def _mirrored(box: Box, flips: Sequence[int], whole: Triple) -> Box:
    """Where the voxels of `box` lie in the mirror image of a volume of the sides `whole`."""
    ends = [
        (side - stop, side - start) if axis in flips else (start, stop)
        for axis, (start, stop, side) in enumerate(zip(box.start, box.stop, whole, strict=True))
    ]
    (d, e), (h, i), (w, x) = ends
    return Box((d, h, w), (e, i, x))
