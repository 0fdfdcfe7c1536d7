"""Two masks opened for comparison, of any format: a DICOM SEG or RTSTRUCT comes onto the other mask's grid.

The labels of DICOM files and of a folder of one mask a structure are numbered within them; where both sides have names,
these say which is which.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from volseg.errors import VolumeError
from volseg.geometry import Box
from volseg.volumes.canonical import in_order_of
from volseg.volumes.formats.dicom import DICOM
from volseg.volumes.label_files import label_table_of
from volseg.volumes.label_table import LabelTable
from volseg.volumes.mask_source import open_labels, open_mask
from volseg.volumes.mask_values import Remark, no_remark
from volseg.volumes.reading import format_of
from volseg.volumes.volume import Space, Volume

NAMED = 4
RESAMPLE = "--resample-labels"


def open_pair(
    prediction: Path, reference: Path, names: Mapping[str, int] | None = None, remark: Remark = no_remark
) -> tuple[Volume, Volume, tuple[str, ...]]:  # fmt: skip
    """Prediction and reference on one grid, and what is to be said of it.

    names   name -> value of the labels that are compared, where these are known
    remark  takes what only reading them brings up (see `mask_values`)

    Raises VolumeError where one of them cannot be read, or a DICOM file does not fit the other's grid.
    """
    dicom = [format_of(path) is DICOM for path in (prediction, reference)]
    if not any(dicom):
        true = open_mask(reference, _about(reference, remark))
        mask = open_mask(prediction, _about(prediction, remark), true.space.spacing)
        return in_order_of(mask, true.space), true, ()
    if all(dicom):
        return _both_dicom(prediction, reference, names, remark)
    plain, labelled = (reference, prediction) if dicom[0] else (prediction, reference)
    mask = open_mask(plain, _about(plain, remark))
    volume, table = _labels_on(labelled, mask, _about(labelled, remark))
    wanted = names if names is not None else _names_of(label_table_of(plain))
    renamed, notes = by_names(volume, table, wanted)
    return (renamed, mask, notes) if dicom[0] else (mask, renamed, notes)


def _labels_on(path: Path, image: Volume, remark: Remark = no_remark) -> tuple[Volume, LabelTable | None]:
    """The labels of a DICOM file on a grid; nothing is resampled here, so its error says what does."""
    try:
        labels, table = open_labels(path, image, remark=remark)
    except VolumeError as error:
        what, _, remedy = str(error).rpartition("; ")
        if RESAMPLE not in remedy:
            raise
        raise VolumeError(
            f"{what}; compare masks of one scan, or bring both onto it first: volseg ingest SCAN -o NEW.nii.gz "
            f"--labels {path} {RESAMPLE}"
        ) from None
    for warning in labels.audit.warnings:
        remark(warning)
    return labels, table


def _about(path: Path, remark: Remark) -> Remark:
    return lambda text: remark(f"{path}: {text}")


def _both_dicom(
    prediction: Path, reference: Path, names: Mapping[str, int] | None, remark: Remark
) -> tuple[Volume, Volume, tuple[str, ...]]:  # fmt: skip
    """Both on the grid that their frames form together; a structure set has none of its own."""
    grid = _Grid(reference, _common_grid(prediction, reference))
    true, true_table = _labels_on(reference, grid, _about(reference, remark))
    mask, table = _labels_on(prediction, grid, _about(prediction, remark))
    wanted = names if names is not None else _names_of(true_table)
    true, said_of_true = by_names(true, true_table, wanted)
    mask, said = by_names(mask, table, wanted)
    return mask, true, (*said, *said_of_true)


def _common_grid(prediction: Path, reference: Path) -> Space:
    """The grid of the frames of two SEGs, or of the one of them that says where its slices lie.

    A SEG has frames only where it has labels, so two of one scan seldom cover the same slices.
    """
    from volseg.volumes.dicom.labels.objects import STRUCTURES, find_label_object
    from volseg.volumes.dicom.labels.segmentation import open_segmentation

    spaces: list[Space] = []
    why = "an RTSTRUCT has no grid of its own"
    for path in (reference, prediction):
        file, kind = find_label_object(path)
        if kind == STRUCTURES:
            continue
        try:
            spaces.append(
                open_segmentation(file, kind, _Grid(path, Space((1, 1, 1), np.eye(4))), own_grid=True)[0].space
            )
        except VolumeError as error:
            why = str(error)
    if not spaces:
        raise VolumeError(
            f"{prediction} and {reference}: no grid to compare them on ({why}); bring one onto its scan with volseg "
            "ingest SCAN --labels, and compare with that"
        )
    return spaces[0] if len(spaces) == 1 else joined(*spaces)


def joined(space: Space, other: Space) -> Space:
    """`space`, with more slices at its ends where `other` goes on there on the same grid."""
    along = (np.linalg.inv(space.affine) @ other.affine)[:3, [2, 3]]  # the other's step and first voxel in ours
    first = round(float(along[2, 1]))
    before, after = max(0, -first), max(0, first + other.shape[0] - space.shape[0])
    same = np.allclose(along, [[0, 0], [0, 0], [1, first]], atol=0.1)
    if not same or space.shape[1:] != other.shape[1:]:
        return space
    affine = space.affine.copy()
    affine[:3, 3] -= before * affine[:3, 2]
    return Space((space.shape[0] + before + after, *space.shape[1:]), affine)


class _Grid(Volume):
    """A place for labels to lie, without an image."""

    def __init__(self, path: Path, space: Space) -> None:
        self.path, self.space = path, space

    def read(self, box: Box) -> np.ndarray:
        raise NotImplementedError


def by_names(
    mask: Volume, table: LabelTable | None, wanted: Mapping[str, int] | None
) -> tuple[Volume, tuple[str, ...]]:  # fmt: skip
    """The labels of a DICOM file with the values that labels of these names have, and what is to be said of it.

    Where no name agrees, values are left as they are. Labels whose name is none of `wanted` become background.
    """
    if table is None or wanted is None:
        return mask, ()
    values = {name.strip().casefold(): value for name, value in wanted.items() if value != 0}
    rows = table.foreground
    known = {value: values[name.strip().casefold()] for value, name in rows if name.strip().casefold() in values}
    if all(wanted_value == value for value, wanted_value in known.items()) and len(known) == len(rows):
        return mask, ()
    others = [name for value, name in rows if value not in known]
    shown = ", ".join(others[:NAMED]) + (", ..." if len(others) > NAMED else "")
    if not known:
        return mask, (
            f"{mask.path}: none of its labels ({shown}) has a name that is compared; they go by their values",
        )
    notes = (f"{mask.path}: its labels {shown} are none of those compared, and left out",) if others else ()
    return Renumbered(mask, {value: known.get(value, 0) for value, _ in rows}), notes


class Renumbered(Volume):
    """A mask with other values for its labels."""

    def __init__(self, mask: Volume, values: Mapping[int, int]) -> None:
        self.path, self.space, self.format, self.audit = mask.path, mask.space, mask.format, mask.audit
        self.whole_slices, self.rising_slices = mask.whole_slices, mask.rising_slices
        self.dtype = np.dtype(np.uint16)
        self._mask = mask
        self._values = np.arange(2**16, dtype=np.uint16)
        for value, other in values.items():
            self._values[value] = other

    def read(self, box: Box) -> np.ndarray:
        renumbered: np.ndarray = self._values[self._mask.read(box)]
        return renumbered

    def slabs(self, depth: int = 16) -> Iterator[tuple[Box, np.ndarray]]:
        """As the mask's own, in the order of its file."""
        for box, values in self._mask.slabs(depth):
            yield box, self._values[values]

    def close(self) -> None:
        self._mask.close()


def _names_of(table: LabelTable | None) -> Mapping[str, int] | None:
    return None if table is None else table.names
