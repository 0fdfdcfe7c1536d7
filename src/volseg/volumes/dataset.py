"""Data sets in nnU-Net's folder layout (and Medical Segmentation Decathlon's, with one channel).

    dataset.json                    channel_names, labels, numTraining, file_ending
    imagesTr/CASE_0000.nii.gz       one file for each channel
    labelsTr/CASE.nii.gz

Source: nnU-Net v2, documentation/dataset_format.md.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from volseg.errors import VolumeError
from volseg.files import write_text

FILE_ENDINGS = (".nii.gz", ".nii", ".zarr")
IMAGES, LABELS = "imagesTr", "labelsTr"
OUTPUT_ENDS = ("_mask", "_mask_probabilities")


@dataclass(frozen=True)
class Case:
    """One scan: its channels' files, in channel order, and its label file (None where there is none)."""

    name: str
    images: tuple[Path, ...]
    label: Path | None


@dataclass(frozen=True)
class Dataset:
    """A data set's description; no voxel is read for it.

    channel_names   by channel
    labels          name -> value; ``background`` is 0 and the values run 0..K without a gap
    """

    folder: Path
    channel_names: tuple[str, ...]
    labels: dict[str, int]
    file_ending: str
    cases: tuple[Case, ...]

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names by label value, background first."""
        return tuple(sorted(self.labels, key=lambda name: self.labels[name]))


def read_dataset(folder: str | Path) -> Dataset:
    """Read ``dataset.json`` and pair the files of a training set, sorted by case name.

    Raises VolumeError where the folder or dataset.json is missing or malformed, where a case lacks a channel or its
    labels, where there is no case, or where there are not ``numTraining`` of them.
    """
    folder = Path(folder)
    description = _read_description(folder)
    channels = parse_channel_names(description, folder / "dataset.json")
    labels = parse_labels(description, folder / "dataset.json")
    ending = str(description.get("file_ending", ".nii.gz"))
    if ending not in FILE_ENDINGS:
        raise VolumeError(
            f"{folder / 'dataset.json'}: file_ending {ending!r} is not one volseg reads: {', '.join(FILE_ENDINGS)}"
        )
    cases = _find_cases(folder, len(channels), ending)
    expected = description.get("numTraining", len(cases))
    if expected != len(cases):
        raise VolumeError(
            f"{folder}: dataset.json says numTraining {expected}, {LABELS}/ holds {len(cases)} cases; "
            "the copy may be incomplete, or correct numTraining"
        )
    return Dataset(folder, channels, labels, ending, cases)


def read_label_names(path: str | Path) -> dict[str, int]:
    """Label names -> values from a dataset.json, or from a plain JSON object such as ``{"liver": 1}``.

    Raises VolumeError where the file is missing, is not JSON, or holds no labels.
    """
    path = Path(path)
    description = _load_json(path)
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
    write_text(Path(folder) / "dataset.json", json.dumps(description, indent=2) + "\n")


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
        outside = np.unique(array[~((array >= 0) & (array <= limit) & (array == np.floor(array)))])[:5]
        found = ", ".join(f"{value:g}" for value in outside)
        raise VolumeError(
            f"{path}: holds the label value(s) {found}; dataset.json names 0 to {limit}: "
            "add them to its labels, or correct the file"
        )


def _read_description(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise VolumeError(f"{folder}: no such data set folder; `volseg generate {folder}` makes a synthetic one")
    if not (folder / "dataset.json").is_file():
        raise VolumeError(
            f"{folder}: no dataset.json in it; a data set is a folder with dataset.json, {IMAGES}/ and {LABELS}/"
        )
    return _load_json(folder / "dataset.json")


def _load_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise VolumeError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise VolumeError(f"{path}: is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise VolumeError(f"{path}: holds no JSON object; expected {{...}}")
    return content


def _find_cases(folder: Path, channels: int, ending: str) -> tuple[Case, ...]:
    """Every label with its images; an image without labels is an error too, as it would be left out unseen."""
    for name in (IMAGES, LABELS):
        if not (folder / name).is_dir():
            raise VolumeError(f"{folder}: no {name}/ in it; nnU-Net's layout is {IMAGES}/CASE_0000{ending} and "
                              f"{LABELS}/CASE{ending}")  # fmt: skip
    images, labels = _names(folder / IMAGES, ending), _names(folder / LABELS, ending)
    if not labels:
        raise VolumeError(f"{folder / LABELS}: no case, no file ends in {ending}; check file_ending in dataset.json")
    cases, unused = [], set(images)
    for name in sorted(labels):
        files = [f"{name}_{channel:04d}" for channel in range(channels)]
        if channels == 1 and files[0] not in images and name in images:
            files = [name]  # the Decathlon's layout
        missing = [file for file in files if file not in images]
        if missing:
            raise VolumeError(f"{folder}: case {name} has labels, but {IMAGES}/{missing[0]}{ending} is missing")
        unused -= set(files)
        cases.append(
            Case(name, tuple(folder / IMAGES / (file + ending) for file in files), folder / LABELS / (name + ending))
        )
    unused = {name for name in unused if not _is_own_output(name, images)}
    if unused:
        orphan = sorted(unused)[0]
        raise VolumeError(
            f"{folder / IMAGES / (orphan + ending)}: belongs to no case of {LABELS}/ with {channels} channel(s); "
            "add its labels or move it away"
        )
    return tuple(cases)


def _is_own_output(name: str, images: set[str]) -> bool:
    """Whether `volseg segment` wrote this beside an image: CASE_0000_mask, CASE_0000_mask_probabilities."""
    return any(name.endswith(end) and name.removesuffix(end) in images for end in OUTPUT_ENDS)


def _names(folder: Path, ending: str) -> set[str]:
    """File names without `ending`; hidden files (as macOS leaves beside each) are no cases."""
    return {
        path.name.removesuffix(ending)
        for path in folder.iterdir()
        if path.name.endswith(ending) and not path.name.startswith(".")
    }
