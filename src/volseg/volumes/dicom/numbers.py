"""Numbers that DICOM writes as text (DS), and what is made of values that are none.

Software that writes numbers by the rules of a German or French system leaves a decimal comma. DICOM knows no comma at
all in a number, so that one can only mean the point; but for a value in whole thousands, ``-1,024``, which may be one
grouped by three digits. RescaleIntercept alone comes in thousands, so of that alone such a value is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from volseg.volumes.dicom.image import printable

COMMA = re.compile(r"\s*[+-]?\d*,\d+([eE][+-]?\d+)?\s*|\s*[+-]?\d+,\s*")
GROUPED = re.compile(r"\s*[+-]?[1-9]\d{0,2},\d{3}\s*")
IN_THOUSANDS = ("RescaleIntercept",)
TEXT_SHOWN = 40  # characters


def numbers(value: Any, *, in_thousands: bool = False) -> tuple[float, ...]:
    """The numbers of an element's value, as pydicom gives it: a number, text, or several; a decimal comma is a point.

    Raises ValueError, with the value as the file has it, where one of them is no number; `in_thousands`: or where its
    comma may as well group thousands.
    """
    parts = _parts(value)
    if in_thousands and any(isinstance(part, str) and GROUPED.fullmatch(part) for part in parts):
        raise ValueError(as_written(value))
    try:
        return tuple(map(float, parts))
    except (TypeError, ValueError, OverflowError):
        pass
    try:
        return tuple(float(part.replace(",", ".")) if _has_comma(part) else float(part) for part in parts)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(as_written(value)) from None


def as_written(value: Any) -> str:
    """A value for messages, as the file has it: ``0,8\\0,7``; printable, and not long."""
    text = printable("\\".join(str(part) for part in _parts(value)))
    return text if len(text) <= TEXT_SHOWN else text[: TEXT_SHOWN - 3] + "..."


def with_points(header: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A header (elements by keyword) with numbers where decimals had commas; and a note of each such element.

    Values of elements that are no decimals (DS), and those that are no numbers with a comma either, stay as they are.
    """
    mended, notes = dict(header), []
    for keyword, value in header.items():
        if isinstance(value, float | int) or not any(map(_has_comma, _texts(value))) or not _is_decimal(keyword):
            continue
        try:
            read = numbers(value, in_thousands=keyword in IN_THOUSANDS)
        except ValueError:
            continue
        mended[keyword] = read[0] if len(read) == 1 else list(read)
        notes.append(f"{keyword} has a decimal comma, read as a point")
    return mended, tuple(notes)


def _has_comma(part: Any) -> bool:
    return isinstance(part, str) and COMMA.fullmatch(part) is not None


def _texts(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        return value.split("\\")
    return (part for part in value if isinstance(part, str)) if isinstance(value, list) or _is_multiple(value) else ()


def _is_multiple(value: Any) -> bool:
    from pydicom.multival import MultiValue

    return isinstance(value, MultiValue)


def _parts(value: Any) -> list[Any]:
    """The values of an element, one or several, text not yet converted."""
    if isinstance(value, bytes):
        value = value.decode("latin-1").rstrip("\0")
    if isinstance(value, str):
        return value.split("\\")
    try:
        return list(value)
    except TypeError:
        return [value]


@cache
def _is_decimal(keyword: str) -> bool:
    from pydicom.datadict import dictionary_VR

    try:
        return str(dictionary_VR(keyword)) == "DS"
    except KeyError:
        return False
