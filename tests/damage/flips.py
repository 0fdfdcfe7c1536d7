"""Bytes of a file changed, cut out, doubled, lost."""

from __future__ import annotations

import numpy as np

Random = np.random.Generator


def damage_bytes(rng: Random, data: bytes) -> bytes:
    """`data` with a few bytes changed, cut out, doubled, put in, or its end lost; rather at its start than later."""
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        if not out:
            break
        place = int(rng.integers(min(len(out), int(rng.choice([64, 400, 2000, 10**9])))))
        length = int(rng.choice([1, 2, 4, 16, 100]))
        what = int(rng.integers(8))
        if what <= 1:
            out[place] ^= 1 << int(rng.integers(8))
        elif what == 2:
            out[place : place + length] = rng.bytes(length)
        elif what == 3:
            value = rng.choice(np.array([0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFFE], "<u4"))
            out[place : place + 4] = value.tobytes()
        elif what == 4:
            del out[place : place + length]
        elif what == 5:
            out[place:place] = out[place : place + length]
        elif what == 6:
            other = int(rng.integers(len(out)))
            out[place : place + length] = out[other : other + length]
        else:
            del out[int(rng.integers(len(out))) :]
    return bytes(out)
