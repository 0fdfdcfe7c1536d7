"""JSON that people wrote by hand: read strictly, and what is wrong said with its place."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from volseg.errors import VolumeError
from volseg.text import read_text

STRINGS_AND_COMMENTS = re.compile(r'"(?:\\.|[^"\\\n])*"|(//[^\n]*|#[^\n]*|/\*.*?\*/)', re.DOTALL)
EXTRA_COMMA = re.compile(r",\s*[}\]]")
TYPOGRAPHIC = "\u201c\u201d\u201e\u2018\u2019"


def load_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises VolumeError where there is none, or a name occurs twice with two values."""
    try:
        text = read_text(path)
    except OSError as error:
        raise VolumeError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise VolumeError(f"{path}: is not valid JSON: {error}") from None
    try:
        content = json.loads(text, object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        raise VolumeError(f"{path}: is not valid JSON: {_what_is_wrong(text, error)}") from None
    except RecursionError:
        raise VolumeError(f"{path}: is not valid JSON: nested too deep") from None
    except ValueError as error:
        raise VolumeError(f"{path}: {error}") from None
    if not isinstance(content, dict):
        raise VolumeError(f"{path}: holds no JSON object; expected {{...}}")
    return content


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Each name with its value; json.loads would take the last of several without a word."""
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values and values[name] != value:
            raise ValueError(f"{name!r} occurs twice, as {values[name]!r} and as {value!r}; keep one")
        values[name] = value
    return values


def _what_is_wrong(text: str, error: json.JSONDecodeError) -> str:
    """The fault in words, and where it is."""
    if not text.strip():
        return "the file is empty"
    comment = _comment_before(text, error.pos)
    if comment is not None:
        return f"a comment at {_place(text, comment)}; JSON has none, remove it"
    comma = text.rfind(",", 0, error.pos + 1)
    if comma >= 0 and EXTRA_COMMA.match(text, comma):
        return f"a comma too many at {_place(text, comma)}, before a closing bracket; remove it"
    if text[error.pos : error.pos + 1] and text[error.pos] in TYPOGRAPHIC:
        return f'typographic quotation marks at {_place(text, error.pos)}; write them as "'
    if text[error.pos : error.pos + 1] == "'":
        return f"single quotation marks at {_place(text, error.pos)}; JSON has double ones"
    return f"{error.msg} at {_place(text, error.pos)}"


def _comment_before(text: str, end: int) -> int | None:
    """Where the first comment begins, if it begins before or at `end`, where reading stopped."""
    for match in STRINGS_AND_COMMENTS.finditer(text):
        if match.start() > end:
            return None
        if match[1]:
            return match.start()
    return None


def _place(text: str, position: int) -> str:
    line = text.count("\n", 0, position) + 1
    return f"line {line}, column {position - text.rfind(chr(10), 0, position)}"
