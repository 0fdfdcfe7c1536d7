"""The configuration of a MONAI bundle, read as plain values: nothing in it is run.

A bundle (https://docs.monai.io/en/stable/mb_specification.html) says in JSON or YAML which objects are made of which
classes (`_target_`). Texts that begin with ``@`` stand for another value of the file; texts that begin with ``$`` are
Python, of which a plain ``$@name`` alone is followed. Any other is refused where its value is needed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from volseg.errors import CheckpointError, ConfigError, first_line

_REFERENCE = re.compile(r"\$?@(?P<path>[\w:#]+)")
_SEPARATOR = re.compile(r"::|#")
_DEEPEST = 50


class BundleConfig:
    """A configuration file of a bundle.

    where   the file, for messages
    values  what it holds
    """

    def __init__(self, where: str, values: Mapping[str, Any]) -> None:
        self.where, self.values = where, values

    def table(self, path: str) -> Mapping[str, Any]:
        """The table at `path`, names with ``#`` between them, as it is written; an empty one where there is none.

        References that stand for it are followed, those in it are not.
        """
        value: Any = self.values
        for key in _SEPARATOR.split(path):
            value = self.followed(value.get(key), path) if isinstance(value, Mapping) else None
        return value if isinstance(value, Mapping) else {}

    def argument(self, path: str, key: str, otherwise: Any = None) -> Any:
        """A value of the table at `path`, `resolved`; `otherwise` where the table has none."""
        there = self.table(path)
        return self.resolved(there[key], f"{path}#{key}") if key in there else otherwise

    def followed(self, value: Any, name: str) -> Any:
        """What a value that is a reference stands for, as it is written; any other value, Python too, as it is."""
        for _ in range(_DEEPEST):
            reference = _REFERENCE.fullmatch(value) if isinstance(value, str) else None
            if reference is None:
                return value
            value = self._at(reference["path"], name)
        raise ConfigError(f"{self.where}: {name} refers to itself; write its value there")

    def resolved(self, value: Any, name: str, depth: int = 0) -> Any:
        """`value` with what its references stand for in their place; `name` is what messages call it.

        Raises ConfigError where a part of it is Python, or a reference leads nowhere or in a circle.
        """
        if depth > _DEEPEST:
            raise ConfigError(f"{self.where}: {name} refers to itself, or is nested too deep; write its value there")
        if isinstance(value, Mapping):
            return {key: self.resolved(part, f"{name}#{key}", depth + 1) for key, part in value.items()}
        if isinstance(value, list):
            return [self.resolved(part, f"{name}#{number}", depth + 1) for number, part in enumerate(value)]
        if not isinstance(value, str) or not value.startswith(("@", "$", "%")):
            return value
        reference = _REFERENCE.fullmatch(value)
        if reference is None:
            raise ConfigError(
                f"{self.where}: {name} = {value!r} is Python or a macro, which is not run; write the value itself in "
                "its place, in a copy of the bundle"
            )
        return self.resolved(self._at(reference["path"], name), name, depth + 1)

    def _at(self, path: str, name: str) -> Any:
        value: Any = self.values
        for key in _SEPARATOR.split(path):
            try:
                value = value[int(key)] if isinstance(value, list) else value[key]
            except (KeyError, ValueError, IndexError, TypeError):
                raise ConfigError(f"{self.where}: {name} refers to {path}, which is not there") from None
        return value


def parsed(text: str, where: str) -> BundleConfig:
    """A configuration file from its text, JSON or, by its name, YAML.

    Raises CheckpointError where it is none, ConfigError where YAML cannot be read here.
    """
    try:
        values = json.loads(text) if where.endswith(".json") else _yaml(text, where)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where}: cannot be read ({first_line(error)}); restore it") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{where}: holds no table; restore it")
    return BundleConfig(where, values)


def _yaml(text: str, where: str) -> Any:
    try:
        import yaml  # type: ignore[import-untyped]
    except ImportError:
        raise ConfigError(f"{where}: is YAML, which needs PyYAML; install it (pip install pyyaml)") from None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(first_line(error)) from None


def target_of(value: Any) -> str:
    """The class that an object is made of, without the package: the last word of its `_target_`; empty where none."""
    name = value.get("_target_", "") if isinstance(value, Mapping) else ""
    return name.rpartition(".")[2] if isinstance(name, str) else ""


def arguments_of(value: Mapping[str, Any]) -> dict[str, Any]:
    """What an object is made with: all but the keys that concern its making."""
    return {key: part for key, part in value.items() if not key.startswith("_")}


def listed(value: Any) -> Sequence[Any]:
    """Several values, where one may stand for itself."""
    return value if isinstance(value, list) else [value]
