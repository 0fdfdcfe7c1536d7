"""A network's description as plain values for JSON, and back: planning and opening a model need no source of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

from volseg.errors import ConfigError
from volseg.networks import layered
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

SCHEMA = 1

_KINDS: dict[str, type[Node]] = {
    "convolution": Convolution,
    "normalization": Normalization,
    "max pool": MaxPool,
    "average pool": AveragePool,
    "up-convolution": UpConvolution,
    "interpolation": Interpolation,
    "addition": Addition,
    "head": Head,
    "general convolution": layered.GeneralConvolution,
    "general pool": layered.GeneralPool,
    "aligned interpolation": layered.AlignedInterpolation,
    "function": layered.Function,
    "combination": layered.Combination,
    "scaling": layered.Scaling,
    "concatenation": layered.Concatenation,
    "channels": layered.Channels,
    "channel reduction": layered.ChannelReduction,
    "channel softmax": layered.ChannelSoftmax,
    "pixel shuffle": layered.PixelShuffle,
    "pixel unshuffle": layered.PixelUnshuffle,
    "channel order": layered.ChannelOrder,
    "channel pad": layered.ChannelPad,
    "voxel pad": layered.VoxelPad,
    "global mean": layered.GlobalMean,
    "dense": layered.Dense,
    "voxel dropout": layered.VoxelDropout,
}
_NAMES = {kind: name for name, kind in _KINDS.items()}
_KEYS = {"schema", "in_channels", "strides", "nodes", "modules"}


def network_as_json(network: Network) -> dict[str, Any]:
    """The description as nested dictionaries and lists, which `network_from_json` reads."""
    return {
        "schema": SCHEMA,
        "in_channels": network.in_channels,
        "strides": [list(stride) for stride in network.strides],
        "nodes": [{"op": _NAMES[type(node)], **_plain(node)} for node in network.nodes],
        "modules": list(network.modules),
    }


def network_from_json(values: Any, where: str) -> Network:
    """The inverse of `network_as_json`; `where` begins the messages.

    Raises ConfigError where the schema is another, where there is an operation or a key that this version does not
    know, where a value has the wrong type, and where a node reads what no node before it makes.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}: the description of the network is no table; train again")
    if values.get("schema") != SCHEMA:
        raise ConfigError(
            f"{where}: its network is described with schema {values.get('schema')}; this version reads {SCHEMA}: use "
            "the version that wrote it, or train again"
        )
    _check_keys(where, "the network", values, _KEYS)
    network = Network(
        _value(f"{where}: in_channels", int, values["in_channels"]),
        tuple(_value(f"{where}: strides", tuple[int, int, int], stride) for stride in _list(where, values, "strides")),
        tuple(_node(where, node) for node in _list(where, values, "nodes")),
        tuple(_value(f"{where}: modules", str, name) for name in _list(where, values, "modules")),
    )
    _check_order(where, network)
    return network


def _plain(node: Node) -> dict[str, Any]:
    """A node's fields, but for those that have their default."""
    plain = {}
    for one in dataclasses.fields(node):
        value = getattr(node, one.name)
        if value != one.default:
            plain[one.name] = list(value) if isinstance(value, tuple) else value
    return plain


def _node(where: str, values: Any) -> Node:
    if not isinstance(values, Mapping) or values.get("op") not in _KINDS:
        op = values.get("op") if isinstance(values, Mapping) else values
        raise ConfigError(
            f"{where}: the network has an operation {op!r}, which this version does not know; it knows "
            f"{', '.join(_KINDS)}: use the version that wrote it"
        )
    kind = _KINDS[values["op"]]
    name = f"node {values.get('name')!r}"
    required = {one.name for one in dataclasses.fields(kind) if one.default is dataclasses.MISSING}
    hints = get_type_hints(kind)
    _check_keys(where, name, values, required | {"op"}, set(hints))
    fields = {key: _value(f"{where}: {name}: {key}", hints[key], value) for key, value in values.items() if key != "op"}
    return kind(**fields)


def _check_keys(
    where: str, what: str, values: Mapping[str, Any], required: set[str], known: set[str] | None = None
) -> None:
    """Raise ConfigError for a key that is missing, or that is not known."""
    if missing := sorted(required - values.keys()):
        raise ConfigError(f"{where}: {what} lacks {', '.join(missing)}; the file is damaged: train again")
    if strange := sorted(values.keys() - required - (known or set())):
        raise ConfigError(
            f"{where}: {what} has {', '.join(strange)}, which this version does not know; use the version that wrote it"
        )


def _list(where: str, values: Mapping[str, Any], key: str) -> list[Any]:
    found = values[key]
    if not isinstance(found, list):
        raise ConfigError(f"{where}: {key} = {found!r} must be a list")
    return found


def _value(where: str, hint: Any, value: Any) -> Any:
    """A value of a field's type; lists become tuples, whose values are all of one type.

    Raises ConfigError for another type.
    """
    if get_origin(hint) is tuple:
        first, *others = get_args(hint)
        length = None if others == [Ellipsis] else 1 + len(others)
        if isinstance(value, list) and length in (None, len(value)):
            return tuple(_value(where, first, one) for one in value)
    elif get_origin(hint) is Literal:
        if value in get_args(hint):
            return value
    elif hint is float and type(value) in (int, float):
        return float(value)
    elif type(value) is hint:
        return value
    raise ConfigError(f"{where} = {value!r} is not what this version reads there; use the version that wrote it")


def _check_order(where: str, network: Network) -> None:
    """Raise ConfigError unless each node reads what is there, names are unique, and one head gives the logits."""
    known = {IMAGE}
    for node in network.nodes:
        if node.name in known:
            raise ConfigError(f"{where}: two nodes of the network are called {node.name!r}; the file is damaged")
        for name in node.reads:
            if name not in known:
                raise ConfigError(f"{where}: node {node.name!r} reads {name!r}, which no node before it makes")
        if not 0 <= node.stage < len(network.strides):
            raise ConfigError(f"{where}: node {node.name!r} has stage {node.stage}, of {len(network.strides)}")
        known.add(node.name)
    if sum(not head.training for head in network.heads) != 1:
        raise ConfigError(f"{where}: the network must have one head that gives the logits; the file is damaged")
