"""dataset.json, of nnU-Net v2 and of the Medical Segmentation Decathlon: channels and labels.

    nnU-Net     channel_names {"0": "CT"}, labels {"background": 0, "liver": 1}, numTraining, file_ending
    Decathlon   modality {"0": "CT"}, labels {"0": "background", "1": "liver"}, numTraining, training

Source: nnU-Net v2, documentation/dataset_format.md; http://medicaldecathlon.com.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from volseg.errors import VolumeError
from volseg.files import write_text

DESCRIPTION = "dataset.json"


def read_label_names(path: str | Path) -> dict[str, int]:
    """Label names -> values from a dataset.json, or from a plain JSON object such as ``{"liver": 1}``.

    Raises VolumeError where the file is missing, is not JSON, or holds no labels.
    """
    path = Path(path)
    description = load_json(path)
    return parse_labels(description if "labels" in description else {"labels": description}, path)


def parse_labels(description: Mapping[str, Any], path: Path) -> dict[str, int]:
    """The ``labels`` of a dataset.json as name -> value, background first. `path` is for messages.

    Accepts the Decathlon's ``{"0": "background", "1": "liver"}`` too. Raises VolumeError where they are missing, are
    regions (lists of values), carry nnU-Net's ``ignore``, or leave a gap.
    """
    given = description.get("labels")
    if not isinstance(given, dict) or not given:
        raise VolumeError(f'{path}: no "labels"; give them as {{"background": 0, "liver": 1}}')
    if all(isinstance(value, str) for value in given.values()) and all(key.isdigit() for key in given):
        given = {name: int(value) for value, name in given.items()}
    labels: dict[str, int] = {}
    for name, value in given.items():
        if isinstance(value, list):
            raise VolumeError(f"{path}: label {name!r} is a region {value}; volseg takes one value for each label")
        try:
            labels[name] = int(value)
        except (TypeError, ValueError):
            raise VolumeError(f"{path}: label {name!r} has the value {value!r}; give a whole number") from None
    if "ignore" in labels:
        raise VolumeError(f'{path}: the label "ignore" is not supported; relabel those voxels as background')
    if 0 not in labels.values():
        labels["background"] = 0
    values = sorted(labels.values())
    if values != list(range(len(values))):
        raise VolumeError(f"{path}: label values {values} must run 0, 1, 2, ... without a gap or a repeat")
    return dict(sorted(labels.items(), key=lambda item: item[1]))


def parse_channel_names(description: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    """``channel_names`` (nnU-Net) or ``modality`` (Decathlon), by channel. Raises VolumeError where there are none."""
    given = description.get("channel_names", description.get("modality"))
    if not isinstance(given, dict) or sorted(given) != sorted(str(c) for c in range(len(given))) or not given:
        raise VolumeError(f'{path}: no "channel_names"; give them as {{"0": "CT"}}, numbered from 0')
    return tuple(str(given[str(c)]) for c in range(len(given)))


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


def check_labels(array: np.ndarray, labels: Mapping[str, int], path: str | Path) -> None:
    """Raises VolumeError where `array` holds a value that is not one of `labels` (NaN and fractions included)."""
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
    return (
        f"{path}: holds the label value(s) {', '.join(f'{value:g}' for value in outside[:5])}; the labels named are 0 "
        f"to {max(labels.values())}: add them to that list, or correct the file"
    )


def load_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises VolumeError where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise VolumeError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise VolumeError(f"{path}: is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise VolumeError(f"{path}: holds no JSON object; expected {{...}}")
    return content
