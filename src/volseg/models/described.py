"""A torch module made from a description, with its layers under the paths that are given there."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from volseg.networks.description import (
    IMAGE,
    Addition,
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
from volseg.nn.elementwise import activate
from volseg.nn.normalization import PartitionedNorm, normalize_with_slope

_AVERAGING = "averaging"
"""Where the layers of average pooling lie, which have no parameters."""


class DescribedModule(nn.Module):
    """The network of a description.

    x       [N, in_channels, D, H, W]  sides multiples of the stages' factors
    logits  [N, classes, D, H, W]
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        layers = _layers(network)
        training = {node.module for node in network.heads if node.training}
        paths = sorted(layers, key=lambda path: _order(network, path))
        for name in (*network.modules, *({_AVERAGING} & {path.split(".")[0] for path in layers})):
            if name not in layers:
                self.add_module(name, nn.ModuleDict())
            for path in paths:
                if path.split(".")[0] == name and path not in training:
                    self._place(path, layers[path])
        self.apply(_initialise)
        for path in paths:
            if path in training:
                self._place(path, layers[path]).apply(_initialise)
        self._last_reader = {name: readers[-1].name for name, readers in network.readers.items() if readers}

    def _place(self, path: str, node: Node) -> nn.Module:
        """Make a node's layer, under its path."""
        *folders, name = path.split(".")
        parent: nn.Module = self
        for folder in folders:
            if folder not in parent._modules:
                parent.add_module(folder, nn.ModuleDict())
            parent = parent.get_submodule(folder)
        layer = _layer(self.network, node, path)
        parent.add_module(name, layer)
        return layer

    @property
    def last(self) -> nn.Conv3d:
        """The layer that gives the logits."""
        return cast(nn.Conv3d, self.get_submodule(self.network.head.module))

    def forward(self, x: Tensor, features_only: bool = False, deep_logits: dict[int, Tensor] | None = None) -> Tensor:
        """Logits; with `features_only` what the head reads, [N, channels, D, H, W].

        deep_logits  where given, the logits of the coarser stages go there, by stage
        """
        values: dict[str, Tensor] = {IMAGE: x}
        head = self.network.head
        for node in self.network.nodes:
            if node is head and features_only:
                return values[head.reads[0]]
            inputs = [values[name] for name in node.reads]
            for name in node.reads:
                if self._last_reader[name] == node.name and not (features_only and name == head.reads[0]):
                    del values[name]
            if not (isinstance(node, Head) and node.training):
                values[node.name] = self._run(node, inputs)
            elif deep_logits is not None:
                deep_logits[node.stage] = self._run(node, inputs)
        return values[head.name]

    def _run(self, node: Node, inputs: list[Tensor]) -> Tensor:
        """A node's output; several inputs go as soon as they are joined."""
        y: Tensor
        match node:
            case Addition():
                y = inputs[0] + inputs[1]
            case Normalization():
                y = self._activate(node, inputs[0])
            case MaxPool() | AveragePool():
                y = self.get_submodule(_path(node))(inputs[0])
            case _:
                x = inputs[0] if len(inputs) == 1 else torch.cat(inputs, dim=1)
                inputs.clear()
                y = self.get_submodule(_path(node))(x)
        return y

    def _activate(self, node: Normalization, x: Tensor) -> Tensor:
        norm = self.get_submodule(node.module) if node.module else None
        if isinstance(norm, PartitionedNorm) and node.activation == "leaky_relu":
            x = normalize_with_slope(norm, x, node.slope)
        else:
            x = activate(x if norm is None else norm(x), node.activation, node.slope)
        if node.dropping:
            x = self.get_submodule(node.dropping)(x)
        return x


def _layers(network: Network) -> dict[str, Node]:
    """By the path of each torch layer, the node that it belongs to."""
    layers: dict[str, Node] = {}
    for node in network.nodes:
        if isinstance(node, Normalization) and node.dropping:
            layers[node.dropping] = node
        path = _path(node)
        if path:
            layers[path] = node
    return layers


def _path(node: Node) -> str:
    match node:
        case MaxPool():
            return f"down.{node.stage - 1}"
        case AveragePool():
            return f"{_AVERAGING}.{node.name.replace('.', ' ')}"
    return getattr(node, "module", "")


def _order(network: Network, path: str) -> tuple[int, list[tuple[int, str]]]:
    """Layers are made, and initialised, child by child of the whole module, and there by their paths."""
    first, *rest = path.split(".")
    place = network.modules.index(first) if first in network.modules else len(network.modules)
    return place, [(int(p), "") if p.isdigit() else (0, p) for p in rest]


def _layer(network: Network, node: Node, path: str) -> nn.Module:
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
            return nn.Conv3d(inputs, node.channels, 1)
        case Normalization():
            return nn.Dropout3d(node.dropout) if path == node.dropping else _norm(node)
    raise TypeError(f"{node.name} has no layer")


def _norm(node: Normalization) -> nn.Module:
    match node.norm:
        case "instance":
            return nn.InstanceNorm3d(node.channels, eps=node.eps, affine=True)
        case "group":
            return nn.GroupNorm(node.groups, node.channels, eps=node.eps)
        case "batch":
            return nn.BatchNorm3d(node.channels, eps=node.eps)
    raise TypeError(f"{node.name} has no norm")


def _initialise(module: nn.Module) -> None:
    """He initialisation (He et al., ICCV 2015) of the convolutions, for leaky ReLU."""
    if isinstance(module, (nn.Conv3d, nn.ConvTranspose3d)):
        nn.init.kaiming_normal_(module.weight, a=0.01)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
