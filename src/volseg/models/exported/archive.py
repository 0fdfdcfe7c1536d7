"""`torch.export` archives (.pt2) as descriptions with their weights: read as JSON and numbers, nothing is unpickled.

An archive is a zip: ``models/model.json`` has the graph, ``data/weights/model_weights_config.json`` names the weights,
each a file of plain numbers (the format of ``torch.export.pt2_archive``). torch's own reader evaluates expressions and
unpickles what the archive calls pickled; this one does neither.
"""

from __future__ import annotations

import json
import re
import zipfile
import zlib
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from volseg.errors import CheckpointError, first_line
from volseg.files import leads_out
from volseg.models.exported.door import network_of_graph
from volseg.networks.description import Network
from volseg.nn.graph import Call, Graph, Name, plain_path, source_line, with_defaults

LARGEST_JSON = 1 << 28
"""Bytes of the largest graph that is read."""

_ATEN = re.compile(r"torch\.ops\.aten\.(?P<op>\w+)\.(?P<overload>\w+)")
_DTYPES = {5: torch.int64, 6: torch.float16, 7: torch.float32, 8: torch.float64, 12: torch.bool, 13: torch.bfloat16}
"""By torch's numbers (``torch/_export/serde/schema.py``), the types that weights may have."""


def describe_archive(path: Path) -> tuple[Network, dict[str, Tensor]]:
    """The network of an archive and its tensors by the names that the exported module had.

    Raises CheckpointError where the file is no such archive, has pickled weights or objects, which are not read, paths
    that lead out of it, or members that unpack to more than the whole; PartitionError as `describe`.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _described(archive, path)
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise CheckpointError(f"{path}: no torch.export archive ({first_line(error)})") from None
    except (LookupError, ValueError, TypeError, AttributeError, RuntimeError, ArithmeticError) as error:
        raise CheckpointError(
            f"{path}: not as this version reads archives of torch.export ({type(error).__name__}: "
            f"{first_line(error)}); export it with a current torch, by torch.export.save"
        ) from None


def _described(archive: zipfile.ZipFile, path: Path) -> tuple[Network, dict[str, Tensor]]:
    _check_members(archive, path)
    roots = {name.split("/")[0] for name in archive.namelist()}
    if len(roots) != 1 or f"{min(roots)}/models/model.json" not in archive.namelist():
        raise CheckpointError(f"{path}: no torch.export archive of one model: it lacks models/model.json")
    (root,) = roots
    program = _json(archive, f"{root}/models/model.json", path)["graph_module"]
    tensors = _tensors(archive, f"{root}/data/weights", "model_weights_config.json", path)
    constants = _tensors(archive, f"{root}/data/constants", "model_constants_config.json", path)
    graph = _graph(program["graph"], program["signature"]["input_specs"], tensors | constants)
    children = tuple(dict.fromkeys(name.split(".")[0] for name in tensors if "." in name))
    return network_of_graph(graph, tensors | constants, children, path.name), tensors


def _check_members(archive: zipfile.ZipFile, path: Path) -> None:
    """Raise CheckpointError for a name that leads out of the archive, and for what shrank: torch compresses nothing."""
    size = path.stat().st_size
    for info in archive.infolist():
        if leads_out(info.filename):
            raise CheckpointError(f"{path}: holds {info.filename!r}, a path that leads out of it; nothing was read")
        if info.file_size > size:
            raise CheckpointError(
                f"{path}: its {info.filename} would unpack to {info.file_size} bytes, more than the archive has "
                f"({size}); write it by torch.export.save, which compresses nothing"
            )


def _json(archive: zipfile.ZipFile, name: str, path: Path) -> Any:
    if archive.getinfo(name).file_size > LARGEST_JSON:
        raise CheckpointError(f"{path}: its {name} has more than {LARGEST_JSON} bytes")
    return json.loads(archive.read(name))


def _tensors(archive: zipfile.ZipFile, folder: str, config: str, path: Path) -> dict[str, Tensor]:
    """The tensors that a configuration names. Raises CheckpointError for one that is pickled or not whole."""
    tensors = {}
    for name, entry in _json(archive, f"{folder}/{config}", path)["config"].items():
        file, meta = str(entry["path_name"]), entry["tensor_meta"]
        if entry["use_pickle"]:
            raise CheckpointError(
                f"{path}: its {name} is pickled, and unpickling can run any program; export it as a plain tensor"
            )
        if not re.fullmatch(r"\w+", file):
            raise CheckpointError(f"{path}: its {name} should lie in {file!r}, which is no name of a member")
        sizes, strides = (tuple(int(n["as_int"]) for n in meta[key]) for key in ("sizes", "strides"))
        dtype, offset = _DTYPES[meta["dtype"]], int(meta["storage_offset"]["as_int"])
        last = offset + sum((n - 1) * step for n, step in zip(sizes, strides, strict=True)) if prod(sizes) else -1
        count = archive.getinfo(f"{folder}/{file}").file_size // dtype.itemsize
        if min((*sizes, *strides, offset), default=0) < 0 or last >= count or prod(sizes) > count:
            raise CheckpointError(f"{path}: its {name} is {list(sizes)}, but only {count} values are there")
        values = torch.frombuffer(bytearray(archive.read(f"{folder}/{file}")), dtype=dtype) if count else torch.empty(0)
        tensors[name] = values.as_strided(sizes, strides, offset).clone()
    return tensors


def _graph(graph: Mapping[str, Any], inputs: list[Any], tensors: Mapping[str, Tensor]) -> Graph:
    shapes = {name: tuple(_number(n) for n in meta["sizes"]) for name, meta in graph["tensor_values"].items()}
    integers = {name: _number(value) for name, value in graph["sym_int_values"].items()}
    weights: dict[str, str] = {}
    images = []
    for spec in inputs:
        ((kind, value),) = spec.items()
        if kind == "user_input":
            images.append(str(value["arg"]["as_tensor"]["name"]))
        else:
            target = value.get("parameter_name") or value.get("buffer_name") or value["tensor_constant_name"]
            weights[str(value["arg"]["name"])] = str(target)
    if len(images) != 1:
        raise ValueError(f"{len(images)} inputs; volseg gives a network one volume")
    calls = [call for node in graph["nodes"] if (call := _call(node, shapes, integers)) is not None]
    outputs = tuple(str(output["as_tensor"]["name"]) for output in graph["outputs"] if "as_tensor" in output)
    return Graph(images[0], shapes[images[0]], tuple(calls), outputs, weights, {})


def _number(value: Mapping[str, Any]) -> int:
    """A size: as it is, or of a symbol the value that it had when the module was exported."""
    return int(value["as_int"] if "as_int" in value else value["as_expr"]["hint"]["as_int"])


def _call(
    node: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], integers: Mapping[str, int]
) -> Call | None:  # fmt: skip
    """One operation; None for one that makes no tensor, as those do that compute with sizes."""
    outputs: Mapping[str, Any] = node["outputs"][0] if node["outputs"] else {}
    made = outputs.get("as_tensors") or [part for key, part in outputs.items() if key == "as_tensor"]
    names = tuple(str(part["name"]) for part in made)
    if not names:
        return None
    given = {str(part["name"]): _argument(part["arg"], integers) for part in node["inputs"]}
    target = str(node["target"])
    match = _ATEN.fullmatch(target)
    op = target if match is None else f"aten.{match['op']}"
    if match is not None:
        overload = getattr(getattr(torch.ops.aten, match["op"]), match["overload"])
        given = with_defaults(overload._schema, given)
    meta = node["metadata"]
    stack = str(meta.get("nn_module_stack", "")).split(";")[-1].split(",")
    module = plain_path(stack[1]) if len(stack) > 1 else ""
    shape, parts = (shapes[names[0]], ()) if "as_tensor" in outputs else ((), names)
    return Call(names[0], op, given, module, source_line(str(meta.get("stack_trace", ""))), shape, parts)


def _argument(value: Mapping[str, Any], integers: Mapping[str, int]) -> Any:
    ((kind, plain),) = value.items()
    match kind:
        case "as_none":
            return None
        case "as_tensor":
            return Name(str(plain["name"]))
        case "as_tensors":
            return tuple(Name(str(part["name"])) for part in plain)
        case "as_int" | "as_float" | "as_bool" | "as_string":
            return plain
        case "as_ints" | "as_floats" | "as_bools":
            return tuple(plain)
        case "as_sym_int":
            return _symbol(plain, integers)
        case "as_sym_ints":
            return tuple(_symbol(part, integers) for part in plain)
    return kind  # of no account for any operation that is known


def _symbol(value: Mapping[str, Any], integers: Mapping[str, int]) -> int:
    return int(value["as_int"]) if "as_int" in value else integers[str(value["as_name"])]
