"""Which of the files that cannot be read look like slices of a series, by their names.

A file whose contents are lost can only be known by its name: by the folder it lies in, by an ending such as .dcm, and
by a name that is its neighbours' but for the digits. What stands between two slices of a series is taken for one.
"""

from __future__ import annotations

import re
from bisect import bisect
from collections.abc import Mapping
from dataclasses import dataclass, field

ENDINGS = (".dcm", ".dicom", ".dic", ".dc3", ".ima")
UNFINISHED = (".part", ".partial", ".crdownload", ".download", ".filepart", ".tmp", ".icloud", ".dvc")
PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip")
HEXADECIMAL = re.compile(r"[0-9a-f-]{16,}")

Order = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Likeness:
    """Of a file that could not be read.

    owners    the series, by their numbers, that it looks like a slice of
    possible  whether it may be a slice of any
    """

    owners: frozenset[int] = frozenset()
    possible: bool = False


@dataclass
class _Row:
    """Names of one folder that are alike but for their digits, in their order, and whose slices they are."""

    names: list[tuple[Order, int | None]] = field(default_factory=list)
    folders: set[str] = field(default_factory=set)

    @property
    def has_slices(self) -> bool:
        return any(owner is not None for _, owner in self.names)

    def beside(self, name: str) -> frozenset[int]:
        at = bisect(self.names, natural_order(name), key=lambda pair: pair[0])
        near = [owner for _, owner in self.names[max(0, at - 1) : at + 1]]
        return frozenset(owner for owner in near if owner is not None)


class Names:
    """The names of files that were read.

    owners  name -> number of the series that the file is a slice of; None for a file of DICOM that is of none
    """

    def __init__(self, owners: Mapping[str, int | None]) -> None:
        self._rows: dict[tuple[str, str], _Row] = {}
        self._endings: dict[tuple[str, str], set[int]] = {}
        self._folders: set[str] = set()
        self._known = {"/".join(_split(name)) for name in owners}
        for name, owner in owners.items():
            folder, base = _split(name)
            self._folders.add(folder)
            place = natural_order(f"{folder}/{base}")
            for key in (folder, _pattern(base)), _one_each(folder, base):
                row = self._rows.setdefault(key, _Row())
                row.names.append((place, owner))
                row.folders.add(folder)
            if owner is not None:
                self._endings.setdefault((folder, _ending(base)), set()).add(owner)
        for row in self._rows.values():
            row.names.sort(key=lambda pair: pair[0])
        self._patterns = {pattern for (_, pattern), row in self._rows.items() if row.has_slices}

    def likeness(self, name: str) -> Likeness:
        """What a file that could not be read looks like, by its name."""
        folder, base = _split(name)
        stem = _meant(base)
        if stem is None or (stem != base and f"{folder}/{stem}" in self._known):
            return Likeness()  # hidden files; what is left of a download or a packing
        meant = f"{folder}/{stem}"
        row = self._rows.get((folder, _pattern(stem)))
        if row is None and folder not in self._folders:
            row = self._rows.get(_one_each(folder, stem))
            row = row if row is not None and len(row.names) == len(row.folders) else None
        if row is not None:
            return Likeness(row.beside(meant), possible=row.has_slices)
        ending = _ending(stem)
        alike = self._endings.get((folder, ending), set()) if ending else set()
        if len(alike) == 1:
            return Likeness(frozenset(alike), possible=True)
        return Likeness(possible=bool(ending) or _pattern(stem) in self._patterns)


def natural_order(name: str) -> Order:
    """A name as text and numbers in turn, so that 10 comes after 9."""
    parts = re.split(r"([0-9]+)", name)
    return tuple((parts[n], int(parts[n + 1]) if n + 1 < len(parts) else 0) for n in range(0, len(parts), 2))


def _split(name: str) -> tuple[str, str]:
    folder, _, base = name.replace("\\", "/").replace("!", "/").rpartition("/")
    return folder, base


def _meant(base: str) -> str | None:
    """The name of the file that one stands for: of a placeholder, or half of a download; None for a hidden file."""
    lower = base.lower()
    if lower.startswith(".") and lower.endswith(".icloud"):
        return base[1 : -len(".icloud")]
    if base.startswith("."):
        return None
    for ending in (*UNFINISHED, *PACKED):
        if lower.endswith(ending) and len(base) > len(ending):
            return base[: -len(ending)]
    return base


def _ending(base: str) -> str:
    lower = base.lower()
    return next((ending for ending in ENDINGS if lower.endswith(ending)), "")


def _pattern(base: str) -> str:
    """A name without what differs between the slices of a series."""
    stem = base.lower().removesuffix(_ending(base))
    if HEXADECIMAL.fullmatch(stem):
        return "hexadecimal" + _ending(base)
    return re.sub(r"[0-9]+", "#", base.lower())


def _one_each(folder: str, base: str) -> tuple[str, str]:
    """As (folder, pattern) where each slice lies in a folder of its own."""
    above, _, own = folder.rpartition("/")
    return above, f"{_pattern(own)}/{_pattern(base)}"
