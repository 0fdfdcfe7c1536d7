"""The torch layer of each kind of node."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from volseg.networks.description import (
    AveragePool,
    Convolution,
    Head,
    Interpolation,
    MaxPool,
    Network,
    Node,
    Normalization,
    UpConvolution,
)
from volseg.networks.layered import (
    AlignedInterpolation,
    ChannelOrder,
    ChannelPad,
    ChannelReduction,
    Channels,
    ChannelSoftmax,
    Combination,
    Concatenation,
    Dense,
    Function,
    GeneralConvolution,
    GeneralPool,
    GlobalMean,
    PixelShuffle,
    PixelUnshuffle,
    Scaling,
    VoxelDropout,
    VoxelPad,
)
from volseg.nn.pointwise import Joined, OfChannels, Product, Shuffled, Valued
from volseg.nn.pooling import GlobalAverage
from volseg.nn.unshuffling import Unshuffled


def layer_of(network: Network, node: Node, path: str = "") -> nn.Module:
    """A new torch layer of a node.

    path  which of the node's layers: its dropout has one of its own
    """
    inputs = sum(network.inputs_of(node))
    match node:
        case Convolution():
            padding = (node.kernel[0] // 2, node.kernel[1] // 2, node.kernel[2] // 2)
            return nn.Conv3d(inputs, node.channels, node.kernel, node.stride, padding, bias=node.bias)
        case UpConvolution():
            return nn.ConvTranspose3d(inputs, node.channels, node.factors, node.factors, bias=node.bias)
        case Interpolation():
            return nn.Upsample(scale_factor=node.factors, mode=node.mode)
        case MaxPool():
            return nn.MaxPool3d(node.window)
        case AveragePool():
            return nn.AvgPool3d(node.window)
        case Head():
            return passing_on(inputs) if node.passes else nn.Conv3d(inputs, node.channels, 1)
        case Normalization():
            return nn.Dropout3d(node.dropout) if path and path == node.dropping else _norm(node)
    return _layered(node, inputs)


def passing_on(channels: int) -> nn.Conv3d:
    """A 1x1x1 convolution that gives what it reads, and does not learn."""
    layer = nn.Conv3d(channels, channels, 1)
    layer.weight.data = identity(layer.weight)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer.requires_grad_(False)


def identity(weight: Tensor) -> Tensor:
    """The weight [C, C, 1, 1, 1] with which a convolution gives what it reads; of a bias [C]: zeros."""
    return torch.zeros(weight.shape) if weight.dim() == 1 else torch.eye(weight.shape[0]).view(weight.shape)


def _layered(node: Node, inputs: int) -> nn.Module:
    match node:
        case GeneralConvolution():
            return _general_convolution(node, inputs)
        case GeneralPool(kind="max"):
            return nn.MaxPool3d(node.kernel, node.stride, node.padding, node.dilation)
        case GeneralPool():
            counts = node.counts_padding
            return nn.AvgPool3d(node.kernel, node.stride, node.padding, count_include_pad=counts)
        case AlignedInterpolation():
            return nn.Upsample(scale_factor=node.factors, mode="trilinear", align_corners=True)
        case Function():
            return Valued(node)
        case Combination() | Scaling():
            return Joined(node)
        case Concatenation() | Channels() | ChannelReduction() | ChannelSoftmax() | ChannelOrder() | ChannelPad():
            return OfChannels(node)
        case PixelShuffle():
            return Shuffled(node)
        case PixelUnshuffle():
            return Unshuffled(node.factors)
        case VoxelPad():
            (d, h, w), (back, low, right) = node.before, node.after
            return nn.ConstantPad3d((w, right, h, low, d, back), node.value)
        case GlobalMean():
            return GlobalAverage()
        case Dense():
            return Product(inputs, node.channels, node.bias, node.kernel)
        case VoxelDropout():
            return nn.Dropout(node.dropout)
    raise TypeError(f"{node.name} has no layer")


def _general_convolution(node: GeneralConvolution, inputs: int) -> nn.Module:
    if node.transposed:
        return nn.ConvTranspose3d(
            inputs, node.channels, node.kernel, node.stride, node.padding, node.extra, node.groups, node.bias,
            node.dilation,
        )  # fmt: skip
    return nn.Conv3d(
        inputs, node.channels, node.kernel, node.stride, node.padding, node.dilation, node.groups, node.bias
    )


def _norm(node: Normalization) -> nn.Module:
    match node.norm:
        case "instance":
            return nn.InstanceNorm3d(node.channels, eps=node.eps, affine=node.affine)
        case "group":
            return nn.GroupNorm(node.groups, node.channels, eps=node.eps, affine=node.affine)
        case "batch":
            return nn.BatchNorm3d(node.channels, eps=node.eps, affine=node.affine)
    raise TypeError(f"{node.name} has no norm")
