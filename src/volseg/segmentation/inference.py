"""Whole-volume inference on this rank's block: features once, then the head by slabs, so logits never exist whole."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from volseg.distributed.grid import ProcessGrid
from volseg.errors import VolumeError
from volseg.models.fused_unet import FusedUNet
from volseg.models.stored import ModelCard
from volseg.models.unet import UNet
from volseg.segmentation.resampling import bring_back, maps_of_box, mask_type, with_far_ghosts
from volseg.volumes.scan import Scan, normalized_block, own_normalization


@dataclass(frozen=True)
class BlockResult:
    """What a rank found in its box of the mask, `Scan.mask_box`.

    mask           [d, h, w] uint8 (uint16 above 256 classes)
    probabilities  [K, d, h, w] float32, or None where they were not asked for
    """

    mask: np.ndarray
    probabilities: np.ndarray | None


def read_input(scan: Scan, card: ModelCard, grid: ProcessGrid) -> tuple[Tensor, np.ndarray]:
    """The network's input [1, C, d, h, w] on this rank, and the first channel's values there, [d, h, w]. Collective.

    Raises VolumeError, on all ranks, where the model wants another number of channels or voxels are not finite.
    """
    wanted = card.config.model.in_channels
    if len(scan.channels) != wanted:
        raise VolumeError(
            f"{scan.channels[0].path}: {len(scan.channels)} image channel(s), but the model was trained with {wanted} "
            f"({', '.join(scheme.name for scheme in card.schemes)}); name the first of files CASE_0000, CASE_0001, ..."
        )
    arrays: list[np.ndarray] = []
    with grid.communicator.together():
        arrays = scan.read()
    block = normalized_block(arrays, scan, card.schemes, own_normalization(arrays, card.schemes, grid))
    return torch.from_numpy(block).unsqueeze(0).contiguous(memory_format=torch.channels_last_3d), arrays[0]


@torch.inference_mode()
def segment_block(
    model: UNet, x: Tensor, scan: Scan, card: ModelCard, grid: ProcessGrid, *, probabilities: bool = False
) -> BlockResult:
    """Segment this rank's box of the mask, from the input that `read_input` gave. Collective.

    The bits do not depend on the grid. Probabilities of a resampled scan are those of the interpolated logits.
    """
    twin = FusedUNet(model, grid)
    twin.eval()
    classes, shape = card.config.model.classes, scan.mask_box.shape
    mask = np.empty(shape, dtype=mask_type(classes))
    kept = np.empty((classes, *shape), dtype=np.float32) if probabilities else None
    if scan.back is None:
        for start, logits in twin.logit_slabs(x):
            inside = logits[0, :, : max(0, shape[0] - start), : shape[1], : shape[2]]
            stop = start + inside.shape[1]
            if inside.numel():
                mask[start:stop] = inside.argmax(0).numpy()
                if kept is not None:
                    kept[:, start:stop] = inside.numpy()
    else:
        features = with_far_ghosts(twin(x, features_only=True), scan, grid)
        maps = maps_of_box(scan.back, scan.mask_box, scan.block, features)
        bring_back(features, model.head.weight, model.head.bias, maps, mask, kept)
    if kept is not None:
        for plane in range(shape[0]):
            kept[:, plane] = softmax(np.ascontiguousarray(kept[:, plane]))
    return BlockResult(mask, kept)


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
