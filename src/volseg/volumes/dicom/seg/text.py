"""Text of a DICOM element out of its bytes, by the character set that its header names or, where it cannot be, another.

Character sets: https://dicom.nema.org/medical/dicom/current/output/chtml/part03/sect_C.12.html#sect_C.12.1.1.2
"""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections.abc import Iterator, Sequence

ESCAPE = 0x1B
NAME_DELIMITERS, TEXT_DELIMITERS = frozenset(b"^=\\"), frozenset(b"\\\r\n\t\f")
LATER = {"ISO_IR 203": "iso8859_15", "ISO 2022 IR 203": "iso8859_15"}  # than pydicom's table
SPELLINGS = {"UTF-8": "ISO_IR 192", "UTF8": "ISO_IR 192", "UTF_8": "ISO_IR 192"}
LEFT_OVER = re.compile(r"\x1b(\$\)A|\(B|\(J)")  # escapes that Python's decoder of Chinese lets stand
ALL_ESCAPES = (
    "", "ISO 2022 IR 87", "ISO 2022 IR 159", "ISO 2022 IR 149", "ISO 2022 IR 58", "ISO 2022 IR 13", "ISO 2022 IR 100",
    "ISO 2022 IR 101", "ISO 2022 IR 109", "ISO 2022 IR 110", "ISO 2022 IR 126", "ISO 2022 IR 127", "ISO 2022 IR 138",
    "ISO 2022 IR 144", "ISO 2022 IR 148", "ISO 2022 IR 166",
)  # fmt: skip


def decoded(value: bytes, character_set: Sequence[str], *, names: bool) -> tuple[str | None, bool]:
    """The text, and whether it was taken for Latin-1 where the character set is not given, or is not the text's.

    None: it cannot be known.

    character_set  the values of SpecificCharacterSet, as they are
    names          person names, in which ``^`` and ``=`` end the effect of an escape sequence
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pydicom, about each way that fails
        return _decoded(value.rstrip(b"\0 "), character_set, names)


def _decoded(value: bytes, character_set: Sequence[str], names: bool) -> tuple[str | None, bool]:
    delimiters = NAME_DELIMITERS if names else TEXT_DELIMITERS
    for encodings, ends in _ways(value, character_set, delimiters):
        text = _strictly(value, encodings, ends)
        if text is not None:
            return text, False
    known = _encodings(character_set)[0].lower().replace("-", "") not in ("ascii", "utf8")
    latin = value.decode("latin-1")
    # One letter between plain ones is what Latin-1 looks like; a character of two bytes or more is never that.
    if not known and re.search(rb"[\x80-\xff]{2}", value) is None and all(map(_is_letter_or_ascii, latin)):
        return latin, True
    return None, False


def _ways(
    value: bytes, character_set: Sequence[str], delimiters: frozenset[int]
) -> Iterator[tuple[list[str], frozenset[int]]]:
    """(Python encodings, what ends an escape sequence), the likeliest first."""
    declared = _encodings(character_set)
    yield declared, delimiters
    if ESCAPE in value:  # some write the character set of one language, or none, and the escapes of another
        yield declared, frozenset()
        yield _encodings(ALL_ESCAPES), delimiters
        yield _encodings(ALL_ESCAPES), frozenset()
    yield ["utf-8"], delimiters


def _encodings(character_set: Sequence[str]) -> list[str]:
    """Python's encodings. The default repertoire is ASCII: what lies above is then of another that was not named."""
    values = [SPELLINGS.get(part.strip().upper(), part.strip()) for part in character_set] or [""]
    return [_encoding(part) for part in values if part or part is values[0]]


def _encoding(part: str) -> str:
    from pydicom.charset import convert_encodings

    encoding: str = LATER[part] if part in LATER else convert_encodings(part)[0]
    return "ascii" if encoding == "iso8859" else encoding


def _strictly(value: bytes, encodings: list[str], delimiters: frozenset[int]) -> str | None:
    """The text, None where not every byte has a meaning, or where a control character comes out that no text holds."""
    from pydicom.charset import decode_bytes

    text = LEFT_OVER.sub("", decode_bytes(value, encodings, set(delimiters)))
    wrong = any(letter == "\ufffd" or (unicodedata.category(letter) == "Cc" and letter >= "\x1b") for letter in text)
    return None if wrong else unicodedata.normalize("NFC", text)


def _is_letter_or_ascii(letter: str) -> bool:
    return letter.isascii() or letter.isalpha()
