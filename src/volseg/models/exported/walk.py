"""Goes through a module's operations and makes nodes of them; which operation becomes which node the tables say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, TypeVar

from torch import Tensor

from volseg.geometry import Triple
from volseg.networks.description import IMAGE, Node
from volseg.networks.layered import Concatenation
from volseg.nn.graph import Call, Graph, Name

Made = TypeVar("Made", bound=Node)


@dataclass(frozen=True)
class Value:
    """What a call gives: the outputs of nodes side by side along the channels.

    parts   names of the nodes
    shape   torch's
    global  whether it is one value a channel, of the whole volume
    """

    parts: tuple[str, ...]
    shape: tuple[int, ...]
    everywhere: bool = False

    @property
    def channels(self) -> int:
        """Of all parts together."""
        return max(prod(self.shape), 1) if self.everywhere else self.shape[1]

    @property
    def sides(self) -> Triple:
        """Of a volume."""
        d, h, w = self.shape[2:]
        return d, h, w


@dataclass
class Held:
    """A tensor that operations may change; several names may stand for it.

    value   what it is now
    shared  whether others are parts of its memory, or it of theirs: it must not change
    """

    value: Value
    shared: bool = False


class Other:
    """What a call gives that is no tensor of voxels; only operations that know its class read it.

    shape  torch's
    """

    shape: tuple[int, ...]


Result = Value | list[Value] | Held | Other
Handler = Callable[["Walk", Call], Result]


class Walk:
    """The nodes of a graph.

    tensors  parameters and buffers by all paths that they have
    nodes    by their names, in order; their stages are not known yet
    sides    of each node's output; those of a value that is everywhere are the sides of what it was made of
    """

    def __init__(self, graph: Graph, tensors: Mapping[str, Tensor], image: tuple[int, ...]) -> None:
        self.graph, self.tensors = graph, tensors
        self.nodes: dict[str, Node] = {}
        self.sides: dict[str, Triple] = {IMAGE: (image[2], image[3], image[4])}
        self._channels = {IMAGE: image[1]}
        self._known: dict[str, Held | list[Held] | Other] = {graph.image: Held(Value((IMAGE,), image))}
        paths = [*tensors, *(call.module for call in graph.calls)]
        self._folders = {path[:n] for path in paths for n, letter in enumerate(path) if letter == "."}

    def run(self, table: dict[str, Handler]) -> None:
        """Make the nodes. Raises PartitionError for an operation that `table` has not, or that it refuses."""
        for call in self.graph.calls:
            op = call.op.removeprefix("aten.")
            in_place = op.endswith("_") and not op.endswith("__")
            handler = table.get(op.rstrip("_") if in_place else op)
            if handler is None:
                raise call.refuse("is no operation that a description has")
            result = handler(self, call)
            if in_place:
                self._change(call, result)
            elif isinstance(result, list) and call.parts:
                self._known |= {name: Held(value, shared=True) for name, value in zip(call.parts, result, strict=True)}
            elif isinstance(result, list):
                self._known[call.name] = [Held(value, shared=True) for value in result]
            else:
                self._known[call.name] = result if isinstance(result, (Held, Other)) else Held(result)

    def outputs(self) -> list[Value]:
        """The volumes that the module gives, in their order."""
        kept = [self._known.get(name) for name in self.graph.outputs]
        return [held.value for held in kept if isinstance(held, Held) and not held.value.everywhere]

    def held(self, call: Call, argument: str = "self") -> Held:
        """The tensor that an argument names. Raises PartitionError where it is none that nodes make."""
        name = call.arguments.get(argument)
        held = self._known.get(name.name) if isinstance(name, Name) else None
        if isinstance(held, Other):
            raise call.refuse(f"reads a tensor {list(held.shape)} whose axes are not those of a volume [N, C, D, H, W]")
        if not isinstance(held, Held):
            raise call.refuse(f"reads as {argument!r} what is no tensor of the volume")
        return held

    def other(self, call: Call, argument: str = "self") -> Other | None:
        """What an argument names where that is no tensor of voxels."""
        name = call.arguments.get(argument)
        known = self._known.get(name.name) if isinstance(name, Name) else None
        return known if isinstance(known, Other) else None

    def value(self, call: Call, argument: str = "self") -> Value:
        """`held`, as it is now."""
        return self.held(call, argument).value

    def volume(self, call: Call, argument: str = "input") -> Value:
        """A value that has voxels."""
        value = self.value(call, argument)
        if value.everywhere or len(value.shape) != 5:
            raise call.refuse("reads a tensor that is no block of voxels [N, C, D, H, W]")
        return value

    def listed(self, call: Call, argument: str) -> list[Held]:
        """The tensors of a list, or of what an operation gave several of."""
        names = call.arguments[argument]
        if isinstance(names, Name):
            kept = self._known.get(names.name)
            if isinstance(kept, list):
                return kept
            raise call.refuse("reads what is no list of tensors")
        parts = [self._known.get(name.name) if isinstance(name, Name) else None for name in names]
        if not all(isinstance(part, Held) for part in parts):
            raise call.refuse("reads a tensor that is not made from the volume")
        return [part for part in parts if isinstance(part, Held)]

    def constant(self, call: Call, argument: str) -> Tensor | None:
        """The parameter, buffer or constant that an argument names, None where it names none."""
        name = call.arguments.get(argument)
        if not isinstance(name, Name):
            return None
        weight = self.tensors.get(self.graph.weights.get(name.name, ""))
        return self.graph.constants.get(name.name) if weight is None else weight

    def path(self, call: Call, argument: str) -> str:
        """The path of a parameter: under the module that calls, if that owns it, else the first it has.

        Empty where the argument names no parameter.
        """
        name = call.arguments.get(argument)
        path = self.graph.weights.get(name.name, "") if isinstance(name, Name) else ""
        own = f"{call.module}.{path.rpartition('.')[2]}".lstrip(".")
        return own if path and own in self.tensors and self.tensors[own] is self.tensors.get(path) else path

    def layer(self, call: Call, argument: str = "weight") -> str:
        """The path of the layer that owns a weight. Raises PartitionError where the weight is no parameter."""
        path = self.path(call, argument)
        owner, _, last = path.rpartition(".")
        if last != "weight" or not owner:
            raise call.refuse(f"takes its weight from {path or 'a tensor that is computed'}, not from a torch.nn layer")
        return owner

    def own_path(self, call: Call) -> str:
        """A path for a layer without weights: of the module that calls, or inside it where it has parts of its own."""
        if call.module and call.module not in self._folders:
            return call.module
        return f"{call.module}.{call.name}".lstrip(".")

    def add(self, node: Made, shape: Sequence[int], *, everywhere: bool = False, sides: Triple | None = None) -> Value:
        """Note a node, under a name that no other has; its output has torch's `shape`."""
        name, number = node.name, 2
        while name in self.nodes or name == IMAGE or not name:
            name, number = f"{node.name or 'network'} ({number})", number + 1
        node = replace(node, name=name)
        self.nodes[name] = node
        d, h, w = shape[2:] if not everywhere else sides or self.sides[node.reads[0]]
        self.sides[name] = d, h, w
        self._channels[name] = node.channels
        return Value((name,), tuple(shape), everywhere)

    def single(self, call: Call, value: Value) -> str:
        """The node that has all of a value, made of its parts if need be."""
        if len(value.parts) == 1:
            return value.parts[0]
        node = Concatenation(f"{call.module or 'network'}, joined", value.parts, -1, value.channels)
        return self.add(node, value.shape, everywhere=value.everywhere).parts[0]

    def single_output(self, value: Value) -> str:
        """The node that gives an output, made of its parts if need be."""
        if len(value.parts) == 1:
            return value.parts[0]
        return self.add(Concatenation("outputs, joined", value.parts, -1, value.channels), value.shape).parts[0]

    def channels_of(self, name: str) -> int:
        """Of a node's output, or of the image."""
        return self._channels[name]

    def _change(self, call: Call, result: Any) -> None:
        """An operation that overwrites its input: all names of that have the new value."""
        first = next(iter(call.arguments))
        held = self.held(call, first)
        if held.shared:
            raise call.refuse("changes in place a tensor that shares its memory with another")
        if isinstance(result, Held):
            result = result.value
        if result.shape != held.value.shape:
            raise call.refuse("changes in place a tensor of another shape")
        held.value = result
        self._known[call.name] = held


def node_name(call: Call, what: str) -> str:
    """A name for the node of a call that has no layer of its own."""
    return f"{call.module or 'network'}, {what}"
