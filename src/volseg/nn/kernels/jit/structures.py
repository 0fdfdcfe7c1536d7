"""Parameters of kernels that are structures: frozen dataclasses whose fields are numbers, or such structures again.

A structure is handed over as its numbers side by side, in the order of its fields; a kernel sees it whole again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, get_type_hints


@cache
def _fields_of(kind: type) -> dict[str, type]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def numbers_of(kind: type) -> list[type]:
    """The types of the numbers that a parameter consists of: its own type, or those of a structure's fields."""
    if not is_dataclass(kind):
        return [kind]
    return [number for inner in _fields_of(kind).values() for number in numbers_of(inner)]


def assemble(kind: type, take: Callable[[type], Any]) -> Any:
    """A parameter of type `kind`, whose numbers `take` makes one after another, each from its type."""
    if not is_dataclass(kind):
        return take(kind)
    return kind(**{name: assemble(inner, take) for name, inner in _fields_of(kind).items()})


def disassemble(kind: type, value: Any, name: str) -> Iterator[tuple[type, Any]]:
    """The numbers of a parameter, each with its type, in the order of `numbers_of`.

    value  of a structure: an object with its fields, a mapping from just their names, or None, whose numbers are None
    name   of the parameter, for the message

    Raises AssertionError where a mapping has other names than the structure.
    """
    if not is_dataclass(kind):
        yield kind, value
        return
    inner_kinds = _fields_of(kind)
    if isinstance(value, Mapping) and value.keys() != inner_kinds.keys():
        raise AssertionError(f"{name}: {sorted(value.keys() ^ inner_kinds.keys())}")
    for field, inner in inner_kinds.items():
        if value is None:
            part = None
        else:
            part = value[field] if isinstance(value, Mapping) else getattr(value, field)
        yield from disassemble(inner, part, f"{name}.{field}")
