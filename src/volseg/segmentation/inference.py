"""Whole-volume inference on this rank's block: the network slab by slab, and of each slab of logits the arg-max."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from volseg.distributed.grid import ProcessGrid
from volseg.models.bringing_back import with_far_ghosts
from volseg.models.fused import FusedNetwork
from volseg.models.journal import Journal
from volseg.models.stored import ModelCard
from volseg.models.streamed import StreamedNetwork
from volseg.models.unet import UNet
from volseg.nn.fused.image import image_width
from volseg.nn.fused.scratch import Store
from volseg.partition.agglomeration import NONE, Agglomeration
from volseg.partition.window import Range
from volseg.precision import FLOAT32, Precision
from volseg.program.kinds import Kind
from volseg.program.schedule import IN_PLACE, LAYERS, RECOMPUTE, Schedule, schedules_of
from volseg.segmentation.filling import BlockResult, Logits, fill_mask
from volseg.segmentation.scan_image import ScanImage
from volseg.volumes.scan import Scan


class BlockNetwork(Logits):
    """A network on this rank's block of a scan, run by one of the schedules. To make one is collective.

    Raises VolumeError, on all ranks, where the model wants another number of channels, and PartitionError where an
    agglomeration does not suit it.
    """

    def __init__(
        self, model: UNet, scan: Scan, card: ModelCard, grid: ProcessGrid, schedule: Schedule = IN_PLACE,
        store: Store | None = None, tell: Callable[[float], None] | None = None, journal: Journal | None = None,
        agglomeration: Agglomeration = NONE, precision: Precision = FLOAT32,
    ) -> None:  # fmt: skip
        self.scan, self.grid = scan, grid
        self.twin = FusedNetwork(model, grid, agglomeration=agglomeration, precision=precision).eval()
        if LAYERS in schedules_of(model.network):
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
        """First plane and logits [1, K, planes, h, w] of one slab after another, padded, on the host. Collective."""
        if self.streamed is not None:
            slabs = self.streamed.logit_slabs(self.image, self.scan.layout)
        else:
            slabs = self.twin.logit_slabs(self._whole_image())
        yield from ((start, slab.cpu()) for start, slab in slabs)

    def feature_slabs(self) -> Iterator[tuple[Range, Tensor]]:
        """What the head reads, for ranges of planes in turn, with a voxel more where the volume goes on. Collective."""
        if self.streamed is not None:
            slabs = self.streamed.feature_slabs(self.image, self.scan.layout)
            yield from ((planes, slab.cpu()) for planes, slab in slabs)
        else:
            features = self.twin(self._whole_image(), features_only=True).cpu()
            features = with_far_ghosts(features, self.scan.layout, self.grid)
            yield (0, self.scan.block.shape[0]), features

    @property
    def head(self) -> tuple[Tensor | None, Tensor | None]:
        """Weight and bias."""
        head = self.twin.twin.logits_layer
        return head.weight.cpu(), None if head.bias is None else head.bias.cpu()

    @property
    def seconds(self) -> dict[str, float]:
        """By layer."""
        return {} if self.streamed is None else self.streamed.seconds

    def block_logits(self) -> np.ndarray:
        """Logits of this rank's block without the padding, [K, d, h, w] float32. Collective."""
        d, h, w = self.scan.inside.shape
        out = np.empty((self.twin.network.classes, d, h, w), dtype=np.float32)
        for start, logits in self.logit_slabs():
            inside = logits[0, :, : max(0, d - start), :h, :w]
            out[:, start : start + inside.shape[1]] = inside.numpy()
        return out

    def _whole_image(self) -> Tensor:
        with self.grid.communicator.meter.doing(Kind.FILES):
            rows = self.image.planes((0, self.scan.block.shape[0]), 0)
        self.image.settled()
        self.image.close()
        x = rows.permute(3, 0, 1, 2).unsqueeze(0).contiguous(memory_format=torch.channels_last_3d)
        return x.to(self.twin.device)


@torch.inference_mode()
def segment_block(
    model: UNet, scan: Scan, card: ModelCard, grid: ProcessGrid, *, probabilities: bool = False,
    schedule: Schedule = IN_PLACE, store: Store | None = None, tell: Callable[[float], None] | None = None,
    journal: Journal | None = None, agglomeration: Agglomeration = NONE, precision: Precision = FLOAT32,
) -> BlockResult:  # fmt: skip
    """Segment this rank's box of the mask. Collective.

    store  where the network's tensors lie
    tell   is called with the share of the network that is done
    journal  keeps what a run after an interruption need not compute again
    agglomeration  which levels run on fewer ranks
    precision  in which the network's tensors are stored

    The bits depend neither on the grids nor on the schedule. Probabilities of a resampled scan are those of the
    interpolated logits. Raises VolumeError, on all ranks, where the scan does not suit the model or cannot be read.
    """
    network = BlockNetwork(model, scan, card, grid, schedule, store, tell, journal, agglomeration, precision)
    return fill_mask(network, scan, card, grid, probabilities)
