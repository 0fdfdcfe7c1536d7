"""How fast a processor is now, by one convolution."""

from __future__ import annotations

import time
from functools import cache

import torch

from volseg.nn.kernels import winograd
from volseg.nn.kernels.rows import Activation, Rows

CHANNELS, SIDE = 32, 32


@cache
def reference_seconds() -> float:
    """Seconds of a 3x3x3 convolution of 32 to 32 channels at 32^3 with this rank's threads; 0 without the kernels.

    The shortest of a few: measured once a process, in a tenth of a second.
    """
    if not winograd.available():
        return 0.0
    rows = [Rows.of(torch.zeros(SIDE, SIDE, SIDE, CHANNELS)) for _ in range(2)]
    weight = winograd.pack_weight(torch.zeros(CHANNELS, CHANNELS, 3, 3, 3), [CHANNELS])
    taken = []
    for _ in range(6):
        begin = time.perf_counter()
        winograd.forward([Activation(rows[0], None)], weight, None, rows[1])
        taken.append(time.perf_counter() - begin)
    weight.release()
    return min(taken)
