"""Run folders that join several models: each finds some of the labels, and one mask holds those of all.

`joined.json` names the run folder of each part and what its labels become in the mask. TotalSegmentator is made so
(Wasserthal et al., Radiology: Artificial Intelligence 2023): where two parts claim a voxel, the later one has it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from volseg.errors import CheckpointError
from volseg.files import write_text
from volseg.networks.stored import JOINED

_SCHEMA = 1


@dataclass(frozen=True)
class Part:
    """One of the models that are joined.

    run     its run folder
    values  what each of its labels but the background is in the mask
    """

    run: Path
    values: Mapping[int, int]


@dataclass(frozen=True)
class Joined:
    """What a run folder joins.

    labels  of the mask by name, background first
    parts   in the order in which they are run: later ones go over earlier ones
    """

    labels: dict[str, int]
    parts: tuple[Part, ...]


def write_joined(folder: Path, joined: Joined) -> None:
    """Write `joined.json` into `folder`, which holds the run folders of the parts."""
    parts = [
        {"run": part.run.name, "values": {str(own): value for own, value in part.values.items()}}
        for part in joined.parts
    ]
    content = {"schema": _SCHEMA, "labels": joined.labels, "parts": parts}
    write_text(folder / JOINED, json.dumps(content, indent=2) + "\n")


def read_joined(run: Path) -> Joined | None:
    """What a run folder joins; None where it holds a model of its own.

    Raises CheckpointError where its `joined.json` is malformed, or names what is no folder beside it.
    """
    path = run / JOINED
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["schema"] != _SCHEMA:
            raise ValueError(f"its schema is {values['schema']}, and this version reads {_SCHEMA}")
        labels = {str(name): int(value) for name, value in values["labels"].items()}
        parts = tuple(_part(run, part) for part in values["parts"])
        known = set(labels.values())
        if not parts or 0 not in known or any(not set(part.values.values()) <= known - {0} for part in parts):
            raise ValueError("its parts and labels do not go together")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: is malformed ({error}); import the models again") from None
    return Joined(labels, parts)


def _part(run: Path, value: Any) -> Part:
    name = PurePosixPath(value["run"])
    if len(name.parts) != 1 or name.name in ("", ".."):
        raise ValueError(f"{value['run']!r} is no folder beside it")
    return Part(run / name.name, {int(own): int(label) for own, label in value["values"].items()})
