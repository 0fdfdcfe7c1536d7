"""Labels that differ by side alone, known by their names: what mirroring along left and right would teach wrongly."""

from __future__ import annotations

import re
from collections.abc import Iterable

_SIDES = (
    ("left", "right"), ("l", "r"), ("lt", "rt"), ("lft", "rgt"), ("lh", "rh"), ("lhs", "rhs"),
    ("links", "rechts"), ("linke", "rechte"), ("linker", "rechter"), ("linkes", "rechtes"), ("li", "re"),
    ("gauche", "droite"), ("gauche", "droit"),
    ("izquierda", "derecha"), ("izquierdo", "derecho"), ("izq", "der"),
    ("esquerda", "direita"), ("esquerdo", "direito"), ("esq", "dir"),
    ("sinistra", "destra"), ("sinistro", "destro"), ("sinister", "dexter"), ("sinistra", "dextra"), ("sin", "dex"),
    ("sn", "dx"), ("sx", "dx"),
)  # fmt: skip
"""Words for left and right, of one language and form each."""
_SHORT = 2  # letters of a side that has to be a word of its own
_WORDS = re.compile(r"[^\W\d_]+|\d+")
_CAMEL = re.compile(r"(?<=[^\W\d_A-Z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][^\W\d_A-Z])")


def sided_pairs(names: Iterable[str]) -> list[tuple[str, str]]:
    """(left, right): names that are the same but for a word for a side, such as ``kidney_left`` and ``kidney_right``.

    A side alone is no name: both of a pair have to be there. Case, and what stands between words, do not matter.
    """
    by_words: dict[tuple[str, ...], str] = {}
    for name in names:
        by_words.setdefault(_words(name), name)
    pairs = []
    for words, name in by_words.items():
        other = next((by_words[turned] for turned in _turned(words) if turned in by_words), None)
        if other is not None and other != name:
            pairs.append((name, other))
    return pairs


def _words(name: str) -> tuple[str, ...]:
    return tuple(word.casefold() for part in _WORDS.findall(name) for word in _CAMEL.split(part))


def _turned(words: tuple[str, ...]) -> list[tuple[str, ...]]:
    """A left name as its right one would be: one word of it, or a side that is grown together with its neighbour."""
    found = []
    for place, word in enumerate(words):
        for left, right in _SIDES:
            if word == left:
                found.append((*words[:place], right, *words[place + 1 :]))
            elif len(left) > _SHORT:  # leftkidney, kidneyleft
                grown = [
                    mended for mended in (_ends(word, left, right), _begins(word, left, right)) if mended is not None
                ]
                found += [(*words[:place], mended, *words[place + 1 :]) for mended in grown]
    return found


def _ends(word: str, left: str, right: str) -> str | None:
    return word[: -len(left)] + right if word.endswith(left) else None


def _begins(word: str, left: str, right: str) -> str | None:
    return right + word[len(left) :] if word.startswith(left) else None
