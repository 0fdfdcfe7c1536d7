"""Which label a voxel gets that lies in several structures: a tumour in a liver, an organ in a body.

A mask holds one label a voxel, while contours, segments of a SEG and a folder of masks may overlap. By default the
smallest structure has the voxel, for a small one in a large one would vanish otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

from volseg.errors import ConfigError, VolumeError

Overlap = Literal["smallest", "last", "error"]
"""smallest: the smallest structure has the voxel; last: the last of the file's list; error: none may overlap."""

CHOICES: tuple[str, ...] = get_args(Overlap)
NAMED = 3


def parse_overlap(text: str) -> Overlap:
    """The choice by its name. Raises ConfigError where it is none."""
    for choice in get_args(Overlap):
        if text == choice:
            return choice  # type: ignore[no-any-return]
    raise ConfigError(f"--overlap {text}: give one of {', '.join(CHOICES)}")


def painting_order(values: Sequence[int], sizes: Mapping[int, float], overlap: Overlap) -> list[int]:
    """Label values, in the order of the file's list, in the order in which they are painted: the last has the voxel."""
    return list(values) if overlap != "smallest" else sorted(values, key=lambda value: -sizes[value])


def overlap_warning(path: Path, pairs: Sequence[tuple[str, str]], overlap: Overlap, what: str) -> list[str]:
    """A warning that names the structures that overlap, none where `pairs` is empty.

    pairs  names of two with a voxel in common: that which has the voxel, and the other
    what   they are, in words: ROIs, segments, masks

    Raises VolumeError where there must be no overlap.
    """
    if not pairs:
        return []
    more = f" and {len(pairs) - NAMED} more" if len(pairs) > NAMED else ""
    if overlap == "error":
        names = ", ".join(f"{first} and {second}" for first, second in pairs[:NAMED])
        raise VolumeError(
            f"{path}: {what} overlap, and a mask holds one label a voxel: {names}{more}; --overlap smallest gives the "
            "voxel to the smallest of them, --overlap last to the last of the list"
        )
    how = "in" if overlap == "smallest" else "over"
    names = ", ".join(f"{upper} {how} {lower}" for upper, lower in pairs[:NAMED])
    return [f"{what} overlap, and a voxel of several goes to the {overlap}: {names}{more}"]
