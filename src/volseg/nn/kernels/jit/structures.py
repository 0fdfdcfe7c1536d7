"""Parameters of kernels that are structures: frozen dataclasses whose fields are numbers, or such structures again.

A structure is handed over as its numbers side by side, in the order of its fields; a kernel sees it whole again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, get_type_hints


@cache
def _fields_of(kind: type) -> dict[str, type]:
    """The fields of a structure; none of a number."""
    if not is_dataclass(kind):
        return {}
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


@cache
def numbers_of(kind: type) -> Sequence[type]:
    """The types of the numbers that a parameter consists of: its own type, or those of a structure's fields."""
    inner = _fields_of(kind)
    return [number for field in inner.values() for number in numbers_of(field)] if inner else [kind]


def assemble(kind: type, take: Callable[[type], Any]) -> Any:
    """A parameter of type `kind`, whose numbers `take` makes one after another, each from its type."""
    inner = _fields_of(kind)
    return kind(**{name: assemble(field, take) for name, field in inner.items()}) if inner else take(kind)


def disassemble(kind: type, value: Any, name: str) -> list[Any]:
    """The numbers of a parameter, in the order of `numbers_of`.

    value  of a structure: an object with its fields, a dictionary from just their names, or None: all numbers are None
    name   of the parameter, for the message

    Raises AssertionError where a dictionary has other names than the structure.
    """
    inner = _fields_of(kind)
    if not inner:
        return [value]
    if value is None:
        return [None] * len(numbers_of(kind))
    if not isinstance(value, dict):
        value = {field: getattr(value, field) for field in inner}
    elif value.keys() != inner.keys():
        raise AssertionError(f"{name}: {sorted(value.keys() ^ inner.keys())}")
    numbers: list[Any] = []
    for field, field_kind in inner.items():
        if _fields_of(field_kind):
            numbers += disassemble(field_kind, value[field], f"{name}.{field}")
        else:
            numbers.append(value[field])
    return numbers
