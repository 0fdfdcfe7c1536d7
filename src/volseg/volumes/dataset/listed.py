"""A dataset.json that lists its cases: the Decathlon's "training", nnU-Net's "dataset"."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from volseg.errors import VolumeError
from volseg.volumes.dataset.case import Case, Fault
from volseg.volumes.dataset.description import image_name
from volseg.volumes.dataset.layout import CHANNEL_END, is_own_output
from volseg.volumes.file_names import DESCRIPTION, IMAGES, LABELS, ending_of, names_in, stem_of
from volseg.volumes.image_file import ImageFile, channels_of_file
from volseg.volumes.readers import READER_END


@dataclass(frozen=True)
class ListedCase:
    """Files of a case as dataset.json names them: relative to its folder, or with a path of wherever it was written.

    labels  a mask, or one of each of several readers
    """

    name: str
    images: tuple[str, ...]
    labels: tuple[str, ...]


def listed_files(folder: Path, description: Mapping[str, Any]) -> list[ListedCase] | None:
    """The cases that a dataset.json lists; None where it does not. Raises VolumeError where the list is malformed."""
    training, dataset = description.get("training"), description.get("dataset")
    rows: list[ListedCase] = []
    try:
        if isinstance(dataset, dict) and dataset:
            for name, entry in dataset.items():
                rows.append(ListedCase(str(name), tuple(map(str, entry["images"])), _texts(entry["label"])))
        elif isinstance(training, list) and training:
            for entry in training:
                files, labels = _texts(entry["image"]), _texts(entry["label"])
                stem = stem_of(_name(labels[0]))
                rows.append(ListedCase(stem if len(labels) == 1 else READER_END.sub("", stem), files, labels))
    except (KeyError, TypeError) as error:
        raise VolumeError(
            f"{folder / DESCRIPTION}: its list of cases is malformed ({error!r}); an entry is "
            f'{{"image": "./{IMAGES}/CASE.nii.gz", "label": "./{LABELS}/CASE.nii.gz"}}'
        ) from None
    return rows or None


class ListedPaths:
    """Where the files of a list lie.

    A list is often made on another machine: a file that is not where it says is looked for by its name in `IMAGES` or
    `LABELS`. `moved` is the first such file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.there = {part: names_in(folder / part) for part in (IMAGES, LABELS)}
        self.moved: str | None = None

    def find(self, file: str, part: str) -> Path:
        """The path of a file; one that does not exist where the file is not there."""
        path = self.folder / file
        if not path.exists():
            other = self.there[part].get(stem_of(_name(file)))
            if other is None:
                return path
            self.moved = self.moved or file
            return other
        return path

    def find_images(self, files: tuple[str, ...], channels: int) -> list[Path]:
        """The paths of a case's images; for one that is not there nnU-Net's names of its channels, if they are."""
        paths = [self.find(file, IMAGES) for file in files]
        if len(paths) > 1 or paths[0].exists():
            return paths
        ending = ending_of(paths[0].name)
        stem = stem_of(paths[0].name)
        beside = [paths[0].with_name(image_name(stem, channel, ending)) for channel in range(channels)]
        numbered = [self.there[IMAGES].get(image_name(stem, channel, "")) for channel in range(channels)]
        if all(path.exists() for path in beside):
            return beside
        whole = [path for path in numbered if path is not None]
        return whole if len(whole) == channels else paths

    def note(self) -> list[str]:
        """What is to be said, if files were not where the list says."""
        if self.moved is None:
            return []
        return [
            f"{self.folder / DESCRIPTION}: lists files that are not there, such as {self.moved}; those of that name in "
            f"{IMAGES}/ and {LABELS}/ are taken"
        ]


def follow_list(
    folder: Path, rows: list[ListedCase], channels: int, notes: list[str]
) -> tuple[list[Case], list[Fault]]:  # fmt: skip
    """The listed cases that are whole, and what is wrong with the others; `notes` gets what is assumed."""
    where = ListedPaths(folder)
    cases: dict[str, Case] = {}
    faults: list[Fault] = []
    often = Counter(row.name for row in rows)
    used: set[Path] = set()
    for row in rows:
        if row.name in cases:
            continue
        if often[row.name] > 1:
            message = f"{folder / DESCRIPTION}: lists case {row.name} {often[row.name]} times"
            faults.append(Fault(row.name, "duplicate", message))
        paths, labels = where.find_images(row.images, channels), [where.find(label, LABELS) for label in row.labels]
        used |= {path.resolve() for path in paths}
        fault = _fault_of(folder, row.name, paths, labels, channels)
        if fault is not None:
            faults.append(fault)
            continue
        images = channels_of_file(paths[0], channels) if len(paths) == 1 else tuple(ImageFile(p) for p in paths)
        cases[row.name] = Case(row.name, images, labels[0], others=tuple(labels[1:]))
    images_there, told = where.there[IMAGES], {fault.case for fault in faults}
    for name, path in sorted(images_there.items()):
        is_told = name in told or CHANNEL_END.sub("", name) in told
        if path.resolve() in used or is_told or is_own_output(name, images_there):
            continue
        message = f"{path}: {DESCRIPTION} does not list it as a case; list it there or move it away"
        faults.append(Fault(name, "missing labels", message))
    if not cases and not faults:
        raise VolumeError(f"{folder / DESCRIPTION}: lists no case")
    notes += where.note()
    return list(cases.values()), faults


def _fault_of(folder: Path, name: str, paths: list[Path], labels: list[Path], channels: int) -> Fault | None:
    missing = [path for path in paths if not path.exists()]
    if missing:
        message = f"{missing[0]}: missing, but {DESCRIPTION} lists it; nor is a file of that name in {folder / IMAGES}"
        return Fault(name, "missing image", message)
    if len(paths) not in (1, channels):
        message = f"{folder / DESCRIPTION}: case {name} has {len(paths)} image files for {channels} channel(s)"
        return Fault(name, "missing image", message)
    lost = [label for label in labels if not label.exists()]
    if lost:
        message = f"{lost[0]}: missing, but {DESCRIPTION} lists it as the labels of {name}"
        return Fault(name, "missing labels", message)
    return None


def _texts(value: Any) -> tuple[str, ...]:
    """A text, or a list of some. Raises TypeError for an empty list."""
    if value == []:
        raise TypeError("an empty list of files")
    return tuple(map(str, value)) if isinstance(value, list) else (str(value),)


def _name(file: str) -> str:
    """The last part of a path, of Windows too."""
    return PurePosixPath(file.replace("\\", "/")).name
