"""What `evaluate` takes from a data set: labels and their names; no image is needed for it."""

from __future__ import annotations

from pathlib import Path

from volseg.errors import VolumeError
from volseg.volumes.dataset.described import file_ending, twins_in
from volseg.volumes.dataset.json_file import load_json
from volseg.volumes.dataset.layout import set_of_part
from volseg.volumes.dataset.listed import ListedPaths, listed_files
from volseg.volumes.file_names import DESCRIPTION, FILE_ENDINGS, LABELS, names_in


def description_near(path: Path) -> Path | None:
    """The dataset.json of what `path` belongs to: it itself, a data set's part such as labelsTr, or a file in one."""
    for folder in (path, set_of_part(path), set_of_part(path.parent)):
        if folder is not None and (folder / DESCRIPTION).is_file():
            return folder / DESCRIPTION
    return None


def reference_labels(folder: Path) -> dict[str, Path] | None:
    """Label files of a data set by case; None where `folder` is none, though it may hold a dataset.json.

    nnU-Net leaves that beside its predictions. Raises VolumeError where dataset.json cannot be read, or a file of
    labels that it lists is missing.
    """
    has_labels = (folder / LABELS).is_dir()
    if not has_labels and ((names_in(folder)) or not (folder / DESCRIPTION).is_file()):
        return None
    if not (folder / DESCRIPTION).is_file():
        return _all_in(folder / LABELS, FILE_ENDINGS)
    description = load_json(folder / DESCRIPTION)
    rows = listed_files(folder, description)
    if rows is None:
        if not has_labels:
            return None
        return _all_in(folder / LABELS, (file_ending(description, folder),))
    where = ListedPaths(folder)
    several = next((row for row in rows if len(row.labels) > 1), None)
    if several is not None:
        raise VolumeError(
            f"{folder}: case {several.name} has masks of {len(several.labels)} readers, and a mask is compared with "
            "one reference; put those of a reader into a folder of their own, called as the cases are, and give that"
        )
    labels = {row.name: where.find(row.labels[0], LABELS) for row in rows}
    lost = next((path for path in labels.values() if not path.exists()), None)
    if lost is not None:
        raise VolumeError(f"{lost}: missing, but {DESCRIPTION} lists it")
    return labels


def _all_in(folder: Path, endings: tuple[str, ...]) -> dict[str, Path]:
    for fault in twins_in(folder, endings):
        raise VolumeError(fault.message)
    labels = names_in(folder, endings)
    if not labels:
        raise VolumeError(f"{folder}: no file ends in {', '.join(endings)}")
    return labels
