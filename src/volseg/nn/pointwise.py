"""Torch layers for nodes that work on each voxel, or on one value a channel: alike on a block and on a whole volume."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from volseg.networks.layered import (
    ChannelOrder,
    ChannelPad,
    ChannelReduction,
    Channels,
    ChannelSoftmax,
    Combination,
    Concatenation,
    Function,
    JoinKind,
    PixelShuffle,
    Scaling,
)
from volseg.nn.anywhere import at_any_place, channel_softmax, sum_of_channels


class Folder(nn.ModuleDict):
    """Holds layers, and parameters that a `Joined` elsewhere reads."""

    reads_own_parameters = True


class Pointwise(nn.Module):
    """A layer that needs no voxel but its own."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # The guard of `convert` watches the code between layers.
        with torch._C.DisableTorchFunction():
            return super().__call__(*args, **kwargs)


class Valued(Pointwise):
    """A function of each value; `weight` has a PReLU's slopes.

    x  [N, C, ...]
    """

    def __init__(self, node: Function) -> None:
        super().__init__()
        self.function, self.values = node.function, node.values
        if node.slopes:
            self.weight = nn.Parameter(torch.full((node.slopes,), 0.25))

    def forward(self, x: Tensor) -> Tensor:
        return F.prelu(x, self.weight) if self.function == "prelu" else at_any_place(self._of_values, x)

    def _of_values(self, x: Tensor) -> Tensor:
        match self.function:
            case "power":
                return x ** self.values[0]
            case "clamp":
                return x.clamp(*self.values)
            case "gelu_tanh":
                return F.gelu(x, approximate="tanh")
            case "abs" | "exp" | "log" | "neg" | "reciprocal" | "sqrt" | "tanh" | "sigmoid":
                y: Tensor = getattr(torch, self.function)(x)
            case _:
                y = getattr(F, self.function)(x, *self.values)
        return y


class Joined(Pointwise):
    """Two tensors, or a tensor and a constant of one value or of one a channel.

    a  [N, C, ...]
    b  of the same shape, or of one channel, or of one value a channel [N, C, 1, 1, 1]
    """

    def __init__(self, node: Combination | Scaling) -> None:
        super().__init__()
        self.function: JoinKind = node.function
        self.reversed = isinstance(node, Scaling) and node.reversed
        self.values = node.values if isinstance(node, Scaling) else ()

    def forward(self, a: Tensor, b: Tensor | None = None) -> Tensor:
        if b is None:
            b = a.new_tensor(self.values)
        if b.dim() < 5:
            b = b.reshape(1, -1, 1, 1, 1)
        if self.reversed:
            a, b = b, a
        match self.function:
            case "add":
                return a + b
            case "subtract":
                return a - b
            case "multiply":
                return a * b
            case "divide":
                return a / b
            case "maximum":
                return torch.maximum(a, b)
            case "minimum":
                return torch.minimum(a, b)


class OfChannels(Pointwise):
    """What takes, joins, orders or reduces the channels of a tensor [N, C, ...]."""

    def __init__(
        self, node: Concatenation | Channels | ChannelReduction | ChannelSoftmax | ChannelOrder | ChannelPad
    ) -> None:
        super().__init__()
        self.node = node

    def forward(self, x: Tensor) -> Tensor:
        match self.node:
            case Channels(start=start, stop=stop, step=step):
                return x[:, start:stop:step]
            case ChannelOrder():
                return _in_order(x, self.node)
            case ChannelPad(before=before, after=after, value=value):
                return F.pad(x, (0, 0) * (x.dim() - 2) + (before, after), value=value)
            case ChannelSoftmax(logarithm=logarithm):
                return channel_softmax(x, logarithm=logarithm)
            case ChannelReduction(reduction="mean"):
                return sum_of_channels(x) / x.shape[1]
            case ChannelReduction(reduction="sum"):
                return sum_of_channels(x)
            case ChannelReduction(reduction="max"):
                return x.amax(1, keepdim=True)
            case ChannelReduction():
                return x.amin(1, keepdim=True)
        return x


def _in_order(x: Tensor, node: ChannelOrder) -> Tensor:
    n, _, *sides = x.shape
    arrayed = x.reshape(n, *node.split, *sides)
    behind = range(1 + len(node.split), arrayed.dim())
    return arrayed.permute(0, *(1 + axis for axis in node.order), *behind).reshape(x.shape)


class Shuffled(Pointwise):
    """Channels spread over space: [N, C * f, D, H, W] to [N, C, D * fd, H * fh, W * fw]."""

    def __init__(self, node: PixelShuffle) -> None:
        super().__init__()
        self.factors, self.channels = node.factors, node.channels

    def forward(self, x: Tensor) -> Tensor:
        n, _, d, h, w = x.shape
        a, b, c = self.factors
        y = x.reshape(n, self.channels, a, b, c, d, h, w).permute(0, 1, 5, 2, 6, 3, 7, 4)
        return y.reshape(n, self.channels, d * a, h * b, w * c)


class Product(Pointwise):
    """A matrix product over one value a channel, [N, C, 1, 1, 1] to [N, K, 1, 1, 1].

    kernel  dimensions of the weight behind [K, C]: 0 or 3
    """

    def __init__(self, inputs: int, channels: int, bias: bool, kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, inputs, *[1] * kernel))
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None
        nn.init.kaiming_uniform_(self.weight.view(channels, inputs), a=5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x.flatten(1), self.weight.flatten(1), self.bias)
        return y.reshape(*y.shape, 1, 1, 1)
