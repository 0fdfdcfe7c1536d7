"""Names in a data set's folder: where images and labels lie, and what is neither."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from volseg.volumes.file_names import DESCRIPTION, IMAGES, LABELS

PARTS = (IMAGES, LABELS, "imagesTs", "labelsTs")
CHANNEL_END = re.compile(r"_\d{4}$")
OUTPUT_ENDS = ("_mask", "_mask_probabilities")
NAMED = 3


def is_own_output(name: str, images: Iterable[str]) -> bool:
    """Whether `volseg segment` wrote this beside an image: CASE_0000_mask, CASE_0000_mask_probabilities."""
    return any(name.endswith(end) and name.removesuffix(end) in images for end in OUTPUT_ENDS)


def set_of_part(path: Path) -> Path | None:
    """The data set folder that `path` is a part of, such as its imagesTr; None where it is none."""
    whole = path.parent
    return whole if path.name in PARTS and (whole / DESCRIPTION).is_file() else None


def alike_text(folder: Path, name: str) -> str:
    """What to add where `name` is not in a folder, but something called alike is: Windows hides a second ending."""
    for path in sorted(folder.iterdir()):
        if path.name.lower() in (name.lower(), f"{name.lower()}.txt"):
            return f"; there is {path.name}: rename it to {name}"
    return ""


def nested_text(folder: Path) -> str:
    """What to add where a folder is no data set, but folders in it are."""
    inside = [path for path in sorted(folder.iterdir()) if (path / DESCRIPTION).is_file()] if folder.is_dir() else []
    if not inside:
        return ""
    named = ", ".join(map(str, inside[:NAMED])) + (", ..." if len(inside) > NAMED else "")
    single = len(inside) == 1
    return f"; there {'is a data set' if single else 'are data sets'} in it: give {'' if single else 'one of '}{named}"
