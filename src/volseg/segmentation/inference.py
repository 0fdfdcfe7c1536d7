"""Whole-volume inference on this rank's block: the network slab by slab, and of each slab of logits the arg-max."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from volseg.distributed.grid import ProcessGrid
from volseg.models.bringing_back import bring_back, maps_of_box, with_far_ghosts
from volseg.models.fused import FusedNetwork
from volseg.models.journal import Journal
from volseg.models.stored import ModelCard
from volseg.models.streamed import StreamedNetwork
from volseg.models.unet import UNet
from volseg.nn.fused.image import image_width, reach
from volseg.nn.fused.scratch import Store
from volseg.partition.agglomeration import NONE, Agglomeration
from volseg.partition.window import Range
from volseg.program.kinds import Kind
from volseg.program.schedule import IN_PLACE, LAYERS, RECOMPUTE, Schedule, schedules_of
from volseg.segmentation.scan_image import ScanImage
from volseg.volumes.regions import labels_of, mask_type, sigmoid
from volseg.volumes.scan import Scan


@dataclass(frozen=True)
class BlockResult:
    """What a rank found in its box of the mask, `Scan.mask_box`.

    mask           [d, h, w] uint8 (uint16 above 256 classes)
    probabilities  [K, d, h, w] float32, or None where they were not asked for
    seconds        by layer of the network
    """

    mask: np.ndarray
    probabilities: np.ndarray | None
    seconds: dict[str, float]


class BlockNetwork:
    """A network on this rank's block of a scan, run by one of the schedules. To make one is collective.

    Raises VolumeError, on all ranks, where the model wants another number of channels, and PartitionError where an
    agglomeration does not suit it.
    """

    def __init__(
        self, model: UNet, scan: Scan, card: ModelCard, grid: ProcessGrid, schedule: Schedule = IN_PLACE,
        store: Store | None = None, tell: Callable[[float], None] | None = None, journal: Journal | None = None,
        agglomeration: Agglomeration = NONE,
    ) -> None:  # fmt: skip
        self.scan, self.grid = scan, grid
        self.twin = FusedNetwork(model, grid, agglomeration=agglomeration).eval()
        if LAYERS in schedules_of(model.network, self.twin.kernels):
            schedule = LAYERS
        beyond = int(scan.back is not None)
        with grid.communicator.meter.doing(Kind.FILES):
            self.image = ScanImage(
                scan, card, grid, image_width(model.network, schedule, beyond), kept=schedule is RECOMPUTE
            )
        self.streamed: StreamedNetwork | None = None
        if schedule is not LAYERS:
            self.streamed = self.twin.streamed(schedule, store, tell, journal)

    def logit_slabs(self) -> Iterator[tuple[int, Tensor]]:
        """First plane and logits [1, K, planes, h, w] of one slab after another, padding included. Collective."""
        if self.streamed is not None:
            yield from self.streamed.logit_slabs(self.image, self.scan.layout)
        else:
            yield from self.twin.logit_slabs(self._whole_image())

    def feature_slabs(self) -> Iterator[tuple[Range, Tensor]]:
        """What the head reads, for ranges of planes in turn, with a voxel more where the volume goes on. Collective."""
        if self.streamed is not None:
            yield from self.streamed.feature_slabs(self.image, self.scan.layout)
        else:
            features = with_far_ghosts(self.twin(self._whole_image(), features_only=True), self.scan.layout, self.grid)
            yield (0, self.scan.block.shape[0]), features

    @property
    def seconds(self) -> dict[str, float]:
        """By layer."""
        return {} if self.streamed is None else self.streamed.seconds

    def _whole_image(self) -> Tensor:
        with self.grid.communicator.meter.doing(Kind.FILES):
            rows = self.image.planes((0, self.scan.block.shape[0]), 0)
        self.image.settled()
        self.image.close()
        return rows.permute(3, 0, 1, 2).unsqueeze(0).contiguous(memory_format=torch.channels_last_3d)


@torch.inference_mode()
def segment_block(
    model: UNet, scan: Scan, card: ModelCard, grid: ProcessGrid, *, probabilities: bool = False,
    schedule: Schedule = IN_PLACE, store: Store | None = None, tell: Callable[[float], None] | None = None,
    journal: Journal | None = None, agglomeration: Agglomeration = NONE,
) -> BlockResult:  # fmt: skip
    """Segment this rank's box of the mask. Collective.

    store  where the network's tensors lie
    tell   is called with the share of the network that is done
    journal  keeps what a run after an interruption need not compute again
    agglomeration  which levels run on fewer ranks

    The bits depend neither on the grids nor on the schedule. Probabilities of a resampled scan are those of the
    interpolated logits. Raises VolumeError, on all ranks, where the scan does not suit the model or cannot be read.
    """
    network = BlockNetwork(model, scan, card, grid, schedule, store, tell, journal, agglomeration)
    classes, shape, meter = model.network.classes, scan.mask_box.shape, grid.communicator.meter
    mask = np.empty(shape, dtype=mask_type(classes, card.regions))
    kept = np.empty((classes, *shape), dtype=np.float32) if probabilities else None
    if scan.back is None:
        for start, logits in network.logit_slabs():
            inside = logits[0, :, : max(0, shape[0] - start), : shape[1], : shape[2]]
            stop = start + inside.shape[1]
            if inside.numel():
                with meter.doing(Kind.HEAD):
                    labels_of(inside.numpy(), card.regions, mask[start:stop])
                    if kept is not None:
                        kept[:, start:stop] = inside.numpy()
    else:
        _, high = reach(scan.layout, grid.coords, 1)
        d, h, w = (n + far for n, far in zip(scan.block.shape, high, strict=True))
        on_d, on_h, on_w = maps_of_box(scan.back, scan.mask_box, scan.block, (d, h, w))
        for (first, last), features in network.feature_slabs():
            planes = slice(*np.searchsorted(on_d.low, (first, last)))
            maps = [on_d[planes].relative_to(first, features.shape[2]), on_h, on_w]
            some = None if kept is None else kept[:, planes]
            with meter.doing(Kind.HEAD):
                head = model.head
                bring_back(features, head.weight, head.bias, maps, mask[planes], some, regions=card.regions)
    if kept is not None:
        probabilities_of = sigmoid if card.regions else softmax
        with meter.doing(Kind.HEAD):
            for plane in range(shape[0]):
                kept[:, plane] = probabilities_of(np.ascontiguousarray(kept[:, plane]))
    return BlockResult(mask, kept, network.seconds)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities over axis 0, of float32 [K, ...].

    In numpy, whose exponential gives a value the same bits wherever it lies in the array; torch's vectorised softmax
    does not promise that. The sum runs over the classes in their order.
    """
    powers: np.ndarray = np.exp(logits - logits.max(axis=0))
    total = powers[0].copy()
    for power in powers[1:]:
        total += power
    powers /= total
    return powers
