"""Read a data set, whatever it is: folders of nnU-Net and the Decathlon, ingested volumes, one scan with labels."""

from __future__ import annotations

from pathlib import Path

from volseg.errors import VolumeError
from volseg.volumes.dataset.case import Dataset, DataSource, Fault
from volseg.volumes.dataset.described import IMAGES, LABELS, survey_described
from volseg.volumes.dataset.description import DESCRIPTION
from volseg.volumes.dataset.undescribed import holds_volumes, survey_ingested, survey_pair
from volseg.volumes.reading import is_zarr_store


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
    path = source.path
    if (path / DESCRIPTION).is_file():
        for option, value in (("--labels", source.labels), ("--label-names", source.label_names),
                              ("--channels", source.channel_names)):  # fmt: skip
            if value:
                raise VolumeError(f"{path}: has a {DESCRIPTION}, which says what {option} would; leave {option} out")
        return survey_described(path)
    if path.is_dir() and not is_zarr_store(path) and holds_volumes(path):
        return survey_ingested(source)
    if path.exists() and (source.labels is not None or path.is_file() or is_zarr_store(path)):
        return survey_pair(source)
    if not path.is_dir():
        makes = f"; `volseg generate {path}` makes a synthetic one" if str(path) == "ellipsoids" else ""
        raise VolumeError(f"{path}: no such data set folder{makes or '; look for it, or name another'}")
    raise VolumeError(
        f"{path}: no {DESCRIPTION} in it; a data set is a folder with {DESCRIPTION}, {IMAGES}/ and {LABELS}/, or a "
        "folder of volumes that volseg ingest --labels wrote"
    )
