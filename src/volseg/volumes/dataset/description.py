"""dataset.json, of nnU-Net v2 and of the Medical Segmentation Decathlon: channels and labels.

    nnU-Net     channel_names {"0": "CT"}, labels {"background": 0, "liver": 1}, numTraining, file_ending
    Decathlon   modality {"0": "CT"}, labels {"0": "background", "1": "liver"}, numTraining, training

Source: nnU-Net v2, documentation/dataset_format.md; http://medicaldecathlon.com.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from volseg.errors import VolumeError
from volseg.files import write_text
from volseg.volumes.dataset.json_file import load_json
from volseg.volumes.file_names import DESCRIPTION
from volseg.volumes.regions import Region, value_names

IGNORE_LABEL = "ignore"


def read_label_names(path: str | Path, gaps: bool = False) -> dict[str, int]:
    """Label names -> values from a dataset.json, or from a plain JSON object such as ``{"liver": 1}``.

    gaps  as for `parse_labels`

    Raises VolumeError where the file is missing, is not JSON, or holds no labels.
    """
    return parse_labels(_described(Path(path)), Path(path), gaps)


def read_ignored_value(path: str | Path) -> int | None:
    """The value of nnU-Net's ``ignore`` in such a file; see `ignored_value`."""
    return ignored_value(_described(Path(path)), Path(path))


def _described(path: Path) -> dict[str, Any]:
    description = load_json(path)
    return description if "labels" in description else {"labels": description}


def parse_labels(description: Mapping[str, Any], path: Path, gaps: bool = False) -> dict[str, int]:
    """The ``labels`` of a dataset.json as name -> value, background first. `path` is for messages.

    Accepts the Decathlon's ``{"0": "background", "1": "liver"}`` too. nnU-Net's ``ignore`` is no label: see
    `ignored_value`. Where some are regions (see `parse_regions`), the labels are those that regions are made of.

    gaps  whether values may be left out, and regions lack their order, as where all that is only the source of other
          labels

    Raises VolumeError where there are none, or they leave a gap.
    """
    several = _values_of_regions(description, path)
    if not gaps:
        parse_regions(description, path)
    if several:
        labels = value_names([Region(name, some, some[0]) for name, some in several.items()])
    else:
        labels = {name: only for name, (only, *_) in _values(description, path).items() if not _is_ignore(name)}
        if 0 not in labels.values():
            labels["background"] = 0
    values = sorted(labels.values())
    if not gaps and values != list(range(len(values))):
        shown = ", ".join(map(str, values[:12])) + (", ..." if len(values) > 12 else "")
        raise VolumeError(
            f"{path}: label values {shown} must run 0, 1, 2, ... without a gap or a repeat; a table [labels] in the "
            "configuration makes such of them, such as liver = [5, 6]"
        )
    return dict(sorted(labels.items(), key=lambda item: item[1]))


def parse_regions(description: Mapping[str, Any], path: Path) -> tuple[Region, ...]:
    """The regions of a dataset.json, in the order of its labels; empty where no label is a list of several values.

    nnU-Net's ``regions_class_order`` says which label a mask holds for each of them, the later over the earlier.
    Raises VolumeError where that is missing or does not suit them, or a region holds the background.
    """
    values = _values_of_regions(description, path)
    if not values:
        return ()
    order = description.get("regions_class_order")
    if not isinstance(order, list) or len(order) != len(values) or any(as_whole(value) is None for value in order):
        example = json.dumps([some[0] for some in values.values()])
        raise VolumeError(
            f'{path}: its labels are {len(values)} regions ({", ".join(values)}), so it needs "regions_class_order", '
            f"the value that a mask holds for each of them, later ones over earlier ones, such as {example}"
        )
    known = {value for some in values.values() for value in some}
    written = [as_whole(value) or 0 for value in order]
    for name, some in values.items():
        if min(some) < 1:
            raise VolumeError(
                f"{path}: region {name!r} {list(some)} holds {min(some)}; 0 is the background: take it out"
            )
    strange = sorted(set(written) - known)
    if strange:
        raise VolumeError(
            f'{path}: "regions_class_order" holds {strange[0]}, which is no value of a region; they are '
            f"{', '.join(map(str, sorted(known)))}"
        )
    return tuple(Region(name, some, value) for (name, some), value in zip(values.items(), written, strict=True))


def _values_of_regions(description: Mapping[str, Any], path: Path) -> dict[str, tuple[int, ...]]:
    """The values in each region, by name; none where no label is a list of several values."""
    values = {name: some for name, some in _values(description, path).items() if not _is_ignore(name) and some != (0,)}
    return values if any(len(some) > 1 for some in values.values()) else {}


def read_regions(path: str | Path) -> tuple[Region, ...]:
    """The regions in such a file as `read_label_names` takes; see `parse_regions`."""
    return parse_regions(_described(Path(path)), Path(path))


def ignored_value(description: Mapping[str, Any], path: Path) -> int | None:
    """The value of nnU-Net's label ``ignore``, whose voxels nobody has labelled; None where there is none.

    Raises VolumeError where it is not above all others, as nnU-Net asks.
    """
    values = _values(description, path)
    ignored = [value for name, some in values.items() if _is_ignore(name) for value in some]
    others = [value for name, some in values.items() if not _is_ignore(name) for value in some]
    if not ignored:
        return None
    if len(ignored) > 1 or ignored[0] <= max(others, default=0):
        raise VolumeError(
            f'{path}: the label "ignore" must be one value above all others; it has {ignored[-1]}, the others go up to '
            f"{max(others, default=0)}"
        )
    return ignored[0]


