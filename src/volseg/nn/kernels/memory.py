"""Memory that outlives a call: fresh memory costs a page fault every 4 KiB, and more time than the values written."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

Key = TypeVar("Key")


def lasting(floats: int) -> Tensor:
    """Uninitialised memory [floats]; made in inference mode, it could not be written to outside of it."""
    with torch.inference_mode(False):
        return torch.empty(floats)


def grown(kept: dict[Key, Tensor], key: Key, floats: int) -> Tensor:
    """What is kept under a key, with room for at least `floats`; what was too small goes before the larger is made."""
    held = kept.pop(key, None)
    if held is None or held.numel() < floats:
        held = None
        held = lasting(floats)
    kept[key] = held
    return held
