"""Functions of each value whose bits do not depend on where in a tensor the value lies.

torch computes a function of many values by instructions for vectors, and by another library what is left over at the
end of each thread's share; where the function is made of exponentials the two differ in the last bit. So values are
handed to torch in pieces that leave nothing over.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

PIECE = 1 << 14
"""Values of a piece: torch divides none that has fewer than 32768 (`at::internal::GRAIN_SIZE`) among threads."""

_VECTORS = 64
"""Values of which torch leaves none over: it takes two vectors at a time, of 16 values where they are longest."""


def at_any_place(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``function(x)``, differentiable, with bits that follow from each value alone.

    function  of each value on its own, without parameters
    x         of any shape
    """
    if x.device.type != "cpu" or not x.is_floating_point():
        return function(x)
    with torch._C.DisableTorchFunction():  # `guard` watches the code between layers, which this is no part of
        y: Tensor = _AtAnyPlace.apply(x, function)
    return y


def channel_softmax(x: Tensor, *, logarithm: bool = False) -> Tensor:
    """The softmax over the channels of `x` [N, C, ...], or its logarithm, with the same bits wherever a voxel lies."""
    below = x - x.detach().amax(1, keepdim=True)
    powers = at_any_place(torch.exp, below)
    total = sum_of_channels(powers)
    return below - at_any_place(torch.log, total) if logarithm else powers / total


def sum_of_channels(x: Tensor) -> Tensor:
    """The sum of the channels of `x` [N, C, ...] in their order, [N, 1, ...]; torch's order depends on the shape."""
    channels: tuple[Tensor, ...] = x.split(1, dim=1)
    total = channels[0]
    for channel in channels[1:]:
        total = total + channel
    return total


_SLOPES: dict[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]] = {
    torch.sigmoid: lambda y: y * (1 - y),
    torch.tanh: lambda y: 1 - y * y,
    torch.exp: lambda y: y,
}
"""The derivatives, by arithmetic alone, of functions whose result is kept for backward, and not their input."""


class _AtAnyPlace(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        y = _by_pieces(function, x)
        ctx.save_for_backward(y if function in _SLOPES else x)
        ctx.function = function
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        if ctx.function in _SLOPES:
            (y,) = ctx.saved_tensors
            return grad * _SLOPES[ctx.function](y), None

        def gradient(piece: Tensor, upstream: Tensor) -> Tensor:
            with torch.enable_grad():
                piece = piece.detach().requires_grad_()
                before: Tensor = torch.autograd.grad(ctx.function(piece), piece, upstream)[0]
            return before

        (x,) = ctx.saved_tensors
        return _by_pieces(gradient, x, grad), None


def _by_pieces(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """A function of tensors of one shape, value by value."""
    first = tensors[0]
    last = first.dim() == 5 and not first.is_contiguous()
    order = torch.channels_last_3d if last else torch.contiguous_format
    dense = [tensor.contiguous(memory_format=order) for tensor in tensors]
    out = torch.empty_like(dense[0])
    flat, result = [_in_memory(tensor, last) for tensor in dense], _in_memory(out, last)
    count = len(result)
    whole = count - count % _VECTORS
    for start in range(0, whole, PIECE):
        here = slice(start, min(start + PIECE, whole))
        result[here] = function(*(values[here] for values in flat))
    if rest := count - whole:
        padded = [torch.cat([values[whole:], values.new_ones(_VECTORS - rest)]) for values in flat]
        result[whole:] = function(*padded)[:rest]
    return out


def _in_memory(x: Tensor, last: bool) -> Tensor:
    """The values of a tensor in the order in which they lie, as a view; `last`: channels are the fastest."""
    return (x.permute(0, 2, 3, 4, 1) if last else x).view(-1)
