"""Does this job's partition compute what one rank computes? Logits and labels, voxel by voxel."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from volseg.distributed.communicator import Communicator, SerialCommunicator
from volseg.distributed.devices import choose_device
from volseg.distributed.grid import ProcessGrid
from volseg.distributed.redistribute import redistribute
from volseg.geometry import Box, Triple
from volseg.models.stored import ModelCard, load_model
from volseg.models.unet import UNet
from volseg.nn.fused.backend import CompiledBackend
from volseg.partition.agglomeration import NONE, Agglomeration
from volseg.planning.agglomeration_choice import agglomeration_for
from volseg.precision import BFLOAT16, FLOAT32, Precision
from volseg.segmentation.inference import BlockNetwork
from volseg.segmentation.opening import open_scan
from volseg.volumes.regions import labels_of, mask_type
from volseg.volumes.scan import Scan

_BETWEEN_GRIDS = {FLOAT32: 1e-4, BFLOAT16: 0.05}
"""Of the largest logit: how far logits may differ between grids where torch's operators compute, which choose their
algorithms by the shapes of blocks (docs/gpu.md)."""


@dataclass(frozen=True, kw_only=True)
class Verification:
    """How far the logits of this job's grid are from those of one rank.

    largest_difference  max |delta logit| over all voxels and classes
    mismatches          voxels whose label differs
    voxels              compared
    identical           whether every logit has the same bits
    agglomeration       which levels ran on fewer ranks
    bound               on `largest_difference` where the backend's bits depend on the grid; 0 where they do not
    """

    grid: Triple
    largest_difference: float
    mismatches: int
    voxels: int
    identical: bool
    agglomeration: str = "none"
    bound: float = 0.0

    @property
    def agrees(self) -> bool:
        """Whether the ranks computed what one rank computes, as far as this backend promises."""
        return self.identical or self.largest_difference <= self.bound


def verify_partition(
    model_path: Path, scan_path: Path, partition: str, communicator: Communicator, agglomerate: str = "none",
    precision: Precision | None = None, device: str = "auto",
) -> Verification:  # fmt: skip
    """Compute a scan's logits on this job's grid and on the root rank alone, and compare. Collective.

    The root rank holds the whole volume for its part, as one rank does.

    precision  in which tensors are stored; None: as the model was trained
    device     where the network runs (`distributed.devices`)
    """
    where = choose_device(device, communicator)
    model, card = load_model(model_path)
    model = model.to(where.name)
    stored = precision or Precision(card.config.training.precision)
    scan, grid = open_scan(scan_path, card, partition, communicator)
    stages = agglomeration_for(agglomerate, model.network, scan.layout)
    network = BlockNetwork(model, scan, card, grid, agglomeration=stages, precision=stored)
    same_bits = isinstance(network.twin.backend, CompiledBackend)
    with torch.inference_mode():
        mine = network.block_logits()
    expected = np.empty((model.network.classes, 0, 0, 0), dtype=np.float32)
    with communicator.together():
        if communicator.is_root:
            alone, single = open_scan(scan_path, card, "1x1x1", SerialCommunicator())
            expected = block_logits(model, alone, card, single, precision=stored)
    whole = Box.whole(scan.space.shape)
    nothing = Box((0, 0, 0), (0, 0, 0))
    held = [whole if rank == 0 else nothing for rank in range(communicator.size)]
    wanted = [box.intersect(whole) for box in scan.layout.blocks()]
    expected_here = redistribute(expected, held, wanted, communicator)
    assert expected_here is not None
    difference = float(np.abs(mine - expected_here).max(initial=0.0))
    largest = communicator.reduce_all(np.array([difference, float(not np.array_equal(mine, expected_here))]), "max")
    masks = [np.empty(logits.shape[1:], mask_type(len(logits), card.regions)) for logits in (mine, expected_here)]
    for logits, mask in zip((mine, expected_here), masks, strict=True):
        labels_of(logits, card.regions, mask)
    wrong = int((masks[0] != masks[1]).sum())
    counts = communicator.reduce_all(np.array([wrong, mine[0].size]))
    height = float(communicator.reduce_all(np.array([np.abs(mine).max(initial=0.0)]), "max")[0])
    return Verification(
        grid=grid.dims,
        largest_difference=float(largest[0]),
        mismatches=int(counts[0]),
        voxels=int(counts[1]),
        identical=not largest[1],
        agglomeration=str(stages),
        bound=0.0 if same_bits else _BETWEEN_GRIDS[stored] * height,
    )


@torch.inference_mode()
def block_logits(
    model: UNet, scan: Scan, card: ModelCard, grid: ProcessGrid, agglomeration: Agglomeration = NONE,
    precision: Precision = FLOAT32,
) -> np.ndarray:  # fmt: skip
    """Logits of this rank's block without the padding, [K, d, h, w] float32. Collective."""
    return BlockNetwork(model, scan, card, grid, agglomeration=agglomeration, precision=precision).block_logits()
