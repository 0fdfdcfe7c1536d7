"""Read a data set, whatever it is: folders of nnU-Net and the Decathlon, ingested volumes, one scan with labels."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path

from volseg.config import MOST_CLASSES
from volseg.errors import VolumeError
from volseg.volumes.dataset.annotated import with_annotated
from volseg.volumes.dataset.case import Dataset, DataSource, Fault
from volseg.volumes.dataset.described import survey_described
from volseg.volumes.dataset.layout import alike_text, nested_text, set_of_part
from volseg.volumes.dataset.undescribed import holds_volumes, survey_ingested, survey_pair
from volseg.volumes.file_names import DESCRIPTION, IMAGES, LABELS, foreign_in, foreign_text
from volseg.volumes.formats.zarr import is_zarr_store
from volseg.volumes.label_map import label_map


def read_dataset(source: str | Path | DataSource) -> Dataset:
    """The data set at `source`, its files paired; sorted by case name.

    Raises VolumeError where the folder or dataset.json is missing or malformed, where a case lacks a channel or its
    labels, where there is no case, or where there are not ``numTraining`` of them.
    """
    dataset, faults = survey_dataset(source if isinstance(source, DataSource) else DataSource(Path(source)))
    for fault in (one for one in faults if one.serious):
        raise VolumeError(f"{fault.message} (`volseg check {dataset.folder}` shows all faults)")
    return dataset


def survey_dataset(source: DataSource) -> tuple[Dataset, list[Fault]]:
    """The cases that have all their files, and what is wrong with the others; no voxel of an image is read.

    Raises VolumeError where there is no data set at all.
    """
    dataset, faults = _survey(_of_folder(source))
    notes = (*dataset.notes, *_of_readers(dataset, source))
    dataset = dataclasses.replace(dataset, readers=source.readers, notes=notes)
    if source.label_map:
        change = label_map(source.label_map, dataset.labels, dataset.ignore, dataset.folder)
        dataset = dataclasses.replace(
            dataset, labels=dict(change.labels), ignore=change.ignore, regions=(), label_map=change
        )  # fmt: skip
    dataset = with_annotated(dataset, source.path, [fault.case for fault in faults])
    if len(dataset.labels) > MOST_CLASSES:
        message = (
            f"{dataset.folder}: {len(dataset.labels)} labels with the background; volseg trains {MOST_CLASSES} at "
            "most: merge some, or train on some of them"
        )
        faults.append(Fault("", "too many labels", message))
    warnings = tuple(fault.message for fault in faults if not fault.serious)
    return dataclasses.replace(dataset, warnings=warnings), faults


def _of_readers(dataset: Dataset, source: DataSource) -> list[str]:
    """What is to be said of cases that several readers have labelled."""
    counts = [len(case.masks) for case in dataset.cases if case.others]
    if not counts:
        return []
    said = {
        "majority": "a voxel has the label that most of them give it, of equals the first one's",
        "random": "each step sees the mask of one, drawn at random; validation what most of them say",
        "first": "the first one's mask is taken, the others are passed over",
    }[source.readers]
    several = str(min(counts)) if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    return [f"{dataset.folder}: {len(counts)} of {len(dataset.cases)} cases have masks of {several} readers: {said}"]


def _of_folder(source: DataSource) -> DataSource:
    """The same source, by its folder where its dataset.json was named."""
    named = source.path.name == DESCRIPTION and source.path.is_file()
    return dataclasses.replace(source, path=source.path.parent) if named else source


def _survey(source: DataSource) -> tuple[Dataset, list[Fault]]:
    path = source.path
    if (path / DESCRIPTION).is_file():
        for option, value in (("--labels", source.labels), ("--label-names", source.label_names),
                              ("--channels", source.channel_names)):  # fmt: skip
            if value:
                raise VolumeError(f"{path}: has a {DESCRIPTION}, which says what {option} would; leave {option} out")
        return survey_described(path, bool(source.label_map))
    whole = set_of_part(path)
    if whole is not None and source.labels is None:
        raise VolumeError(f"{path}: a part of the data set {whole}; give that")
    if path.is_dir() and not is_zarr_store(path) and holds_volumes(path):
        return survey_ingested(source)
    if path.exists() and (source.labels is not None or path.is_file() or is_zarr_store(path)):
        return survey_pair(source)
    if not path.is_dir():
        makes = f"; `volseg generate {path}` makes a synthetic one" if str(path) == "ellipsoids" else ""
        raise VolumeError(f"{path}: no such data set folder{makes or '; look for it, or name another'}")
    raise VolumeError(_no_set(path))


def _no_set(path: Path) -> str:
    """What is said of a folder that is no data set."""
    nested = alike_text(path, DESCRIPTION) or nested_text(path)
    if nested:
        return f"{path}: no {DESCRIPTION} in it{nested}"
    by_structure = sorted(path.glob("*/segmentations"))
    if by_structure:
        folders = f"{len(by_structure)} folder{'s' if len(by_structure) > 1 else ''}"
        return (
            f"{path}: no {DESCRIPTION} in it, but {folders} with segmentations/, as TotalSegmentator has them; "
            f"bring each in, and give NEW: mkdir NEW; for c in "
            f'{shlex.quote(str(path))}/*/; do volseg ingest "$c"/ct.nii.gz --labels "$c"/segmentations '
            '-o NEW/"$(basename "$c")".nii.gz; done'
        )
    if (path / IMAGES).is_dir() and (path / LABELS).is_dir():
        return (
            f"{path}: {IMAGES}/ and {LABELS}/, but no {DESCRIPTION}; write one, such as "
            '{"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}, "file_ending": ".nii.gz"}'
        )
    foreign = foreign_in(path)
    more = f"; {foreign_text(path, foreign)}" if foreign else ""
    return (
        f"{path}: no {DESCRIPTION} in it; a data set is a folder with {DESCRIPTION}, {IMAGES}/ and {LABELS}/, or a "
        f"folder of volumes that volseg ingest --labels wrote{more}"
    )
