"""What partitioned code is held against: the adjoint identity, the serial torch twin, and the one-rank grid's bits."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from volseg.distributed.communicator import Communicator, SerialCommunicator
from volseg.distributed.grid import ProcessGrid
from volseg.geometry import Triple
from volseg.nn.blocks import gather_blocks, take_block
from volseg.nn.convert import partition_module
from volseg.nn.gradients import sum_gradients
from volseg.partition.layout import Layout

GRIDS: dict[int, list[Triple]] = {
    1: [(1, 1, 1)],
    2: [(2, 1, 1), (1, 2, 1), (1, 1, 2)],
    3: [(3, 1, 1), (1, 3, 1), (1, 1, 3)],
    4: [(4, 1, 1), (2, 2, 1), (1, 2, 2), (2, 1, 2)],
    8: [(2, 2, 2), (8, 1, 1), (1, 2, 4)],
}


def serial_grid() -> ProcessGrid:
    """The grid of one rank, on this process alone."""
    return ProcessGrid(SerialCommunicator(), (1, 1, 1))


def relative_error(actual: Tensor, expected: Tensor, floor: float = 1e-3) -> float:
    """Largest deviation over the expected tensor's largest magnitude (at least `floor`)."""
    if actual.shape != expected.shape:
        return float("inf")
    if expected.numel() == 0:
        return 0.0
    return float((actual - expected).abs().max() / expected.abs().max().clamp(min=floor))


def assert_adjoint(
    forward: Callable[[Tensor], Tensor], adjoint: Callable[[Tensor], Tensor], x: Tensor, communicator: Communicator
) -> None:
    """<F x, y> = <x, F* y>, summed over the ranks, for a random y; in float64, to 1e-12 of the product of norms."""
    generator = torch.Generator().manual_seed(1000 + communicator.rank)
    fx = forward(x)
    y = torch.randn(fx.shape, generator=generator, dtype=torch.float64)
    fy = adjoint(y)
    dots = [(fx * y).sum(), (x * fy).sum(), (fx * fx).sum() + (y * y).sum()]
    left, right, size = communicator.reduce_all(np.array([float(d) for d in dots]))
    assert abs(left - right) <= 1e-12 * max(1.0, size), (left, right)


def assert_matches_serial(
    model: nn.Module,
    grid: ProcessGrid,
    layout: Layout,
    channels: int,
    *,
    samples: int = 1,
    multiple_of: int = 1,
    tolerance: float = 1e-5,
) -> None:
    """The partitioned twin against the plain torch module on the whole volume.

    Output, input gradient and every weight gradient agree to `tolerance`; the output's bits equal those of the twin on
    one rank; buffers (running statistics) agree as well.
    """
    generator = torch.Generator().manual_seed(7)
    whole = torch.randn((samples, channels, *layout.shape), generator=generator)
    serial, single = copy.deepcopy(model), copy.deepcopy(model)

    x = whole.clone().requires_grad_()
    expected = serial(x)
    upstream = torch.randn(expected.shape, generator=generator)
    (expected * upstream).sum().backward()

    with torch.no_grad():
        one = partition_module(single, serial_grid(), multiple_of)(whole)

    twin = partition_module(model, grid, multiple_of)
    assert list(twin.state_dict()) == list(model.state_dict())
    block = take_block(whole, grid, layout).requires_grad_()
    y = twin(block)
    gathered = gather_blocks(y, grid)
    assert relative_error(gathered, expected.detach()) <= tolerance, "output"
    assert torch.equal(gathered, one), "output bits differ from the one-rank run"

    sizes = grid.communicator.gather_all((grid.coords, tuple(y.shape[2:])))
    part = []
    for axis in range(3):
        line = {c[axis]: s[axis] for c, s in sizes}
        start = sum(length for coordinate, length in line.items() if coordinate < grid.coords[axis])
        part.append(slice(start, start + y.shape[2 + axis]))
    (y * upstream[(slice(None), slice(None), *part)]).sum().backward()
    assert block.grad is not None
    assert x.grad is not None
    assert relative_error(gather_blocks(block.grad, grid), x.grad) <= tolerance, "input gradient"
    sum_gradients(twin.parameters(), grid.communicator)
    for (name, p), q in zip(twin.named_parameters(), serial.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        assert relative_error(p.grad, q.grad, floor=1e-2) <= tolerance, f"gradient of {name}"
    for (name, a), b in zip(twin.named_buffers(), serial.buffers(), strict=True):
        assert relative_error(a.float(), b.float()) <= tolerance, f"buffer {name}"
