"""Sums over ranks: right, the same bits on all ranks, and in the order that the number of ranks gives."""

import numpy as np
import pytest

from volseg.distributed.ordered_sum import MANY


def expected(parts, many):
    """The sum in the order of recursive doubling (few) or halving (many), written down from the algorithms."""
    parts = [part.copy() for part in parts]
    paired = 1 << (len(parts).bit_length() - 1)
    for beyond in range(paired, len(parts)):
        parts[beyond - paired] = parts[beyond - paired] + parts[beyond]
    parts, aparts = parts[:paired], [1 << n for n in range(paired.bit_length() - 1)]
    for apart in aparts[::-1] if many else aparts:
        parts = [parts[rank] + parts[rank ^ apart] for rank in range(paired)]
    return parts[0]


@pytest.mark.parallel([2, 3, 4, 8])
@pytest.mark.parametrize("count", [0, 1, 7, MANY // 4 - 1, MANY // 4, MANY // 4 + 13])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_order_follows_from_the_number_of_ranks(communicator, count, dtype):
    rng = np.random.default_rng(communicator.rank)
    mine = (rng.standard_normal(count) * 10.0 ** rng.integers(-3, 4, count)).astype(dtype)
    parts = communicator.gather_all(mine)
    result = communicator.reduce_all(mine)
    assert np.array_equal(result, expected(parts, mine.nbytes >= MANY))
    assert all(np.array_equal(result, other) for other in communicator.gather_all(result))
