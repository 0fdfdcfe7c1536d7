"""How fast a processor is now, by one convolution."""

from __future__ import annotations

import time
from functools import cache

import torch

from volseg.nn.kernels import winograd
from volseg.nn.kernels.rows import Activation, Rows

SIDE = 32
CHANNELS = (8, 16, 32, 64)
"""For which profiles have it."""


@cache
def reference_seconds(channels: int) -> float:
    """`measure_reference`, once a process."""
    return measure_reference(channels)


def measure_reference(channels: int) -> float:
    """Seconds of a 3x3x3 convolution of as many channels to as many at 32^3, with this rank's threads.

    The shortest of a few, in a tenth of a second. The processor must have the kernels' instructions.
    """
    rows = [Rows.of(torch.zeros(SIDE, SIDE, SIDE, channels)) for _ in range(2)]
    weight = winograd.pack_weight(torch.zeros(channels, channels, 3, 3, 3), [channels])
    taken = []
    for _ in range(6):
        begin = time.perf_counter()
        winograd.forward([Activation(rows[0], None)], weight, None, rows[1])
        taken.append(time.perf_counter() - begin)
    weight.release()
    return min(taken)
