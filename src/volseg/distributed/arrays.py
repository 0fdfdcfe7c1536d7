"""Tensors as what MPI sends."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def as_array(tensor: Tensor) -> np.ndarray:
    """The memory of a contiguous CPU tensor as an array; of bfloat16, which numpy lacks, its bits as whole numbers."""
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
