"""Data without a dataset.json: a folder of what `volseg ingest --labels` wrote, or one scan with its labels.

CASE.zarr and CASE_labels.zarr        as `volseg ingest CT --labels SEG -o CASE.zarr` leaves them (.nii.gz alike)
CASE.zarr with CASE.zarr/labels/NAME  labels inside the image's store, as OME-Zarr has them
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from volseg.errors import VolumeError
from volseg.volumes.dataset.case import Case, Dataset, DataSource, Fault
from volseg.volumes.dataset.described import twins_in
from volseg.volumes.dataset.description import ignored_value, parse_labels, read_ignored_value, read_label_names
from volseg.volumes.dataset.layout import is_own_output
from volseg.volumes.file_names import FILE_ENDINGS, ending_of, foreign_in, foreign_text, names_in, stem_of
from volseg.volumes.image_file import channels_of_file, count_channels
from volseg.volumes.label_files import label_table_of
from volseg.volumes.mask_source import open_mask
from volseg.volumes.readers import READER_END

INGESTED = "_labels"
MASK = "_mask"  # which `volseg segment` adds to a scan's name: never taken for labels without being asked
LABEL_ENDS = (
    INGESTED, "_label", "-labels", "-label", "_seg", "-seg", "_segmentation", "-segmentation", ".seg", "_gt",
    "-gt",
)  # fmt: skip
"""What people add to a scan's name for its labels; the first wins."""
MOST_VALUES = 1024  # different ones; beyond them it is an image


def holds_volumes(folder: Path) -> bool:
    """Whether volumes lie in `folder` itself."""
    return bool(names_in(folder))


def survey_ingested(source: DataSource) -> tuple[Dataset, list[Fault]]:
    """The cases of a folder of volumes that have labels, and what is wrong with the others.

    Raises VolumeError where no case has labels, or where their names do not go together.
    """
    folder, there = source.path, names_in(source.path)
    beside = labels_beside(there)
    of_readers = readers_beside(there)
    labelled = {name for ends in beside.values() for name in ends.values()}
    labelled |= {name for names in of_readers.values() for name in names}
    cases: list[Case] = []
    faults = twins_in(folder, FILE_ENDINGS)
    ends_taken: set[str] = set()
    for name, path in sorted(there.items()):
        if name.endswith(INGESTED):
            if name.removesuffix(INGESTED) not in there:
                faults.append(Fault(name, "missing image", f"{path}: labels without the image they belong to"))
            continue
        if name in labelled or is_own_output(name, there):
            continue
        ends = beside.get(name, {})
        if INGESTED in ends:
            faults += _left_out(folder, name, ends, there)
            ends = {INGESTED: ends[INGESTED]}
        candidates = _labels_of(path, [there[label] for label in ends.values()], source.labels)
        others = [there[mask] for mask in of_readers.get(name, ())]
        if len(candidates) == 1 or (others and not candidates):
            first, *others = [*candidates, *others]
            cases.append(Case(name, (), first, others=tuple(others)))
            ends_taken |= {end for end, label in ends.items() if there[label] == candidates[0]}
        elif candidates:
            faults.append(Fault(name, "several labels", _several(path, name, candidates, bool(ends))))
        else:
            faults.append(Fault(name, "missing labels", _missing(path, name, there, source.labels)))
    foreign = foreign_in(folder)
    if foreign:
        faults.append(Fault("", "ignored", foreign_text(folder, foreign), serious=False))
    if not cases:
        raise VolumeError(_no_case(folder, faults))
    channels = _channels(there[cases[0].name], source.channel_names)
    whole = [
        dataclasses.replace(case, images=channels_of_file(there[case.name], len(channels))) for case in cases
    ]  # fmt: skip
    labels, ignore = _label_names(source, [mask for case in whole for mask in case.masks])
    ending = ending_of(there[cases[0].name].name).lower()
    notes = _notes(source, channels)
    if ends_taken - {INGESTED}:
        notes += (f"{folder}: labels are taken from {', '.join(f'CASE{end}' for end in sorted(ends_taken))}",)
    dataset = Dataset(
        folder=folder,
        channel_names=channels,
        labels=labels,
        file_ending=ending,
        cases=tuple(whole),
        notes=notes,
        ignore=ignore,
    )
    return dataset, faults


def labels_beside(there: Mapping[str, Path]) -> dict[str, dict[str, str]]:
    """Of a folder's volumes by name: image -> {end of the name: name} of what lies beside it as its labels."""
    beside: dict[str, dict[str, str]] = {}
    for name in there:
        for end in LABEL_ENDS:
            image = name[: len(name) - len(end)]
            # What has labels of its own is an image, whatever it is called.
            if name.lower().endswith(end) and image in there and name + INGESTED not in there:
                beside.setdefault(image, {})[end] = name
    return beside


def readers_beside(there: Mapping[str, Path]) -> dict[str, list[str]]:
    """The same of the masks of several readers: image -> names such as CASE_labels_reader1 and CASE_reader2, in order.

    A mask that is its image's alone is none of those.
    """
    beside: dict[str, list[str]] = {}
    for name in sorted(there):
        scan = READER_END.sub("", name)
        ends = [end for end in ("", *LABEL_ENDS) if scan.endswith(end) and scan[: len(scan) - len(end)] in there]
        if scan != name and ends and name + INGESTED not in there:
            beside.setdefault(scan[: len(scan) - max(map(len, ends))], []).append(name)
    return beside


