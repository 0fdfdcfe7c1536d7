"""Memory that outlives a call: fresh memory costs a page fault every 4 KiB, and more time than the values written."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

Key = TypeVar("Key")


def lasting(values: int, dtype: torch.dtype = torch.float32, device: torch.device | None = None) -> Tensor:
    """Uninitialised memory [values]; made in inference mode, it could not be written to outside of it."""
    with torch.inference_mode(False):
        return torch.empty(values, dtype=dtype, device=device)


def grown(
    kept: dict[Key, Tensor], key: Key, values: int, dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> Tensor:  # fmt: skip
    """What is kept under a key, with room for at least `values`; what was too small goes before the larger is made.

    dtype, device  the same in each call for a key; without a device it is the processor's memory
    """
    held = kept.pop(key, None)
    if held is None or held.numel() < values:
        held = None
        held = lasting(values, dtype, device)
    kept[key] = held
    return held
