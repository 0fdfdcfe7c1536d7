"""The window exchange: every ghost is the voxel it stands for, and the adjoint is the exact transpose."""

from __future__ import annotations

import pytest
import torch

from oracles import GRIDS, assert_adjoint
from volseg.distributed.communicator import Communicator
from volseg.distributed.grid import ProcessGrid
from volseg.distributed.halo import exchange_window, exchange_window_adjoint
from volseg.errors import PartitionError
from volseg.partition.layout import Layout
from volseg.partition.window import plan_halo, plan_window

RANKS = [1, 2, 3, 4, 8]
SHAPES = [(8, 8, 8), (9, 11, 13), (17, 8, 10)]


def numbered(shape: tuple[int, int, int]) -> torch.Tensor:
    """Every voxel and channel of the volume with a value of its own."""
    return torch.arange(2 * shape[0] * shape[1] * shape[2], dtype=torch.float64).view(1, 2, *shape) + 1


@pytest.mark.parallel(RANKS)
@pytest.mark.parametrize("width", [(1, 1, 1), (2, 0, 1), (3, 3, 3), (0, 5, 0)])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last_3d])
def test_every_ghost_is_its_voxel(width, memory, communicator: Communicator) -> None:
    """Faces, edges and corners; also where the halo is wider than the neighbour's block."""
    for dims in GRIDS[communicator.size]:
        grid = ProcessGrid(communicator, dims)
        for shape in SHAPES:
            layout = Layout.even(shape, dims)
            box = grid.block(layout)
            whole = numbered(shape)
            block = whole[(..., *box.slices)].contiguous(memory_format=memory)
            before = block.clone()
            window = exchange_window(block, plan_halo(layout, grid.coords, width), grid)
            d, h, w = width
            padded = torch.nn.functional.pad(whole, (w, w, h, h, d, d))
            expected = padded[(..., *(slice(a, b + 2 * n) for a, b, n in zip(box.start, box.stop, width, strict=True)))]
            assert torch.equal(window, expected)
            assert torch.equal(block, before), "the block was written to"


@pytest.mark.parallel(RANKS)
@pytest.mark.parametrize("width", [(1, 1, 1), (2, 3, 0), (5, 5, 5)])
def test_adjoint_identity(width, communicator: Communicator) -> None:
    for dims in GRIDS[communicator.size]:
        grid = ProcessGrid(communicator, dims)
        for shape in SHAPES:
            layout = Layout.even(shape, dims)
            plan = plan_halo(layout, grid.coords, width)
            generator = torch.Generator().manual_seed(communicator.rank)
            x = torch.randn((2, 3, *grid.block(layout).shape), generator=generator, dtype=torch.float64)
            assert_adjoint(
                lambda t, p=plan, g=grid: exchange_window(t, p, g),
                lambda t, p=plan, g=grid: exchange_window_adjoint(t, p, g),
                x,
                communicator,
            )


@pytest.mark.parallel(RANKS)
def test_adjoint_of_windows_that_leave_out_own_voxels(communicator: Communicator) -> None:
    """Stride 3: a rank needs neither all of its block nor only its neighbour's edge."""
    for dims in GRIDS[communicator.size]:
        grid = ProcessGrid(communicator, dims)
        layout = Layout.even((25, 26, 27), dims)
        outputs = layout.map_axes(lambda axis, cuts: [-(-b // 3) for b in cuts])
        plan = plan_window(layout, grid.coords, lambda axis, r: (3 * r[0] - 1, 3 * (r[1] - 1) + 1), outputs)
        x = torch.randn((1, 1, *grid.block(layout).shape), dtype=torch.float64)
        assert_adjoint(
            lambda t, p=plan, g=grid: exchange_window(t, p, g),
            lambda t, p=plan, g=grid: exchange_window_adjoint(t, p, g),
            x,
            communicator,
        )


@pytest.mark.parallel([2, 4, 8])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last_3d])
def test_a_block_of_one_voxel_beside_larger_ones(memory, communicator: Communicator) -> None:
    """Such a block is contiguous and channels-last at once; its messages must still be read as its neighbours write."""
    for dims in GRIDS[communicator.size]:
        if max(dims) > 2:
            continue
        grid = ProcessGrid(communicator, dims)
        first, second, third = ((0, 1, 4) if p == 2 else (0, 1) for p in dims)
        layout = Layout((first, second, third))
        box = grid.block(layout)
        whole = numbered(layout.shape)
        block = whole[(..., *box.slices)].contiguous(memory_format=memory)
        window = exchange_window(block, plan_halo(layout, grid.coords, (1, 1, 1)), grid)
        padded = torch.nn.functional.pad(whole, (1,) * 6)
        expected = padded[(..., *(slice(a, b + 2) for a, b in zip(box.start, box.stop, strict=True)))]
        assert all(communicator.gather_all(torch.equal(window, expected)))


@pytest.mark.parallel([2])
def test_a_grid_that_does_not_match_the_ranks_is_refused(communicator: Communicator) -> None:
    with pytest.raises(PartitionError, match="needs 4 ranks, this job has 2"):
        ProcessGrid(communicator, (2, 2, 1))
