"""The mask of a rank's box, filled from the logits of one slab after another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from volseg.distributed.grid import ProcessGrid
from volseg.models.bringing_back import bring_back, maps_of_box
from volseg.models.stored import ModelCard
from volseg.nn.fused.image import reach
from volseg.partition.window import Range
from volseg.program.kinds import Kind
from volseg.volumes.regions import labels_of, sigmoid
from volseg.volumes.scan import Scan

_HALF = 0.5


@dataclass(frozen=True)
class BlockResult:
    """What a rank found in its box of the mask, `Scan.mask_box`.

    mask           [d, h, w] uint8 (uint16 for labels above 255)
    probabilities  [K, d, h, w] float32, or None where they were not asked for
    seconds        by layer of the network
    """

    mask: np.ndarray
    probabilities: np.ndarray | None
    seconds: dict[str, float]


class Logits(Protocol):
    """What a network makes of this rank's block of a scan.

    head     weight [K, C, 1, 1, 1] and bias [K] that make logits of what `feature_slabs` yields; None: they are logits
    seconds  by layer
    """

    @property
    def head(self) -> tuple[Tensor | None, Tensor | None]:
        """See above."""

    @property
    def seconds(self) -> dict[str, float]:
        """See above."""

    def logit_slabs(self) -> Iterator[tuple[int, Tensor]]:
        """First plane and logits [1, K, planes, h, w] of one slab after another, padding included. Collective."""

    def feature_slabs(self) -> Iterator[tuple[Range, Tensor]]:
        """Features [1, C, planes, h, w] of ranges of planes, with a voxel more where the volume goes on. Collective."""


def fill_mask(logits: Logits, scan: Scan, card: ModelCard, grid: ProcessGrid, probabilities: bool) -> BlockResult:
    """This rank's box of the mask, and its probabilities where they are asked for. Collective.

    What a reading of the scan leaves out is background.
    """
    mask = np.zeros(scan.mask_box.shape, card.mask_type)
    kept = np.zeros((len(card.outputs), *mask.shape), np.float32) if probabilities else None
    if kept is not None and not card.regions:
        kept[0] = 1
    seen, meter = scan.seen(mask), grid.communicator.meter
    seen_kept = None if kept is None else scan.seen(kept)
    likely = scan.back is not None and card.origin is not None and card.origin.back == "probabilities"
    if likely:
        logits = _Likelihoods(logits, card)
    if scan.back is None:
        for start, some in logits.logit_slabs():
            with meter.doing(Kind.HEAD):
                _take(some[0], start, card, seen, seen_kept)
    else:
        _, high = reach(scan.layout, grid.coords, 1)
        d, h, w = (n + far for n, far in zip(scan.block.shape, high, strict=True))
        on_d, on_h, on_w = maps_of_box(scan.back, scan.seen_box, scan.block, (d, h, w))
        for (first, last), features in logits.feature_slabs():
            planes = slice(*np.searchsorted(on_d.low, (first, last)))
            maps = [on_d[planes].relative_to(first, features.shape[2]), on_h, on_w]
            there = None if seen_kept is None else seen_kept[:, planes]
            with meter.doing(Kind.HEAD):
                bring_back(features, *logits.head, maps, seen[planes], there, regions=card.regions)
    if seen_kept is not None and likely:
        seen_kept += np.float32(_HALF if card.regions else 0)
    elif seen_kept is not None:
        with meter.doing(Kind.HEAD):
            to_probabilities = sigmoid if card.regions else softmax
            for plane in range(seen_kept.shape[1]):
                seen_kept[:, plane] = to_probabilities(np.ascontiguousarray(seen_kept[:, plane]))
    return BlockResult(mask, kept, logits.seconds)


class _Likelihoods(Logits):
    """Probabilities in the place of logits: what a tool interpolates that makes them before it goes back.

    Of regions they are less one half, so that above zero a voxel lies in the region as with logits.
    """

    def __init__(self, logits: Logits, card: ModelCard) -> None:
        assert logits.head == (None, None), "features have no probabilities"
        self._logits, self._regions = logits, card.regions

    @property
    def head(self) -> tuple[None, None]:
        """They are what is interpolated."""
        return None, None

    @property
    def seconds(self) -> dict[str, float]:
        """By layer."""
        return self._logits.seconds

    def logit_slabs(self) -> Iterator[tuple[int, Tensor]]:
        """As `Logits.logit_slabs`."""
        for first, slab in self._logits.logit_slabs():
            yield first, self._likely(slab)

    def feature_slabs(self) -> Iterator[tuple[Range, Tensor]]:
        """As `Logits.feature_slabs`."""
        for planes, slab in self._logits.feature_slabs():
            yield planes, self._likely(slab)

    def _likely(self, slab: Tensor) -> Tensor:
        values = np.ascontiguousarray(slab[0].numpy())
        return torch.from_numpy(sigmoid(values) - np.float32(_HALF) if self._regions else softmax(values)).unsqueeze(0)


def _take(logits: Tensor, start: int, card: ModelCard, mask: np.ndarray, kept: np.ndarray | None) -> None:
    """Planes of the mask [D, h, w] from the logits [K, planes, h', w'] of those from `start` on."""
    d, h, w = mask.shape
    inside = logits[:, : max(0, d - start), :h, :w]
    if not inside.numel():
        return
    planes = slice(start, start + inside.shape[1])
    labels_of(inside.numpy(), card.regions, mask[planes])
    if kept is not None:
        kept[:, planes] = inside.numpy()


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
