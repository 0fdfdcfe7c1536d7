"""Numbers of ranks as users type them: ``1:1024``."""

from __future__ import annotations

from volseg.errors import ConfigError


def parse_ranks(text: str, option: str = "--ranks") -> list[int]:
    """``64`` as [64], ``3:20`` as [3, 4, 8, 16, 20], ``1,2,6`` as [1, 2, 6]. Raises ConfigError for anything else.

    Of a range its ends and the powers of two between.
    """
    separator = ":" if ":" in text else ","
    words = text.split(separator)
    if not all(word.isdecimal() for word in words) or (separator == ":" and len(words) != 2):
        raise ConfigError(f"{option} {text}: give a number, a range such as 1:1024, or a list such as 1,2,6")
    counts = [int(word) for word in words]
    if min(counts) < 1:
        raise ConfigError(f"{option} {text}: give at least 1")
    if separator == ":":
        from volseg.planning.search import powers_up_to

        low, high = sorted(counts)
        counts = [low, *(n for n in powers_up_to(high) if n > low)]
    return sorted(set(counts))
