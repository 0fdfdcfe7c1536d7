"""The exchange of ghosts in place, by each way in which faces get to MPI; a GPU is imitated by the host."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from oracles import GRIDS
from volseg.distributed import transport
from volseg.distributed.communicator import Communicator
from volseg.distributed.ghost_exchange import GhostExchange, ghost_widths
from volseg.distributed.grid import ProcessGrid
from volseg.distributed.transport import DirectTransport, HostTransport, StagedTransport, wants_direct
from volseg.errors import ConfigError
from volseg.partition.layout import Layout

RANKS = [1, 2, 3, 4, 8]
SHAPES = [(8, 8, 8), (9, 11, 13), (17, 8, 10)]


class Copies:
    """What a GPU would be asked; notes what was, and how much memory was pinned."""

    def __init__(self):
        self.asked, self.pins = [], 0

    def pinned(self, count, dtype):
        self.pins += 1
        return torch.full((count,), torch.nan, dtype=dtype)

    @contextmanager
    def beside(self):
        self.asked.append("beside")
        yield

    def finish(self):
        self.asked.append("finish")

    def before_use(self):
        self.asked.append("before use")


TRANSPORTS = {
    "host": HostTransport,
    "staged": lambda: StagedTransport(Copies()),
    "direct": lambda: DirectTransport(torch.device("cpu")),
}


def numbered(shape: tuple[int, int, int]) -> torch.Tensor:
    """Every voxel and channel of the volume with a value of its own, as far as its type has such."""
    return torch.arange(2 * shape[0] * shape[1] * shape[2], dtype=torch.float64).view(1, 2, *shape) + 1


@pytest.mark.parallel(RANKS)
@pytest.mark.parametrize("steps", [0, 1, 5])
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_exchange_fills_every_ghost_and_leaves_the_block_alone(
    steps, transport, dtype, communicator: Communicator
) -> None:
    """Axis by axis, however many of them are finished before the wait; two exchanges under way do not mix."""
    way = TRANSPORTS[transport]()
    for dims in GRIDS[communicator.size]:
        grid = ProcessGrid(communicator, dims)
        low, high = ghost_widths(grid, 1)
        for shape in SHAPES:
            box = grid.block(Layout.even(shape, dims))
            whole = numbered(shape)[0].permute(1, 2, 3, 0).to(dtype)
            inner = tuple(slice(a, a + n) for a, n in zip(low, box.shape, strict=True))
            sides = [n + a + b for n, a, b in zip(box.shape, low, high, strict=True)]
            buffers = [torch.full((*sides, 2), torch.nan, dtype=dtype) for _ in range(2)]
            for number, buffer in enumerate(buffers):
                buffer[inner] = whole[box.slices] + 0.5 * number
            exchanges = [GhostExchange(buffer, low, high, grid, way) for buffer in buffers]
            for _ in range(steps):
                for exchange in exchanges:
                    exchange.advance()
            for exchange in exchanges:
                exchange.wait()
                assert exchange.done
            around = tuple(slice(a - m, b + n) for a, b, m, n in zip(box.start, box.stop, low, high, strict=True))
            for number, buffer in enumerate(buffers):
                assert torch.equal(buffer, whole[around] + 0.5 * number)


@pytest.mark.parallel([2, 4])
def test_a_device_is_waited_for_before_each_message_and_before_each_use(communicator: Communicator) -> None:
    copies = Copies()
    staged = StagedTransport(copies)
    grid = ProcessGrid(communicator, (communicator.size, 1, 1))
    low, high = ghost_widths(grid, 1)
    buffer = torch.zeros(4 + low[0] + high[0], 4, 4, 8)
    for _ in range(3):
        GhostExchange(buffer, low, high, grid, staged).wait()
    neighbours = (low[0] > 0) + (high[0] > 0)
    one = ["beside"] * neighbours + ["finish"] + ["beside"] * neighbours + ["before use"]
    assert copies.asked == one * 3
    assert copies.pins == 2 * neighbours, "memory of the first exchange serves the others"


@pytest.mark.parametrize(
    ("wish", "known", "direct"),
    [("auto", True, True), ("auto", False, False), ("staged", True, False), ("direct", False, True)],
)
def test_which_way_is_chosen(wish, known, direct):
    assert wants_direct(wish, known) is direct


def test_another_wish_is_refused():
    with pytest.raises(ConfigError, match="VOLSEG_GPU_MPI=fast: give auto, staged or direct"):
        wants_direct("fast", True)


class _Library:
    """An MPI library that answers one query."""

    def __init__(self, name, answer):
        setattr(self, name, answer)


def _mpich(kind, flag):
    flag._obj.value = 1
    return 0


@pytest.mark.parametrize(
    ("library", "knows"),
    [
        (_Library("MPIX_Query_cuda_support", lambda: 1), True),
        (_Library("MPIX_Query_cuda_support", lambda: 0), False),
        (_Library("MPIX_GPU_query_support", _mpich), True),
        (_Library("MPI_Init", None), False),
    ],
)
def test_the_library_is_asked_whether_it_knows_gpus(monkeypatch, library, knows):
    monkeypatch.setattr(transport, "mapped_libraries", lambda: ["libmpi.so"])
    monkeypatch.setattr(transport.ctypes, "CDLL", lambda path: library)
    assert transport.knows_gpus() is knows
