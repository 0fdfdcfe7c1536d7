"""Checks, before a partitioned network is first used, that on a block it does what it does on the whole volume.

The module is exported twice by `torch.export`, as if it were called with the whole volume and with this rank's block;
only shapes count, nothing is computed. What is not a layer must work voxel by voxel, and both graphs must have the
same operations with the same arguments: so branches on the sides, arithmetic with them, coordinates, random numbers of
other libraries and hooks cannot go wrong in silence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from volseg.errors import PartitionError
from volseg.geometry import Triple, format_triple
from volseg.nn.graph import Call, Graph, Name, graph_of
from volseg.nn.guard import ALONG_CHANNELS, RANDOM, VOXELWISE

if TYPE_CHECKING:  # torch.export takes long to load
    from torch.export import ExportedProgram

_LAYERS: dict[str, tuple[type[nn.Module], ...]] = {
    "conv3d": (nn.Conv3d,),
    "conv_transpose3d": (nn.ConvTranspose3d,),
    "max_pool3d": (nn.MaxPool3d,),
    "avg_pool3d": (nn.AvgPool3d,),
    "upsample_nearest3d": (nn.Upsample,),
    "upsample_trilinear3d": (nn.Upsample,),
    "instance_norm": (nn.InstanceNorm3d,),
    "group_norm": (nn.GroupNorm,),
    "batch_norm": (nn.BatchNorm3d,),
    "pad": (nn.ConstantPad3d, nn.ZeroPad3d),
    "constant_pad_nd": (nn.ConstantPad3d, nn.ZeroPad3d),
    "dropout": (nn.Dropout,),
    "feature_dropout": (nn.Dropout3d,),
}
"""Operations that layers do which have partitioned twins."""
_KEEPS = frozenset({"getitem", "alias", "lift_fresh_copy", "assert_tensor_metadata", "view_as"})
_RANDOM_IN_ATEN = frozenset({*RANDOM, "rand_like", "randn_like", "randint_like", "multinomial", "poisson", "uniform"})


def check_graphs(whole: ExportedProgram, block: ExportedProgram, label: str, sides: Triple) -> None:
    """Raise PartitionError, with path, operation and line, for what sees one block where it means the volume.

    whole, block  the module called with the whole volume and with this rank's block
    label         what messages call it
    sides         of this rank's block
    """
    first, second = graph_of(whole), graph_of(block)
    _check_operations(first, label)
    for one, other in zip(first.calls, second.calls, strict=False):
        if (one.op, one.arguments) != (other.op, other.arguments):
            raise PartitionError(
                f"{label}: {one.place}: its forward does not do with a block of {format_triple(sides)} voxels what it "
                f"does with the whole volume: {_difference(one, other)}; it must not depend on the sides of its input "
                "or on chance"
            )
    if len(first.calls) != len(second.calls):
        longer = max(first.calls, second.calls, key=len)[min(len(first.calls), len(second.calls))]
        raise PartitionError(
            f"{label}: {longer.place}: its forward calls {longer.op}() with the whole volume or with a block of "
            f"{format_triple(sides)} voxels alone; it must not depend on the sides of its input"
        )
    for name, constant in first.constants.items():
        if name not in second.constants or not torch.equal(constant, second.constants[name]):
            raise PartitionError(
                f"{label}: its forward makes a tensor {list(constant.shape)} anew at each call, which is another each "
                "time or on each rank; make it once, as a buffer"
            )


def _difference(one: Call, other: Call) -> str:
    if one.op != other.op:
        return f"{one.op}() becomes {other.op}()"
    key = next(key for key, value in one.arguments.items() if value != other.arguments.get(key))
    return f"in {one.op}() {key} = {one.arguments[key]} becomes {other.arguments.get(key)}"


def _check_operations(graph: Graph, label: str) -> None:
    shapes: dict[str, tuple[int, ...] | None] = {graph.image: graph.shape}
    visited: set[str] = set()
    for call in graph.calls:
        read = [shapes[name] for name in _names(call.arguments.values()) if name in shapes]
        op = call.op.removeprefix("aten.").strip("_")
        if not read:
            allowed = op not in _RANDOM_IN_ATEN
        elif op in _LAYERS:
            # A second one in a layer's call is that of a hook.
            kinds = {f"{layer.__module__}.{layer.__qualname__}" for layer in _LAYERS[op]}
            allowed = call.kind in kinds and call.visit not in visited
            visited.add(call.visit)
        else:
            allowed = _works_on_voxels(op, call, read)
        if not allowed:
            raise PartitionError(
                f"{label}: {call.place}: its forward calls {op}() between layers, which would see one block only; "
                "use the torch.nn layer instead, or do it after gathering"
            )
        if read:
            shapes[call.name] = call.shape or read[0]


def _names(values: Any) -> list[str]:
    names = []
    for value in values:
        if isinstance(value, Name):
            names.append(value.name)
        elif isinstance(value, tuple):
            names += _names(value)
    return names


def _works_on_voxels(op: str, call: Call, read: list[tuple[int, ...] | None]) -> bool:
    if op in _KEEPS or (op in ("slice", "expand", "view", "reshape") and call.shape == read[0]):
        return True
    if op == "where":
        return "other" in call.arguments
    if op in ("max", "min") and "other" in call.arguments:
        return True
    if op in ALONG_CHANNELS or op == "slice":
        dims = call.arguments.get("dim", call.arguments.get("dims"))
        places = dims if isinstance(dims, tuple) else (dims,)
        whole = all(shape is not None and len(shape) == 5 for shape in read)
        batch = op == "slice" and dims == 0
        return whole and len(places) > 0 and (batch or all(place in (1, -4) for place in places))
    return op in VOXELWISE