def _is_ignore(name: str) -> bool:
    return name.lower() == IGNORE_LABEL


def _values(description: Mapping[str, Any], path: Path) -> dict[str, tuple[int, ...]]:
    """All labels as name -> values, ``ignore`` too; a region has several."""
    written = description.get("labels")
    if not isinstance(written, dict) or not written:
        raise VolumeError(f'{path}: no "labels"; give them as {{"background": 0, "liver": 1}}')
    if all(isinstance(value, str) for value in written.values()) and all(key.strip().isdecimal() for key in written):
        twice = [name for name, count in Counter(written.values()).items() if count > 1]
        if twice:
            raise VolumeError(f"{path}: two labels are called {twice[0]!r}; give each a name of its own")
        written = {name: int(value) for value, name in written.items()}
    return {str(name): _values_of(str(name), value, path) for name, value in written.items()}


def _values_of(name: str, value: Any, path: Path) -> tuple[int, ...]:
    numbers = [as_whole(one) for one in (value if isinstance(value, list) else [value])]
    whole = [number for number in numbers if number is not None]
    if not whole or len(whole) < len(numbers):
        raise VolumeError(f"{path}: label {name!r} has the value {value!r}; give a whole number, or a list of such")
    return tuple(dict.fromkeys(whole))


def as_whole(value: Any) -> int | None:
    """A number of a dataset.json, which may stand there as text; None where it is no whole number."""
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
        return int(number) if number.is_integer() else None
    except (TypeError, ValueError):
        return None


def parse_channel_names(description: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    """``channel_names`` (nnU-Net) or ``modality`` (Decathlon), by channel: an object by number, or a list.

    Numbers may have zeros before them, as the files' have (``"0000"``). Raises VolumeError where there are none, or
    they are not numbered from 0.
    """
    key = "channel_names" if "channel_names" in description else "modality"
    written = description.get(key)
    if isinstance(written, list) and written and all(isinstance(name, str) for name in written):
        return tuple(written)
    if not isinstance(written, dict) or not written:
        raise VolumeError(f'{path}: no "channel_names"; give them as {{"0": "CT"}}, numbered from 0')
    numbers = {as_whole(number): str(name) for number, name in written.items()}
    if sorted(numbers, key=lambda n: -1 if n is None else n) != list(range(len(written))):
        right = json.dumps({str(n): str(name) for n, name in enumerate(written.values())})
        raise VolumeError(
            f"{path}: {key} is numbered {', '.join(map(str, written))}; number its channels from 0 without a gap, as "
            f"their files are: {right}"
        )
    return tuple(numbers[number] for number in range(len(numbers)))


def write_dataset_json(
    folder: str | Path,
    *,
    channel_names: Sequence[str],
    labels: Mapping[str, int],
    cases: int,
    file_ending: str,
) -> None:
    """Write ``dataset.json`` into `folder`, whole or not at all. Raises VolsegError where that cannot be done."""
    description = {
        "channel_names": {str(channel): name for channel, name in enumerate(channel_names)},
        "labels": dict(labels),
        "numTraining": cases,
        "file_ending": file_ending,
    }
    write_text(Path(folder) / DESCRIPTION, json.dumps(description, indent=2) + "\n")


def image_name(case: str, channel: int, file_ending: str) -> str:
    """nnU-Net's name of a case's channel, such as ``liver_007_0000.nii.gz``."""
    return f"{case}_{channel:04d}{file_ending}"


def check_labels(
    array: np.ndarray, labels: Mapping[str, int], path: str | Path, ignore: int | None = None
) -> None:  # fmt: skip
    """Raises VolumeError where `array` holds a value that is not one of `labels` (NaN and fractions included).

    ignore  a value that is none of them and is allowed all the same
    """
    if ignore is not None:
        array = array[array != ignore]
    if array.size == 0:
        return
    low, high = array.min(), array.max()
    whole = array.dtype.kind in "iub" or bool(np.all(array == np.floor(array)))
    limit = max(labels.values())
    if not (whole and low >= 0 and high <= limit):
        outside = np.unique(array[~((array >= 0) & (array <= limit) & (array == np.floor(array)))])
        raise VolumeError(outside_message(outside.tolist(), labels, path))


def outside_message(outside: Sequence[float], labels: Mapping[str, int], path: str | Path) -> str:
    """What is said of label values that are not in the list."""
    if any(value < -1 for value in outside):  # -1 alone is somebody's label
        return (
            f"{path}: holds values such as {', '.join(f'{value:g}' for value in outside[:3])}; labels are 0 to "
            f"{max(labels.values())}: is this an image? Correct the file"
        )
    top = max(labels.values())
    alone = len(outside) == 1 and outside[0] > top
    remedy = f', or "ignore": {outside[0]:g} where nobody has labelled' if alone else ""
    return (
        f"{path}: holds the label value(s) {', '.join(f'{value:g}' for value in outside[:5])}; the labels named are 0 "
        f"to {top}: add them to that list{remedy}, or correct the file"
    )
