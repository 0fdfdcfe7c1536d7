"""Folders with a dataset.json: which files are a case.

    nnU-Net     imagesTr/CASE_0000.nii.gz, one file for each channel; labelsTr/CASE.nii.gz
    Decathlon   imagesTr/CASE.nii.gz, 4-D where there are several channels; listed under "training"

A dataset.json that lists files (the Decathlon's "training", nnU-Net's "dataset") is followed; else files are paired by
name.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from volseg.errors import VolumeError
from volseg.volumes.dataset.case import FILE_ENDINGS, Case, Dataset, Fault
from volseg.volumes.dataset.description import DESCRIPTION, image_name, load_json, parse_channel_names, parse_labels
from volseg.volumes.image_file import ImageFile, channels_of_file

IMAGES, LABELS = "imagesTr", "labelsTr"
CHANNEL_END = re.compile(r"_\d{4}$")
OUTPUT_ENDS = ("_mask", "_mask_probabilities")


def survey_described(folder: Path) -> tuple[Dataset, list[Fault]]:
    """The cases that have all their files, by name, and what is wrong with the others.

    Raises VolumeError where dataset.json is malformed, or there is no case at all.
    """
    description = load_json(folder / DESCRIPTION)
    channels = parse_channel_names(description, folder / DESCRIPTION)
    labels = parse_labels(description, folder / DESCRIPTION)
    ending = str(description.get("file_ending", ".nii.gz"))
    if ending not in FILE_ENDINGS:
        raise VolumeError(
            f"{folder / DESCRIPTION}: file_ending {ending!r} is not one volseg reads: {', '.join(FILE_ENDINGS)}"
        )
    listed = _listed(folder, description)
    cases, faults = _find(folder, len(channels), ending) if listed is None else _follow(folder, listed, len(channels))
    if listed is not None:
        there = complete = len(listed)
    else:
        names = {case.name for case in cases} | {fault.case for fault in faults if fault.kind == "missing image"}
        there, complete = len(names), len(names | {fault.case for fault in faults})
    expected = description.get("numTraining", there)
    if expected not in (there, complete):  # a case without labels is a fault of its own
        faults.append(
            Fault(
                "",
                "numTraining",
                f"{folder}: dataset.json says numTraining {expected}, {LABELS}/ holds {there} cases; "
                "the copy may be incomplete, or correct numTraining",
            )
        )
    if listed is None:
        faults += [fault for name in (IMAGES, LABELS) for fault in _ignored(folder / name, ending)]
    return Dataset(folder, channels, labels, ending, tuple(sorted(cases, key=lambda case: case.name))), faults


def _find(folder: Path, channels: int, ending: str) -> tuple[list[Case], list[Fault]]:
    """Every label with its images; an image without labels is a fault too, as it would be left out unseen."""
    for name in (IMAGES, LABELS):
        if not (folder / name).is_dir():
            raise VolumeError(f"{folder}: no {name}/ in it; nnU-Net's layout is {IMAGES}/CASE_0000{ending} and "
                              f"{LABELS}/CASE{ending}")  # fmt: skip
    images, labels = names_in(folder / IMAGES, (ending,)), names_in(folder / LABELS, (ending,))
    if not labels:
        raise VolumeError(f"{folder / LABELS}: no case, no file ends in {ending}; check file_ending in {DESCRIPTION}")
    cases, faults, unused = [], [], set(images)
    for name in sorted(labels):
        files = [image_name(name, channel, "") for channel in range(channels)]
        if files[0] not in images and name in images:
            found = channels_of_file(images[name], channels)
            files = [name]
        else:
            found = tuple(ImageFile(folder / IMAGES / (file + ending)) for file in files)
        unused -= set(files)
        missing = [file for file in files if file not in images]
        if missing:
            message = f"{folder}: case {name} has labels, but {IMAGES}/{missing[0]}{ending} is missing"
            faults.append(Fault(name, "missing image", message))
        else:
            cases.append(Case(name, found, labels[name]))
    orphans: dict[str, Path] = {}
    for file in sorted(name for name in unused if not is_own_output(name, images)):
        orphans.setdefault(CHANNEL_END.sub("", file), images[file])
    for name, path in orphans.items():
        message = f"{path}: belongs to no case of {LABELS}/ with {channels} channel(s); add its labels or move it away"
        faults.append(Fault(name, "missing labels", message))
    return cases, faults


def _listed(folder: Path, description: Mapping[str, Any]) -> list[tuple[str, list[str], str]] | None:
    """(name, image files, label file) as dataset.json lists them; None where it does not."""
    training, dataset = description.get("training"), description.get("dataset")
    path = folder / DESCRIPTION
    rows: list[tuple[str, list[str], str]] = []
    try:
        if isinstance(dataset, dict) and dataset:
            for name, entry in dataset.items():
                rows.append((str(name), [str(file) for file in entry["images"]], str(entry["label"])))
        elif isinstance(training, list) and training:
            for entry in training:
                image = entry["image"]
                files = [str(file) for file in image] if isinstance(image, list) else [str(image)]
                rows.append((_stem(str(entry["label"])), files, str(entry["label"])))
    except (KeyError, TypeError) as error:
        raise VolumeError(
            f'{path}: its list of cases is malformed ({error!r}); an entry is {{"image": "./{IMAGES}/CASE.nii.gz", '
            f'"label": "./{LABELS}/CASE.nii.gz"}}'
        ) from None
    return rows or None


def _follow(
    folder: Path, listed: list[tuple[str, list[str], str]], channels: int
) -> tuple[list[Case], list[Fault]]:  # fmt: skip
    cases: dict[str, Case] = {}
    faults: list[Fault] = []
    often = Counter(name for name, _, _ in listed)
    used: set[Path] = set()
    for name, files, label in listed:
        paths, label_path = [folder / file for file in files], folder / label
        if name in cases:
            continue
        if often[name] > 1:
            faults.append(Fault(name, "duplicate", f"{folder / DESCRIPTION}: lists case {name} {often[name]} times"))
        if len(paths) == 1 and not paths[0].exists():  # nnU-Net's names beside the Decathlon's list
            paths = _numbered(paths[0], channels) or paths
        used |= {path.resolve() for path in paths}
        missing = [path for path in paths if not path.exists()]
        if missing:
            faults.append(Fault(name, "missing image", f"{missing[0]}: missing, but {DESCRIPTION} lists it"))
        elif len(paths) not in (1, channels):
            message = f"{folder / DESCRIPTION}: case {name} has {len(paths)} image files for {channels} channel(s)"
            faults.append(Fault(name, "missing image", message))
        elif not label_path.exists():
            message = f"{label_path}: missing, but {DESCRIPTION} lists it as the labels of {name}"
            faults.append(Fault(name, "missing labels", message))
        else:
            images = channels_of_file(paths[0], channels) if len(paths) == 1 else tuple(ImageFile(p) for p in paths)
            cases[name] = Case(name, images, label_path)
    images_there = names_in(folder / IMAGES, FILE_ENDINGS)
    for name, path in sorted(images_there.items()):
        if path.resolve() not in used and not is_own_output(name, images_there):
            message = f"{path}: {DESCRIPTION} does not list it as a case; list it there or move it away"
            faults.append(Fault(name, "missing labels", message))
    if not cases and not faults:
        raise VolumeError(f"{folder / DESCRIPTION}: lists no case")
    return list(cases.values()), faults


def _numbered(path: Path, channels: int) -> list[Path] | None:
    ending = _ending(path.name)
    stem = path.name.removesuffix(ending)
    paths = [path.with_name(image_name(stem, channel, ending)) for channel in range(channels)]
    return paths if all(path.exists() for path in paths) else None


def _stem(file: str) -> str:
    name = PurePosixPath(file).name
    return name.removesuffix(_ending(name))


def _ending(name: str) -> str:
    return next((ending for ending in FILE_ENDINGS if name.endswith(ending)), "")


def is_own_output(name: str, images: Iterable[str]) -> bool:
    """Whether `volseg segment` wrote this beside an image: CASE_0000_mask, CASE_0000_mask_probabilities."""
    return any(name.endswith(end) and name.removesuffix(end) in images for end in OUTPUT_ENDS)


def _ignored(folder: Path, ending: str) -> list[Fault]:
    """A warning of what lies there and has another ending than that of the set, if anything does."""
    others = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    others = [path for path in others if not path.name.endswith(ending)]
    if not others:
        return []
    message = (
        f"{folder}: {len(others)} files do not end in {ending}, the file_ending of {DESCRIPTION}, and are ignored, "
        f"such as {others[0].name}"
    )
    return [Fault("", "ignored", message, serious=False)]


def twins_in(folder: Path, endings: tuple[str, ...]) -> list[Fault]:
    """A fault for each name that several files of different endings have: only one of them would be seen."""
    found = [names_in(folder, (ending,)) for ending in endings]
    for number, ending in enumerate(endings):  # a .nii.gz is no .nii
        found[number] = {n: path for n, path in found[number].items() if _ending(path.name) == ending}
    often = Counter(name for files in found for name in files)
    faults = []
    for name in sorted(name for name, count in often.items() if count > 1):
        files = " and ".join(files[name].name for files in found if name in files)
        faults.append(Fault(name, "duplicate", f"{folder}: {files} are both volume {name}; keep one of them"))
    return faults


def names_in(folder: Path, endings: tuple[str, ...]) -> dict[str, Path]:
    """Files by name without ending; hidden files (as macOS leaves beside each) are no cases. Of no folder: none."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        ending = next((e for e in endings if path.name.endswith(e)), None)
        if ending is not None and not path.name.startswith("."):
            found[path.name.removesuffix(ending)] = path
    return found
