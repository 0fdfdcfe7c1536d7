"""A torch module made from a description, with its layers under the paths that are given there."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from volseg.models.node_layers import layer_of
from volseg.networks.description import IMAGE, Addition, Head, Network, Node, Normalization
from volseg.networks.layered import Combination, Scaling
from volseg.nn.elementwise import activate
from volseg.nn.normalization import PartitionedNorm, normalize_with_slope
from volseg.nn.pointwise import Folder

_OTHERS = "without_weights"
"""Where the layers lie that have no weights, and no path in the description."""


class DescribedModule(nn.Module):
    """The network of a description.

    x       [N, in_channels, D, H, W]  sides multiples of the stages' factors
    logits  [N, classes, D, H, W]
    """

    reads_own_parameters = True
    is_described = True

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        layers = _layers(network)
        training = {node.module for node in network.heads if node.training}
        paths = sorted(layers, key=lambda path: _order(network, path))
        for name in network.modules:
            if name not in layers:
                self.add_module(name, Folder())
            for path in paths:
                if path.split(".")[0] == name and path not in training:
                    self._place(path, layers[path])
        self._place_others()
        self.apply(_initialise)
        for path in paths:
            if path in training:
                self._place(path, layers[path]).apply(_initialise)
        self._last_reader = {name: readers[-1].name for name, readers in network.readers.items() if readers}

    @property
    def logits_layer(self) -> nn.Conv3d:
        """The 1x1x1 convolution that gives the logits."""
        layer = self.get_submodule(self.network.head.module)
        assert isinstance(layer, nn.Conv3d)
        return layer

    def _place(self, path: str, node: Node) -> nn.Module:
        """Make a node's layer, or its parameter, under its path."""
        *folders, name = path.split(".")
        parent: nn.Module = self
        for folder in folders:
            if folder not in parent._modules:
                parent.add_module(folder, Folder())
            parent = parent.get_submodule(folder)
        if isinstance(node, Scaling):
            parent.register_parameter(name, nn.Parameter(torch.ones(node.shape)))
            return parent
        layer = layer_of(self.network, node, path)
        parent.add_module(name, layer)
        return layer

    def _place_others(self) -> None:
        """Layers without a path, which have no weights."""
        others = {node.name: node for node in self.network.nodes if _is_run_by_another_layer(node)}
        if others:
            self.add_module(_OTHERS, nn.ModuleList(layer_of(self.network, node) for node in others.values()))
        self._others = {name: n for n, name in enumerate(others)}

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
            for name in dict.fromkeys(node.reads):  # one may be read several times
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
            case Combination():
                y = self._layer(node)(*inputs)
            case Scaling() if node.module:
                y = self._layer(node)(inputs[0], self.get_parameter(node.module))
            case _:
                x = inputs[0] if len(inputs) == 1 else torch.cat(inputs, dim=1)
                inputs.clear()
                y = self._layer(node)(x)
        return y

    def _layer(self, node: Node) -> nn.Module:
        number = self._others.get(node.name)
        path = _path(node) if number is None else f"{_OTHERS}.{number}"
        return self.get_submodule(path)

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
    return str(getattr(node, "module", ""))


def _is_run_by_another_layer(node: Node) -> bool:
    """Whether its layer has no weights of its own, and so no path."""
    return isinstance(node, Scaling) or not (_path(node) or isinstance(node, (Addition, Normalization)))


def _order(network: Network, path: str) -> tuple[int, list[tuple[int, str]]]:
    """Layers are made, and initialised, child by child of the whole module, and there by their paths."""
    first, *rest = path.split(".")
    return network.modules.index(first), [(int(p), "") if p.isdigit() else (0, p) for p in rest]


def _initialise(module: nn.Module) -> None:
    """He initialisation (He et al., ICCV 2015) of the convolutions that learn, for leaky ReLU."""
    if isinstance(module, (nn.Conv3d, nn.ConvTranspose3d)) and module.weight.requires_grad:
        nn.init.kaiming_normal_(module.weight, a=0.01)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
