"""Data without a dataset.json: a folder of what `volseg ingest --labels` wrote, or one scan with its labels.

CASE.zarr and CASE_labels.zarr        as `volseg ingest CT --labels SEG -o CASE.zarr` leaves them (.nii.gz alike)
CASE.zarr with CASE.zarr/labels/NAME  labels inside the image's store, as OME-Zarr has them
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from volseg.errors import VolumeError
from volseg.volumes.dataset.case import FILE_ENDINGS, Case, Dataset, DataSource, Fault
from volseg.volumes.dataset.described import is_own_output, names_in, twins_in
from volseg.volumes.dataset.description import parse_labels, read_label_names
from volseg.volumes.image_file import channels_of_file, count_channels
from volseg.volumes.label_files import label_table_of
from volseg.volumes.mask_source import open_mask

INGESTED = "_labels"
MOST_LABELS = 254


def holds_volumes(folder: Path) -> bool:
    """Whether volumes lie in `folder` itself."""
    return bool(names_in(folder, FILE_ENDINGS))


def survey_ingested(source: DataSource) -> tuple[Dataset, list[Fault]]:
    """The cases of a folder of ingested volumes that have labels, and what is wrong with the others.

    Raises VolumeError where no case has labels, or where their names do not go together.
    """
    folder, there = source.path, names_in(source.path, FILE_ENDINGS)
    cases: list[Case] = []
    faults = twins_in(folder, FILE_ENDINGS)
    for name, path in sorted(there.items()):
        if name.endswith(INGESTED):
            if name.removesuffix(INGESTED) not in there:
                faults.append(Fault(name, "missing image", f"{path}: labels without the image they belong to"))
            continue
        if is_own_output(name, there):
            continue
        candidates = _labels_of(path, there.get(name + INGESTED), source.labels)
        if len(candidates) == 1:
            cases.append(Case(name, (), candidates[0]))
            continue
        if candidates:
            choices = ", ".join(label.name for label in candidates)
            message = f"{path}: has several labels ({choices}); name one of them with --labels"
            faults.append(Fault(name, "several labels", message))
        else:
            wanted = f"label image {source.labels!r}" if source.labels else "labels"
            message = f"{path}: no {wanted}; add them with volseg ingest --labels, or move it away"
            faults.append(Fault(name, "missing labels", message))
    if not cases:
        raise VolumeError(faults[0].message if faults else f"{folder}: holds no volume")
    channels = _channels(there[cases[0].name], source.channel_names)
    found = [Case(case.name, channels_of_file(there[case.name], len(channels)), case.label) for case in cases]
    labels = _label_names(source, [case.label for case in found if case.label is not None])
    ending = next(e for e in FILE_ENDINGS if there[cases[0].name].name.endswith(e))
    return Dataset(folder, channels, labels, ending, tuple(found), _notes(source, channels)), faults


def survey_pair(source: DataSource) -> tuple[Dataset, list[Fault]]:
    """One scan and its labels. Raises VolumeError where one of them is missing or names are of no use."""
    path = source.path
    if not path.exists():
        raise VolumeError(f"{path}: no such file or folder")
    if source.labels is not None and Path(source.labels).exists():
        label = Path(source.labels)
    else:
        candidates = _labels_of(path, None, source.labels)
        if len(candidates) != 1:
            what = f"no labels {source.labels}" if source.labels else "one scan is no data set"
            raise VolumeError(f"{path}: {what}; give the file of its labels with --labels")
        label = candidates[0]
    name = path.name
    for ending in FILE_ENDINGS:
        name = name.removesuffix(ending)
    channels = _channels(path, source.channel_names)
    labels = _label_names(source, [label])
    case = Case(name, channels_of_file(path, len(channels)), label)
    return Dataset(path, channels, labels, path.name.removeprefix(name), (case,), _notes(source, channels)), []


def _labels_of(path: Path, beside: Path | None, name: str | None) -> list[Path]:
    """The labels that an image may have: those beside it, which win, else all inside its store.

    With `name` that one inside alone. What lies inside beside other labels may be a mask that `volseg segment` wrote.
    """
    inside: list[Path] = []
    if path.suffix == ".zarr":
        from volseg.volumes.zarr.label_image import LABELS, label_images

        inside = [path / LABELS / label for label in label_images(path)]
    if name is not None:
        return [label for label in inside if label.name == name]
    return [beside] if beside is not None else inside


def _channels(path: Path, names: tuple[str, ...]) -> tuple[str, ...]:
    count = count_channels(path)
    names = names or (("CT",) if count == 1 else tuple(f"channel {n}" for n in range(count)))
    if len(names) != count:
        raise VolumeError(f"{path}: {count} image channel(s), but --channels names {len(names)}: {', '.join(names)}")
    return names


def _notes(source: DataSource, channels: Sequence[str]) -> tuple[str, ...]:
    if source.channel_names:
        return ()
    if len(channels) > 1:
        text = f"{len(channels)} channels, each normalised by each volume's own values; --channels CT,PET names them"
        return (f"{source.path}: {text}",)
    return (f"{source.path}: no dataset.json, so the image is taken for CT; --channels MR says otherwise",)


def _label_names(source: DataSource, files: Sequence[Path]) -> dict[str, int]:
    """From --label-names, else from the files themselves, else from the values that they hold."""
    if source.label_names is not None:
        return read_label_names(source.label_names)
    names: dict[str, int] = {}
    where: dict[str, Path] = {}
    for file in files:
        table = label_table_of(file)
        for name, value in ({} if table is None else table.names).items():
            _agree(names, where, name, value, file)
            names[name], where[name] = value, where.get(name, file)
    if names:
        return parse_labels({"labels": names}, files[0])
    values = sorted(set().union(*(_values(file) for file in files)) | {0})
    if values != list(range(len(values))) or len(values) == 1:
        raise VolumeError(
            f"{files[0]}{' and others' if len(files) > 1 else ''}: no label names, and the values found are "
            f"{', '.join(map(str, values[:12]))}; they must run 0, 1, 2, ...: name all of them with --label-names "
            'FILE, such as {"background": 0, "liver": 1}'
        )
    return {"background": 0} | {f"label {value}": value for value in values[1:]}


def _agree(names: Mapping[str, int], where: Mapping[str, Path], name: str, value: int, file: Path) -> None:
    """Raise VolumeError where `file` calls another value by this name, or this value by another."""
    if names.get(name, value) != value:
        raise VolumeError(
            f"{file}: calls {name!r} what is {value}, but in {where[name]} that is {names[name]}; make the labels "
            "agree, or name them with --label-names"
        )
    other = next((known for known, number in names.items() if number == value and known != name), None)
    if other is not None:
        raise VolumeError(
            f"{file}: label {value} is {name!r}, but in {where[other]} it is {other!r}; make the labels agree, or name "
            "them with --label-names"
        )


def _values(file: Path) -> set[int]:
    found: set[int] = set()
    for _, values in open_mask(file).slabs():
        some = np.unique(values)
        if not np.isfinite(some).all() or (some != np.floor(some)).any() or some[0] < 0 or len(some) > MOST_LABELS:
            raise VolumeError(f"{file}: values from {some[0]:g} to {some[-1]:g} are no labels; is this an image?")
        found |= {int(value) for value in some}
    return found
