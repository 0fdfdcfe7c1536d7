"""From a module to a description: exported at two sizes, walked through, tidied into the program's nodes."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.export import ExportedProgram

from volseg.errors import PartitionError
from volseg.geometry import Triple, format_triple
from volseg.models.exported.arithmetic import ARITHMETIC
from volseg.models.exported.channels import CHANNELS
from volseg.models.exported.layers import LAYERS
from volseg.models.exported.margins import MARGINS
from volseg.models.exported.rearranging import REARRANGING
from volseg.models.exported.stages import network_of
from volseg.models.exported.tidying import tidy
from volseg.models.exported.walk import Walk
from volseg.networks.description import IMAGE, Network
from volseg.nn.graph import Graph, export, graph_of

SIDES: Triple = (128, 128, 128)
"""Voxels of the volume that a module is exported with: nothing is computed, so it may be large."""


def describe(module: nn.Module, in_channels: int, sides: Triple = SIDES) -> Network:
    """The description of a torch module of one volume [N, in_channels, D, H, W].

    The first of the module's outputs that has the volume's own sides gives the logits; 1x1x1 convolutions among the
    others, at coarser stages, become heads for training. What depends on the sides of the volume must not: the module
    is exported at two of them, in evaluation mode, and both must give the same nodes.

    sides  of the volume that it is exported with, multiples of the product of its strides

    Raises PartitionError with the module's path, the operation and the line of its source where an operation is none
    that a description has; where the module cannot be exported; and where it is another network at other sides.
    """
    label = type(module).__name__
    tensors = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))
    children = tuple(name for name, _ in module.named_children())

    def described(sides: Triple) -> Network:
        return network_of_program(export(module, in_channels, sides), tensors, children, label)

    network = described(sides)
    d, h, w = (n + times * m for n, times, m in zip(sides, (1, 2, 3), network.multiple, strict=True))
    other = described((d, h, w))
    if other != network:
        raise PartitionError(
            f"{label} is another network for {format_triple((d, h, w))} voxels than for "
            f"{format_triple(sides)}{_first_difference(network, other)}; a description holds for volumes of any size"
        )
    return network


def network_of_program(
    program: ExportedProgram, tensors: Mapping[str, Tensor], children: tuple[str, ...], label: str
) -> Network:
    """The description of an exported program.

    tensors   its parameters and buffers by all paths that they have
    children  names of the module's children in their order
    label     what messages call the module
    """
    return network_of_graph(graph_of(program), tensors, children, label)


def network_of_graph(
    graph: Graph, tensors: Mapping[str, Tensor], children: tuple[str, ...], label: str
) -> Network:  # fmt: skip
    """`network_of_program` of the operations."""
    walk = Walk(graph, tensors, graph.shape)
    walk.run(LAYERS | ARITHMETIC | CHANNELS | MARGINS | REARRANGING)
    outputs = walk.outputs()
    if not outputs:
        raise PartitionError(f"{label} gives no volume")
    names = [walk.single_output(value) for value in outputs]
    logits = next((name for name in names if walk.sides[name] == walk.sides[IMAGE]), "")
    if not logits:
        raise PartitionError(
            f"{label} gives {format_triple(walk.sides[names[0]])} voxels for {format_triple(walk.sides[IMAGE])}; a "
            "segmentation has as many as the volume"
        )
    image = walk.sides[IMAGE]
    deep = [name for name in names if name != logits and _divides(walk.sides[name], image)]
    return network_of(tidy(walk, logits, deep), image, graph.shape[1], children)


def _divides(sides: Triple, image: Triple) -> bool:
    """Whether an output has a whole part of the image's voxels on each axis, as what a loss compares with it has."""
    return all(n and m % n == 0 for n, m in zip(sides, image, strict=True))


def _first_difference(network: Network, other: Network) -> str:
    pairs = zip(network.nodes, other.nodes, strict=False)
    return next((f", beginning with {a.name}" for a, b in pairs if a != b), "")
