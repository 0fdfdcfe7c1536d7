"""The window exchange: every ghost is the voxel it stands for, and the adjoint is the exact transpose."""

from __future__ import annotations

import pytest
import torch

from oracles import GRIDS, assert_adjoint
from volseg.distributed.communicator import Communicator
from volseg.distributed.grid import ProcessGrid
from volseg.distributed.halo import GhostExchange, exchange_window, exchange_window_adjoint, ghost_widths
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
@pytest.mark.parametrize("steps", [0, 1, 5])
def test_an_exchange_in_place_fills_every_ghost_and_leaves_the_block_alone(steps, communicator: Communicator) -> None:
    """Axis by axis, however many of them are finished before the wait; two exchanges under way do not mix."""
    for dims in GRIDS[communicator.size]:
        grid = ProcessGrid(communicator, dims)
        low, high = ghost_widths(grid, 1)
        for shape in SHAPES:
            box = grid.block(Layout.even(shape, dims))
            whole = numbered(shape)[0].permute(1, 2, 3, 0).float()
            inner = tuple(slice(a, a + n) for a, n in zip(low, box.shape, strict=True))
            sides = [n + a + b for n, a, b in zip(box.shape, low, high, strict=True)]
            buffers = [torch.full((*sides, 2), torch.nan) for _ in range(2)]
            for number, buffer in enumerate(buffers):
                buffer[inner] = whole[box.slices] + 0.5 * number
            exchanges = [GhostExchange(buffer, low, high, grid) for buffer in buffers]
            for _ in range(steps):
                for exchange in exchanges:
                    exchange.advance()
            for exchange in exchanges:
                exchange.wait()
                assert exchange.done
            around = tuple(slice(a - m, b + n) for a, b, m, n in zip(box.start, box.stop, low, high, strict=True))
            for number, buffer in enumerate(buffers):
                assert torch.equal(buffer, whole[around] + 0.5 * number)


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