def _left_out(folder: Path, name: str, ends: Mapping[str, str], there: Mapping[str, Path]) -> list[Fault]:
    others = [there[label].name for end, label in ends.items() if end != INGESTED]
    if not others:
        return []
    message = f"{folder}: {', '.join(others)} passed over, as {there[ends[INGESTED]].name} has the labels of {name}"
    return [Fault(name, "ignored", message, serious=False)]


def _several(path: Path, name: str, candidates: Sequence[Path], are_beside: bool) -> str:
    choices = ", ".join(label.name for label in candidates)
    remedy = (
        f"rename the right one to {name}{INGESTED}{ending_of(path.name)}"
        if are_beside
        else "name one of them with --labels"
    )
    return f"{path}: has several labels ({choices}); {remedy}"


def _missing(path: Path, name: str, there: Mapping[str, Path], wanted: str | None) -> str:
    """What is said of an image without labels."""
    if wanted is not None:
        return f"{path}: no label image {wanted!r}; add them with volseg ingest --labels, or move it away"
    mask = there.get(name + MASK)
    if mask is None:
        return (
            f"{path}: no labels, {name}{INGESTED}{ending_of(path.name)} is looked for; add them with volseg ingest "
            "--labels, or move it away"
        )
    right = f"{name}{INGESTED}{ending_of(mask.name)}"
    return (
        f"{path}: no labels; {mask.name} is called as volseg segment calls its masks: if it holds labels to train on, "
        f"rename it to {right}"
    )


def _no_case(folder: Path, faults: Sequence[Fault]) -> str:
    serious = [fault for fault in faults if fault.serious]
    if not serious:
        return f"{folder}: holds no volume"
    renamed = [fault for fault in serious if "rename it to" in fault.message]
    if len(renamed) < 2:
        return serious[0].message
    more = f'all of them: for f in {shlex.quote(str(folder))}/*{MASK}.*; do mv "$f" "${{f/{MASK}./{INGESTED}.}}"; done'
    return f"{renamed[0].message}; {more}"


def survey_pair(source: DataSource) -> tuple[Dataset, list[Fault]]:
    """One scan and its labels. Raises VolumeError where one of them is missing or names are of no use."""
    path = source.path
    if not path.exists():
        raise VolumeError(f"{path}: no such file or folder")
    if source.labels is not None and Path(source.labels).exists():
        label = Path(source.labels)
    else:
        candidates = _labels_of(path, [], source.labels)
        if len(candidates) != 1:
            what = f"no labels {source.labels}" if source.labels else "one scan is no data set"
            raise VolumeError(f"{path}: {what}; give the file of its labels with --labels")
        label = candidates[0]
    channels = _channels(path, source.channel_names)
    labels, ignore = _label_names(source, [label])
    case = Case(stem_of(path.name), channels_of_file(path, len(channels)), label)
    ending = ending_of(path.name).lower()
    dataset = Dataset(
        folder=path,
        channel_names=channels,
        labels=labels,
        file_ending=ending,
        cases=(case,),
        notes=_notes(source, channels),
        ignore=ignore,
    )
    return dataset, []


def _labels_of(path: Path, beside: Sequence[Path], name: str | None) -> list[Path]:
    """The labels that an image may have: those beside it, which win, else all inside its store.

    With `name` that one inside alone. What lies inside beside other labels may be a mask that `volseg segment` wrote.
    """
    inside: list[Path] = []
    if path.suffix.lower() == ".zarr":
        from volseg.volumes.zarr.label_image import LABELS, label_images

        inside = [path / LABELS / label for label in label_images(path)]
    if name is not None:
        return [label for label in inside if label.name == name]
    return list(beside) or inside


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


def _label_names(source: DataSource, files: Sequence[Path]) -> tuple[dict[str, int], int | None]:
    """From --label-names, else from the files themselves, else from the values that they hold; and what is ignored."""
    gaps = bool(source.label_map)
    if source.label_names is not None:
        return read_label_names(source.label_names, gaps), read_ignored_value(source.label_names)
    names: dict[str, int] = {}
    where: dict[str, Path] = {}
    for file in files:
        table = label_table_of(file)
        for name, value in ({} if table is None else table.names).items():
            _agree(names, where, name, value, file)
            names[name], where[name] = value, where.get(name, file)
    if names:
        return parse_labels({"labels": names}, files[0], gaps), ignored_value({"labels": names}, files[0])
    values = sorted(set().union(*(_values(file) for file in files)) | {0})
    if (not gaps and values != list(range(len(values)))) or len(values) == 1:
        raise VolumeError(
            f"{files[0]}{' and others' if len(files) > 1 else ''}: no label names, and the values found are "
            f"{', '.join(map(str, values[:12]))}; they must run 0, 1, 2, ...: name all of them with --label-names "
            'FILE, such as {"background": 0, "liver": 1}'
        )
    return {"background": 0} | {f"label {value}": value for value in values[1:]}, None


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
        if not np.isfinite(some).all() or (some != np.floor(some)).any() or some[0] < 0 or len(some) > MOST_VALUES:
            raise VolumeError(f"{file}: values from {some[0]:g} to {some[-1]:g} are no labels; is this an image?")
        found |= {int(value) for value in some}
    return found
