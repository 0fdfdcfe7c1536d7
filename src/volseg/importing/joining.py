"""Several models made into one run folder, whose mask holds the labels of all: as TotalSegmentator runs its parts.

TotalSegmentator (Wasserthal et al., Radiology: Artificial Intelligence 2023) is several models of nnU-Net, each of some
structures. It runs them one after another, and where two claim a voxel, the later one has it. Its classes are numbered
as if the labels of the parts stood one behind the other (its `map_to_binary.py`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from volseg.errors import ConfigError, first_few
from volseg.importing.job import Imported
from volseg.models.joined import Joined, Part
from volseg.models.stored import ModelCard

_FAMILIES = (
    {291: 0, 292: 24, 293: 50, 294: 68, 295: 91},  # total
    {850: 0, 851: 29},  # total_mr
    {778: 0, 779: 11},  # headneck_muscles
)
"""By the number of its data set: how many classes of a task of TotalSegmentator stand before those of a part."""
_DATASET = re.compile(r"Dataset(\d+)_")
TOTAL = frozenset(_FAMILIES[0])
"""Data sets whose windows TotalSegmentator puts further apart than nnU-Net does."""


@dataclass(frozen=True)
class Member:
    """A model to join.

    source  what it is called where several are told apart
    run     its run folder
    """

    source: str
    run: Path
    imported: Imported


def dataset_number(name: str) -> int | None:
    """The number of an nnU-Net data set by its name, or a path that has it; None where there is none."""
    numbers = _DATASET.findall(name)
    return int(numbers[-1]) if numbers else None


def joined(members: Sequence[Member]) -> Joined:
    """The labels of all models, numbered one behind the other in the order of the models.

    Parts of a task of TotalSegmentator have its numbers, although some of its parts may be left out.

    Raises ConfigError where models see scans differently, find overlapping regions, or the same label.
    """
    first = members[0]
    for member in members:
        _check(first, member)
    offsets = _offsets(members)
    labels, parts, homes = {"background": 0}, [], {"background": first.source}
    for member, offset in zip(members, offsets, strict=True):
        values = {}
        for name, value in member.imported.card.labels.items():
            if not value:
                continue
            if name in labels:
                raise ConfigError(
                    f"{member.source}: finds {name}, and so does {homes[name]}; which of them a mask should have, "
                    "nobody says: leave out one, and segment with it for itself"
                )
            labels[name] = values[value] = offset + value
            homes[name] = member.source
        parts.append(Part(member.run, values))
    return Joined(dict(sorted(labels.items(), key=lambda item: item[1])), tuple(parts))


def facts_of(members: Sequence[Member], of: Joined) -> dict[str, Any]:
    """What the joined run is, as plain values."""
    facts = members[0].imported.facts
    return {
        "source": ", ".join(member.imported.facts["source"] for member in members),
        "tool": facts["tool"],
        "channels": facts["channels"],
        "labels": of.labels,
        "regions": [],
        "parameters": sum(member.imported.facts["parameters"] for member in members),
        "window": facts["window"],
        "spacing_mm": facts["spacing_mm"],
        "mirrored_axes": facts["mirrored_axes"],
        "transpose": facts["transpose"],
        "parts": [member.run.name for member in members],
    }


def _offsets(members: Sequence[Member]) -> list[int]:
    """By model: how many labels stand before its own."""
    numbers = [dataset_number(member.imported.facts["source"]) for member in members]
    for family in _FAMILIES:
        if all(number in family for number in numbers):
            return [family[number] for number in numbers if number is not None]
    offsets, before = [], 0
    for member in members:
        offsets.append(before)
        before += max(member.imported.card.labels.values())
    return offsets


def _check(first: Member, other: Member) -> None:
    card = other.imported.card
    if card.regions:
        raise ConfigError(
            f"{other.source}: finds overlapping regions, which share no mask with other models; import it for itself"
        )
    differing = [what for what, value in _sight(card).items() if _sight(first.imported.card)[what] != value]
    if differing:
        raise ConfigError(
            f"{other.source}: sees scans otherwise than {first.source} ({first_few(differing)}), so that the two "
            "cannot share a mask; import each for itself"
        )


def _sight(card: ModelCard) -> dict[str, object]:
    """What models that share a mask have in common."""
    origin = card.origin
    assert origin is not None, "an imported model has an origin"
    return {
        "channels": tuple(scheme.name for scheme in card.schemes),
        "spacing": card.seen_at and tuple(round(side, 4) for side in card.seen_at),
        "axes": (origin.order, origin.transpose),
        "cropping": origin.crop,
        "resampling": (origin.cubic, origin.first, origin.back),
        "windows": origin.window is None,
    }
