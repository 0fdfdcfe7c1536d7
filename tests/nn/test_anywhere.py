"""Functions of exponentials give each value the same bits wherever it lies in a tensor."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from oracles import GRIDS, assert_matches_serial
from volseg.distributed.communicator import Communicator
from volseg.distributed.grid import ProcessGrid
from volseg.nn.anywhere import PIECE, at_any_place, channel_softmax
from volseg.partition.layout import Layout

FUNCTIONS = {
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "elu": F.elu,
    "softplus": F.softplus,
    "mish": F.mish,
    "tanh": torch.tanh,
}


def values(count: int) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(0)) * 3


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_value_has_the_same_bits_in_pieces_of_any_length(name: str) -> None:
    function, x = FUNCTIONS[name], values(2 * PIECE + 37).requires_grad_()
    whole = at_any_place(function, x)
    (gradient,) = torch.autograd.grad(whole.sum(), x)
    for start, stop in ((0, 5), (1, 38), (37, PIECE + 54), (PIECE - 1, 2 * PIECE + 37)):
        part = x[start:stop].detach().requires_grad_()
        y = at_any_place(function, part)
        assert torch.equal(y, whole[start:stop])
        assert torch.equal(torch.autograd.grad(y.sum(), part)[0], gradient[start:stop])
    torch.testing.assert_close(whole, function(x), rtol=2e-6, atol=2e-7)
    plain = torch.autograd.grad(function(x).sum(), x)[0]
    torch.testing.assert_close(gradient, plain, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last_3d])
def test_tensors_of_any_order_in_memory(order: torch.memory_format) -> None:
    x = values(2 * 3 * 5 * 7 * 9).view(2, 3, 5, 7, 9)
    expected = at_any_place(torch.sigmoid, x)
    assert torch.equal(at_any_place(torch.sigmoid, x.contiguous(memory_format=order)), expected)
    assert torch.equal(at_any_place(torch.sigmoid, x[:, :, 1:4, ::2]), expected[:, :, 1:4, ::2])
    assert torch.equal(at_any_place(torch.sigmoid, x[:0]), expected[:0])


@pytest.mark.parametrize("logarithm", [False, True])
def test_softmax_over_channels(logarithm: bool) -> None:
    x = values(2 * 5 * 3 * 4 * 7).view(2, 5, 3, 4, 7)
    y = channel_softmax(x, logarithm=logarithm)
    torch.testing.assert_close(y, x.log_softmax(1) if logarithm else x.softmax(1), rtol=2e-6, atol=1e-6)
    assert torch.equal(channel_softmax(x[..., 3:], logarithm=logarithm), y[..., 3:])


class Gated(nn.Module):
    """An attention gate, and activations as torch's layers and functions have them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.gate = nn.Conv3d(2, 8, 3, padding=1), nn.Sequential(nn.Conv3d(8, 1, 1), nn.Sigmoid())
        self.act, self.smooth = nn.ELU(), nn.Softplus()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.silu(self.first(x))
        return self.smooth(x * self.gate(self.act(x)) + F.gelu(x, approximate="tanh") - torch.tanh(x).exp())


@pytest.mark.parallel([1, 2, 3, 4])
def test_a_gated_network_has_the_same_bits_on_any_grid(communicator: Communicator) -> None:
    for dims in GRIDS[communicator.size]:
        torch.manual_seed(0)
        grid = ProcessGrid(communicator, dims)
        assert_matches_serial(Gated(), grid, Layout.even((9, 11, 7), dims), 2)
