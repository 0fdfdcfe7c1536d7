"""A module's operations as a list, as `torch.export` finds them: what is called, with what, and where in the source."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from volseg.errors import PartitionError, first_line
from volseg.geometry import Triple, format_triple

if TYPE_CHECKING:  # torch.export takes long to load
    from torch.export import ExportedProgram

_WATCHING = str(Path(__file__).with_name("convert.py"))
_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')


@dataclass(frozen=True)
class Call:
    """One operation.

    name       of its result
    op         torch's name of the operation, such as ``aten.conv3d``; one that changes its input ends in an underscore
    arguments  by the names of torch's schema, defaults included; tensors are `Name`s
    module     path of the module that calls it
    source     file and line of the code that calls it; empty where it is not known
    shape      of the result; empty where it is no single tensor
    parts      names of the results, where the graph names each of several
    kind       the class of that module, such as torch.nn.modules.conv.Conv3d; empty where it is not known
    visit      the same for all operations of one call of the module, and for no others
    """

    name: str
    op: str
    arguments: Mapping[str, Any]
    module: str
    source: str
    shape: tuple[int, ...]
    parts: tuple[str, ...] = ()
    kind: str = ""
    visit: str = ""

    @property
    def place(self) -> str:
        """Where it stands, in words."""
        where = f"module {self.module or 'itself'}"
        return f"{where}, {self.source}" if self.source else where

    def refuse(self, why: str) -> PartitionError:
        """The error for an operation that no node says."""
        return PartitionError(f"{self.place}: {self.op}() {why}")


@dataclass(frozen=True)
class Name:
    """A tensor by its name in the graph."""

    name: str


@dataclass(frozen=True)
class Graph:
    """What a module does with one volume.

    image       name of its input
    shape       of the input, [N, C, D, H, W]
    calls       in their order
    outputs     names of the tensors that it gives
    weights     by their names in the graph, the paths of parameters and buffers
    constants   by their names in the graph, tensors that the code makes
    """

    image: str
    shape: tuple[int, ...]
    calls: tuple[Call, ...]
    outputs: tuple[str, ...]
    weights: Mapping[str, str]
    constants: Mapping[str, Tensor]


def export(module: nn.Module, in_channels: int, sides: Triple) -> ExportedProgram:
    """The module in evaluation mode on a volume [1, in_channels, *sides]; nothing is computed.

    Raises PartitionError where torch cannot export it.
    """
    weight = next(module.parameters(), torch.empty(0))
    x = torch.empty((1, in_channels, *sides), dtype=weight.dtype, device=weight.device)
    with _evaluating(module):
        try:
            return exported(module, x)
        except Exception as error:
            raise PartitionError(
                f"{type(module).__name__} cannot be exported by torch.export for a volume of {format_triple(sides)} "
                f"with {in_channels} channels: {first_line(error)}"
            ) from error


def exported(module: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> ExportedProgram:
    """The module as it is, called with tensors of which only the shapes count.

    Raises what torch or the module raises where it cannot be exported.
    """
    with torch.no_grad(), _silent():
        try:
            return torch.export.export(module, (x, *args), kwargs, strict=False)
        except Exception as first:
            try:
                return torch.export.export(module, (x, *args), kwargs, strict=True)
            except Exception:
                raise first from None


@contextmanager
def _silent() -> Iterator[None]:
    """Without what torch prints and logs of a module that it cannot export: the error says it."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def graph_of(program: ExportedProgram) -> Graph:
    """The operations of an exported program of one input. Raises PartitionError for another number of inputs."""
    signature = program.graph_signature
    if len(signature.user_inputs) != 1:
        raise PartitionError(f"the network has {len(signature.user_inputs)} inputs; volseg gives it one volume")
    constants = {
        name: program.constants[target] for name, target in signature.inputs_to_lifted_tensor_constants.items()
    }
    weights = dict(signature.inputs_to_parameters) | dict(signature.inputs_to_buffers)
    image = str(signature.user_inputs[0])
    shape: tuple[int, ...] = ()
    calls: list[Call] = []
    outputs: tuple[str, ...] = ()
    for node in program.graph.nodes:
        if node.name == image:
            shape = tuple(int(n) for n in node.meta["val"].shape)
        elif node.op == "call_function":
            calls.append(_call(node))
        elif node.op == "output":
            given = signature.user_outputs
            outputs = tuple(str(name) for name in given if isinstance(name, str))
    if len(shape) != 5:
        raise PartitionError(f"the network reads a tensor of the shape {list(shape)}, not a volume [N, C, D, H, W]")
    return Graph(image, shape, tuple(calls), outputs, weights, constants)


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """In evaluation mode; each part goes back to the mode in which it was."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def _call(node: torch.fx.Node) -> Call:
    schema = getattr(node.target, "_schema", None)
    value = node.meta.get("val")
    # A side that depends on values is of no account: no operation that makes one is known.
    shape = tuple(n if isinstance(n, int) else -1 for n in value.shape) if isinstance(value, Tensor) else ()
    arguments: dict[str, Any] = {}
    if schema is None:
        op = getattr(node.target, "__name__", str(node.target))
        arguments = {str(n): _plain(argument) for n, argument in enumerate(node.args)}
    else:
        op = str(schema.name).replace("::", ".")
        given = dict(zip((argument.name for argument in schema.arguments), node.args, strict=False))
        arguments = with_defaults(schema, {name: _plain(value) for name, value in (given | node.kwargs).items()})
    modules = node.meta.get("nn_module_stack") or {}
    path, kind = list(modules.values())[-1] if modules else ("", "")
    source = source_line(node.meta.get("stack_trace") or "")
    return Call(node.name, op, arguments, plain_path(str(path)), source, shape, kind=str(kind), visit=" ".join(modules))


def with_defaults(schema: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of an operation in the order of torch's schema, those that were not given by their defaults."""
    return {
        argument.name: _plain(
            given.get(argument.name, argument.default_value if argument.has_default_value() else None)
        )
        for argument in schema.arguments
    }


def plain_path(path: str) -> str:
    """A module's path without what torch adds for a second call, ``a.b@1``."""
    return re.sub(r"@\d+$", "", path.removeprefix("L['self'].").removeprefix("L['self']"))


def _plain(value: Any) -> Any:
    if isinstance(value, torch.fx.Node):
        return Name(value.name)
    if isinstance(value, (list, tuple)):
        return tuple(_plain(part) for part in value)
    return value


def source_line(trace: str) -> str:
    """The innermost line of the trace that is code of the network."""
    frames = [(match["file"], match["line"]) for match in _FRAME.finditer(trace)]
    own = [frame for frame in frames if "/torch/" not in frame[0] and frame[0] != _WATCHING]
    if not own:
        return ""
    file, line = own[-1]
    return f"{file.rsplit('/', 1)[-1]} line {line}"
