"""What partitioned code is held against: the adjoint identity, the serial torch twin, and the one-rank grid's bits."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

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


BY_TORCH = os.environ.get("VOLSEG_BACKEND") == "torch"
"""Whether programs run by torch's operators, and not by the compiled kernels."""

ANOTHER_SIDE = 2e-2 if BY_TORCH else 1e-5
"""How far gradients may be from those of layers: by torch's operators a value near zero may fall on another side."""


def alike(actual: Tensor, expected: Tensor, bound: float = 1e-5) -> bool:
    """Whether what a program makes has the bits of what layers make; by torch's operators to `bound`."""
    return relative_error(actual, expected) < bound if BY_TORCH else torch.equal(actual, expected)


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


@dataclass(frozen=True, kw_only=True)
class SerialRun:
    """A plain torch module's output of a whole volume, its gradients under `upstream`, and its buffers afterwards."""

    output: Tensor
    output_of_one_rank: Tensor  # of the partitioned twin
    upstream: Tensor
    input_gradient: Tensor
    gradients: list[Tensor]  # in the order of the parameters
    buffers: list[Tensor]


def run_serially(model: nn.Module, whole: Tensor, generator: torch.Generator, multiple_of: int) -> SerialRun:
    """Run copies of `model` forward and backward on one process; `generator` draws the gradient of the output."""
    plain = copy.deepcopy(model)
    x = whole.clone().requires_grad_()
    output = plain(x)
    upstream = torch.randn(output.shape, generator=generator)
    (output * upstream).sum().backward()
    assert x.grad is not None
    with torch.no_grad():
        output_of_one_rank = partition_module(copy.deepcopy(model), serial_grid(), multiple_of)(whole)
    gradients = [p.grad for p in plain.parameters()]
    assert all(gradient is not None for gradient in gradients)
    return SerialRun(
        output=output.detach(),
        output_of_one_rank=output_of_one_rank,
        upstream=upstream,
        input_gradient=x.grad,
        gradients=gradients,
        buffers=list(plain.buffers()),
    )


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
    # By one rank for all: with more ranks than cores, what every rank does for itself takes so many times as long.
    serial = grid.communicator.on_root(lambda: run_serially(model, whole, generator, multiple_of))

    twin = partition_module(model, grid, multiple_of)
    assert list(twin.state_dict()) == list(model.state_dict())
    block = take_block(whole, grid, layout).requires_grad_()
    y = twin(block)
    gathered = gather_blocks(y, grid)
    assert relative_error(gathered, serial.output) <= tolerance, "output"
    assert torch.equal(gathered, serial.output_of_one_rank), "output bits differ from the one-rank run"

    sizes = grid.communicator.gather_all((grid.coords, tuple(y.shape[2:])))
    part = []
    for axis in range(3):
        line = {c[axis]: s[axis] for c, s in sizes}
        start = sum(length for coordinate, length in line.items() if coordinate < grid.coords[axis])
        part.append(slice(start, start + y.shape[2 + axis]))
    (y * serial.upstream[(slice(None), slice(None), *part)]).sum().backward()
    assert block.grad is not None
    assert relative_error(gather_blocks(block.grad, grid), serial.input_gradient) <= tolerance, "input gradient"
    sum_gradients(twin.parameters(), grid.communicator)
    for (name, p), gradient in zip(twin.named_parameters(), serial.gradients, strict=True):
        assert p.grad is not None
        assert relative_error(p.grad, gradient, floor=1e-2) <= tolerance, f"gradient of {name}"
    for (name, a), b in zip(twin.named_buffers(), serial.buffers, strict=True):
        assert relative_error(a.float(), b.float()) <= tolerance, f"buffer {name}"


def losses_on_grids(
    loss_of: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    logits: Tensor,
    target: Tensor,
    expected: Tensor,
    communicator: Communicator,
    tolerance: float,
) -> Iterator[tuple[Tensor, Tensor]]:
    """A loss of blocks, and its Dice, on each grid; value and gradient agree with those of the whole volume.

    loss_of   of a block of logits and one of the target
    logits    [N, C, D, H, W], whose `grad` is that of ``3 * expected``
    target    [N, D, H, W]
    expected  the loss of the whole volume
    """
    assert logits.grad is not None
    for dims in GRIDS[communicator.size]:
        grid = ProcessGrid(communicator, dims)
        layout = grid.layout(tuple(target.shape[1:]))
        block = take_block(logits.detach(), grid, layout).requires_grad_()
        loss, dice = loss_of(block, take_block(target.unsqueeze(1), grid, layout).squeeze(1))
        (3 * loss).backward()
        assert block.grad is not None
        assert abs(float(loss.detach()) - float(expected.detach())) <= tolerance * abs(float(expected.detach()))
        assert relative_error(gather_blocks(block.grad, grid), logits.grad, floor=1e-12) <= 10 * tolerance
        yield loss.detach(), dice
