"""Blocks of a group of ranks on its leader and back: every voxel in its place, and each the transpose of the other."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from volseg.distributed.communicator import Communicator
from volseg.distributed.grid import ProcessGrid
from volseg.distributed.merging import LevelGrids, Merge
from volseg.errors import PartitionError
from volseg.geometry import Triple
from volseg.partition.agglomeration import Agglomeration, merged
from volseg.partition.layout import Layout

MERGES: dict[int, list[tuple[Triple, Triple]]] = {
    2: [((2, 1, 1), (1, 1, 1)), ((1, 1, 2), (1, 1, 1))],
    3: [((1, 3, 1), (1, 1, 1))],
    4: [((4, 1, 1), (2, 1, 1)), ((2, 2, 1), (2, 1, 1)), ((1, 2, 2), (1, 1, 1))],
    8: [((2, 2, 2), (1, 1, 1)), ((4, 2, 1), (2, 1, 1)), ((2, 2, 2), (1, 2, 1))],
}


def room(sides: Triple, channels: int) -> torch.Tensor:
    return torch.empty((*sides, channels), dtype=torch.float64)


def whole_volume(shape: Triple, channels: int) -> torch.Tensor:
    return torch.arange(np.prod(shape) * channels, dtype=torch.float64).view(*shape, channels)


@pytest.mark.parallel([2, 3, 4, 8])
@pytest.mark.parametrize("floats", [1, 2**18], ids=["a plane a message", "a block a message"])
def test_every_voxel_comes_to_its_place_and_back(
    floats: int, communicator: Communicator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("volseg.partition.agglomeration._MESSAGE_FLOATS", floats)
    for dims, few in MERGES[communicator.size]:
        layout = Layout.even((13, 10, 11), dims)  # blocks of several sizes
        volume = whole_volume(layout.shape, 3)
        merge = Merge(ProcessGrid(communicator, dims), few)
        own = volume[layout.block(merge.finer.coords).slices]
        whole = None
        if merge.coarser is not None:
            box = merged(layout, few).block(merge.coarser.coords)
            whole = torch.full((*box.shape, 3), -1.0, dtype=torch.float64)
        merge.gather(layout, own, whole, room)
        if whole is not None:
            assert torch.equal(whole, volume[box.slices]), (dims, few)
        back = torch.full_like(own, -1.0)
        merge.scatter(layout, whole, back, room)
        assert torch.equal(back, own), (dims, few)
        leaders = communicator.gather_all(merge.coarser is not None)
        assert sum(leaders) == np.prod(few)


@pytest.mark.parallel([2, 3, 4, 8])
def test_scattering_is_the_transpose_of_gathering(communicator: Communicator) -> None:
    """<G x, y> = <x, G* y>, where x are all ranks' blocks and y all leaders'."""
    generator = torch.Generator().manual_seed(communicator.rank)
    for dims, few in MERGES[communicator.size]:
        layout = Layout.even((9, 6, 8), dims)
        merge = Merge(ProcessGrid(communicator, dims), few)
        x = torch.randn((*layout.block(merge.finer.coords).shape, 2), generator=generator, dtype=torch.float64)
        gx = y = None
        if merge.coarser is not None:
            shape = (*merged(layout, few).block(merge.coarser.coords).shape, 2)
            gx, y = (
                torch.empty(shape, dtype=torch.float64),
                torch.randn(shape, generator=generator, dtype=torch.float64),
            )
        merge.gather(layout, x, gx, room)
        gy = torch.empty_like(x)
        merge.scatter(layout, y, gy, room)
        left = 0.0 if gx is None or y is None else float((gx * y).sum())
        dots = communicator.reduce_all(np.array([left, float((x * gy).sum()), float((x * x).sum())]))
        assert abs(dots[0] - dots[1]) <= 1e-12 * dots[2]
        assert dots[0] != 0


@pytest.mark.parallel([4, 8])
def test_small_tensors_are_the_leader_s_afterwards(communicator: Communicator) -> None:
    dims, few = MERGES[communicator.size][1]
    merge = Merge(ProcessGrid(communicator, dims), few)
    mean, count = torch.full((3,), float(communicator.rank)), torch.tensor(communicator.rank)
    leader = merge.group.broadcast(communicator.rank)
    merge.share([mean, count])
    assert mean.tolist() == [leader] * 3
    assert int(count) == leader


@pytest.mark.parallel(8)
def test_grids_of_two_stages_and_who_takes_part(communicator: Communicator) -> None:
    grid = ProcessGrid(communicator, (4, 2, 1))
    grids = LevelGrids(grid, 4, Agglomeration(((2, (2, 1, 1)), (3, (1, 1, 1)))))
    assert communicator.gather_all(grids.last) == [4, 1, 1, 1, 2, 1, 1, 1]
    assert communicator.gather_all(sorted(grids.merges)) == [[2, 3], [2], [2], [2], [2, 3], [2], [2], [2]]
    assert [one.dims for one in grids.grids][:2] == [(4, 2, 1)] * 2
    if communicator.is_root:
        assert [one.dims for one in grids.grids][2:] == [(2, 1, 1), (1, 1, 1), (1, 1, 1)]
    with pytest.raises(PartitionError, match="3 does not divide the 4 ranks on axis D"):
        LevelGrids(grid, 4, Agglomeration(((2, (3, 1, 1)),)))
