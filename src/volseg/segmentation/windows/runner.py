"""One window through the network, on one rank alone: every fold's weights, every mirror image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from volseg.distributed.communicator import SerialCommunicator
from volseg.distributed.grid import ProcessGrid
from volseg.distributed.meter import Meter
from volseg.models.fused import FusedNetwork
from volseg.models.unet import UNet
from volseg.precision import FLOAT32, Precision
from volseg.segmentation.averaging import flips_of


class WindowRunner:
    """The mean logits of several models, each over mirror images of a window.

    models    of one architecture
    mirrored  the axes, of D, H, W, that are mirrored: alone and together, as in nnU-Net
    meter     where the time goes
    precision  in which their tensors are stored
    """

    def __init__(
        self, models: Sequence[UNet], mirrored: Sequence[int], meter: Meter, precision: Precision = FLOAT32
    ) -> None:  # fmt: skip
        alone = SerialCommunicator()
        alone.meter = meter
        grid = ProcessGrid(alone, (1, 1, 1))
        self._twins = [FusedNetwork(model, grid, precision=precision).eval() for model in models]
        self._flips = flips_of([axis + 2 for axis in mirrored])

    @torch.inference_mode()
    def __call__(self, x: Tensor) -> Tensor:
        """Logits [1, K, d, h, w] of a window [1, C, d, h, w]."""
        total: Tensor | None = None
        for twin in self._twins:
            logits = self._over_mirror_images(twin, x)
            total = logits if total is None else total.add_(logits)
        assert total is not None
        return total if len(self._twins) == 1 else total.div_(len(self._twins))

    def _over_mirror_images(self, twin: FusedNetwork, x: Tensor) -> Tensor:
        total = _logits(twin, x)
        for axes in self._flips[1:]:
            total += _logits(twin, x.flip(axes)).flip(axes)
        return total if len(self._flips) == 1 else total.div_(len(self._flips))


def _logits(twin: FusedNetwork, x: Tensor) -> Tensor:
    out = torch.empty(1, twin.network.classes, *x.shape[2:])
    for start, slab in twin.logit_slabs(x.to(twin.device)):
        out[:, :, start : start + slab.shape[2]] = slab
    return out
