"""How a volume came to be what it is: which files were used, what was left out and why, what was mended."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Dropped:
    """A file (or a frame of one) that is no part of the volume, and the reason in words."""

    name: str
    reason: str


@dataclass(frozen=True)
class Audit:
    """What reading a volume has to account for.

    used      names of the images the volume is made of, in the order of its slices; of an archive its members
    inputs    the files on disk that were read for it (of an archive, the archive), to be hashed
    dropped   what was found beside it and left out
    fixes     what was mended at the user's wish, one line each: "gantry tilt of 18.5 degrees sheared back"
    warnings  what a reader should know, one line each: "sform and qform differ by 3.2 mm; the sform was used"
    facts     more for the report, as (name, value): modality, series, transfer syntax
    """

    used: tuple[str, ...] = ()
    inputs: tuple[Path, ...] = ()
    dropped: tuple[Dropped, ...] = ()
    fixes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()

    def as_json(self) -> dict[str, Any]:
        """All but `inputs` as plain values."""
        return {
            "used": list(self.used),
            "dropped": [{"name": dropped.name, "reason": dropped.reason} for dropped in self.dropped],
            "fixes": list(self.fixes),
            "warnings": list(self.warnings),
            "facts": dict(self.facts),
        }


def count_reasons(dropped: Iterable[Dropped]) -> list[tuple[str, int, tuple[str, ...]]]:
    """(reason, how many, their names), the commonest reason first: a short account of what was left out."""
    names: dict[str, list[str]] = {}
    for item in dropped:
        names.setdefault(item.reason, []).append(item.name)
    counted = [(reason, len(some), tuple(some)) for reason, some in names.items()]
    return sorted(counted, key=lambda row: (-row[1], row[0]))
