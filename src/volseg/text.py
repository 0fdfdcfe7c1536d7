"""Text files that people edit, in the encodings that their editors leave."""

from __future__ import annotations

import codecs
from pathlib import Path

MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
"""Byte order marks, as Windows' editors and shells write them; those of UTF-32 begin like those of UTF-16."""


def read_text(path: Path) -> str:
    """The text of a file: UTF-8, or what its byte order mark says (Notepad, PowerShell's ``>``).

    Raises OSError where it cannot be read, ValueError (a UnicodeDecodeError is one) where it is not such text.
    """
    content = path.read_bytes()
    if b"\0" in content[:4] and not content.startswith(tuple(mark for mark, _ in MARKS)):
        raise ValueError("no text, or UTF-16 without its byte order mark; save it as UTF-8")
    encoding = next((name for mark, name in MARKS if content.startswith(mark)), "utf-8")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(f"no {encoding.removesuffix('-sig').upper()} at line {line}; save it as UTF-8") from None
