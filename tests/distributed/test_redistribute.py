"""Voxels moved from the blocks of a grid to other boxes."""

from __future__ import annotations

import numpy as np
import pytest

from oracles import GRIDS
from volseg.distributed.communicator import Communicator
from volseg.distributed.grid import ProcessGrid
from volseg.distributed.redistribute import redistribute
from volseg.geometry import Box

SHAPE = (9, 10, 11)


def random_box(random: np.random.Generator) -> Box | None:
    if random.random() < 0.2:
        return None
    start = [int(random.integers(0, n)) for n in SHAPE]
    stop = [int(random.integers(a + 1, n + 1)) for a, n in zip(start, SHAPE, strict=True)]
    return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))


@pytest.mark.parallel([1, 2, 3, 4])
@pytest.mark.parametrize("leading", [(), (2,), (2, 3)])
def test_every_wanted_box_is_put_together(leading: tuple[int, ...], communicator: Communicator) -> None:
    """Wanted boxes may overlap, be anywhere, or be nothing; the same draws on every rank."""
    whole = np.arange(np.prod((*leading, *SHAPE)), dtype=np.float32).reshape(*leading, *SHAPE)
    random = np.random.default_rng(0)
    for dims in GRIDS[communicator.size]:
        grid = ProcessGrid(communicator, dims)
        boxes = list(grid.layout(SHAPE).blocks())
        held = whole[(..., *boxes[communicator.rank].slices)]
        before = held.copy()
        for _ in range(6):
            wanted = [random_box(random) for _ in range(communicator.size)]
            mine = wanted[communicator.rank]
            out = redistribute(held, boxes, wanted, communicator)
            if mine is None:
                right = out is None
            else:
                right = out is not None and np.array_equal(out, whole[(..., *mine.slices)])
            assert all(communicator.gather_all(right)), wanted
            assert np.array_equal(held, before)


@pytest.mark.parallel([2, 4])
def test_the_whole_to_one_rank_and_back(communicator: Communicator) -> None:
    whole = np.arange(np.prod(SHAPE), dtype=np.uint8).reshape(SHAPE)
    layout = ProcessGrid(communicator, (1, communicator.size, 1)).layout(SHAPE)
    boxes, nothing = list(layout.blocks()), Box((0, 0, 0), (0, 0, 0))
    last = communicator.size - 1
    held = np.ascontiguousarray(whole[boxes[communicator.rank].slices])
    wanted = [None] * last + [Box.whole(SHAPE)]
    gathered = redistribute(held, boxes, wanted, communicator)
    assert (gathered is None) == (communicator.rank != last)
    assert gathered is None or np.array_equal(gathered, whole)
    source = gathered if gathered is not None else np.empty((0, 0, 0), dtype=np.uint8)
    back = redistribute(source, [nothing] * last + [Box.whole(SHAPE)], boxes, communicator)
    assert all(communicator.gather_all(back is not None and np.array_equal(back, held)))
