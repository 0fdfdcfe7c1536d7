"""Where sliding windows lie, and what their voxels weigh: as in nnU-Net or in MONAI.

nnU-Net's (Isensee et al., Nature Methods 2021) overlap by at least what `step` leaves and are spread evenly from face
to face. A voxel that lies in the middle of a window weighs more than one at its border: a Gaussian with a deviation of
an eighth of the window, in half precision, as nnU-Net has it.

MONAI's (Cardoso et al., arXiv:2211.02701; its `sliding_window_inference`) lie whole steps apart, and the last of a row
is moved back to end with the volume. They weigh all alike, or by a Gaussian that is nowhere below a thousandth.
"""

from __future__ import annotations

import math
from itertools import product

import numpy as np

from volseg.geometry import Box, Triple
from volseg.models.origin import Weighting

_TOP = 10  # of the weights: nnU-Net's, so that few of them are too small for half precision
_DEVIATION = 1 / 8
_LEAST = 1e-3  # of MONAI's weights


def window_boxes(shape: Triple, size: Triple, step: float, weighting: Weighting = "nnunet") -> tuple[Box, ...]:
    """The windows of `size` over a volume of `shape`, W the fastest.

    step       how far they lie apart, at most, as a share of the window: above 0, at most 1
    weighting  whose windows they are: nnU-Net's, or, whatever they weigh, MONAI's

    A volume that is smaller than the window on an axis lies in the middle of it: such windows begin below 0 and end
    beyond the volume.
    """
    starts_of = _starts if weighting == "nnunet" else _whole_steps
    starts = [starts_of(n, side, step) for n, side in zip(shape, size, strict=True)]
    d, h, w = size
    return tuple(Box((z, y, x), (z + d, y + h, x + w)) for z, y, x in product(*starts))


def _starts(length: int, side: int, step: float) -> list[int]:
    if length <= side:
        return [-((side - length) // 2)]
    count = math.ceil((length - side) / (side * step)) + 1
    apart = (length - side) / (count - 1)
    return [round(apart * number) for number in range(count)]


def _whole_steps(length: int, side: int, step: float) -> list[int]:
    if length <= side:
        return [-((side - length) // 2)]
    apart = max(1, int(side * step))
    return [*range(0, length - side, apart), length - side]


def importance(size: Triple, weighting: Weighting = "nnunet") -> np.ndarray:
    """What each voxel of a window weighs, [d, h, w] float32, none zero."""
    if weighting == "constant":
        return np.ones(size, np.float32)
    if weighting == "gaussian":
        d, h, w = (
            np.exp(-0.5 * ((np.arange(n) - (n - 1) / 2) / (n * _DEVIATION)) ** 2).astype(np.float32) for n in size
        )  # fmt: skip
        spread: np.ndarray = d[:, None, None] * h[:, None] * w
        spread[spread < _LEAST] = _LEAST
        return spread
    d, h, w = (
        np.exp(-0.5 * ((np.arange(n) - n // 2) / (n * _DEVIATION)) ** 2) for n in size
    )  # fmt: skip
    weights = (_TOP * d[:, None, None] * h[:, None] * w).astype(np.float16)
    weights[weights == 0] = weights[weights > 0].min()
    return weights.astype(np.float32)
