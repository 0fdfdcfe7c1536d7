"""The device on which torch's operators work, and memory that they use again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod

import torch
from torch import Tensor

from volseg.geometry import Triple
from volseg.nn.kernels.memory import grown
from volseg.partition.window import Range
from volseg.partition.windows_by_torch import WINDOW_BYTES


class Workspace:
    """What the operators of a device share.

    limit  bytes of a window, about
    """

    def __init__(self, device: torch.device, limit: int | None = None) -> None:
        self.device = device
        self.limit = limit or WINDOW_BYTES.get(device.type, WINDOW_BYTES["cuda"])
        self._kept: dict[tuple[str, torch.dtype], Tensor] = {}

    def room(self, purpose: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """Uninitialised memory that lasts until the next call for this purpose."""
        count = prod(shape)
        return grown(self._kept, (purpose, dtype), count, dtype, self.device)[:count].view(shape)

    def computing(self, stored: torch.dtype) -> torch.dtype:
        """The type in which convolutions get tensors that are stored in `stored`.

        A processor gets bfloat16 as float32, in which products of bfloat16 are exact: not all have instructions for
        it, and torch then adds up in bfloat16.
        """
        return torch.float32 if self.device.type == "cpu" else stored

    def planes(self, planes: Range, sides: Triple, channels: int) -> Iterator[Range]:
        """Ranges of planes of a block whose float32 values have about as many bytes as a window."""
        step = max(1, self.limit // (4 * sides[1] * sides[2] * channels))
        for first in range(planes[0], planes[1], step):
            yield first, min(first + step, planes[1])

    @contextmanager
    def exactly(self, stored: torch.dtype) -> Iterator[None]:
        """Convolutions and products have the same bits in each run, and round no float32 that is more than bfloat16.

        stored  where it is bfloat16, float32 tensors hold numbers of bfloat16, whose products TF32 does not round
        """
        if self.device.type != "cuda":
            yield
            return
        fast, before = stored == torch.bfloat16, torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = fast
        try:
            with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=fast):
                yield
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before


def rounded(values: Tensor, stored: torch.dtype) -> Tensor:
    """Values as they are once stored, in their own type; themselves where that is as wide."""
    return values if stored == values.dtype or stored == torch.float32 else values.to(stored).to(values.dtype)
