"""Folders with a dataset.json: which files are a case.

    nnU-Net     imagesTr/CASE_0000.nii.gz, one file for each channel; labelsTr/CASE.nii.gz
    Decathlon   imagesTr/CASE.nii.gz, 4-D where there are several channels; listed under "training"

A dataset.json that lists files (the Decathlon's "training", nnU-Net's "dataset") is followed (see `listed`); else files
are paired by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from volseg.errors import VolumeError
from volseg.volumes.dataset.case import Case, Dataset, Fault
from volseg.volumes.dataset.description import (
    as_whole,
    ignored_value,
    image_name,
    parse_channel_names,
    parse_labels,
    parse_regions,
)
from volseg.volumes.dataset.json_file import load_json
from volseg.volumes.dataset.layout import CHANNEL_END, alike_text, is_own_output, nested_text
from volseg.volumes.dataset.listed import follow_list, listed_files
from volseg.volumes.file_names import (
    DESCRIPTION,
    FILE_ENDINGS,
    IMAGES,
    LABELS,
    ending_of,
    foreign_in,
    names_in,
    volumes_in,
)
from volseg.volumes.image_file import ImageFile, channels_of_file
from volseg.volumes.readers import by_scan


def survey_described(folder: Path, gaps: bool = False) -> tuple[Dataset, list[Fault]]:
    """The cases that have all their files, by name, and what is wrong with the others.

    gaps  as for `parse_labels`; there are no regions then

    Raises VolumeError where dataset.json is malformed, or there is no case at all.
    """
    description = load_json(folder / DESCRIPTION)
    channels = parse_channel_names(description, folder / DESCRIPTION)
    labels = parse_labels(description, folder / DESCRIPTION, gaps)
    ignore = ignored_value(description, folder / DESCRIPTION)
    ending = file_ending(description, folder)
    rows = listed_files(folder, description)
    notes: list[str] = []
    if rows is None:
        cases, faults = _find(folder, len(channels), ending)
    else:
        cases, faults = follow_list(folder, rows, len(channels), notes)
    faults += _wrong_number(folder, description, cases, faults, None if rows is None else len(rows))
    faults += [
        fault for part in (IMAGES, LABELS) for fault in _ignored(folder / part, None if rows is not None else ending)
    ]
    ordered = tuple(sorted(cases, key=lambda case: case.name))
    dataset = Dataset(
        folder=folder,
        channel_names=channels,
        labels=labels,
        file_ending=ending,
        cases=ordered,
        notes=tuple(notes),
        ignore=ignore,
        regions=() if gaps else parse_regions(description, folder / DESCRIPTION),
    )
    return dataset, faults


def file_ending(description: Mapping[str, Any], folder: Path) -> str:
    """The ``file_ending`` of a dataset.json in lower case. Raises VolumeError where volseg reads no such files."""
    ending = str(description.get("file_ending", ".nii.gz"))
    if ending.lower() not in FILE_ENDINGS:
        raise VolumeError(
            f"{folder / DESCRIPTION}: file_ending {ending!r} is not one volseg reads: {', '.join(FILE_ENDINGS)}; "
            "convert the files, or correct it"
        )
    return ending.lower()


def _wrong_number(
    folder: Path, description: Mapping[str, Any], cases: list[Case], faults: list[Fault], rows: int | None
) -> list[Fault]:
    """A fault where ``numTraining`` is not the number of cases.

    rows  that dataset.json lists, None where it does not
    """
    if rows is not None:
        there = complete = rows
    else:
        names = {case.name for case in cases} | {fault.case for fault in faults if fault.kind == "missing image"}
        there, complete = len(names), len(names | {fault.case for fault in faults})
    written = description.get("numTraining", there)
    if as_whole(written) in (there, complete):  # a case without labels is a fault of its own
        return []
    message = (
        f"{folder}: {DESCRIPTION} says numTraining {written}, {LABELS}/ holds {there} cases; "
        "the copy may be incomplete, or correct numTraining"
    )
    return [Fault("", "numTraining", message)]


def _find(folder: Path, channels: int, ending: str) -> tuple[list[Case], list[Fault]]:
    """Every label with its images; an image without labels is a fault too, as it would be left out unseen."""
    for part in (IMAGES, LABELS):
        if not (folder / part).is_dir():
            raise VolumeError(f"{folder}: no {part}/ in it; nnU-Net's layout is {IMAGES}/CASE_0000{ending} and "
                              f"{LABELS}/CASE{ending}{alike_text(folder, part)}{nested_text(folder)}")  # fmt: skip
    images, labels = names_in(folder / IMAGES, (ending,)), names_in(folder / LABELS, (ending,))
    if not labels:
        raise VolumeError(f"{folder / LABELS}: no case, no file ends in {ending}; check file_ending in {DESCRIPTION}"
                          f"{_other_endings(folder / LABELS)}")  # fmt: skip
    cases, unused = [], set(images)
    scans = {CHANNEL_END.sub("", file) for file in images} | set(images)
    faults = [fault for part in (IMAGES, LABELS) for fault in twins_in(folder / part, (ending,))]
    alike = {file.casefold(): file for file in images}
    for name, masks in sorted(by_scan(labels, scans).items()):
        first, *others = [labels[mask] for mask in masks]
        files = [image_name(name, channel, "") for channel in range(channels)]
        if files[0] not in images and name in images:
            files = [name]
        missing = [file for file in files if file not in images]
        unused -= set(files)
        if missing:
            message = f"{folder}: case {name} has labels, but {IMAGES}/{missing[0]}{ending} is missing"
            other = alike.get(missing[0].casefold(), alike.get(name.casefold()))
            if other is not None:
                unused -= {other, *(alike.get(file.casefold(), "") for file in files)}
                message += f"; {images[other].name} differs in upper and lower case alone: give both one name"
            faults.append(Fault(name, "missing image", message))
        elif len(files) == 1:
            cases.append(Case(name, channels_of_file(images[files[0]], channels), first, others=tuple(others)))
        else:
            channels_of_case = tuple(ImageFile(images[file]) for file in files)
            cases.append(Case(name, channels_of_case, first, others=tuple(others)))
    orphans: dict[str, Path] = {}
    for file in sorted(name for name in unused if not is_own_output(name, images)):
        orphans.setdefault(CHANNEL_END.sub("", file), images[file])
    for name, path in orphans.items():
        message = f"{path}: belongs to no case of {LABELS}/ with {channels} channel(s); add its labels or move it away"
        faults.append(Fault(name, "missing labels", message))
    return cases, faults


def _other_endings(folder: Path) -> str:
    there = volumes_in(folder, FILE_ENDINGS)
    endings = sorted({ending_of(path.name).lower() for paths in there.values() for path in paths})
    return f": those there end in {', '.join(endings)}" if endings else ""


def _ignored(folder: Path, ending: str | None) -> list[Fault]:
    """A warning of images or labels that lie there and are of no use.

    ending  the only one that is taken; None: any that volseg reads
    """
    others = foreign_in(folder)
    if ending is not None and folder.is_dir():
        there = [path for paths in volumes_in(folder, FILE_ENDINGS).values() for path in paths]
        others = sorted(others + [path for path in there if ending_of(path.name).lower() != ending])
    if not others:
        return []
    wanted = f"end in {ending}, the file_ending of {DESCRIPTION}," if ending else "have an ending that volseg reads"
    message = f"{folder}: {len(others)} files do not {wanted} and are ignored, such as {others[0].name}"
    return [Fault("", "ignored", message, serious=False)]


def twins_in(folder: Path, endings: tuple[str, ...]) -> list[Fault]:
    """A fault for each name that several files have: only one of them would be seen."""
    faults = []
    for name, paths in sorted(volumes_in(folder, endings).items()):
        if len(paths) > 1:
            ordered = sorted(paths, key=lambda path: endings.index(ending_of(path.name).lower()))
            files = " and ".join(path.name for path in ordered)
            faults.append(Fault(name, "duplicate", f"{folder}: {files} are both volume {name}; keep one of them"))
    return faults
